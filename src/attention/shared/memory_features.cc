#include "attention/shared/memory_features.h"

#include <algorithm>
#include <cmath>

namespace quipu {
namespace {

constexpr float kLeastLength = 1e-6f;

// relu([x, -x]) at i in [0, 2 dim).
float rectified(const float* x, int64_t dim, int64_t i) { return std::max(i < dim ? x[i] : -x[i - dim], 0.0f); }

void make_unit(float* values, int64_t count) {
  float squares = 0.0f;
  for (int64_t i = 0; i < count; ++i) squares += values[i] * values[i];
  const float length = std::max(std::sqrt(squares), kLeastLength);
  for (int64_t i = 0; i < count; ++i) values[i] /= length;
}

}  // namespace

void FeatureMap::apply(float* out, const float* x) const {
  switch (feature) {
    case Feature::kElu1:
      for (int64_t i = 0; i < dim; ++i) out[i] = x[i] > 0.0f ? x[i] + 1.0f : std::exp(x[i]);
      break;
    case Feature::kDpfp:
      for (int64_t j = 1; j <= nu; ++j) {
        for (int64_t i = 0; i < 2 * dim; ++i) {
          *out++ = rectified(x, dim, i) * rectified(x, dim, (i + j) % (2 * dim));
        }
      }
      out -= count();
      break;
    case Feature::kSiluL2:
      for (int64_t i = 0; i < dim; ++i) out[i] = x[i] / (1.0f + std::exp(-x[i]));
      break;
  }
  if (unit || feature == Feature::kSiluL2) make_unit(out, count());
}

}  // namespace quipu
