// Feature maps sigma: what keys and queries are turned into before they meet the memory, and their derivatives. Element order fixed.
#pragma once

#include <cstdint>

namespace quipu {

enum class Feature { kElu1, kDpfp, kSiluL2 };

struct FeatureMap {
  Feature feature = Feature::kElu1;
  int64_t dim = 0;    // of a head
  int64_t nu = 1;     // kDpfp
  bool unit = false;  // divided by its Euclidean length afterwards; kSiluL2 always is

  int64_t count() const { return feature == Feature::kDpfp ? 2 * nu * dim : dim; }
};

// out [map.count()] = sigma(x [map.dim]); no overlap. In float the vectors of feature_rows.h.
//   kElu1    x + 1 for x > 0, else exp(x)                                        [Katharopoulos et al. 2020, eq. 7]
//   kDpfp    r = relu([x, -x]), out[2 dim (j - 1) + i] = r[i] r[(i + j) mod 2 dim], j = 1 .. nu
//                                                                                [Schlag et al. 2021, eq. 37]
//   kSiluL2  silu(x) / |silu(x)|                                                 [Yang et al. 2024, DeltaNet]
// A length under 1e-6 counts as 1e-6.
template <class Real>
void apply_features(const FeatureMap& map, Real* out, const Real* x);

// dx [map.dim] += (d sigma / d x)^T dout [map.count()]. buffer: map.count() numbers, anything before and after. Where a
// length under 1e-6 was taken for 1e-6 it is a constant.
template <class Real>
void apply_features_backward(const FeatureMap& map, Real* dx, const Real* dout, const Real* x, Real* buffer);

}  // namespace quipu
