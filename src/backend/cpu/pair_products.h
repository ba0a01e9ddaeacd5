// Pieces of operations whose products of bfloat16 pairs follow one another while what lies between them stays in a cache:
// training_gated.h, training_self_attention.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/cpu/kernels/training_kernels.h"
#include "ops/training_types.h"
#include "tensor/view.h"

namespace quipu::cpu {

// Blocks of 32 of a depth multiplied at once: a panel of the right factor, 32 KiB, stays in a first-level cache of 48 KiB while
// panels of the left one go by.
inline constexpr int64_t kDepthBlocks = 16;
inline constexpr int64_t kPackPanels = 8;   // packed by one task: lines across lie side by side

// `total` in parts of equal size, the last one shorter.
struct Parts {
  int64_t total, count, size;
  Parts(int64_t total_in, int64_t most) : total(total_in), count((total + most - 1) / most), size(count == 0 ? 0 : (total + count - 1) / count) {
    count = size == 0 ? 0 : (total + size - 1) / size;
  }
  int64_t first(int64_t part) const { return part * size; }
  int64_t length(int64_t part) const { return std::min(size, total - first(part)); }
};

// The rows a part begins with, normed on the way where it has a norm.
struct PartRows {
  const TrainingKernels& kernels;
  MatrixView<const float> x;
  const ResidualNorm<float>& norm;
  bool normed() const { return !norm.weight.empty(); }
  // `rows` rows from `first` on; buffer [rows][x.cols]: room for them.
  MatrixView<const float> take(int64_t first, int64_t rows, float* buffer) const;
  // dx += the gradient of row `row` before the norm, from the one behind it; dweight: added to.
  void give(MatrixView<float> dx, float* dweight, const float* dnormed, int64_t row) const;
  // norm.dweight += the sum of `parts` partial ones.
  void add_dweight(const float* partial, int64_t parts) const;
};

// A weight's gradient, which has the rows as its depth: tiles of `left` panels by `right` ones. The factors lie by part of the
// rows, by panel: left_total and right_total panels in all.
struct WeightTask {
  const uint16_t* left;
  int64_t left_total;
  const uint16_t* right;
  int64_t right_total;
  int64_t first_left, lefts, first_right, rights;
  float* gradient;                 // of the first tile
  int64_t gradient_ld;
  int64_t cols_there;              // columns of the right factor that there are, from first_right on
  bool transposed;                 // gradient [right, left]
  bool add;                        // to the gradient, else it is written
};
// Tiles of a weight's gradient summed by one task: 352 KiB.
inline constexpr int64_t kGradientLefts = 8, kGradientRights = 11;

// sums: room for the task's tiles.
void give_weight_gradient(const TrainingKernels& kernels, const WeightTask& task, const Parts& row_parts, float* sums);

}  // namespace quipu::cpu
