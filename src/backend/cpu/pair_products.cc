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
  const auto panels = [&](const uint16_t* factor, int64_t total, int64_t part, int64_t panel) {
    return factor + (row_parts.first(part) * total + panel * row_parts.length(part)) * kPairTile;
  };
  kernels.begin_pairs();
  for (int64_t part = 0; part < row_parts.count; ++part) {
    const int64_t length = row_parts.length(part), step = length * kPairTile;
    const bool more = part + 1 < row_parts.count;
    PairTile product{.c_ld = kGemmPanel, .rows = kPairRows, .cols = kGemmPanel, .blocks = length, .from_ld = kGemmPanel};
    product.c = sums;
    // A share of `elements` from `from` on, or of nothing.
    const auto ask = [&](const uint16_t* from, int64_t elements, int64_t share, int64_t shares) {
      product.soon_bytes = from == nullptr ? 0 : elements * 2 / shares;
      product.soon = from == nullptr ? nullptr : reinterpret_cast<const char*>(from) + share * product.soon_bytes;
    };
    for (int64_t right = 0; right < task.rights; ++right) {
      product.b = panels(task.right, task.right_total, part, task.first_right + right);
      product.a = panels(task.left, task.left_total, part, task.first_left);
      // Even tiles ask for the next panel of the right factor, odd ones for the next part's panels of the left one.
      const uint16_t* next_left = more ? panels(task.left, task.left_total, part + 1, task.first_left) : nullptr;
      const uint16_t* next_right = right + 1 < task.rights ? product.b + step
                                   : more                  ? panels(task.right, task.right_total, part + 1, task.first_right)
                                                           : nullptr;
      for (int64_t left = 0; left < task.lefts; ++left, product.a += step, product.c += kPairTile) {
        if (left % 2 == 0) {
          ask(next_right, step, left / 2, (task.lefts + 1) / 2);
        } else {
          ask(next_left, more ? task.lefts * row_parts.length(part + 1) * kPairTile : 0, right * (task.lefts / 2) + left / 2, task.rights * (task.lefts / 2));
        }
        product.from = part > 0 ? product.c : nullptr;
        product.next_c = part > 0 && (left + 1 < task.lefts || right + 1 < task.rights) ? product.c + kPairTile : nullptr;
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
