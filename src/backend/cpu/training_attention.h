// TrainingAttention: attention over packed sequences, forward and backward, in blocks of queries and keys.
//
// Forward deals out blocks of queries of one head; the keys of every head are packed once for all of them. Backward deals
// out key heads of sequences: a task owns every gradient it writes, so sums have one order whatever the threads.
#pragma once

#include "backend/cpu/kernels/training_kernels.h"
#include "base/thread_pool.h"
#include "ops/training_types.h"
#include "tensor/buffer.h"

namespace quipu::cpu {

class TrainingAttention {
 public:
  TrainingAttention(const TrainingKernels& kernels, ThreadPool& pool) : kernels_(kernels), pool_(pool) {}
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
  void pack_keys(const AttentionInputs<float>& in, const AttentionPattern& pattern);
  void forward_block(const Forward& call, const QueryTask& task, int64_t head, int worker);
  void backward_head(const Backward& call, const AttentionSlice& slice, int64_t kv_head, int worker);
  void prepare_queries(const Head& head);
  void backward_keys(const Head& head, int64_t key, int64_t first_query);

  const TrainingKernels& kernels_;
  ThreadPool& pool_;
  Buffer keys_, work_;
  std::vector<int64_t> slice_blocks_;   // first block of 64 keys of each slice
  std::vector<QueryTask> tasks_;
};

}  // namespace quipu::cpu
