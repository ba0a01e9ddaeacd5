#include "attention/shared/memory_features.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "attention/shared/feature_rows.h"

namespace quipu {
namespace {

constexpr double kLeastLength = 1e-6;

bool has_unit_length(const FeatureMap& map) { return map.unit || map.feature == Feature::kSiluL2; }

// relu([x, -x]) at i in [0, 2 dim).
template <class Real>
Real rectified(const Real* x, int64_t dim, int64_t i) {
  return std::max(i < dim ? x[i] : -x[i - dim], Real{0});
}

template <class Real>
void raw_features(const FeatureMap& map, Real* out, const Real* x) {
  switch (map.feature) {
    case Feature::kElu1:
      if constexpr (std::is_same_v<Real, float>) return elu1_rows(out, x, map.dim);
      for (int64_t i = 0; i < map.dim; ++i) out[i] = x[i] > 0 ? x[i] + 1 : std::exp(x[i]);
      return;
    case Feature::kDpfp:
      for (int64_t j = 1; j <= map.nu; ++j) {
        for (int64_t i = 0; i < 2 * map.dim; ++i) {
          *out++ = rectified(x, map.dim, i) * rectified(x, map.dim, (i + j) % (2 * map.dim));
        }
      }
      return;
    case Feature::kSiluL2:
      if constexpr (std::is_same_v<Real, float>) return silu_rows(out, x, map.dim);
      for (int64_t i = 0; i < map.dim; ++i) out[i] = x[i] / (1 + std::exp(-x[i]));
      return;
  }
}

// What features are divided by, and whether it depends on them.
template <class Real>
Real length_of(const Real* values, int64_t count, bool& clamped) {
  Real squares = 0;
  if constexpr (std::is_same_v<Real, float>) {
    squares = dot_rows(values, values, count);
  } else {
    for (int64_t i = 0; i < count; ++i) squares += values[i] * values[i];
  }
  const Real length = std::sqrt(squares);
  clamped = length < static_cast<Real>(kLeastLength);
  return clamped ? static_cast<Real>(kLeastLength) : length;
}

template <class Real>
void raw_features_backward(const FeatureMap& map, Real* dx, const Real* dout, const Real* x) {
  switch (map.feature) {
    case Feature::kElu1:
      if constexpr (std::is_same_v<Real, float>) return elu1_rows_backward(dx, dout, x, map.dim);
      for (int64_t i = 0; i < map.dim; ++i) dx[i] += x[i] > 0 ? dout[i] : dout[i] * std::exp(x[i]);
      return;
    case Feature::kDpfp: {
      const auto give = [&](int64_t i, Real gradient) {   // to the rectified number i
        if (rectified(x, map.dim, i) <= 0) return;
        if (i < map.dim) dx[i] += gradient;
        else dx[i - map.dim] -= gradient;
      };
      for (int64_t j = 1; j <= map.nu; ++j) {
        for (int64_t i = 0; i < 2 * map.dim; ++i, ++dout) {
          const int64_t other = (i + j) % (2 * map.dim);
          give(i, *dout * rectified(x, map.dim, other));
          give(other, *dout * rectified(x, map.dim, i));
        }
      }
      return;
    }
    case Feature::kSiluL2:
      if constexpr (std::is_same_v<Real, float>) return silu_rows_backward(dx, dout, x, map.dim);
      for (int64_t i = 0; i < map.dim; ++i) {
        const Real gate = 1 / (1 + std::exp(-x[i]));
        dx[i] += dout[i] * gate * (1 + x[i] * (1 - gate));
      }
      return;
  }
}

}  // namespace

template <class Real>
void apply_features(const FeatureMap& map, Real* out, const Real* x) {
  raw_features(map, out, x);
  if (!has_unit_length(map)) return;
  bool clamped = false;
  const Real length = length_of(out, map.count(), clamped);
  for (int64_t i = 0; i < map.count(); ++i) out[i] /= length;
}

template <class Real>
void apply_features_backward(const FeatureMap& map, Real* dx, const Real* dout, const Real* x, Real* buffer) {
  if (!has_unit_length(map)) return raw_features_backward(map, dx, dout, x);
  // f = y / |y|: dy = (df - f (f . df)) / |y|.
  const int64_t count = map.count();
  raw_features(map, buffer, x);
  bool clamped = false;
  const Real length = length_of(buffer, count, clamped);
  Real along = 0;
  for (int64_t i = 0; i < count && !clamped; ++i) along += buffer[i] * dout[i];
  along /= length * length;
  for (int64_t i = 0; i < count; ++i) buffer[i] = (dout[i] - buffer[i] * along) / length;
  raw_features_backward(map, dx, buffer, x);
}

template void apply_features<float>(const FeatureMap&, float*, const float*);
template void apply_features<double>(const FeatureMap&, double*, const double*);
template void apply_features_backward<float>(const FeatureMap&, float*, const float*, const float*, float*);
template void apply_features_backward<double>(const FeatureMap&, double*, const double*, const double*, double*);

}  // namespace quipu
