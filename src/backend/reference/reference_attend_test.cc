// attend() against a quadratic softmax written here from its formula, over decoded cache rows.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "backend/reference/reference_backend.h"
#include "base/random.h"
#include "tensor/float16.h"

namespace quipu {
namespace {

struct AttendCase {
  std::string name;
  DType dtype;
  int64_t heads, kv_heads, key_dim, value_dim;
  int64_t keys;         // in the cache at the end
  int64_t rows;         // queries: the last ones
  int64_t window = 0;
  float softcap = 0.0f;
  bool ring = false;
};

// Pages for one sequence's keys and values, owned here.
struct Pages {
  explicit Pages(const AttendCase& c) {
    const int64_t pages = c.ring ? (c.window + c.rows + 62) / kPageRows + 1 : (c.keys + kPageRows - 1) / kPageRows;
    const auto bytes = [&](int64_t dim) { return static_cast<size_t>(kv_head_page_bytes(c.dtype, dim) * c.kv_heads); };
    for (int64_t p = 0; p < pages; ++p) {
      keys.emplace_back(bytes(c.key_dim), std::byte{0x7e});     // a ring or a last page holds old bits: NaN or huge
      values.emplace_back(bytes(c.value_dim), std::byte{0x7e});
    }
    for (int64_t p = 0; p < pages; ++p) {
      key_pointers.push_back(keys[static_cast<size_t>(p)].data());
      value_pointers.push_back(values[static_cast<size_t>(p)].data());
    }
    view = {c.dtype, c.kv_heads, c.key_dim, c.value_dim, key_pointers, value_pointers, c.ring ? pages : 0};
  }
  std::vector<std::vector<std::byte>> keys, values;
  std::vector<std::byte*> key_pointers, value_pointers;
  KvCacheView view;
};

// What a row becomes in the cache: exact for f32, otherwise decoded from a page of its own. The layouts themselves are
// tested through this: a wrong index shows up as another row's numbers.
std::vector<float> as_cached(DType dtype, const float* row, int64_t dim) {
  std::vector<std::byte> page(static_cast<size_t>(kv_head_page_bytes(dtype, dim)));
  std::vector<float> out(static_cast<size_t>(dim));
  save_value_row(page.data(), dtype, dim, 0, row);
  load_value_row(out.data(), dtype, page.data(), dim, 0);
  return out;
}

// Rows are rounded as tensor/float16.h says, whatever instructions do it: the same state on every machine.
TEST(KvRows, AreRoundedAsThePortableConversionsSay) {
  std::vector<float> row = {0.0f, -0.0f, 65519.9f, 65520.0f, -1e30f, INFINITY, 5.9e-8f, 2.9e-8f, 1.00048828125f, 1.00146484375f, 6.1e-5f};
  RandomStream random(3, 1);
  while (row.size() < 77) row.push_back(static_cast<float>(random.normal() * std::exp(6 * random.normal())));
  const int64_t dim = static_cast<int64_t>(row.size());
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    std::vector<std::byte> page(static_cast<size_t>(kv_head_page_bytes(dtype, dim)));
    std::vector<float> out(row.size());
    const auto expect_rounded = [&] {
      for (size_t i = 0; i < row.size(); ++i) {
        const float wanted = dtype == DType::kF16 ? f16_to_f32(f32_to_f16(row[i])) : bf16_to_f32(f32_to_bf16(row[i]));
        EXPECT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(wanted)) << row[i];
      }
    };
    save_value_row(page.data(), dtype, dim, 5, row.data());
    load_value_row(out.data(), dtype, page.data(), dim, 5);
    expect_rounded();
    save_key_row(page.data(), dtype, dim, 63, row.data());
    load_key_row(out.data(), dtype, page.data(), dim, 63);
    expect_rounded();
  }
}

class Attend : public testing::TestWithParam<AttendCase> {};

TEST_P(Attend, EqualsQuadraticSoftmax) {
  const AttendCase& c = GetParam();
  auto backend = make_reference_backend(2);
  RandomStream random(7, static_cast<uint64_t>(c.keys));
  const auto matrix = [&](int64_t count, double gain) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = static_cast<float>(gain * random.normal());
    return values;
  };
  // Gain 2 on queries: some rows put almost all weight on one key, others spread it.
  std::vector<float> q = matrix(c.rows * c.heads * c.key_dim, 2.0);
  std::vector<float> k = matrix(c.keys * c.kv_heads * c.key_dim, 1.0);
  std::vector<float> v = matrix(c.keys * c.kv_heads * c.value_dim, 1.0);
  Pages pages(c);
  const MatrixView<const float> k_view(k.data(), c.keys, c.kv_heads * c.key_dim);
  const MatrixView<const float> v_view(v.data(), c.keys, c.kv_heads * c.value_dim);
  for (int64_t row = 0; row < c.keys; row += 7) {
    const int64_t count = std::min<int64_t>(7, c.keys - row);
    backend->store_kv(pages.view, row, k_view.rows_from(row, count), v_view.rows_from(row, count));
  }

  const AttendOptions options{.heads = c.heads, .scale = 0.37f, .window = c.window, .logit_softcap = c.softcap};
  const AttendSlice slice{.row_begin = 0, .rows = c.rows, .first_key = c.keys - c.rows, .cache = pages.view};
  std::vector<float> out(static_cast<size_t>(c.rows * c.heads * c.value_dim));
  backend->attend({out.data(), c.rows, c.heads * c.value_dim}, {q.data(), c.rows, c.heads * c.key_dim}, {&slice, 1},
                  options);

  for (int64_t i = 0; i < c.rows; ++i) {
    for (int64_t head = 0; head < c.heads; ++head) {
      const int64_t group = head / (c.heads / c.kv_heads);
      const int64_t now = c.keys - c.rows + i;
      std::vector<double> score(static_cast<size_t>(c.keys), -INFINITY);
      for (int64_t j = 0; j <= now; ++j) {
        if (c.window > 0 && j <= now - c.window) continue;
        const auto key = as_cached(c.dtype, k.data() + (j * c.kv_heads + group) * c.key_dim, c.key_dim);
        double s = 0;
        for (int64_t d = 0; d < c.key_dim; ++d) s += double{q[(i * c.heads + head) * c.key_dim + d]} * double{key[d]};
        s *= double{options.scale};
        score[static_cast<size_t>(j)] = c.softcap > 0 ? double{c.softcap} * std::tanh(s / double{c.softcap}) : s;
      }
      const double top = *std::max_element(score.begin(), score.end());
      double total = 0;
      std::vector<double> expected(static_cast<size_t>(c.value_dim));
      for (int64_t j = 0; j < c.keys; ++j) {
        const double p = std::exp(score[static_cast<size_t>(j)] - top);
        total += p;
        const auto value = as_cached(c.dtype, v.data() + (j * c.kv_heads + group) * c.value_dim, c.value_dim);
        for (int64_t d = 0; d < c.value_dim; ++d) expected[d] += p * double{value[d]};
      }
      for (int64_t d = 0; d < c.value_dim; ++d) {
        // Values are below 5; one float rounding of the result, double error far below it.
        ASSERT_NEAR(out[(i * c.heads + head) * c.value_dim + d], expected[d] / total, 5 * 0x1p-24) << i << " " << head;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, Attend,
    testing::Values(AttendCase{"one_key", DType::kF32, 2, 2, 4, 4, 1, 1},
                    AttendCase{"multi_head_f32", DType::kF32, 3, 3, 5, 7, 67, 67},
                    AttendCase{"grouped_f16", DType::kF16, 6, 2, 8, 8, 129, 9},
                    AttendCase{"one_key_head_bf16", DType::kBF16, 4, 1, 6, 3, 64, 64},
                    AttendCase{"grouped_q8_0", DType::kQ8_0, 4, 2, 64, 32, 70, 5},
                    AttendCase{"window_1", DType::kF32, 2, 1, 4, 4, 66, 66, 1},
                    AttendCase{"window_10", DType::kF32, 2, 1, 4, 4, 66, 66, 10},
                    AttendCase{"window_f16_ring", DType::kF16, 4, 2, 8, 8, 500, 7, 65, 0.0f, true},
                    AttendCase{"window_q8_0_ring", DType::kQ8_0, 4, 2, 32, 64, 321, 5, 100, 0.0f, true},
                    AttendCase{"softcap", DType::kF32, 2, 2, 8, 8, 65, 65, 0, 1.5f}),
    [](const auto& test) { return test.param.name; });

TEST(AttendRagged, ASequenceDoesNotSeeItsNeighbours) {
  const AttendCase c{"", DType::kF32, 2, 1, 4, 4, 10, 10};
  auto backend = make_reference_backend(3);
  RandomStream random(9, 0);
  std::vector<float> q(15 * 8), k(15 * 4), v(15 * 4);
  for (std::vector<float>* values : {&q, &k, &v}) {
    for (float& value : *values) value = static_cast<float>(random.normal());
  }
  Pages first(c), second(c);
  backend->store_kv(first.view, 0, {k.data(), 5, 4}, {v.data(), 5, 4});
  backend->store_kv(second.view, 0, {k.data() + 20, 10, 4}, {v.data() + 20, 10, 4});
  const std::vector<AttendSlice> both = {{0, 5, 0, first.view}, {5, 10, 0, second.view}};
  std::vector<float> together(15 * 8), alone(15 * 8);
  backend->attend({together.data(), 15, 8}, {q.data(), 15, 8}, both, {.heads = 2});
  backend->attend({alone.data(), 5, 8}, {q.data(), 5, 8}, std::vector<AttendSlice>{{0, 5, 0, first.view}}, {.heads = 2});
  backend->attend({alone.data() + 40, 10, 8}, {q.data() + 40, 10, 8},
                  std::vector<AttendSlice>{{0, 10, 0, second.view}}, {.heads = 2});
  EXPECT_EQ(together, alone);
}

}  // namespace
}  // namespace quipu
