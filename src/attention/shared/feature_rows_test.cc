// The vectors of feature maps against the C library's exp in double.
#include "attention/shared/feature_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace quipu {
namespace {

TEST(FeatureRows, AgreeWithTheLibraryAtEveryLengthAndFarFromZero) {
  for (const int64_t count : {1, 15, 16, 17, 32, 100}) {
    std::vector<float> x, out(static_cast<size_t>(count), 9.0f), dx(static_cast<size_t>(count), 2.0f);
    for (int64_t i = 0; i < count; ++i) x.push_back(static_cast<float>(i % 3 == 0 ? 0.37 * static_cast<double>(i) : -0.83 * static_cast<double>(i)));
    const std::vector<float> dout(static_cast<size_t>(count), 3.0f);
    elu1_rows(out.data(), x.data(), count);
    elu1_rows_backward(dx.data(), dout.data(), x.data(), count);
    for (size_t i = 0; i < x.size(); ++i) {
      const double v = static_cast<double>(x[i]), slope = v > 0 ? 1.0 : std::exp(v), expected = v > 0 ? v + 1 : slope;
      // The polynomial's 2e-7 and half an ulp.
      EXPECT_NEAR(static_cast<double>(out[i]), expected, 3e-7 * expected) << x[i];
      EXPECT_NEAR(static_cast<double>(dx[i]), 2 + 3 * slope, 6e-7 * (2 + 3 * slope)) << x[i];
    }
  }
}

TEST(FeatureRows, SiluAgreesWithTheLibraryAtEveryLengthAndFarFromZero) {
  for (const int64_t count : {1, 15, 16, 17, 32, 100}) {
    std::vector<float> x, out(static_cast<size_t>(count), 9.0f), dx(static_cast<size_t>(count), 2.0f);
    for (int64_t i = 0; i < count; ++i) x.push_back(static_cast<float>(i % 3 == 0 ? 0.37 * static_cast<double>(i) : -1.9 * static_cast<double>(i)));
    const std::vector<float> dout(static_cast<size_t>(count), 3.0f);
    silu_rows(out.data(), x.data(), count);
    silu_rows_backward(dx.data(), dout.data(), x.data(), count);
    for (size_t i = 0; i < x.size(); ++i) {
      const double v = static_cast<double>(x[i]), gate = 1 / (1 + std::exp(-v)), slope = gate * (1 + v * (1 - gate));
      EXPECT_NEAR(static_cast<double>(out[i]), v * gate, 6e-7 * std::fabs(v * gate) + 1e-33) << x[i];
      // 1 - g, within 2^-24 of what it should be, is multiplied by x.
      EXPECT_NEAR(static_cast<double>(dx[i]), 2 + 3 * slope, 3 * (0x1p-23 * std::fabs(v) + 6e-7)) << x[i];
    }
  }
}

TEST(FeatureRows, DotsAreTheSumOfEveryProduct) {
  for (const int64_t count : {0, 1, 15, 16, 17, 32, 100}) {
    std::vector<float> a, b;
    double expected = 0;
    for (int64_t i = 0; i < count; ++i) {
      a.push_back(static_cast<float>(i % 7 - 3));
      b.push_back(static_cast<float>(i % 5 + 1));
      expected += static_cast<double>(a.back()) * static_cast<double>(b.back());
    }
    EXPECT_EQ(static_cast<double>(dot_rows(a.data(), b.data(), count)), expected) << count;   // whole numbers: exact in any order
  }
}

TEST(FeatureRows, KeepNaNAndEndAtTheSmallest) {
  std::vector<float> x(20, std::numeric_limits<float>::quiet_NaN()), out(20);
  x[1] = -1000.0f;
  x[2] = -std::numeric_limits<float>::infinity();
  x[3] = 0.0f;
  elu1_rows(out.data(), x.data(), 20);
  EXPECT_TRUE(std::isnan(out[0]));
  EXPECT_TRUE(std::isnan(out[19]));
  EXPECT_NEAR(out[1], 0.0f, 1e-37f);
  EXPECT_NEAR(out[2], 0.0f, 1e-37f);
  EXPECT_EQ(out[3], 1.0f);
}

}  // namespace
}  // namespace quipu
