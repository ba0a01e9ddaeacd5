// TrainingGemm: products of float matrices for training, over the pool.
//
// The right factor is packed a depth of kGemmDepth at a time, once for all threads; blocks of rows of the left factor are
// dealt out. Sums over the depth go block by block in order, so a result does not depend on the number of threads.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/cpu/kernels/training_kernels.h"
#include "base/thread_pool.h"
#include "ops/training_types.h"
#include "tensor/buffer.h"

namespace quipu::cpu {

// Rows of the left factor and where their results go, unless the columns say so.
struct GemmRows {
  const float* a = nullptr;
  int64_t a_ld = 0;
  int64_t rows = 0;
  float* c = nullptr;
  int64_t c_ld = 0;
};
struct GemmColumns {
  const float* b = nullptr;
  int64_t b_ld = 0;
  int64_t cols = 0;
  float* c = nullptr;              // null: the rows' c
  int64_t c_ld = 0;
  const float* bias = nullptr;
};
// One of several products that add up.
struct GemmTerm {
  const float* a = nullptr;
  int64_t a_ld = 0;
  const float* b = nullptr;
  int64_t b_ld = 0;
  int64_t depth = 0;
};
// c[i, j] (+)= sum_k a[i, k] b[k, j] over all rows and columns.
struct GemmProblem {
  std::span<const GemmRows> rows;
  std::span<const GemmColumns> columns;
  int64_t depth = 0;
  // Instead of the factors of `rows` and `columns`, of which there is one each then.
  std::span<const GemmTerm> terms = {};
  bool a_by_columns = false;       // a[k * a_ld + i], else a[i * a_ld + k]
  bool b_transposed = false;       // b[j * b_ld + k], else b[k * b_ld + j]
  bool add = false;
};

class TrainingGemm {
 public:
  // bfloat16: round the factors of run() where the instruction set multiplies those faster.
  TrainingGemm(const TrainingKernels& kernels, ThreadPool& pool, bool bfloat16)
      : kernels_(kernels), pool_(pool), pairs_(bfloat16 && kernels.pair_tile != nullptr) {}
  bool rounds() const { return pairs_; }
  void run(const GemmProblem& problem);
  void run_batch(const BatchedGemm<float>& gemm);
  int64_t scratch_bytes(int64_t weight_elements) const;

 private:
  struct Panel {
    const GemmColumns* from;
    int64_t first;                 // column of `from`
  };
  struct Block {
    const GemmRows* from;
    int64_t first, rows;
  };
  struct Step {                    // a stretch of the depth
    const GemmTerm* term;          // null: the rows' and columns' own factors
    int64_t first, depth;
  };
  void plan(const GemmProblem& problem, int64_t block_rows, int64_t depth_step);
  void run_floats(const GemmProblem& problem);
  void run_block(const GemmProblem& problem, std::span<const Panel> panels, const Block& block, const Step& step, int worker);
  void pack_panel(const GemmProblem& problem, const Panel& panel, int64_t index, const Step& step);
  void run_pairs(const GemmProblem& problem);
  void run_block_of_pairs(const GemmProblem& problem, std::span<const Panel> panels, const Block& block, int worker);
  void pack_panels_of_pairs(const GemmProblem& problem, std::span<const Panel> panels, int64_t first_panel, size_t step);
  void run_member(const BatchedGemm<float>& gemm, int64_t member, int worker);
  float* left_of(int worker) const { return left_.as<float>() + worker * left_floats_; }

  const TrainingKernels& kernels_;
  ThreadPool& pool_;
  bool pairs_;
  int64_t left_floats_ = 0;
  Buffer right_, left_, member_right_;
  std::vector<Panel> panels_;
  std::vector<Block> blocks_;
  std::vector<Step> steps_;
};

}  // namespace quipu::cpu
