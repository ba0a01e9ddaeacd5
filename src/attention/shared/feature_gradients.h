// The feature maps of memory_features.h in any precision, and their derivatives.
#pragma once

#include "attention/shared/memory_features.h"

namespace quipu {

// out [map.count()] = sigma(x [map.dim]), as FeatureMap::apply.
template <class Real>
void apply_features(const FeatureMap& map, Real* out, const Real* x);

// dx [map.dim] += (d sigma / d x)^T dout [map.count()]. buffer: map.count() numbers, anything before and after. Where a
// length under 1e-6 was taken for 1e-6 it is a constant.
template <class Real>
void apply_features_backward(const FeatureMap& map, Real* dx, const Real* dout, const Real* x, Real* buffer);

}  // namespace quipu
