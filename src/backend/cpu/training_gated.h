// The gated feed-forward part for training in products of bfloat16 pairs (AMX), in blocks of rows whose activations stay in
// a second-level cache; see TrainingOps::gated.
//
// Everything between products is a packed factor as soon as it leaves its tile: gate and up are kept rounded, the activated
// rows are the next product's left factor, and backward writes each gradient as the left factor of dx and as the right one
// of the weights' gradients. Weights are packed once for all rows. Sums over a depth go in order and in parts that depend on
// shapes alone, so results depend neither on the threads nor on the blocks of rows.
#pragma once

#include "backend/cpu/kernels/training_kernels.h"
#include "base/thread_pool.h"
#include "ops/training_types.h"

namespace quipu::cpu {

class GatedPairs {
 public:
  GatedPairs(const TrainingKernels& kernels, ThreadPool& pool) : kernels_(kernels), pool_(pool) {}
  // Whole tiles of hidden, no biases.
  bool takes(const GatedShape& shape) const {
    return kernels_.gate_tile != nullptr && !shape.bias && shape.hidden % kGemmPanel == 0;
  }
  FusedMemory memory(const GatedShape& shape, int64_t rows) const;
  void forward(MatrixView<float> out, MatrixView<const float> x, const GatedCall<float>& call);
  void backward(MatrixView<float> dx, const GatedGradients<float>& gradients, MatrixView<const float> dout,
                MatrixView<const float> x, const GatedCall<float>& call);

 private:
  struct Sizes;
  struct Saved;
  struct Forward;
  struct Backward;
  struct RowSums;
  void forward_rows(const Forward& f, int64_t block, int worker) const;
  void backward_rows(const Backward& b, int64_t block, int worker) const;
  void add_rows(const RowSums& sums, const MatrixView<float>& out, int64_t first_row, int64_t col) const;
  void pack_backward(const Backward& b) const;

  const TrainingKernels& kernels_;
  ThreadPool& pool_;
};

}  // namespace quipu::cpu
