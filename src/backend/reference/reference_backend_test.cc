#include "backend/reference/reference_backend.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/random.h"
#include "tensor/quant_blocks.h"

namespace quipu {
namespace {

MatrixSource f32_source(const std::vector<float>& values, int64_t rows, int64_t cols) {
  return {DType::kF32, rows, cols, std::as_bytes(std::span(values))};
}

std::vector<float> random_values(int64_t count, uint64_t seed) {
  RandomStream stream(seed, 0);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(stream.normal());
  return values;
}

TEST(Reference, MatmulOfWorkedNumbersWithAndWithoutBias) {
  auto backend = make_reference_backend(2);
  const std::vector<float> w = {1, 2, 3, -1, 0.5f, 4};   // [2, 3]
  auto packed = backend->pack(f32_source(w, 2, 3));
  ASSERT_TRUE(packed.ok());
  std::vector<float> x = {1, 1, 1, 2, -2, 0.5f};
  const std::array<float, 2> bias = {10, -1};
  std::vector<float> y(4), y_bias(4);
  const std::array<MatmulOutput, 2> outputs = {
      MatmulOutput{{y.data(), 2, 2}, packed->get(), nullptr},
      MatmulOutput{{y_bias.data(), 2, 2}, packed->get(), bias.data()}};
  backend->matmul(outputs, {x.data(), 2, 3});
  EXPECT_EQ(y, (std::vector<float>{6, 3.5f, -0.5f, -1}));
  EXPECT_EQ(y_bias, (std::vector<float>{16, 2.5f, 9.5f, -2}));
}

TEST(Reference, MatmulOfQuantisedWeightsIsTheProductWithTheirDecodedValues) {
  auto backend = make_reference_backend(1);
  constexpr int64_t kRows = 3, kCols = 256;
  const std::vector<float> values = random_values(kRows * kCols, 1);
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kQ4_0, DType::kQ8_0, DType::kQ6_K}) {
    const int64_t stride = row_bytes(dtype, kCols);
    std::vector<std::byte> bytes(static_cast<size_t>(kRows * stride));
    std::vector<float> decoded(kRows * kCols);
    for (int64_t r = 0; r < kRows; ++r) {
      quantise_row(bytes.data() + r * stride, dtype, values.data() + r * kCols, kCols);
      dequantise_row(decoded.data() + r * kCols, dtype, bytes.data() + r * stride, kCols);
    }
    auto packed = backend->pack({dtype, kRows, kCols, bytes});
    ASSERT_TRUE(packed.ok());
    std::vector<float> x = random_values(kCols, 2);
    std::vector<float> y(kRows);
    backend->matmul({y.data(), 1, kRows}, **packed, {x.data(), 1, kCols});
    for (int64_t r = 0; r < kRows; ++r) {
      long double expected = 0;
      for (int64_t c = 0; c < kCols; ++c) expected += static_cast<long double>(decoded[r * kCols + c]) * x[c];
      // One rounding to float of a sum whose double error is 256 eps_64 times the sum of magnitudes (< 1e3).
      EXPECT_NEAR(y[r], static_cast<double>(expected), std::fabs(static_cast<double>(expected)) * 0x1p-24 + 1e-10)
          << dtype_name(dtype);
    }
  }
}

TEST(Reference, RopeVectorsOfBothPairings) {
  auto backend = make_reference_backend(1);
  const std::array<float, 2> frequency = {1.0f, 0.01f};   // theta 1e4, rotary_dim 4
  const std::array<int64_t, 1> position = {1};
  std::vector<float> interleaved = {1, 2, 3, 4}, half_split = {1, 2, 3, 4};
  backend->rope({interleaved.data(), 1, 4}, 4, position, frequency, {.interleaved = true, .rotary_dim = 4});
  backend->rope({half_split.data(), 1, 4}, 4, position, frequency, {.interleaved = false, .rotary_dim = 4});
  const std::array<double, 4> expected_interleaved = {-1.1426397, 1.9220756, 2.9598507, 4.0297995};
  const std::array<double, 4> expected_half_split = {-1.9841106, 1.9599007, 2.4623779, 4.0197997};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(interleaved[i], expected_interleaved[i], 5e-7);
    EXPECT_NEAR(half_split[i], expected_half_split[i], 5e-7);
  }
}

TEST(Reference, PartialRopeRotatesTheFrontOfEveryHeadAndScalesItByTheMagnitude) {
  auto backend = make_reference_backend(1);
  const std::array<float, 1> frequency = {0.5f};
  const std::array<int64_t, 2> positions = {0, 3};
  std::vector<float> x = {1, 2, 3, 5, 6, 7, 1, 2, 3, 5, 6, 7};   // 2 rows of 2 heads of 3
  backend->rope({x.data(), 2, 6}, 3, positions, frequency, {.rotary_dim = 2, .magnitude = 2.0f});
  const double c = 2 * std::cos(1.5), s = 2 * std::sin(1.5);
  const std::array<double, 12> expected = {2, 4, 3, 10, 12, 7, c - 2 * s, s + 2 * c, 3, 5 * c - 6 * s, 5 * s + 6 * c, 7};
  for (size_t i = 0; i < 12; ++i) EXPECT_NEAR(x[i], expected[i], 2e-6) << i;
}

TEST(Reference, NormsOfWorkedNumbers) {
  auto backend = make_reference_backend(1);
  std::vector<float> x = {1, -2, 3, 4, 0, 0, 0, 0};
  const std::vector<float> weight = {1, 2, -1, 0.5f}, bias = {0, 1, 2, 3};
  std::vector<float> out(8);
  backend->rms_norm({out.data(), 2, 4}, {x.data(), 2, 4}, weight, 0.5f);
  const double rms = std::sqrt(30.0 / 4 + 0.5);
  const std::array<double, 8> expected_rms = {1 / rms, -4 / rms, -3 / rms, 2 / rms, 0, 0, 0, 0};
  for (size_t i = 0; i < 8; ++i) EXPECT_NEAR(out[i], expected_rms[i], 1e-7);

  // mean 1.5, variance (0.25 + 12.25 + 2.25 + 6.25) / 4 = 5.25; epsilon 0.75 makes the root sqrt(6)
  backend->layer_norm({x.data(), 2, 4}, {x.data(), 2, 4}, weight, bias, 0.75f);
  const double root = std::sqrt(6.0);
  const std::array<double, 8> expected_layer = {-0.5 / root, 1 - 7 / root, 2 - 1.5 / root, 3 + 1.25 / root, 0, 1, 2, 3};
  for (size_t i = 0; i < 8; ++i) EXPECT_NEAR(x[i], expected_layer[i], 3e-7);
}

TEST(Reference, GatesOfWorkedNumbers) {
  auto backend = make_reference_backend(1);
  std::vector<float> gate = {1, -2, 0, -200}, up = {2, 3, 5, 7}, out(4);
  backend->gated_activation({out.data(), 1, 4}, {gate.data(), 1, 4}, {up.data(), 1, 4}, GateActivation::kSilu);
  const std::array<double, 4> silu = {2 * 0.7310585786, 3 * -0.2384058440, 0, 0};
  for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(out[i], silu[i], 1e-6);
  backend->gated_activation({gate.data(), 1, 4}, {gate.data(), 1, 4}, {up.data(), 1, 4}, GateActivation::kGeluTanh);
  const std::array<double, 4> gelu = {2 * 0.8411919906, 3 * -0.0454023059, 0, 0};
  for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(gate[i], gelu[i], 1e-6);
}

TEST(Reference, EmbedDecodesAndScalesRows) {
  auto backend = make_reference_backend(1);
  const std::vector<float> table = {1, 2, 3, 4, 5, 6};
  const std::array<int32_t, 3> ids = {2, 0, 2};
  std::vector<float> out(6);
  backend->embed({out.data(), 3, 2}, ids, f32_source(table, 3, 2), 10.0f);
  EXPECT_EQ(out, (std::vector<float>{50, 60, 10, 20, 50, 60}));
}

TEST(Reference, AddWritesOnlyItsView) {
  auto backend = make_reference_backend(1);
  std::vector<float> x = {1, 2, 9, 3, 4, 9}, y = {10, 20, 30, 40};
  backend->add({x.data(), 2, 2, 3}, {y.data(), 2, 2});
  EXPECT_EQ(x, (std::vector<float>{11, 22, 9, 33, 44, 9}));
}

TEST(ReferenceDeathTest, WrongShapesStopAtTheDoor) {
  auto backend = make_reference_backend(1);
  std::vector<float> x(6), weight(2);
  EXPECT_DEATH(backend->rms_norm({x.data(), 2, 3}, {x.data(), 2, 3}, weight, 1e-5f), "weight: expected 3 elements, got 2");
}

}  // namespace
}  // namespace quipu
