// The median of measurements.
#pragma once

#include <algorithm>
#include <vector>

namespace quipu {

// Of an even number of values the mean of the two in the middle. values: at least one.
inline double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

}  // namespace quipu
