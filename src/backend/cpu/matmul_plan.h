// Prepares activations for a product and cuts the work into tasks. Scratch is kept between calls and only grows.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/packed_matrix.h"
#include "ops/backend.h"

namespace quipu::cpu {

class MatmulPlan {
 public:
  MatmulPlan(const KernelTable& kernels, ThreadPool& pool) : kernels_(kernels), pool_(pool) {}

  // See Backend::matmul. Every w is a CpuMatrix.
  void run(std::span<const MatmulOutput> outputs, MatrixView<const float> x);

 private:
  // Formats that need the same sums of activations: equal group and zero point.
  struct Correction {
    int group = 32;
    int zero_point = 0;
    Buffer start;         // int32 [rows][cols/group], by tile
    Buffer scaled_sums;   // float, the same shape
  };
  struct Tile {
    int64_t first_row = 0;
    int rows = 0;
  };

  void run_rounded_once(std::span<const MatmulOutput> outputs, MatrixView<const float> x);
  void run_rounded_twice(std::span<const MatmulOutput> outputs, MatrixView<const float> x);
  void run_split_rows(std::span<const MatmulOutput> outputs, MatrixView<const float> x, int64_t columns);
  void split_rows(MatrixView<const float> x);
  static void cut(std::vector<Tile>& tiles, int64_t rows, const TileShape& shape);
  void collect_corrections(std::span<const MatmulOutput> outputs);
  Correction& correction_of(const PanelFormat& format);
  void prepare_integer(MatrixView<const float> x);
  void prepare_integer_tile(const Tile& tile, MatrixView<const float> x, int worker);
  void prepare_float(MatrixView<const float> x);
  void prepare_paired(MatrixView<const float> x);
  void prepare_coded_rows(MatrixView<const float> x);
  QuantisedTile quantised_tile(const Tile& tile, int64_t cols, const Correction& correction) const;
  void run_few_rows(std::span<const MatmulOutput> outputs, MatrixView<const float> x);
  void run_rows(std::span<const MatmulOutput> outputs, int64_t cols, bool any_paired, bool any_coded);
  void run_streamed(std::span<const MatmulOutput> outputs);
  void stream_panels(std::span<const MatmulOutput> outputs, int64_t task, bool more, int worker);
  void run_wide_panels(const MatmulOutput& output, int64_t first_panel, int panels, int worker);
  void run_float_panels(const MatmulOutput& output, int64_t first_panel, int panels);
  int64_t paired_sum_bytes() const;   // of a task's products
  void run_paired_panels(const MatmulOutput& output, int64_t first_panel, int panels, int worker);

  const KernelTable& kernels_;
  ThreadPool& pool_;
  std::vector<Tile> integer_tiles_, float_tiles_, paired_tiles_;
  Buffer codes_, scales_, floats_, halves_;
  Buffer split_x_, split_y_;                // [2 rows]: each row, then what rounding it leaves; and their products
  std::vector<MatmulOutput> once_, twice_, stretch_, split_outputs_;
  std::array<Correction, 8> corrections_;   // distinct (group, zero point) pairs among all formats: fewer than 8
  size_t correction_count_ = 0;
  std::vector<Buffer> row_scratch_;         // per worker: one row's codes, scales, sums
  std::vector<Buffer> wide_scratch_;        // per worker: two widened panels, or sums of paired products and expanded codes
};

}  // namespace quipu::cpu
