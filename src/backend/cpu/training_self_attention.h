// Attention over whole sequences with its projections for training in products of bfloat16 pairs (AMX); see
// TrainingOps::self_attention.
//
// Queries, keys and values leave their product's tiles rotated and packed as attention's factors, forward's and backward's, and
// never exist in fp32; what attention gives is packed as the output projection's factor and as the one of its weight's
// gradient. The norm before it is done where rows are packed, the residual is the first term of the output. Rows are padded to
// blocks of 64 sequence by sequence, so that a block of keys is a block of rows. Sums go in an order and in parts that depend
// on shapes alone.
#pragma once

#include <vector>

#include "backend/cpu/kernels/training_kernels.h"
#include "base/thread_pool.h"
#include "ops/training_types.h"

namespace quipu::cpu {

// Turns a head by the row's position: [positions][2 * pairs] cosines, then sines; null: not at all.
struct RotationTable {
  const float* table = nullptr;
  int64_t pairs = 0, step = 0, offset = 0;
};

class SelfAttentionPairs {
 public:
  SelfAttentionPairs(const TrainingKernels& kernels, ThreadPool& pool) : kernels_(kernels), pool_(pool) {}
  // Whole tiles of every dimension; neither biases nor norms of heads.
  bool takes(const SelfAttentionShape& s) const {
    return kernels_.gate_tile != nullptr && s.plain && s.hidden % kGemmPanel == 0 && s.key_dim % kGemmPanel == 0 && s.value_dim % kGemmPanel == 0;
  }
  FusedMemory memory(const SelfAttentionShape& shape, std::span<const int64_t> offsets) const;
  void forward(MatrixView<float> out, MatrixView<const float> x, const SelfAttentionCall<float>& call, const RotationTable& rotation);
  // rotation: by the opposite angles.
  void backward(MatrixView<float> dx, const SelfAttentionGradients<float>& gradients, MatrixView<const float> dout, MatrixView<const float> x,
                const SelfAttentionCall<float>& call, const RotationTable& rotation);

 private:
  struct Sizes;
  struct Saved;
  struct Forward;
  struct Backward;
  struct HeadRows;
  struct Projection;
  // 64 rows of one sequence, or what is left of it.
  struct Block {
    int64_t row, rows;
    int64_t slice, first;          // first: of the slice's rows
  };
  void find_blocks(std::span<const AttentionSlice> slices);
  int64_t rows_of_panel(int64_t panel) const;
  void multiply(const Projection& p, int64_t first_panel, int64_t panels) const;
  void rotate(float* rows, int64_t dim, const Block& block, const SelfAttentionCall<float>& call, const RotationTable& rotation) const;
  void project(const Forward& f, int64_t group, int worker) const;
  void attend_panel(const Forward& f, int64_t panel, int64_t head, int worker) const;
  void give_out(const Forward& f, int64_t group, int worker) const;
  void pack_weights(const Backward& b) const;
  void take_cotangents(const Backward& b, int64_t group, int worker) const;
  void backward_head(const Backward& b, int64_t slice, int64_t kv_head, int worker) const;
  void pack_gradient(const Backward& b, const float* rows, int64_t dim, int64_t block, int64_t first_wide) const;
  void give_dx(const Backward& b, int64_t group, int worker) const;

  const TrainingKernels& kernels_;
  ThreadPool& pool_;
  std::vector<Block> blocks_;
  std::vector<int64_t> slice_blocks_;   // the first of every slice
  std::vector<int64_t> panel_order_;    // panels of queries, those that see the most keys of their sequence first
};

}  // namespace quipu::cpu
