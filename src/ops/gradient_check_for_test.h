// Test support: a gradient computed by hand against central differences in double.
//
// The loss must be a dot product with a random cotangent, not a plain sum: the sum of a softmax or of a normalised row is
// constant, so its gradient is zero however wrong the code is.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/random.h"

namespace quipu {

inline std::vector<double> random_doubles(int64_t count, uint64_t seed, double deviation = 1.0) {
  RandomStream random(seed, 7);
  std::vector<double> values(static_cast<size_t>(count));
  for (double& v : values) v = deviation * random.normal();
  return values;
}

inline double dot_of(std::span<const double> a, std::span<const double> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// gradient: d loss() / d values, as computed. Compares up to `probes` elements one by one and all of them at once along a
// random direction. loss() may read `values`; they are put back.
//
// Step h = 1e-5: the difference is off by h^2 f''' / 6, about 1e-10 of the scale, and by rounding, 2e-16 |f| / h = 2e-11 |f|.
// The tolerance is 1e-7 of the largest gradient (curvature may be large in a corner), plus the rounding of f.
inline void expect_gradient(const std::string& what, const std::function<double()>& loss, std::span<double> values,
                            std::span<const double> gradient, int64_t probes = 24) {
  ASSERT_EQ(values.size(), gradient.size()) << what;
  if (values.empty()) return;
  constexpr double kStep = 1e-5;
  double scale = 0;
  for (const double g : gradient) {
    ASSERT_TRUE(std::isfinite(g)) << what;
    scale = std::max(scale, std::abs(g));
  }
  const double tolerance = 1e-7 * scale + 1e-9 * std::max(1.0, std::abs(loss()));
  RandomStream random(11, values.size());
  const size_t stride = std::max<size_t>(1, values.size() / static_cast<size_t>(probes));
  for (size_t i = random.below(stride); i < values.size(); i += stride) {
    const double kept = values[i];
    values[i] = kept + kStep;
    const double above = loss();
    values[i] = kept - kStep;
    const double below = loss();
    values[i] = kept;
    EXPECT_NEAR((above - below) / (2 * kStep), gradient[i], tolerance) << what << ", element " << i;
  }
  std::vector<double> kept(values.begin(), values.end()), direction(values.size());
  double slope = 0, length = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    direction[i] = random.normal();
    slope += direction[i] * gradient[i];
    length += std::abs(direction[i] * gradient[i]);
  }
  const auto moved = [&](double by) {
    for (size_t i = 0; i < values.size(); ++i) values[i] = kept[i] + by * direction[i];
    return loss();
  };
  // A random direction is sqrt(n) long: a shorter step keeps the curvature's share down.
  const double step = kStep / std::sqrt(static_cast<double>(values.size()));
  const double numeric = (moved(step) - moved(-step)) / (2 * step);
  std::copy(kept.begin(), kept.end(), values.begin());
  EXPECT_NEAR(numeric, slope, 1e-6 * length + 1e-9 * std::max(1.0, std::abs(loss())) * std::sqrt(static_cast<double>(values.size())))
      << what << ", all " << values.size() << " elements at once";
}

}  // namespace quipu
