#include "backend/cpu/pair_products.h"

namespace quipu::cpu {
namespace {

// give_tile of the first `cols` columns of the sums.
void give_part(const WeightTask& task, float* to, const float* sums, int64_t cols) {
  for (int64_t row = 0; row < kPairRows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      float& value = to[task.transposed ? col * task.gradient_ld + row : row * task.gradient_ld + col];
      value = (task.add ? value : 0.0f) + sums[row * kGemmPanel + col];
    }
  }
}

}  // namespace

MatrixView<const float> PartRows::take(int64_t first, int64_t rows, float* buffer) const {
  if (!normed()) return {x.row(first), rows, x.cols, x.stride};
  for (int64_t row = 0; row < rows; ++row) {
    norm.inverse_rms[static_cast<size_t>(first + row)] =
        kernels.rms_norm_row(buffer + row * x.cols, x.row(first + row), norm.weight.data(), x.cols, norm.epsilon);
  }
  return {buffer, rows, x.cols};
}

void PartRows::give(MatrixView<float> dx, float* dweight, const float* dnormed, int64_t row) const {
  kernels.norm_backward_row({.dx = dx.row(row), .dweight = norm.dweight.empty() ? nullptr : dweight, .dy = dnormed, .x = x.row(row),
                             .weight = norm.weight.data(), .n = x.cols, .scale = norm.inverse_rms[static_cast<size_t>(row)], .add = true});
}

void PartRows::add_dweight(const float* partial, int64_t parts) const {
  for (int64_t part = 0; part < parts && !norm.dweight.empty(); ++part) {
    kernels.add_row(norm.dweight.data(), partial + part * x.cols, x.cols, 1.0f);
  }
}

void give_weight_gradient(const TrainingKernels& kernels, const WeightTask& task, const Parts& row_parts, float* sums) {
  kernels.begin_pairs();
  for (int64_t part = 0; part < row_parts.count; ++part) {
    const int64_t first = row_parts.first(part), length = row_parts.length(part), step = length * kPairTile;
    PairTile product{.c_ld = kGemmPanel, .rows = kPairRows, .cols = kGemmPanel, .blocks = length, .from_ld = kGemmPanel};
    product.c = sums;
    for (int64_t right = 0; right < task.rights; ++right) {
      product.b = task.right + first * task.right_total * kPairTile + (task.first_right + right) * step;
      product.a = task.left + first * task.left_total * kPairTile + task.first_left * step;
      for (int64_t left = 0; left < task.lefts; ++left, product.a += step, product.c += kPairTile) {
        product.from = part > 0 ? product.c : nullptr;
        kernels.pair_tile(product);
      }
    }
  }
  kernels.end_pairs();
  for (int64_t right = 0; right < task.rights; ++right) {
    for (int64_t left = 0; left < task.lefts; ++left, sums += kPairTile) {
      const int64_t there = std::min(kGemmPanel, task.cols_there - right * kGemmPanel);
      float* to = task.gradient + (task.transposed ? right * kGemmPanel * task.gradient_ld + left * kGemmPanel
                                                   : left * kGemmPanel * task.gradient_ld + right * kGemmPanel);
      if (there == kGemmPanel) {
        kernels.give_tile(to, task.gradient_ld, sums, task.transposed, task.add);
      } else {
        give_part(task, to, sums, there);
      }
    }
  }
}

}  // namespace quipu::cpu
