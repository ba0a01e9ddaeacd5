#include "tensor/quant_blocks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "tensor/float16.h"
#include "tensor/quant_layout.h"

namespace quipu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<DType> quantised_formats() {
  std::vector<DType> formats;
  for (int i = 0; i < kDTypeCount; ++i) {
    if (traits(static_cast<DType>(i)).quantised) formats.push_back(static_cast<DType>(i));
  }
  return formats;
}

std::vector<std::byte> quantised(DType dtype, const std::vector<float>& values) {
  const auto elements = static_cast<int64_t>(values.size());
  std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(dtype, elements)));
  quantise_row(bytes.data(), dtype, values.data(), elements);
  return bytes;
}

std::vector<float> dequantised(DType dtype, const std::vector<std::byte>& bytes) {
  const DTypeTraits& t = traits(dtype);
  const auto blocks = static_cast<int64_t>(bytes.size()) / t.block_bytes;
  std::vector<float> values(static_cast<size_t>(blocks * t.block_elements));
  dequantise_row(values.data(), dtype, bytes.data(), static_cast<int64_t>(values.size()));
  return values;
}

std::vector<float> round_trip(DType dtype, const std::vector<float>& values) {
  return dequantised(dtype, quantised(dtype, values));
}

std::vector<float> normal_values(size_t count, uint64_t seed) {
  RandomStream random(seed, 0);
  std::vector<float> values(count);
  for (float& x : values) x = static_cast<float>(random.normal());
  return values;
}

double relative_rmse(const std::vector<float>& actual, const std::vector<float>& expected) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(static_cast<double>(actual[i]) - static_cast<double>(expected[i]), 2);
    norm += std::pow(static_cast<double>(expected[i]), 2);
  }
  return std::sqrt(error / norm);
}

// ---- Against the gguf package: tools/make_quant_goldens.py ----------------------------------------------------------

class Goldens {
 public:
  Goldens() {
    const std::string stem = QUIPU_SOURCE_DIR "/src/tensor/testdata/quant_goldens";
    std::ifstream index(stem + ".txt"), data(stem + ".bin", std::ios::binary);
    const std::string bytes(std::istreambuf_iterator<char>(data), {});
    std::string what, format;
    size_t elements, first, size;
    while (index >> what >> format >> elements >> first >> size) {
      if (first + size > bytes.size()) break;
      std::vector<std::byte>& array = arrays_[{what, format}];
      array.resize(size);
      std::memcpy(array.data(), bytes.data() + first, size);
    }
  }

  const std::vector<std::byte>& bytes(const std::string& what, std::string_view format) {
    return arrays_[{what, std::string(format)}];
  }
  std::vector<float> floats(const std::string& what, std::string_view format) {
    const std::vector<std::byte>& raw = bytes(what, format);
    std::vector<float> values(raw.size() / 4);
    if (!raw.empty()) std::memcpy(values.data(), raw.data(), raw.size());
    return values;
  }

 private:
  std::map<std::pair<std::string, std::string>, std::vector<std::byte>> arrays_;
};

TEST(QuantBlocks, DecodeBitForBitWhatGgufDecodes) {
  Goldens goldens;
  for (const DType dtype : quantised_formats()) {
    const std::vector<float> expected = goldens.floats("decoded", dtype_name(dtype));
    ASSERT_GE(expected.size(), 15u * 32) << dtype_name(dtype) << ": no goldens";
    const std::vector<float> actual = dequantised(dtype, goldens.bytes("blocks", dtype_name(dtype)));
    ASSERT_EQ(actual.size(), expected.size());
    size_t finite = 0;
    for (size_t i = 0; i < actual.size(); ++i) {
      if (std::isnan(expected[i])) {   // sign and payload of a NaN are the machine's own
        ASSERT_TRUE(std::isnan(actual[i])) << dtype_name(dtype) << " element " << i;
        continue;
      }
      ASSERT_EQ(std::bit_cast<uint32_t>(actual[i]), std::bit_cast<uint32_t>(expected[i]))
          << dtype_name(dtype) << " element " << i << ": " << actual[i] << ", expected " << expected[i];
      finite += std::isfinite(expected[i]);
    }
    EXPECT_GT(finite, actual.size() / 2);
  }
}

TEST(QuantBlocks, SimpleFormatsAreWrittenByteForByteAsGgufWritesThem) {
  Goldens goldens;
  const std::vector<float> values = goldens.floats("values", "f32");
  ASSERT_EQ(values.size(), 41u * 32);
  for (const DType dtype :
       {DType::kF16, DType::kBF16, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0}) {
    const std::vector<std::byte> actual = quantised(dtype, values);
    const std::vector<std::byte>& expected = goldens.bytes("encoded", dtype_name(dtype));
    ASSERT_EQ(actual.size(), expected.size()) << dtype_name(dtype);
    for (size_t i = 0; i < actual.size(); ++i) {
      ASSERT_EQ(actual[i], expected[i]) << dtype_name(dtype) << " byte " << i << ", block "
                                        << i / static_cast<size_t>(traits(dtype).block_bytes);
    }
  }
}

// ---- Plain types ----------------------------------------------------------------------------------------------------

template <typename T>
std::vector<float> decode_numbers(DType dtype, const std::vector<T>& numbers) {
  std::vector<std::byte> bytes(numbers.size() * sizeof(T));
  std::memcpy(bytes.data(), numbers.data(), bytes.size());
  return dequantised(dtype, bytes);
}

TEST(QuantBlocks, PlainTypesDecodeToTheirNumbers) {
  using Floats = std::vector<float>;
  EXPECT_EQ(decode_numbers<float>(DType::kF32, {1.5f, -0.0f, 1e-40f}), (Floats{1.5f, -0.0f, 1e-40f}));
  EXPECT_EQ(decode_numbers<double>(DType::kF64, {0.1, -2.0}), (Floats{0.1f, -2.0f}));
  EXPECT_EQ(decode_numbers<uint16_t>(DType::kF16, {0x3c00, 0x0001, 0xfc00}), (Floats{1.0f, 0x1.0p-24f, -kInfinity}));
  EXPECT_EQ(decode_numbers<uint16_t>(DType::kBF16, {0x3f80, 0xc040}), (Floats{1.0f, -3.0f}));
  EXPECT_EQ(decode_numbers<int8_t>(DType::kI8, {-128, 127}), (Floats{-128, 127}));
  EXPECT_EQ(decode_numbers<uint8_t>(DType::kU8, {128, 255}), (Floats{128, 255}));
  EXPECT_EQ(decode_numbers<int16_t>(DType::kI16, {-32768, 5}), (Floats{-32768, 5}));
  EXPECT_EQ(decode_numbers<int32_t>(DType::kI32, {-7, 1 << 30}), (Floats{-7, 0x1.0p30f}));
  EXPECT_EQ(decode_numbers<int64_t>(DType::kI64, {-7, int64_t{1} << 40}), (Floats{-7, 0x1.0p40f}));
  EXPECT_EQ(decode_numbers<uint8_t>(DType::kBool, {0, 1, 2}), (Floats{0, 1, 1}));
}

TEST(QuantBlocks, FloatFormatsKeepNanAndInfinity) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const std::vector<float> back = round_trip(dtype, {kNaN, kInfinity, -kInfinity, 1.5f, -0.0f});
    EXPECT_TRUE(std::isnan(back[0])) << dtype_name(dtype);
    EXPECT_EQ(back[1], kInfinity);
    EXPECT_EQ(back[2], -kInfinity);
    EXPECT_EQ(back[3], 1.5f);
    EXPECT_TRUE(std::signbit(back[4]));
  }
}

// ---- Packing --------------------------------------------------------------------------------------------------------

template <int kBits, int kStride>
void check_plane(int elements) {
  RandomStream random(kBits, kStride);
  std::vector<uint8_t> codes(static_cast<size_t>(elements)), back(codes.size()), packed(codes.size() * kBits / 8);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random.below(1u << kBits));
  pack_plane<kBits, kStride>(packed.data(), codes.data(), elements);
  unpack_plane<kBits, kStride>(back.data(), packed.data(), elements);
  EXPECT_EQ(back, codes) << kBits << " bits, stride " << kStride;
}

TEST(QuantLayout, EveryPlaneUnpacksWhatWasPacked) {
  check_plane<4, 16>(32);
  check_plane<1, 1>(32);
  check_plane<2, 32>(256);
  check_plane<1, 32>(256);
  check_plane<4, 32>(256);
  check_plane<4, 64>(256);
  check_plane<4, 8>(16);
  check_plane<2, 4>(16);
}

TEST(QuantLayout, SixBitScalesUnpackWhatWasPacked) {
  RandomStream random(6, 0);
  for (int trial = 0; trial < 200; ++trial) {
    uint8_t scales[8], mins[8], packed[12], scales_back[8], mins_back[8];
    for (int i = 0; i < 8; ++i) {
      scales[i] = static_cast<uint8_t>(random.below(64));
      mins[i] = static_cast<uint8_t>(random.below(64));
    }
    pack_scales_6(packed, scales, mins);
    unpack_scales_6(scales_back, mins_back, packed);
    ASSERT_EQ(std::memcmp(scales, scales_back, 8), 0);
    ASSERT_EQ(std::memcmp(mins, mins_back, 8), 0);
  }
}

// ---- Quality --------------------------------------------------------------------------------------------------------

struct Quality {
  DType dtype;
  double normal, laplace, outliers;   // relative RMSE of GGML 0.13.1 (ggml_quantize_chunk, no importance matrix)
  double share;                       // of these that is allowed here
};

// Measured on 2^20 draws of each distribution. The formats that copy GGML's choice get 1 % for the different draws; the
// searched ones minimise plain squared error, GGML an error weighted by magnitude, so they must come out lower: by
// 2 % (Q4_K, normal) to 18 % (Q2_K, outliers) when this was written. Each share is that less half a percent or so, so
// that a search that stops working fails here.
constexpr Quality kGgml[] = {
    {DType::kQ4_0, 0.08600, 0.10690, 0.14562, 1.01}, {DType::kQ4_1, 0.07826, 0.09183, 0.10016, 1.01},
    {DType::kQ5_0, 0.04270, 0.05357, 0.07427, 1.01}, {DType::kQ5_1, 0.03785, 0.04448, 0.04837, 1.01},
    {DType::kQ8_0, 0.00535, 0.00674, 0.00934, 1.01}, {DType::kIQ4_NL, 0.07618, 0.08793, 0.11229, 0.97},
    {DType::kQ2_K, 0.29672, 0.34414, 0.32407, 0.885}, {DType::kQ3_K, 0.15098, 0.17605, 0.19006, 0.96},
    {DType::kQ4_K, 0.07137, 0.08465, 0.09327, 0.985}, {DType::kQ5_K, 0.03613, 0.04284, 0.04685, 0.965},
    {DType::kQ6_K, 0.01775, 0.02166, 0.02742, 0.98},
};

TEST(QuantBlocks, RoundTripErrorIsNoWorseThanGgml) {
  constexpr size_t kCount = 1 << 17;
  RandomStream random(7, 7);
  std::vector<float> normal(kCount), laplace(kCount), outliers(kCount);
  for (size_t i = 0; i < kCount; ++i) {
    normal[i] = static_cast<float>(random.normal());
    const double exponential = -std::log(1.0 - random.uniform());
    laplace[i] = static_cast<float>(random.below(2) == 0 ? exponential : -exponential);
    outliers[i] = static_cast<float>(random.normal() * (random.uniform() < 0.01 ? 10 : 1));
  }
  ASSERT_EQ(std::size(kGgml), quantised_formats().size());
  for (const Quality& ggml : kGgml) {
    const std::string_view name = dtype_name(ggml.dtype);
    EXPECT_LE(relative_rmse(round_trip(ggml.dtype, normal), normal), ggml.share * ggml.normal) << name;
    EXPECT_LE(relative_rmse(round_trip(ggml.dtype, laplace), laplace), ggml.share * ggml.laplace) << name;
    // one element in a hundred carries half the norm: draws differ more
    EXPECT_LE(relative_rmse(round_trip(ggml.dtype, outliers), outliers), (ggml.share + 0.02) * ggml.outliers) << name;
  }
}

// Element bounds, with r = 2^-11 for one rounding to binary16 and |code| <= L:
//   Q8_0: half a step and the rounding of d at the largest code, (0.5 + L r) d.
//   Q4_1, Q5_1: the same and the rounding of m, which is at most r |m|.
//   Q4_0, Q5_0: as Q8_0, but opposite the extreme value the range ends one step early: 1 instead of 0.5.
// One ulp of float arithmetic on the way is far below the 1 % added.
TEST(QuantBlocks, NoElementOfASimpleFormatIsOffByMoreThanItsStepAllows) {
  struct Bound {
    DType dtype;
    bool centred;
    int steps;           // from the smallest to the largest value, or from 0 to the extreme one
    double in_steps;
  };
  constexpr double kRounding = 0x1.0p-11;
  for (const Bound& bound : {Bound{DType::kQ4_0, true, 8, 1.0}, Bound{DType::kQ5_0, true, 16, 1.0},
                             Bound{DType::kQ8_0, true, 127, 0.5}, Bound{DType::kQ4_1, false, 15, 0.5},
                             Bound{DType::kQ5_1, false, 31, 0.5}}) {
    const std::vector<float> values = normal_values(32 * 501, 11);
    const std::vector<float> back = round_trip(bound.dtype, values);
    for (size_t block = 0; block < values.size(); block += 32) {
      double low = values[block], high = low;
      for (size_t i = block; i < block + 32; ++i) {
        low = std::min(low, static_cast<double>(values[i]));
        high = std::max(high, static_cast<double>(values[i]));
      }
      const double step = (bound.centred ? std::max(-low, high) : high - low) / bound.steps;
      const double offset_error = bound.centred ? 0 : std::abs(low) * kRounding;
      const double allowed = 1.01 * (step * (bound.in_steps + bound.steps * kRounding) + offset_error);
      for (size_t i = block; i < block + 32; ++i) {
        ASSERT_LE(std::abs(static_cast<double>(back[i]) - static_cast<double>(values[i])), allowed)
            << dtype_name(bound.dtype) << " element " << i;
      }
    }
  }
}

// A block of equal values needs one code; what is left is the rounding of at most three binary16 numbers (and, for
// formats whose values are not a line through zero, nothing else).
TEST(QuantBlocks, ZerosAndConstantsSurvive) {
  for (const DType dtype : quantised_formats()) {
    for (const float constant : {0.0f, 0.75f, -0.75f, 3.1f, -1e-2f}) {
      const std::vector<float> back = round_trip(dtype, std::vector<float>(768, constant));
      for (const float x : back) ASSERT_NEAR(x, constant, std::fabs(constant) * 2e-3f) << dtype_name(dtype);
    }
  }
}

// Everything is floating point: a power of two goes through, as long as no scale leaves binary16's normal range.
TEST(QuantBlocks, ScalingByAPowerOfTwoScalesTheResult) {
  const std::vector<float> values = normal_values(256 * 9, 3);
  for (const DType dtype : quantised_formats()) {
    const std::vector<float> base = round_trip(dtype, values);
    for (const float factor : {2.0f, 32.0f, 256.0f}) {
      std::vector<float> scaled = values;
      for (float& x : scaled) x *= factor;
      const std::vector<float> back = round_trip(dtype, scaled);
      for (size_t i = 0; i < back.size(); ++i) ASSERT_EQ(back[i], factor * base[i]) << dtype_name(dtype) << " " << i;
    }
  }
}

// Scales near the bottom of binary16: coarse, but never worse than writing zeros.
TEST(QuantBlocks, TinyValuesDegradeToZerosAtWorst) {
  for (const DType dtype : quantised_formats()) {
    for (const float size : {1e-4f, 1e-5f, 1e-6f, 1e-7f, 1e-8f, 1e-9f, 1e-12f, 1e-30f, 1e-40f}) {
      std::vector<float> values = normal_values(256 * 5, 5);
      for (float& x : values) x *= size;
      const std::vector<float> back = round_trip(dtype, values);
      for (const float x : back) ASSERT_TRUE(std::isfinite(x));
      EXPECT_LE(relative_rmse(back, values), 1.0) << dtype_name(dtype) << " at " << size;
    }
  }
}

// ---- Rows, alignment and hostile input ------------------------------------------------------------------------------

TEST(QuantBlocks, OddNumbersOfBlocksAtOddAddressesTouchOnlyTheirBytes) {
  for (const DType dtype : quantised_formats()) {
    const DTypeTraits& t = traits(dtype);
    for (const int blocks : {0, 1, 2, 3, 7}) {
      const int64_t elements = blocks * t.block_elements;
      const auto bytes = static_cast<size_t>(row_bytes(dtype, elements));
      const std::vector<float> values = normal_values(static_cast<size_t>(elements), 9);
      std::vector<std::byte> row(bytes + 2, std::byte{0xa5});
      quantise_row(row.data() + 1, dtype, values.data(), elements);
      EXPECT_EQ(row.front(), std::byte{0xa5});
      EXPECT_EQ(row.back(), std::byte{0xa5});
      std::vector<float> back(static_cast<size_t>(elements) + 1, 12345.0f);
      dequantise_row(back.data(), dtype, row.data() + 1, elements);
      EXPECT_EQ(back.back(), 12345.0f);
      // the same as block by block
      for (int block = 0; block < blocks; ++block) {
        const auto first = values.begin() + block * t.block_elements;
        const std::vector<float> alone = round_trip(dtype, std::vector<float>(first, first + t.block_elements));
        EXPECT_TRUE(std::equal(alone.begin(), alone.end(), back.begin() + block * t.block_elements))
            << dtype_name(dtype) << " block " << block;
      }
    }
  }
}

TEST(QuantBlocks, EveryBytePatternDecodesAndItsFloatsEncodeToFiniteValues) {
  RandomStream random(13, 0);
  for (const DType dtype : quantised_formats()) {
    for (int trial = 0; trial < 60; ++trial) {
      std::vector<std::byte> bytes(static_cast<size_t>(traits(dtype).block_bytes) * 3);
      for (std::byte& b : bytes) {
        b = trial < 3 ? std::byte(trial == 0 ? 0x00 : trial == 1 ? 0xff : 0x7c) : std::byte(random.below(256));
      }
      for (const float x : round_trip(dtype, dequantised(dtype, bytes))) {
        ASSERT_TRUE(std::isfinite(x)) << dtype_name(dtype);
      }
    }
  }
}

TEST(QuantBlocks, NanCountsAsZeroAndInfinityAsTheLargestNumber) {
  const float largest = std::numeric_limits<float>::max();
  for (const DType dtype : quantised_formats()) {
    std::vector<float> with_nan = normal_values(256, 17), with_zero = with_nan;
    with_nan[3] = with_nan[255] = kNaN;
    with_zero[3] = with_zero[255] = 0;
    EXPECT_EQ(quantised(dtype, with_nan), quantised(dtype, with_zero)) << dtype_name(dtype);

    std::vector<float> with_infinity = normal_values(256, 18), with_largest = with_infinity;
    with_infinity[40] = kInfinity;
    with_infinity[200] = -kInfinity;
    with_largest[40] = largest;
    with_largest[200] = -largest;
    EXPECT_EQ(quantised(dtype, with_infinity), quantised(dtype, with_largest)) << dtype_name(dtype);
    const std::vector<float> back = round_trip(dtype, with_infinity);
    for (const float x : back) ASSERT_TRUE(std::isfinite(x)) << dtype_name(dtype);
    EXPECT_GT(back[40], 65504.0f) << dtype_name(dtype);
    EXPECT_LT(back[200], -60000.0f) << dtype_name(dtype);
    for (const float fill : {kNaN, kInfinity, -kInfinity, largest, -largest}) {
      for (const float x : round_trip(dtype, std::vector<float>(256, fill))) ASSERT_TRUE(std::isfinite(x));
    }
  }
}

TEST(QuantBlocks, CanQuantiseSaysWhatHasAnEncoder) {
  for (const DType dtype : quantised_formats()) EXPECT_TRUE(can_quantise(dtype));
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) EXPECT_TRUE(can_quantise(dtype));
  for (const DType dtype : {DType::kF64, DType::kI8, DType::kI64, DType::kBool}) EXPECT_FALSE(can_quantise(dtype));
}

}  // namespace
}  // namespace quipu
