// The loss of rows with the product that makes their logits, for training in products of bfloat16 pairs (AMX); see
// TrainingOps::output_loss.
//
// A block of rows goes through the vocabulary twice: once for the maximum and the sum of exponentials, which a tile of logits adds
// to while it is in a first-level cache, and once for the gradients, which leave their tile rounded and packed as factors of both
// products that follow. Logits are never stored: multiplying them again costs a third more operations, and what it saves is four
// passes over a matrix that no cache holds.
// Tiles lie as [vocabulary][rows], so that nothing is summed or compared across lanes.
#pragma once

#include <span>

#include "backend/cpu/kernels/training_kernels.h"
#include "base/thread_pool.h"
#include "ops/training_types.h"

namespace quipu::cpu {

class OutputLossPairs {
 public:
  OutputLossPairs(const TrainingKernels& kernels, ThreadPool& pool) : kernels_(kernels), pool_(pool) {}
  // Whole tiles, no soft cap.
  bool takes(const OutputLossShape& shape) const {
    return kernels_.loss_columns != nullptr && shape.hidden % kGemmPanel == 0 && shape.vocabulary % kGemmPanel == 0 && shape.softcap == 0 &&
           shape.logit_scale > 0;
  }
  // Bytes of scratch.
  int64_t memory(const OutputLossShape& shape, int64_t rows, bool backward) const;
  // rows: target, weight, logit_scale and z_loss are read, the results written; one without a target (-1) counts for nothing in
  // dx and dw. backward: dx is written over.
  void run(const OutputLossCall<float>& call, MatrixView<const float> x, std::span<LossRow> rows, bool backward) const;

 private:
  struct Sizes;
  struct Work;
  void pack(const Work& w) const;
  template <class After>
  void multiply(const Work& w, int64_t block, int64_t panel, int worker, const After& after) const;
  void sum_rows(const Work& w, int64_t block, int worker) const;
  void give_gradients(const Work& w, int64_t block, int worker) const;

  const TrainingKernels& kernels_;
  ThreadPool& pool_;
};

}  // namespace quipu::cpu
