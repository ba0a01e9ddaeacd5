// Attention for training with products of bfloat16 pairs (AMX): factors are rounded, sums and softmax are fp32.
//
// Scores are kept as [keys][queries]: then a softmax works across lanes that hold queries of their own, and what it gives is
// already the factor of the next product: a left one for the gradients of keys and values, a right one (pairs of keys) for
// outputs and the gradients of queries, which are summed transposed. Blocks of 64 keys by panels of 32 queries, whatever the threads.
#pragma once

#include <vector>

#include "backend/cpu/kernels/training_kernels.h"
#include "base/thread_pool.h"
#include "ops/training_types.h"
#include "tensor/buffer.h"

namespace quipu::cpu {

class PairAttention {
 public:
  PairAttention(const TrainingKernels& kernels, ThreadPool& pool) : kernels_(kernels), pool_(pool) {}
  // Whether the kernels can do this pattern.
  bool takes(const AttentionPattern& pattern) const { return kernels_.pair_tile != nullptr && pattern.scale > 0; }
  void forward(MatrixView<float> out, MatrixView<float> log_sum_exp, const AttentionInputs<float>& in, const AttentionPattern& pattern);
  void backward(const AttentionGradients<float>& gradients, MatrixView<const float> dout, const AttentionInputs<float>& in,
                const AttentionSaved<float>& saved, const AttentionPattern& pattern);

 private:
  struct QueryTask {
    const AttentionSlice* slice;
    int64_t first, rows;           // queries of the slice
  };
  struct Forward;
  struct Backward;
  struct Head;
  void pack_keys(const Forward& call);
  void forward_block(const Forward& call, const QueryTask& task, int64_t head, int worker);
  void backward_head(const Backward& call, const AttentionSlice& slice, int64_t kv_head, int worker);
  void prepare_queries(const Head& head);
  void backward_keys(const Head& head, int64_t key, int64_t first_query);

  const TrainingKernels& kernels_;
  ThreadPool& pool_;
  Buffer keys_, work_;
  Buffer delta_;                   // [heads][rows]: dout . out
  std::vector<int64_t> slice_blocks_;   // first block of keys of each slice
  std::vector<QueryTask> tasks_;
};

}  // namespace quipu::cpu
