#include "attention/shared/latent_expanded.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "backend/cpu/amx_emulator_for_test.h"
#include "backend/cpu/cpu_backend.h"
#include "base/random.h"
#include "ops/kernels/attention_kernels.h"
#include "ops/kv_cache.h"
#include "tensor/buffer.h"
#include "tensor/float16.h"
#include "tensor/quant_blocks.h"

namespace quipu {
namespace {

std::unique_ptr<Backend> backend_of(Isa isa, int threads) {
  auto backend = make_cpu_backend({.threads = threads, .isa = isa, .isa_is_emulated = isa > best_isa()});
  CHECK(backend.ok());
  return std::move(backend).value();
}

float rounded(float value) { return bf16_to_f32(f32_to_bf16(value)); }

// Latent rows of one sequence, queries that see the beginnings of it, and an up-projection in bf16.
struct Case {
  ExpandedShape shape;
  std::vector<std::byte> memory;
  std::vector<std::byte*> pages;
  std::vector<LatentContext> contexts;
  std::vector<float> query, own, up;   // up [heads * (nope_dim + value_dim)][rank]

  Case(const ExpandedShape& shape_in, const std::vector<int64_t>& rows_seen, bool with_own) : shape(shape_in) {
    RandomStream random(17, 5);
    const int64_t width = shape.latent.width(), stride = row_bytes(shape.latent.dtype, width);
    const auto fill = [&](std::vector<float>& values, int64_t count, double spread) {
      values.resize(static_cast<size_t>(count));
      for (float& value : values) value = static_cast<float>(spread * random.normal());
    };
    const auto queries = static_cast<int64_t>(rows_seen.size());
    fill(query, queries * shape.latent.heads * shape.query_dim(), 1.0);
    fill(own, queries * width, 1.0);
    fill(up, shape.latent.heads * (shape.nope_dim + shape.value_dim) * shape.latent.rank, 1.0 / std::sqrt(static_cast<double>(shape.latent.rank)));
    for (float& value : up) value = rounded(value);
    int64_t most = 0;
    for (const int64_t rows : rows_seen) most = std::max(most, rows);
    const int64_t count = (most + kPageRows - 1) / kPageRows;
    memory.assign(static_cast<size_t>(count * kPageRows * stride), std::byte{0xff});   // NaN where nothing was written
    for (int64_t p = 0; p < count; ++p) pages.push_back(memory.data() + p * kPageRows * stride);
    std::vector<float> row;
    for (int64_t r = 0; r < most; ++r) {
      fill(row, width, 1.0);
      store_latent_row(pages[static_cast<size_t>(r / kPageRows)], shape.latent.dtype, width, r % kPageRows, row.data());
    }
    for (const int64_t rows : rows_seen) {
      contexts.push_back({.pages = pages, .rows = rows, .expand = true});
      if (with_own) contexts.back().own = own.data() + static_cast<int64_t>(contexts.size() - 1) * width;
    }
  }

  std::vector<float> run(Backend& backend, bool tiles, int64_t first = 0, int64_t count = -1) const {
    if (count < 0) count = std::ssize(contexts);
    ExpandedShape s = shape;
    s.latent.isa = backend.isa();
    s.tiles = tiles;
    const int64_t heads = s.latent.heads, rank = s.latent.rank;
    std::vector<uint16_t> halves(static_cast<size_t>(heads * s.head_rows() * rank));
    for (int64_t head = 0; head < heads; ++head) {
      const float* from = up.data() + head * (s.nope_dim + s.value_dim) * rank;
      uint16_t* to = halves.data() + head * s.head_rows() * rank;
      std::transform(from, from + s.nope_dim * rank, to, f32_to_bf16);
      std::transform(from + s.nope_dim * rank, from + (s.nope_dim + s.value_dim) * rank, to + s.key_rows() * rank, f32_to_bf16);
    }
    auto packed = backend.pack({DType::kBF16, heads * s.head_rows(), rank, std::as_bytes(std::span(halves))});
    CHECK(packed.ok());
    const auto scratch = Buffer::allocate(static_cast<size_t>(4 * expanded_scratch_floats(s, count, backend.threads())));
    const int64_t query_cols = heads * s.query_dim(), out_cols = heads * s.value_dim;
    std::vector<float> out(static_cast<size_t>(count * out_cols));
    attend_expanded(backend, {out.data(), count, out_cols}, {query.data() + first * query_cols, count, query_cols},
                    std::span(contexts).subspan(static_cast<size_t>(first), static_cast<size_t>(count)), **packed, s,
                    scratch->as<float>());
    return out;
  }

  // In double over all keys at once: no pages, no segments.
  std::vector<double> wanted() const {
    std::vector<double> out;
    const int64_t width = shape.latent.width(), stride = row_bytes(shape.latent.dtype, width), rank = shape.latent.rank;
    std::vector<float> row(static_cast<size_t>(width));
    for (size_t i = 0; i < contexts.size(); ++i) {
      std::vector<std::vector<float>> rows;
      for (int64_t r = 0; r < contexts[i].rows; ++r) {
        dequantise_row(row.data(), shape.latent.dtype, pages[static_cast<size_t>(r / kPageRows)] + r % kPageRows * stride, width);
        rows.push_back(row);
      }
      if (contexts[i].own != nullptr) rows.emplace_back(contexts[i].own, contexts[i].own + width);
      for (int64_t head = 0; head < shape.latent.heads; ++head) {
        const float* q = query.data() + (static_cast<int64_t>(i) * shape.latent.heads + head) * shape.query_dim();
        const float* of_head = up.data() + head * (shape.nope_dim + shape.value_dim) * rank;
        std::vector<double> sum(static_cast<size_t>(shape.value_dim));
        double total = 0;
        for (const auto& latent : rows) {
          const auto expanded = [&](int64_t c) {
            double dot = 0;
            for (int64_t k = 0; k < rank; ++k) dot += double{of_head[c * rank + k]} * latent[static_cast<size_t>(k)];
            return dot;
          };
          double score = 0;
          for (int64_t c = 0; c < shape.nope_dim; ++c) score += q[c] * expanded(c);
          for (int64_t c = 0; c < shape.latent.rope_dim; ++c) score += double{q[shape.nope_dim + c]} * latent[static_cast<size_t>(rank + c)];
          const double p = std::exp(score * double{shape.latent.scale});   // scores stay below 100
          total += p;
          for (int64_t c = 0; c < shape.value_dim; ++c) sum[static_cast<size_t>(c)] += p * expanded(shape.nope_dim + c);
        }
        for (const double value : sum) out.push_back(value / total);
      }
    }
    return out;
  }
};

std::vector<Isa> isas_with_tiles() {
  std::vector<Isa> isas;
  for (const Isa isa : isas_under_test()) {
    if (attention_kernels(isa).has_tiles()) isas.push_back(isa);
  }
  return isas;
}

constexpr int64_t kOdd = 0, kWhole = 1;
ExpandedShape shape_of(int64_t kind, DType dtype) {
  if (kind == kOdd) {
    return {.latent = {.dtype = dtype, .heads = 3, .rank = 45, .rope_dim = dtype == DType::kQ8_0 ? 19 : 6, .scale = 0.3f},
            .nope_dim = 21, .value_dim = 19};
  }
  return {.latent = {.dtype = dtype, .heads = 2, .rank = 64, .rope_dim = 32, .scale = 0.2f}, .nope_dim = 32, .value_dim = 48};
}

// Lengths around tiles, pages and segments, in the order a prompt has them and more than one block of 32.
std::vector<int64_t> lengths() {
  std::vector<int64_t> rows = {1, 2, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257};
  for (int64_t r = 500; r < 560; ++r) rows.push_back(r);
  return rows;
}

// bf16 keeps 8 bits: 2^-9 at most, 2^-10 typically, of each factor. A score is a sum of d products of size one whose factors q, k and,
// in f16 and q8_0, row are rounded: scale sqrt(d) sqrt(3) 2^-10 is a standard deviation of its error, 0.004 here, and as much of a
// probability's, which is rounded by 2^-10 itself. What is off is a weighted mean of values of size one: five of those.
TEST(LatentExpanded, TilesGiveTheSoftmaxOverAllKeys) {
  for (const Isa isa : isas_with_tiles()) {
    auto backend = backend_of(isa, 2);
    for (const DType dtype : {DType::kBF16, DType::kF16, DType::kQ8_0}) {
      for (const int64_t kind : {kOdd, kWhole}) {
        for (const bool own : {false, true}) {
          const Case test(shape_of(kind, dtype), lengths(), own);
          const std::vector<double> wanted = test.wanted();
          const std::vector<float> got = test.run(*backend, true), fp32 = test.run(*backend, false);
          ASSERT_EQ(got.size(), wanted.size());
          double squares = 0, size = 0;
          for (size_t i = 0; i < got.size(); ++i) {
            ASSERT_NEAR(double{got[i]}, wanted[i], 0.02) << isa_name(isa) << " " << dtype_name(dtype) << " " << kind << " " << i;
            ASSERT_NEAR(double{fp32[i]}, wanted[i], 0.02) << "the other way, whose products round rows to bf16 only " << i;
            squares += (got[i] - wanted[i]) * (got[i] - wanted[i]);
            size += wanted[i] * wanted[i];
          }
          EXPECT_LT(std::sqrt(squares / size), 0.01) << dtype_name(dtype) << " " << kind;
        }
      }
    }
  }
  if (isas_with_tiles().empty()) GTEST_SKIP() << "neither tiles nor an emulation of them on this machine";
}

TEST(LatentExpanded, BitsDependNeitherOnThreadsNorOnOtherRows) {
  for (const Isa isa : isas_with_tiles()) {
    for (const DType dtype : {DType::kBF16, DType::kF16}) {
      const Case test(shape_of(kOdd, dtype), lengths(), true);
      const std::vector<float> together = test.run(*backend_of(isa, 1), true);
      for (const int threads : {2, 3, 7}) {
        const std::vector<float> again = test.run(*backend_of(isa, threads), true);
        ASSERT_EQ(std::memcmp(together.data(), again.data(), together.size() * 4), 0) << threads << " threads";
      }
      auto backend = backend_of(isa, 2);
      const size_t row = static_cast<size_t>(test.shape.latent.heads * test.shape.value_dim);
      for (const int64_t count : {1, 5, 40}) {
        for (int64_t first = 0; first + count <= std::ssize(test.contexts); first += 7) {
          const std::vector<float> some = test.run(*backend, true, first, count);
          ASSERT_EQ(std::memcmp(together.data() + static_cast<size_t>(first) * row, some.data(), some.size() * 4), 0)
              << count << " rows from " << first;
        }
      }
    }
  }
  if (isas_with_tiles().empty()) GTEST_SKIP() << "neither tiles nor an emulation of them on this machine";
}

// More rows than a task holds.
TEST(LatentExpanded, LongStepsAreCutIntoTasksWithoutATrace) {
  for (const Isa isa : isas_with_tiles()) {
    std::vector<int64_t> rows;
    for (int64_t r = 1; r <= 1100; ++r) rows.push_back(r);
    ExpandedShape shape = shape_of(kWhole, DType::kBF16);
    shape.latent.heads = 1;
    const Case test(shape, rows, false);
    auto backend = backend_of(isa, 1);
    const std::vector<float> whole = test.run(*backend, true), end = test.run(*backend, true, 1020, 80);
    ASSERT_EQ(std::memcmp(whole.data() + 1020 * shape.value_dim, end.data(), end.size() * 4), 0);
  }
  if (isas_with_tiles().empty()) GTEST_SKIP() << "neither tiles nor an emulation of them on this machine";
}

}  // namespace
}  // namespace quipu
