#include "ops/kernels/attention_kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/random.h"
#include "tensor/float16.h"
#include "tensor/quant_blocks.h"

namespace quipu {
namespace {

std::vector<float> normals(int64_t count, uint64_t seed) {
  RandomStream random(seed, 3);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(random.normal());
  return values;
}

TEST(AttentionKernels, EveryHalfIsWidenedExactlyOnEveryLevel) {
  std::vector<uint16_t> halves(65536 + 3);   // and a part of a vector
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  std::vector<float> got(halves.size());
  const auto n = static_cast<int64_t>(halves.size());
  const auto* bytes = reinterpret_cast<const std::byte*>(halves.data());
  for (const Isa isa : available_isas()) {
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      attention_kernels(isa).widen_run(got.data(), bytes, dtype, n);
      for (size_t i = 0; i < halves.size(); ++i) {
        const float wanted = dtype == DType::kF16 ? f16_to_f32(halves[i]) : bf16_to_f32(halves[i]);
        ASSERT_TRUE(std::isnan(wanted) ? std::isnan(got[i]) : std::memcmp(&wanted, &got[i], 4) == 0) << isa_name(isa) << " " << i;
      }
    }
  }
}

TEST(AttentionKernels, BlocksOfEightBitsAreWidenedAsTheirFormatSays) {
  constexpr int64_t kCount = 32 * 7;
  const std::vector<float> values = normals(kCount, 5);
  std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(DType::kQ8_0, kCount)));
  quantise_row(bytes.data(), DType::kQ8_0, values.data(), kCount);
  std::vector<float> wanted(kCount), got(kCount);
  dequantise_row(wanted.data(), DType::kQ8_0, bytes.data(), kCount);
  for (const Isa isa : available_isas()) {
    attention_kernels(isa).widen_run(got.data(), bytes.data(), DType::kQ8_0, kCount);
    EXPECT_EQ(got, wanted) << isa_name(isa);
  }
}

// All sizes around the register tiles. A dot of n terms in fp32 is off by at most n epsilon times the sum of |terms|.
TEST(AttentionKernels, RowScoresAreDotsWhateverIsComputedWithThem) {
  constexpr int64_t kMostQueries = 21, kMostKeys = 64, kStride = 75;
  const std::vector<float> q = normals(kMostQueries * kStride, 1), keys = normals(kMostKeys * kStride, 2);
  for (const Isa isa : available_isas()) {
    for (const int64_t dim : {1, 15, 16, 17, 64, 70}) {
      std::vector<float> alone(kMostQueries * kMostKeys);
      for (int64_t r = 0; r < kMostQueries; ++r) {
        for (int64_t j = 0; j < kMostKeys; ++j) {
          float one[64];
          attention_kernels(isa).row_scores(one, {q.data() + r * kStride, kStride, dim, 1}, {keys.data() + j * kStride, kStride, dim, 1}, {});
          alone[static_cast<size_t>(r * 64 + j)] = one[0];
          double wanted = 0, size = 0;
          for (int64_t d = 0; d < dim; ++d) {
            const double term = double{q[static_cast<size_t>(r * kStride + d)]} * keys[static_cast<size_t>(j * kStride + d)];
            wanted += term;
            size += std::fabs(term);
          }
          ASSERT_NEAR(double{one[0]}, wanted, 1.2e-7 * static_cast<double>(dim) * size) << isa_name(isa) << " " << dim;
        }
      }
      for (int64_t queries = 1; queries <= kMostQueries; ++queries) {
        for (const int64_t count : {1, 2, 3, 4, 7, 62, 64}) {
          std::vector<float> scores(kMostQueries * 64, std::numeric_limits<float>::quiet_NaN());
          attention_kernels(isa).row_scores(scores.data(), {q.data(), kStride, dim, queries}, {keys.data(), kStride, dim, count}, {});
          for (int64_t r = 0; r < queries; ++r) {
            ASSERT_EQ(std::memcmp(scores.data() + r * 64, alone.data() + r * 64, static_cast<size_t>(4 * count)), 0)
                << isa_name(isa) << " queries " << queries << " keys " << count << " dim " << dim;
          }
        }
      }
    }
  }
}

TEST(AttentionKernels, ScoresOfKeptRowsAreThoseOfWidenedRows) {
  for (const Isa isa : available_isas()) {
    for (const DType dtype : {DType::kF16, DType::kBF16, DType::kQ8_0}) {
      for (const int64_t dim : {9, 32, 39, 64}) {
        if (dim % traits(dtype).block_elements != 0) continue;
        for (const int64_t queries : {1, 3, 8, 16}) {
          for (const int64_t count : {1, 5, 64}) {
            const std::vector<float> rows = normals(count * dim, 3), q = normals(queries * dim, 4);
            std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(dtype, dim) * count));
            for (int64_t r = 0; r < count; ++r) quantise_row(bytes.data() + r * row_bytes(dtype, dim), dtype, rows.data() + r * dim, dim);
            std::vector<float> wide(rows.size()), got_wide(rows.size()), wanted(static_cast<size_t>(queries) * 64), got(wanted.size());
            dequantise_row(wide.data(), dtype, bytes.data(), count * dim);
            attention_kernels(isa).row_scores(wanted.data(), {q.data(), dim, dim, queries}, {wide.data(), dim, dim, count}, {});
            attention_kernels(isa).widen_row_scores(got.data(), got_wide.data(), {q.data(), dim, dim, queries}, {bytes.data(), dtype, dim, count}, {});
            ASSERT_EQ(got_wide, wide) << isa_name(isa);
            for (int64_t r = 0; r < queries; ++r) {
              ASSERT_EQ(std::memcmp(got.data() + r * 64, wanted.data() + r * 64, static_cast<size_t>(4 * count)), 0) << isa_name(isa);
            }
          }
        }
      }
    }
  }
}

TEST(AttentionKernels, RowValuesAddWeightedRowsAndTouchNothingElse) {
  constexpr int64_t kMostQueries = 13, kStride = 90, kOutStride = 77;
  const std::vector<float> values = normals(64 * kStride, 4), p = normals(kMostQueries * 64, 6);
  const std::vector<float> rescale = normals(kMostQueries, 7), start = normals(kMostQueries * kOutStride, 8);
  for (const Isa isa : available_isas()) {
    for (const int64_t dim : {1, 16, 23, 64, 75}) {
      for (const int64_t queries : {1, 2, 3, 4, 5, 6, 8, 13}) {
        for (const int64_t count : {0, 1, 3, 64}) {
          std::vector<float> out = start;
          attention_kernels(isa).row_values({out.data(), kOutStride, queries}, p.data(), rescale.data(), {values.data(), kStride, dim, count}, {reinterpret_cast<const std::byte*>(p.data()), 999});
          for (int64_t r = 0; r < kMostQueries; ++r) {
            for (int64_t c = 0; c < kOutStride; ++c) {
              const size_t at = static_cast<size_t>(r * kOutStride + c);
              if (r >= queries || c >= dim) {
                ASSERT_EQ(out[at], start[at]);
                continue;
              }
              double wanted = double{start[at]} * rescale[static_cast<size_t>(r)], size = std::fabs(wanted);
              for (int64_t j = 0; j < count; ++j) {
                const double term = double{p[static_cast<size_t>(r * 64 + j)]} * values[static_cast<size_t>(j * kStride + c)];
                wanted += term;
                size += std::fabs(term);
              }
              ASSERT_NEAR(double{out[at]}, wanted, 1.2e-7 * static_cast<double>(count + 2) * size) << isa_name(isa) << " " << dim;
            }
          }
        }
      }
    }
  }
}

TEST(AttentionKernels, TurnedRowsAreAKeyPage) {
  constexpr int64_t kStride = 40;
  const std::vector<float> rows = normals(64 * kStride, 9);
  for (const Isa isa : available_isas()) {
    for (const int64_t count : {1, 16, 33, 64}) {
      std::vector<float> page(37 * 64);
      attention_kernels(isa).turn_rows(page.data(), {rows.data(), kStride, 37, count});
      for (int64_t row = 0; row < count; ++row) {
        for (int64_t d = 0; d < 37; ++d) ASSERT_EQ(page[static_cast<size_t>(d * 64 + row)], rows[static_cast<size_t>(row * kStride + d)]);
      }
    }
  }
}

// Scores from -200 to 200: the sums overflow without the running maximum.
TEST(AttentionKernels, PagesAddUpToOneSoftmax) {
  constexpr int64_t kRows = 150, kKey = 37, kValue = 21;
  std::vector<float> keys(kRows * kKey), query(kKey, 1.0f);
  for (size_t i = 0; i < keys.size(); ++i) keys[i] = static_cast<float>((i * 7919) % 401) / 37.0f - 5.4f;
  for (int64_t j = 0; j < kRows; ++j) keys[static_cast<size_t>(j * kKey)] += static_cast<float>(j * 13 % 390 - 195);
  for (const Isa isa : available_isas()) {
    const AttentionKernels& kernels = attention_kernels(isa);
    float maximum = -std::numeric_limits<float>::infinity(), total = 0, rescale = 1;
    std::vector<float> sum(kValue, 0.0f), scores(64);
    for (int64_t first = 0; first < kRows; first += 64) {
      const int32_t none = 0, count = static_cast<int32_t>(std::min<int64_t>(64, kRows - first));
      kernels.row_scores(scores.data(), {query.data(), kKey, kKey, 1}, {keys.data() + first * kKey, kKey, kKey, count}, {});
      kernels.softmax_page(scores.data(), &maximum, &total, &rescale, &none, &count, 1, 0.5f, 0.0f);
      kernels.row_values({sum.data(), kValue, 1}, scores.data(), &rescale, {keys.data() + first * kKey, kKey, kValue, count}, {});
    }
    std::vector<double> exact(kRows), wanted(kValue);
    double largest = -1e9, all = 0;
    for (int64_t j = 0; j < kRows; ++j) {
      for (int64_t c = 0; c < kKey; ++c) exact[static_cast<size_t>(j)] += 0.5 * double{keys[static_cast<size_t>(j * kKey + c)]};
      largest = std::max(largest, exact[static_cast<size_t>(j)]);
    }
    for (int64_t j = 0; j < kRows; ++j) {
      const double p = std::exp(exact[static_cast<size_t>(j)] - largest);
      all += p;
      for (int64_t c = 0; c < kValue; ++c) wanted[static_cast<size_t>(c)] += p * double{keys[static_cast<size_t>(j * kKey + c)]};
    }
    for (size_t c = 0; c < wanted.size(); ++c) {
      EXPECT_NEAR(double{sum[c] / total}, wanted[c] / all, 1e-3) << isa_name(isa) << " " << c;
    }
  }
}

}  // namespace
}  // namespace quipu
