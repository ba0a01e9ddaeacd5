// Every instruction set this machine has, and AMX by emulation, against the reference back end and against itself.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "backend/cpu/amx_emulator_for_test.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/panel_format.h"
#include "backend/reference/reference_backend.h"
#include "base/random.h"
#include "tensor/float16.h"
#include "tensor/quant_blocks.h"

namespace quipu {
namespace {

constexpr DType kWeightTypes[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ4_0, DType::kQ4_1,
                                  DType::kQ5_0, DType::kQ5_1, DType::kQ8_0, DType::kQ2_K, DType::kQ3_K,
                                  DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kIQ4_NL};

std::vector<float> normals(int64_t count, uint64_t seed, double scale = 1.0) {
  RandomStream random(seed, 1);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = static_cast<float>(scale * random.normal());
  return values;
}

std::vector<std::byte> random_weights(DType dtype, int64_t rows, int64_t cols, uint64_t seed) {
  const std::vector<float> values = normals(rows * cols, seed, 0.1);
  std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(dtype, cols) * rows));
  for (int64_t r = 0; r < rows; ++r) {
    quantise_row(bytes.data() + r * row_bytes(dtype, cols), dtype, values.data() + r * cols, cols);
  }
  return bytes;
}

std::unique_ptr<Backend> cpu(Isa isa, int threads = 2, Activations activations = Activations::kFast) {
  auto backend = make_cpu_backend(
      {.threads = threads, .isa = isa, .activations = activations, .isa_is_emulated = isa > best_isa()});
  CHECK(backend.ok());
  return std::move(backend).value();
}

std::vector<float> product(Backend& backend, const MatrixSource& source, const std::vector<float>& x, int64_t n,
                           const float* bias = nullptr) {
  auto packed = backend.pack(source);
  CHECK(packed.ok()) << packed.error().message;
  std::vector<float> y(static_cast<size_t>(n * source.rows), NAN);
  backend.matmul({y.data(), n, source.rows}, **packed, {x.data(), n, source.cols}, bias);
  return y;
}

double norm(const float* x, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return std::sqrt(sum);
}

std::string name_of(const testing::TestParamInfo<Isa>& info) { return std::string(isa_name(info.param)); }

class CpuBackendTest : public testing::TestWithParam<Isa> {};

// |y - y_ref| <= tolerance * |row of W| |x|: Cauchy-Schwarz with the relative rounding error of one factor.
//   exact: 3 eps sqrt(K)-like accumulation, far below 1e-5
//   fast, quantised weights: x is rounded to 127 steps of its block's largest entry; for normal data the largest of 32 is
//   about 2.1 sigma, so the rounding error is 2.1/127/sqrt(12) = 0.5 % of |x|, and the dot of independent errors with W
//   is |W row| |x| 0.005 / sqrt(K) * a few standard deviations. 6 sigma at K = 256: 0.005 * 6 / 16 = 0.0019.
//   The same bound holds for Q8_0 on AMX, whose codes are rounded rather than x: to a half to one of their own steps.
//   fast, bf16 weights on AMX: x = 2^e m is rounded to 8 significant bits, in steps of 2^(e-7): an error of 2^(e-7) / sqrt(12)
//   in the root mean square, 0.0015 of x where m is 1.5. 6 sigma at K = 512: 0.0015 * 6 / sqrt(512) = 0.0004.
double matmul_tolerance(Isa isa, DType dtype, Activations activations) {
  if (activations == Activations::kExact) return 1e-5;
  if (traits(dtype).quantised) return 0.0019;
  return isa == Isa::kAmx && dtype == DType::kBF16 ? 0.0004 : 1e-5;
}

TEST_P(CpuBackendTest, MatmulAgreesWithTheReferenceForEveryFormat) {
  auto reference = make_reference_backend(1);
  for (const Activations activations : {Activations::kExact, Activations::kFast}) {
    auto backend = cpu(GetParam(), 2, activations);
    for (const DType dtype : kWeightTypes) {
      const int64_t cols = 512;
      const auto weights = random_weights(dtype, 67, cols, 7);
      for (const int64_t rows : {1, 15, 16, 67}) {
        const MatrixSource source{dtype, rows, cols, std::span(weights).first(static_cast<size_t>(row_bytes(dtype, cols) * rows))};
        for (const int64_t n : {1, 3, 13}) {
          const auto x = normals(n * cols, 11 + static_cast<uint64_t>(n));
          const auto bias = normals(rows, 5);
          const auto expected = product(*reference, source, x, n, bias.data());
          const auto got = product(*backend, source, x, n, bias.data());
          const double tolerance = matmul_tolerance(GetParam(), dtype, activations);
          std::vector<float> row(static_cast<size_t>(cols));
          for (int64_t r = 0; r < rows; ++r) {
            dequantise_row(row.data(), dtype, weights.data() + r * row_bytes(dtype, cols), cols);
            for (int64_t t = 0; t < n; ++t) {
              const size_t at = static_cast<size_t>(t * rows + r);
              const double limit = tolerance * norm(row.data(), cols) * norm(x.data() + t * cols, cols) + 1e-6;
              ASSERT_TRUE(std::fabs(got[at] - expected[at]) <= limit)
                  << dtype_name(dtype) << " rows " << rows << " n " << n << " at row " << r << ", token " << t << ": "
                  << got[at] << " against " << expected[at] << ", limit " << limit;
            }
          }
        }
      }
    }
  }
}

// The products of a layer's heads in one go: the same bits as one by one, however many threads take them.
TEST_P(CpuBackendTest, ProductsOfDifferentInputsAreWhatEachIsAlone) {
  for (const int threads : {1, 2, 5}) {
    auto backend = cpu(GetParam(), threads, Activations::kFast);
    for (const DType dtype : {DType::kBF16, DType::kF32, DType::kQ8_0}) {
      constexpr int64_t kCount = 7, kRows = 19, kCols = 64, kWide = kCount * kCols + 3;
      std::vector<std::unique_ptr<PackedMatrix>> packed;
      for (int64_t i = 0; i < kCount; ++i) {
        const auto weights = random_weights(dtype, kRows, kCols, 30 + static_cast<uint64_t>(i));
        auto matrix = backend->pack({dtype, kRows, kCols, weights});
        ASSERT_TRUE(matrix.ok());
        packed.push_back(std::move(*matrix));
      }
      for (const int64_t n : {1, 5, 70}) {
        auto x = normals(n * kWide, 8);
        std::vector<float> alone(static_cast<size_t>(n * kCount * kRows)), together(alone.size());
        std::vector<MatmulProduct> products;
        const MatrixView<float> input{x.data(), n, kWide}, one{alone.data(), n, kCount * kRows}, all{together.data(), n, kCount * kRows};
        for (int64_t i = 0; i < kCount; ++i) {
          const auto from = input.cols_from(i * kCols, kCols);
          backend->matmul(one.cols_from(i * kRows, kRows), *packed[static_cast<size_t>(i)], from);
          products.push_back({all.cols_from(i * kRows, kRows), packed[static_cast<size_t>(i)].get(), from});
        }
        backend->matmul_each(products);
        EXPECT_EQ(alone, together) << dtype_name(dtype) << " " << n << " rows, " << threads << " threads";
      }
    }
  }
}

TEST_P(CpuBackendTest, IntegerProductsAreExactForWholeActivations) {
  // Activations in -127..127 with a 127 in every block survive rounding, so only float summation error is left.
  auto reference = make_reference_backend(1);
  auto backend = cpu(GetParam());
  const int64_t rows = 33, cols = 512;
  RandomStream random(3, 3);
  for (const int64_t n : {1, 14}) {
    std::vector<float> x(static_cast<size_t>(n * cols));
    for (size_t i = 0; i < x.size(); ++i) x[i] = i % 32 == 5 ? 127.0f : static_cast<float>(random.below(255)) - 127.0f;
    for (const DType dtype : kWeightTypes) {
      if (GetParam() == Isa::kAmx && dtype == DType::kQ8_0) continue;   // multiplied in bf16: amx_test.cc
      const auto weights = random_weights(dtype, rows, cols, 21);
      const MatrixSource source{dtype, rows, cols, weights};
      const auto expected = product(*reference, source, x, n);
      const auto got = product(*backend, source, x, n);
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_NEAR(got[i], expected[i], 1e-5 * 127 * 0.1 * cols) << dtype_name(dtype) << " n " << n << " at " << i;
      }
    }
  }
}

TEST_P(CpuBackendTest, ARowsProductDoesNotDependOnItsNeighboursOrThreads) {
  const int64_t rows = 70, cols = 512, n = 27;
  const auto x = normals(n * cols, 9);
  for (const DType dtype : kWeightTypes) {
    const auto weights = random_weights(dtype, rows, cols, 13);
    const MatrixSource source{dtype, rows, cols, weights};
    auto together = cpu(GetParam(), 3);
    auto alone = cpu(GetParam(), 1);
    const auto all = product(*together, source, x, n);
    for (int64_t t = 0; t < n; ++t) {
      const std::vector<float> one(x.begin() + t * cols, x.begin() + (t + 1) * cols);
      const auto y = product(*alone, source, one, 1);
      ASSERT_EQ(std::memcmp(y.data(), all.data() + t * rows, static_cast<size_t>(rows) * 4), 0)
          << dtype_name(dtype) << " token " << t;
    }
  }
}

// Two roundings leave 1/127 of what one leaves, with the derivation above: 0.0019 / 127, plus float summation.
TEST_P(CpuBackendTest, SixteenBitRoundingIsTwoDecimalsFinerAndRowIndependent) {
  auto reference = make_reference_backend(1);
  auto together = cpu(GetParam(), 3);
  auto alone = cpu(GetParam(), 1);
  const int64_t rows = 45, cols = 512, n = 30;
  const auto x = normals(n * cols, 9);
  const auto bias = normals(rows, 5);
  for (const DType dtype : {DType::kQ4_1, DType::kQ8_0, DType::kQ6_K}) {
    const auto weights = random_weights(dtype, rows, cols, 13);
    const MatrixSource source{dtype, rows, cols, weights, Rounding::kBits16};
    const auto expected = product(*reference, source, x, n, bias.data());
    const auto got = product(*together, source, x, n, bias.data());
    for (int64_t t = 0; t < n; ++t) {
      const std::vector<float> one(x.begin() + t * cols, x.begin() + (t + 1) * cols);
      const auto y = product(*alone, source, one, 1, bias.data());
      ASSERT_EQ(std::memcmp(y.data(), got.data() + t * rows, static_cast<size_t>(rows) * 4), 0) << dtype_name(dtype);
    }
    std::vector<float> row(static_cast<size_t>(cols));
    for (int64_t r = 0; r < rows; ++r) {
      dequantise_row(row.data(), dtype, weights.data() + r * row_bytes(dtype, cols), cols);
      for (int64_t t = 0; t < n; ++t) {
        const double limit = 1.6e-5 * norm(row.data(), cols) * norm(x.data() + t * cols, cols) + 1e-5;
        const size_t at = static_cast<size_t>(t * rows + r);
        ASSERT_TRUE(std::fabs(got[at] - expected[at]) <= limit) << dtype_name(dtype) << ": " << got[at] - expected[at] << " limit " << limit;
      }
    }
  }
}

TEST_P(CpuBackendTest, NotANumberInARowStaysInThatRow) {
  const int64_t rows = 20, cols = 256;
  auto backend = cpu(GetParam());
  for (const float bad : {NAN, INFINITY}) {
    auto x = normals(3 * cols, 2);
    x[static_cast<size_t>(cols + 77)] = bad;
    for (const DType dtype : {DType::kQ4_0, DType::kQ8_0, DType::kF16, DType::kBF16}) {
      const auto weights = random_weights(dtype, rows, cols, 13);
      const auto y = product(*backend, {dtype, rows, cols, weights}, x, 3);
      for (int64_t r = 0; r < rows; ++r) {
        EXPECT_TRUE(std::isfinite(y[static_cast<size_t>(r)]));
        EXPECT_FALSE(std::isfinite(y[static_cast<size_t>(rows + r)])) << dtype_name(dtype);
        EXPECT_TRUE(std::isfinite(y[static_cast<size_t>(2 * rows + r)]));
      }
    }
  }
}

// ---- attention ----------------------------------------------------------------------------------------------------

struct Cache {
  KvCacheView view;
  std::vector<std::vector<std::byte>> memory;
  std::vector<std::byte*> key_pages, value_pages;
};

struct AttentionShapeCase {
  int64_t heads, kv_heads, key_dim, value_dim, window;
  float softcap;
};

Cache make_cache(DType dtype, const AttentionShapeCase& shape, int64_t tokens) {
  Cache cache;
  const int64_t pages = (tokens + kPageRows - 1) / kPageRows;
  for (int64_t p = 0; p < 2 * pages; ++p) {
    const int64_t dim = p < pages ? shape.key_dim : shape.value_dim;
    cache.memory.emplace_back(static_cast<size_t>(kv_head_page_bytes(dtype, dim) * shape.kv_heads));
  }
  for (int64_t p = 0; p < pages; ++p) {
    cache.key_pages.push_back(cache.memory[static_cast<size_t>(p)].data());
    cache.value_pages.push_back(cache.memory[static_cast<size_t>(pages + p)].data());
  }
  cache.view = {.dtype = dtype, .kv_heads = shape.kv_heads, .key_dim = shape.key_dim, .value_dim = shape.value_dim,
                .key_pages = cache.key_pages, .value_pages = cache.value_pages};
  return cache;
}

const AttentionShapeCase kShapes[] = {
    {4, 4, 64, 64, 0, 0.0f},   {8, 2, 64, 64, 0, 0.0f},   {9, 3, 64, 64, 0, 0.0f},  {4, 1, 128, 64, 0, 0.0f},
    {6, 2, 32, 96, 70, 0.0f},  {4, 2, 64, 32, 200, 5.0f}, {80, 1, 32, 32, 0, 0.0f},
};

std::vector<float> attend_in_chunks(Backend& backend, DType dtype, const AttentionShapeCase& shape, int64_t tokens,
                                    int64_t chunk, const std::vector<float>& q, const std::vector<float>& k,
                                    const std::vector<float>& v) {
  Cache cache = make_cache(dtype, shape, tokens);
  std::vector<float> out(static_cast<size_t>(tokens * shape.heads * shape.value_dim), NAN);
  for (int64_t begin = 0; begin < tokens; begin += chunk) {
    const int64_t n = std::min(chunk, tokens - begin);
    const int64_t kw = shape.kv_heads * shape.key_dim, vw = shape.kv_heads * shape.value_dim;
    backend.store_kv(cache.view, begin, {k.data() + begin * kw, n, kw}, {v.data() + begin * vw, n, vw});
    const AttendSlice slice{.row_begin = 0, .rows = n, .first_key = begin, .cache = cache.view};
    const int64_t qw = shape.heads * shape.key_dim, ow = shape.heads * shape.value_dim;
    backend.attend({out.data() + begin * ow, n, ow}, {q.data() + begin * qw, n, qw}, {&slice, 1},
                   {.heads = shape.heads, .scale = 0.4f, .window = shape.window, .logit_softcap = shape.softcap});
  }
  return out;
}

// Short and long slices, and an empty one, stored in one call: the bytes the reference leaves, each stored alone.
TEST_P(CpuBackendTest, StoresSequencesTogetherAsEachAlone) {
  const AttentionShapeCase shape{4, 2, 64, 32, 0, 0.0f};
  const auto backend = cpu(GetParam()), reference = make_reference_backend(1);
  struct Part {
    int64_t rows, first_key;
  };
  const Part parts[] = {{1, 63}, {0, 5}, {70, 60}, {1, 64}, {3, 126}, {1, 0}};
  int64_t rows = 0;
  for (const Part& part : parts) rows += part.rows;
  const int64_t kw = shape.kv_heads * shape.key_dim, vw = shape.kv_heads * shape.value_dim;
  const std::vector<float> k = normals(rows * kw, 5), v = normals(rows * vw, 6);
  std::vector<Cache> together, alone;
  std::vector<AttendSlice> slices;
  for (const Part& part : parts) {
    together.push_back(make_cache(DType::kF16, shape, 192));
    alone.push_back(make_cache(DType::kF16, shape, 192));
    const int64_t begin = slices.empty() ? 0 : slices.back().row_begin + slices.back().rows;
    slices.push_back({begin, part.rows, part.first_key, together.back().view});
    reference->store_kv(alone.back().view, part.first_key, {k.data() + begin * kw, part.rows, kw}, {v.data() + begin * vw, part.rows, vw});
  }
  backend->store_kv(slices, {k.data(), rows, kw}, {v.data(), rows, vw});
  for (size_t i = 0; i < slices.size(); ++i) EXPECT_EQ(together[i].memory, alone[i].memory) << i;
}

// Scores have a spread of about 3 here, so softmax is peaked and ignoring q would show. The caches hold the same bytes in
// both back ends; what differs is float against double arithmetic (1e-5 of the values' size) and, for q8_0, queries
// rounded to 8 bits: 0.5 % of a score's size of about 3, twice (numerator and denominator): 3 %.
//
// AMX multiplies bf16: there queries, keys and values are rounded before either back end sees them (f16 holds such numbers
// of this size exactly), so that the scores are the same, and what is left is the rounding of the probabilities: 2^-9 of
// each, hence of the largest value, which is under 5.5 here (5.6 sigma for 10^5 numbers).
std::vector<float> attention_input(Isa isa, int64_t count, uint64_t seed) {
  std::vector<float> values = normals(count, seed);
  if (isa == Isa::kAmx) {
    for (float& v : values) v = bf16_to_f32(f32_to_bf16(v));
  }
  return values;
}
double attention_tolerance(Isa isa, DType dtype) {
  if (dtype == DType::kQ8_0) return 0.03 * 4;
  return isa == Isa::kAmx && dtype != DType::kF32 ? 0x1p-9 * 5.5 + 4e-5 : 4e-5;
}

TEST_P(CpuBackendTest, AttentionAgreesWithTheReference) {
  auto reference = make_reference_backend(1);
  auto backend = cpu(GetParam());
  for (const AttentionShapeCase& shape : kShapes) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0}) {
      for (const int64_t tokens : {1, 64, 65, 270}) {
        const auto q = attention_input(GetParam(), tokens * shape.heads * shape.key_dim, 1);
        const auto k = attention_input(GetParam(), tokens * shape.kv_heads * shape.key_dim, 2);
        const auto v = attention_input(GetParam(), tokens * shape.kv_heads * shape.value_dim, 3);
        // The reference takes most of this file's time, and says the same to every instruction set with the same input.
        static std::map<std::tuple<const AttentionShapeCase*, DType, int64_t, bool>, std::vector<float>> known;
        std::vector<float>& expected = known[{&shape, dtype, tokens, GetParam() == Isa::kAmx}];
        if (expected.empty()) expected = attend_in_chunks(*reference, dtype, shape, tokens, tokens, q, k, v);
        const auto got = attend_in_chunks(*backend, dtype, shape, tokens, tokens, q, k, v);
        const double tolerance = attention_tolerance(GetParam(), dtype);
        for (size_t i = 0; i < got.size(); ++i) {
          ASSERT_TRUE(std::fabs(got[i] - expected[i]) <= tolerance)
              << dtype_name(dtype) << " heads " << shape.heads << "/" << shape.kv_heads << " tokens " << tokens << " at "
              << i << ": " << got[i] << " against " << expected[i];
        }
      }
    }
  }
}

TEST_P(CpuBackendTest, AttentionDoesNotDependOnChunksOrThreads) {
  auto one = cpu(GetParam(), 1);
  auto three = cpu(GetParam(), 3);
  for (const AttentionShapeCase& shape : kShapes) {
    for (const DType dtype : {DType::kF16, DType::kQ8_0}) {
      const int64_t tokens = 300;
      const auto q = normals(tokens * shape.heads * shape.key_dim, 1);
      const auto k = normals(tokens * shape.kv_heads * shape.key_dim, 2);
      const auto v = normals(tokens * shape.kv_heads * shape.value_dim, 3);
      const auto whole = attend_in_chunks(*one, dtype, shape, tokens, tokens, q, k, v);
      for (const int64_t chunk : {1, 7, 64}) {
        const auto parts = attend_in_chunks(*three, dtype, shape, tokens, chunk, q, k, v);
        ASSERT_EQ(std::memcmp(parts.data(), whole.data(), whole.size() * 4), 0)
            << dtype_name(dtype) << " heads " << shape.heads << " chunk " << chunk;
      }
    }
  }
}

TEST_P(CpuBackendTest, AttentionDoesNotReadRowsBeyondTheLastKey) {
  auto backend = cpu(GetParam());
  for (const DType dtype : {DType::kF16, DType::kQ8_0}) {
    const AttentionShapeCase shape{4, 2, 64, 64, 0, 0.0f};
    const int64_t tokens = 70;
    Cache cache = make_cache(dtype, shape, tokens);
    for (auto& page : cache.memory) std::fill(page.begin(), page.end(), std::byte{0x7f});   // f16 NaN
    const auto q = normals(tokens * 256, 1), k = normals(tokens * 128, 2), v = normals(tokens * 128, 3);
    backend->store_kv(cache.view, 0, {k.data(), tokens, 128}, {v.data(), tokens, 128});
    std::vector<float> out(q.size());
    const AttendSlice slice{.rows = tokens, .first_key = 0, .cache = cache.view};
    backend->attend({out.data(), tokens, 256}, {q.data(), tokens, 256}, {&slice, 1}, {.heads = 4, .scale = 0.1f});
    for (const float x : out) ASSERT_TRUE(std::isfinite(x)) << dtype_name(dtype);
  }
}

TEST_P(CpuBackendTest, OddHeadWidthsWork) {
  auto reference = make_reference_backend(1);
  auto backend = cpu(GetParam());
  const AttentionShapeCase shape{6, 3, 20, 24, 0, 0.0f};
  const int64_t tokens = 140;
  const auto q = attention_input(GetParam(), tokens * shape.heads * shape.key_dim, 1);
  const auto k = attention_input(GetParam(), tokens * shape.kv_heads * shape.key_dim, 2);
  const auto v = attention_input(GetParam(), tokens * shape.kv_heads * shape.value_dim, 3);
  const auto expected = attend_in_chunks(*reference, DType::kF16, shape, tokens, 50, q, k, v);
  const auto got = attend_in_chunks(*backend, DType::kF16, shape, tokens, 9, q, k, v);
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], attention_tolerance(GetParam(), DType::kF16)) << i;
}

// ---- rows ---------------------------------------------------------------------------------------------------------

TEST_P(CpuBackendTest, RowOperationsAgreeWithTheReferenceAtEveryLength) {
  auto reference = make_reference_backend(1);
  auto backend = cpu(GetParam());
  for (int64_t cols = 1; cols < 70; ++cols) {
    const int64_t n = 3;
    const auto x = normals(n * cols, 1, 3.0), y = normals(n * cols, 2), weight = normals(cols, 4), bias = normals(cols, 6);
    const auto compare = [&](auto&& operation, double tolerance, const char* what) {
      std::vector<float> a(x.size()), b(x.size());
      operation(*reference, MatrixView<float>(a.data(), n, cols));
      operation(*backend, MatrixView<float>(b.data(), n, cols));
      for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], tolerance) << what << " cols " << cols << " at " << i;
    };
    const MatrixView<const float> xv(x.data(), n, cols), yv(y.data(), n, cols);
    compare([&](Backend& be, MatrixView<float> out) { be.rms_norm(out, xv, weight, 1e-5f); }, 1e-5, "rms_norm");
    compare([&](Backend& be, MatrixView<float> out) { be.layer_norm(out, xv, weight, bias, 1e-5f); }, 1e-4, "layer_norm");
    compare([&](Backend& be, MatrixView<float> out) { be.gated_activation(out, xv, yv, GateActivation::kSilu); }, 2e-5, "silu");
    compare([&](Backend& be, MatrixView<float> out) { be.gated_activation(out, xv, yv, GateActivation::kGeluTanh); }, 2e-5, "gelu");
    compare([&](Backend& be, MatrixView<float> out) {
      std::copy(x.begin(), x.end(), out.data);
      be.add(out, yv);
    }, 0.0, "add");
  }
}

TEST_P(CpuBackendTest, RopeAgreesWithTheReferenceInBothLayouts) {
  auto reference = make_reference_backend(1);
  auto backend = cpu(GetParam());
  for (const bool interleaved : {false, true}) {
    for (const int64_t head_dim : {2, 6, 64, 128}) {
      for (const int64_t rotary : {head_dim, head_dim / 2 * 2}) {
        const int64_t n = 5, cols = 3 * head_dim;
        auto a = normals(n * cols, 1);
        auto b = a;
        const std::vector<int64_t> positions = {0, 1, 17, 4096, 1000003};
        std::vector<float> frequency(static_cast<size_t>(rotary / 2));
        for (size_t i = 0; i < frequency.size(); ++i) frequency[i] = std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(rotary));
        const RopeOptions options{.interleaved = interleaved, .rotary_dim = rotary, .magnitude = 1.1f};
        reference->rope({a.data(), n, cols}, head_dim, positions, frequency, options);
        backend->rope({b.data(), n, cols}, head_dim, positions, frequency, options);
        for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 2e-6 * 4) << head_dim << " at " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, CpuBackendTest, testing::ValuesIn(isas_under_test()), name_of);

}  // namespace
}  // namespace quipu
