// The AMX level: its instructions as the kernels use them, then its products. On a processor without AMX the tile
// instructions are emulated (amx_emulator_for_test.h); on one with AMX the same tests hold the hardware to the same numbers.
#if defined(__x86_64__)

#include <gtest/gtest.h>

#include <cmath>
#include <csignal>
#include <cstring>
#include <vector>

#include "backend/cpu/amx_emulator_for_test.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/reference/reference_backend.h"
#include "base/random.h"
#include "tensor/float16.h"
#include "tensor/quant_blocks.h"
#include "tensor/quant_layout.h"

namespace quipu {
namespace {

class SaysHowAmxRuns : public testing::Environment {
 public:
  void SetUp() override {
    const std::vector<Isa> isas = isas_under_test();
    std::printf("[ AMX      ] %s\n", isas.back() != Isa::kAmx ? "not tested: this machine lacks AVX-512"
                                     : amx_is_emulated()      ? "emulated: this machine has none"
                                                              : "native");
  }
};
const auto* const kSaysHowAmxRuns = testing::AddGlobalTestEnvironment(new SaysHowAmxRuns);

class AmxTest : public testing::Test {
 protected:
  void SetUp() override {
    if (isas_under_test().back() != Isa::kAmx) GTEST_SKIP() << "neither AMX nor the AVX-512 its emulation needs";
  }
};

// ---- instructions -------------------------------------------------------------------------------------------------

struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tile 0: sums, 1: first factor, 2: second.
Config config_of(int m, int k_bytes, int n) {
  Config config;
  config.rows[0] = static_cast<uint8_t>(m);
  config.row_bytes[0] = static_cast<uint16_t>(4 * n);
  config.rows[1] = static_cast<uint8_t>(m);
  config.row_bytes[1] = static_cast<uint16_t>(k_bytes);
  config.rows[2] = static_cast<uint8_t>(k_bytes / 4);
  config.row_bytes[2] = static_cast<uint16_t>(4 * n);
  return config;
}

void load_config(const Config& config) { __asm__ volatile("ldtilecfg %0" : : "m"(config)); }
void release() { __asm__ volatile("tilerelease"); }

enum class Product { kSignedSigned, kSignedUnsigned, kUnsignedSigned, kUnsignedUnsigned, kHalves };

// sums += a b, through the instruction.
void run_product(Product product, const Config& config, int32_t* sums, const uint8_t* a, const uint8_t* b) {
  load_config(config);
  // Strides in other registers and forms than the kernels': with a displacement, and the T1 hint.
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm0\n\ttileloaddt1 (%2,%3,1), %%tmm1\n\ttileloadd -64(%4,%5,4), %%tmm2"
                   : : "r"(sums), "r"(int64_t{config.row_bytes[0]}), "r"(a), "r"(int64_t{config.row_bytes[1]}), "r"(b + 64),
                       "r"(int64_t{config.row_bytes[2] / 4}) : "memory");
  switch (product) {
    case Product::kSignedSigned: __asm__ volatile("tdpbssd %tmm2, %tmm1, %tmm0"); break;
    case Product::kSignedUnsigned: __asm__ volatile("tdpbsud %tmm2, %tmm1, %tmm0"); break;
    case Product::kUnsignedSigned: __asm__ volatile("tdpbusd %tmm2, %tmm1, %tmm0"); break;
    case Product::kUnsignedUnsigned: __asm__ volatile("tdpbuud %tmm2, %tmm1, %tmm0"); break;
    case Product::kHalves: __asm__ volatile("tdpbf16ps %tmm2, %tmm1, %tmm0"); break;
  }
  __asm__ volatile("tilestored %%tmm0, (%0,%1,1)" : : "r"(sums), "r"(int64_t{config.row_bytes[0]}) : "memory");
  release();
}

struct Shape {
  int m, k_bytes, n;
};
constexpr Shape kProductShapes[] = {{16, 64, 16}, {1, 64, 16}, {16, 32, 16}, {9, 16, 16}, {5, 12, 7}};

TEST_F(AmxTest, IntegerTileProductsAreExact) {
  RandomStream random(4, 4);
  for (const Shape& shape : kProductShapes) {
    for (const Product product : {Product::kSignedSigned, Product::kSignedUnsigned, Product::kUnsignedSigned, Product::kUnsignedUnsigned}) {
      const bool a_signed = product == Product::kSignedSigned || product == Product::kSignedUnsigned;
      const bool b_signed = product == Product::kSignedSigned || product == Product::kUnsignedSigned;
      std::vector<uint8_t> a(static_cast<size_t>(shape.m * shape.k_bytes)), b(static_cast<size_t>(shape.k_bytes * shape.n));
      std::vector<int32_t> sums(static_cast<size_t>(shape.m * shape.n));
      for (uint8_t& v : a) v = static_cast<uint8_t>(random.below(256));
      for (uint8_t& v : b) v = static_cast<uint8_t>(random.below(256));
      for (int32_t& v : sums) v = static_cast<int32_t>(random.below(1 << 20)) - (1 << 19);
      std::vector<int32_t> expected = sums;
      for (int m = 0; m < shape.m; ++m) {
        for (int n = 0; n < shape.n; ++n) {
          for (int k = 0; k < shape.k_bytes; ++k) {
            const uint8_t x = a[static_cast<size_t>(m * shape.k_bytes + k)];
            const uint8_t w = b[static_cast<size_t>((k / 4 * shape.n + n) * 4 + k % 4)];
            expected[static_cast<size_t>(m * shape.n + n)] += (a_signed ? static_cast<int8_t>(x) : x) * (b_signed ? static_cast<int8_t>(w) : w);
          }
        }
      }
      run_product(product, config_of(shape.m, shape.k_bytes, shape.n), sums.data(), a.data(), b.data());
      EXPECT_EQ(sums, expected) << shape.m << " x " << shape.k_bytes << " x " << shape.n << ", product " << static_cast<int>(product);
    }
  }
}

TEST_F(AmxTest, HalfTileProductsAgreeWithDoubleToTheRoundingOfTheirSums) {
  RandomStream random(5, 5);
  for (const Shape& shape : kProductShapes) {
    const int k_count = shape.k_bytes / 2;
    std::vector<uint16_t> a(static_cast<size_t>(shape.m * k_count)), b(static_cast<size_t>(k_count * shape.n));
    std::vector<float> sums(static_cast<size_t>(shape.m * shape.n));
    for (uint16_t& v : a) v = f32_to_bf16(static_cast<float>(random.normal()));
    for (uint16_t& v : b) v = f32_to_bf16(static_cast<float>(random.normal()));
    for (float& v : sums) v = static_cast<float>(random.normal());
    std::vector<int32_t> bits(sums.size());
    std::memcpy(bits.data(), sums.data(), sums.size() * 4);
    run_product(Product::kHalves, config_of(shape.m, shape.k_bytes, shape.n), bits.data(), reinterpret_cast<uint8_t*>(a.data()),
                reinterpret_cast<uint8_t*>(b.data()));
    for (int m = 0; m < shape.m; ++m) {
      for (int n = 0; n < shape.n; ++n) {
        const size_t at = static_cast<size_t>(m * shape.n + n);
        double expected = sums[at], magnitude = std::fabs(sums[at]);
        for (int k = 0; k < k_count; ++k) {
          const double term = static_cast<double>(bf16_to_f32(a[static_cast<size_t>(m * k_count + k)])) *
                              bf16_to_f32(b[static_cast<size_t>((k / 2 * shape.n + n) * 2 + k % 2)]);
          expected += term;
          magnitude += std::fabs(term);
        }
        float got;
        std::memcpy(&got, &bits[at], 4);
        // K + 2 roundings, each at most half an ulp (2^-24) of a partial sum no larger than the sum of magnitudes
        EXPECT_NEAR(got, expected, (k_count + 2) * 0x1p-24 * magnitude) << m << ", " << n;
      }
    }
  }
}

TEST_F(AmxTest, SubnormalHalvesCountAsZeroAndNotANumberStays) {
  const uint16_t a[2] = {0x0001, 0x7fc0};   // the smallest subnormal; NaN
  for (const int which : {0, 1}) {
    uint16_t x[2] = {a[which], 0}, w[2] = {0x7f00, 0};   // 2^127
    int32_t sum = 0;
    Config config = config_of(1, 4, 1);
    uint8_t padded[128] = {};
    std::memcpy(padded, w, 4);
    run_product(Product::kHalves, config, &sum, reinterpret_cast<uint8_t*>(x), padded);
    float got;
    std::memcpy(&got, &sum, 4);
    if (which == 0) {
      EXPECT_EQ(got, 0.0f);
    } else {
      EXPECT_TRUE(std::isnan(got));
    }
  }
}

using AmxDeathTest = AmxTest;

void multiply_with(const Config& config) {
  static int32_t sums[256];
  static uint8_t a[1024], b[1024];
  run_product(Product::kSignedSigned, config, sums, a, b);
}

TEST_F(AmxDeathTest, TheEmulatorRefusesWhatTheManualForbids) {
  if (!amx_is_emulated()) GTEST_SKIP() << "AMX is native here; this is about the emulator";
  const auto killed = testing::KilledBySignal(SIGILL);
  const auto changed = [](auto&& change) {
    Config config = config_of(16, 64, 16);
    change(config);
    return config;
  };
  multiply_with(changed([](Config&) {}));
  EXPECT_EXIT(multiply_with(changed([](Config& c) { c.palette = 2; })), killed, "palette");
  EXPECT_EXIT(multiply_with(changed([](Config& c) { c.reserved[3] = 1; })), killed, "reserved");
  EXPECT_EXIT(multiply_with(changed([](Config& c) { c.rows[0] = 17; })), killed, "more than 16 rows");
  EXPECT_EXIT(multiply_with(changed([](Config& c) { c.row_bytes[1] = 68; })), killed, "more than 64 bytes");
  EXPECT_EXIT(multiply_with(changed([](Config& c) { c.rows[2] = 0; })), killed, "not both");
  EXPECT_EXIT(multiply_with(changed([](Config& c) { c.rows[9] = 1, c.row_bytes[9] = 4; })), killed, "8 tiles only");
  EXPECT_EXIT(multiply_with(changed([](Config& c) { c.rows[2] = 0, c.row_bytes[2] = 0; })), killed, "not configured");
  EXPECT_EXIT(multiply_with(changed([](Config& c) { c.palette = 0; })), killed, "not configured");
  EXPECT_EXIT(multiply_with(changed([](Config& c) { c.rows[0] = 15; })), killed, "rows of the sums");
  EXPECT_EXIT(multiply_with(changed([](Config& c) { c.row_bytes[1] = 32; })), killed, "columns of the first factor");
  EXPECT_EXIT(multiply_with(changed([](Config& c) { c.row_bytes[0] = 32; })), killed, "columns of the sums");
  EXPECT_EXIT(multiply_with(changed([](Config& c) { c.row_bytes[1] = 62; })), killed, "whole dwords");
  EXPECT_EXIT({
    load_config(config_of(16, 64, 16));
    __asm__ volatile(".byte 0xc4, 0xe2, 0x6b, 0x5e, 0xc2");   // tdpbssd %tmm2, %tmm2, %tmm0: assemblers refuse it too
  }, killed, "named twice");
  EXPECT_EXIT(__asm__ volatile("tilezero %tmm3"), killed, "not configured");
  EXPECT_EXIT(__asm__ volatile("ud2"), killed, "not a tile instruction");
}

// ---- products -----------------------------------------------------------------------------------------------------

std::vector<float> normals(int64_t count, uint64_t seed, double scale = 1.0) {
  RandomStream random(seed, 1);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = static_cast<float>(scale * random.normal());
  return values;
}

std::vector<std::byte> random_weights(DType dtype, int64_t rows, int64_t cols) {
  const std::vector<float> values = normals(rows * cols, 31, 0.1);
  std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(dtype, cols) * rows));
  for (int64_t r = 0; r < rows; ++r) quantise_row(bytes.data() + r * row_bytes(dtype, cols), dtype, values.data() + r * cols, cols);
  return bytes;
}

std::unique_ptr<Backend> backend_of(Isa isa, Activations activations = Activations::kFast) {
  auto backend = make_cpu_backend({.threads = 2, .isa = isa, .activations = activations, .isa_is_emulated = amx_is_emulated()});
  CHECK(backend.ok());
  return std::move(backend).value();
}

std::vector<float> product(Backend& backend, const MatrixSource& source, const std::vector<float>& x, const float* bias = nullptr) {
  auto packed = backend.pack(source);
  CHECK(packed.ok()) << packed.error().message;
  const int64_t n = static_cast<int64_t>(x.size()) / source.cols;
  std::vector<float> y(static_cast<size_t>(n * source.rows), NAN);
  backend.matmul({y.data(), n, source.rows}, **packed, {x.data(), n, source.cols}, bias);
  return y;
}

// Q8_0 is multiplied in bf16 unless activations are rounded twice.
TEST_F(AmxTest, QuantisedProductsEqualAvx512sBitForBit) {
  auto amx = backend_of(Isa::kAmx);
  auto avx512 = backend_of(Isa::kAvx512);
  for (const DType dtype : {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0, DType::kQ2_K, DType::kQ3_K,
                            DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kIQ4_NL}) {
    // 96 and 32: an odd number of groups, where the format allows
    for (const int64_t cols : traits(dtype).block_elements == 256 ? std::vector<int64_t>{512} : std::vector<int64_t>{512, 96, 32}) {
      const int64_t rows = 70;
      const auto weights = random_weights(dtype, rows, cols);
      const MatrixSource source{dtype, rows, cols, weights, dtype == DType::kQ8_0 ? Rounding::kBits16 : Rounding::kBits8};
      const auto bias = normals(rows, 3);
      for (const int64_t n : {1, 2, 5, 16, 17, 31, 32, 50}) {
        const auto x = normals(n * cols, 17);
        const int64_t before = emulated_tile_products();
        const auto got = product(*amx, source, x, bias.data());
        EXPECT_TRUE(!amx_is_emulated() || n == 1 || emulated_tile_products() > before) << "the tile kernels did not run";
        const auto expected = product(*avx512, source, x, bias.data());
        ASSERT_EQ(std::memcmp(got.data(), expected.data(), got.size() * 4), 0) << dtype_name(dtype) << " cols " << cols << " n " << n;
      }
    }
  }
}

// A task of one matrix asks for the weights of the next.
TEST_F(AmxTest, HalfProductsSideBySideEqualTheSameAlone) {
  auto amx = backend_of(Isa::kAmx);
  const int64_t cols = 600, sizes[] = {70, 16, 33};   // 5, 1 and 3 panels
  std::vector<std::unique_ptr<PackedMatrix>> packed;
  std::vector<MatrixSource> sources;
  std::vector<std::vector<std::byte>> weights;
  for (const int64_t rows : sizes) {
    weights.push_back(random_weights(DType::kBF16, rows, cols));
    sources.push_back({DType::kBF16, rows, cols, weights.back()});
    packed.push_back(std::move(amx->pack(sources.back())).value());
  }
  for (const int64_t n : {3, 32, 33, 50, 64, 65}) {
    const auto x = normals(n * cols, 23);
    std::vector<std::vector<float>> together;
    std::vector<MatmulOutput> outputs;
    for (size_t i = 0; i < packed.size(); ++i) together.emplace_back(static_cast<size_t>(n * sizes[i]), NAN);
    for (size_t i = 0; i < packed.size(); ++i) outputs.push_back({{together[i].data(), n, sizes[i]}, packed[i].get(), nullptr});
    amx->matmul(outputs, {x.data(), n, cols});
    for (size_t i = 0; i < packed.size(); ++i) {
      const auto alone = product(*amx, sources[i], x);
      ASSERT_EQ(std::memcmp(together[i].data(), alone.data(), alone.size() * 4), 0) << "matrix " << i << ", n " << n;
    }
  }
}

// Widths that are no multiple of a tile's 32 columns, odd ones, and ones cut into several stretches of 256.
TEST_F(AmxTest, HalfProductsAtOddWidthsEqualOneRowProductsAndTheReference) {
  auto amx = backend_of(Isa::kAmx);
  auto reference = make_reference_backend(1);
  for (const int64_t cols : {1, 2, 31, 37, 64, 600, 1056, 2101}) {
    for (const int64_t rows : {3, 32, 150}) {
      const auto weights = random_weights(DType::kBF16, rows, cols);
      const MatrixSource source{DType::kBF16, rows, cols, weights};
      for (const int64_t n : {2, 16, 35}) {
        auto x = normals(n * cols, 19);
        const auto all = product(*amx, source, x);
        const auto first = product(*amx, source, {x.begin(), x.begin() + cols});
        const auto last = product(*amx, source, {x.end() - cols, x.end()});
        ASSERT_EQ(std::memcmp(first.data(), all.data(), first.size() * 4), 0) << cols << " x " << rows << " n " << n;
        ASSERT_EQ(std::memcmp(last.data(), all.data() + (n - 1) * rows, last.size() * 4), 0) << cols << " x " << rows << " n " << n;
        // The reference gets the same rounded activations, so what is left is the rounding of fp32 sums: at most
        // 34 roundings for every 32 columns, each 2^-24 of the sum of magnitudes.
        for (float& v : x) v = bf16_to_f32(f32_to_bf16(v));
        const auto expected = product(*reference, source, x);
        for (int64_t t = 0; t < n; ++t) {
          for (int64_t r = 0; r < rows; ++r) {
            double magnitude = 0.0;
            std::vector<float> row(static_cast<size_t>(cols));
            dequantise_row(row.data(), DType::kBF16, weights.data() + r * cols * 2, cols);
            for (int64_t k = 0; k < cols; ++k) magnitude += std::fabs(static_cast<double>(row[static_cast<size_t>(k)]) * x[static_cast<size_t>(t * cols + k)]);
            const size_t at = static_cast<size_t>(t * rows + r);
            const double limit = static_cast<double>((cols + 31) / 32 * 34) * 0x1p-24 * magnitude + 1e-30;
            ASSERT_TRUE(std::fabs(all[at] - expected[at]) <= limit)
                << cols << " x " << rows << " n " << n << " at " << r << ", " << t << ": " << all[at] << " against " << expected[at];
          }
        }
      }
    }
  }
}

// Blocks of Q8_0 with every code there is and scales of both signs, zero too; and the bf16 numbers they are multiplied as.
struct CodedWeights {
  std::vector<std::byte> bytes;
  std::vector<double> halves;
};
CodedWeights coded_weights(int64_t rows, int64_t cols) {
  RandomStream random(7, 7);
  CodedWeights out;
  for (int64_t block = 0; block < rows * cols / 32; ++block) {
    BlockQ8_0 q8;
    const double size = 1e-3 * std::exp(random.normal());
    q8.d = f32_to_f16(block % 7 == 3 ? 0.0f : static_cast<float>(block % 5 == 1 ? -size : size));
    const float file_scale = f16_to_f32(q8.d), scale = bf16_to_f32(f32_to_bf16(file_scale));
    const double unit = scale == 0.0f ? 0.0 : std::exp2(std::ilogb(scale));
    for (int8_t& code : q8.codes) {
      code = static_cast<int8_t>(random.below(256));
      const double half = scale == 0.0f ? 0.0 : std::floor(code * std::fabs(scale) / unit + 0.5) * std::copysign(unit, scale);
      CHECK(std::fabs(half - static_cast<double>(code) * file_scale) <= 0.5 * unit + 0x1p-8 * std::fabs(code * file_scale));
      out.halves.push_back(half);
    }
    const auto* bytes = reinterpret_cast<const std::byte*>(&q8);
    out.bytes.insert(out.bytes.end(), bytes, bytes + sizeof(q8));
  }
  return out;
}

// One row's vector kernel and many rows' tiles find the same bits, and those are the product with the numbers that
// pack_coded_panel promises, to the rounding of fp32 sums.
TEST_F(AmxTest, EightBitCodesAreMultipliedAsTheNearestHalvesOfTheirScale) {
  auto amx = backend_of(Isa::kAmx);
  for (const int64_t cols : {32, 96, 1056, 2112}) {
    for (const int64_t rows : {3, 32, 150}) {
      const CodedWeights weights = coded_weights(rows, cols);
      const MatrixSource source{DType::kQ8_0, rows, cols, weights.bytes};
      const auto bias = normals(rows, 3);
      for (const int64_t n : {1, 2, 16, 35}) {
        const auto x = normals(n * cols, 19);
        const auto all = product(*amx, source, x, bias.data());
        for (const int64_t t : {int64_t{0}, n - 1}) {
          const auto one = product(*amx, source, {x.begin() + t * cols, x.begin() + (t + 1) * cols}, bias.data());
          ASSERT_EQ(std::memcmp(one.data(), all.data() + t * rows, one.size() * 4), 0) << cols << " x " << rows << " n " << n;
        }
        for (int64_t t = 0; t < n; ++t) {
          for (int64_t r = 0; r < rows; ++r) {
            double expected = bias[static_cast<size_t>(r)], magnitude = std::fabs(expected);
            for (int64_t k = 0; k < cols; ++k) {
              const double term = weights.halves[static_cast<size_t>(r * cols + k)] * bf16_to_f32(f32_to_bf16(x[static_cast<size_t>(t * cols + k)]));
              expected += term;
              magnitude += std::fabs(term);
            }
            const double limit = static_cast<double>(cols / 32 * 34 + 1) * 0x1p-24 * magnitude;
            ASSERT_NEAR(all[static_cast<size_t>(t * rows + r)], expected, limit) << cols << " x " << rows << " n " << n << " at " << r << ", " << t;
          }
        }
      }
    }
  }
}

TEST_F(AmxTest, ExactActivationsTakeNoTiles) {
  auto amx = backend_of(Isa::kAmx, Activations::kExact);
  auto avx512 = backend_of(Isa::kAvx512, Activations::kExact);
  const auto weights = random_weights(DType::kBF16, 40, 100);
  const auto x = normals(7 * 100, 23);
  const int64_t before = emulated_tile_products();
  EXPECT_EQ(product(*amx, {DType::kBF16, 40, 100, weights}, x), product(*avx512, {DType::kBF16, 40, 100, weights}, x));
  EXPECT_EQ(emulated_tile_products(), before);
}

TEST_F(AmxTest, ABackEndThatThisMachineCannotRunIsAnError) {
  if (!amx_is_emulated()) GTEST_SKIP() << "AMX is native here";
  const auto backend = make_cpu_backend({.isa = Isa::kAmx});
  ASSERT_FALSE(backend.ok());
  EXPECT_NE(backend.error().message.find("cannot run amx kernels"), std::string::npos) << backend.error().message;
}

}  // namespace
}  // namespace quipu

#endif  // __x86_64__
