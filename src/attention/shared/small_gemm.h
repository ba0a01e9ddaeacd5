// Products of small matrices on the calling thread: for tasks of a pool, where TrainingOps::batched_gemm cannot be called.
#pragma once

#include "ops/training_types.h"

namespace quipu {

// c = op(a) op(b) + beta * c, beta 0 or 1, alpha 1, batch 1. Every element is summed over k in order, from what was there;
// the instruction set (the best of the machine) changes no result. Real: float, double.
template <class Real>
void small_gemm(const BatchedGemm<Real>& product);

extern template void small_gemm<float>(const BatchedGemm<float>&);
extern template void small_gemm<double>(const BatchedGemm<double>&);

}  // namespace quipu
