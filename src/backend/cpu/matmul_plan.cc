#include "backend/cpu/matmul_plan.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/scratch.h"

namespace quipu::cpu {
namespace {

constexpr int64_t kPanelsPerRowTask = 16;   // one-row products: 256 outputs a task, four panels in step

const CpuMatrix& matrix_of(const MatmulOutput& output) { return static_cast<const CpuMatrix&>(*output.w); }

// Finds which output a task belongs to: `size(output)` tasks each, in order. Returns the index within the output.
template <class Size>
std::pair<size_t, int64_t> locate(std::span<const MatmulOutput> outputs, int64_t task, const Size& size) {
  size_t index = 0;
  for (int64_t count = size(outputs[index]); task >= count; count = size(outputs[index])) {
    task -= count;
    ++index;
  }
  return {index, task};
}

int64_t row_tasks(const MatmulOutput& output) {
  return (matrix_of(output).panels() + kPanelsPerRowTask - 1) / kPanelsPerRowTask;
}

int64_t pair_tasks(const MatmulOutput& output) { return (matrix_of(output).panels() + 1) / 2; }

void add_bias(float* y, const float* bias, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += bias[i];
}

}  // namespace

void MatmulPlan::run(std::span<const MatmulOutput> outputs, MatrixView<const float> x) {
  plan_tiles(x.rows);
  bool any_integer = false, any_float = false;
  for (const MatmulOutput& output : outputs) (matrix_of(output).quantised() ? any_integer : any_float) = true;
  if (any_integer) {
    collect_corrections(outputs);
    prepare_integer(x);
  }
  if (x.rows == 1) {
    run_one_row(outputs, x.data);
    return;
  }
  if (any_float) prepare_float(x);
  run_rows(outputs, x.cols);
}

void MatmulPlan::plan_tiles(int64_t rows) {
  tiles_.clear();
  int64_t row = 0;
  for (const int size : {12, 8, 4, 2, 1}) {
    for (; rows - row >= size; row += size) tiles_.push_back({row, size});
  }
}

MatmulPlan::Correction& MatmulPlan::correction_of(const PanelFormat& format) {
  for (size_t i = 0; i < correction_count_; ++i) {
    Correction& known = corrections_[i];
    if (known.group == format.group() && known.zero_point == format.zero_point) return known;
  }
  CHECK(correction_count_ < corrections_.size());
  Correction& added = corrections_[correction_count_++];
  added.group = format.group();
  added.zero_point = format.zero_point;
  return added;
}

void MatmulPlan::collect_corrections(std::span<const MatmulOutput> outputs) {
  correction_count_ = 0;
  for (const MatmulOutput& output : outputs) {
    if (matrix_of(output).quantised()) correction_of(matrix_of(output).format());
  }
}

void MatmulPlan::prepare_integer(MatrixView<const float> x) {
  grow(codes_, x.rows * x.cols);
  grow(scales_, x.rows * x.cols / 32 * 4);
  for (size_t i = 0; i < correction_count_; ++i) {
    grow(corrections_[i].start, x.rows * x.cols / corrections_[i].group * 4);
    grow(corrections_[i].scaled_sums, x.rows * x.cols / corrections_[i].group * 4);
  }
  row_scratch_.resize(static_cast<size_t>(pool_.threads()));
  for (Buffer& scratch : row_scratch_) grow(scratch, x.cols * kMaxTile * 2);
  const auto prepare = [&](int64_t tile, int worker) { prepare_integer_tile(tiles_[static_cast<size_t>(tile)], x, worker); };
  if (tiles_.size() == 1) {
    prepare(0, 0);
  } else {
    pool_.parallel_for_worker(static_cast<int64_t>(tiles_.size()), prepare);
  }
}

void MatmulPlan::prepare_integer_tile(const Tile& tile, MatrixView<const float> x, int worker) {
  const int64_t cols = x.cols;
  const int64_t n = tile.rows;
  // The row's own arrays, then laid into the tile: components by four, rows side by side.
  std::byte* scratch = row_scratch_[static_cast<size_t>(worker)].data();
  int8_t* row_codes = reinterpret_cast<int8_t*>(scratch);
  float* row_scales = reinterpret_cast<float*>(scratch + cols);
  int32_t* row_sums = reinterpret_cast<int32_t*>(scratch + cols + cols / 32 * 4);
  int8_t* codes = codes_.as<int8_t>() + tile.first_row * cols;
  float* scales = scales_.as<float>() + tile.first_row * (cols / 32);
  for (int64_t t = 0; t < n; ++t) {
    kernels_.quantise_row(row_codes, row_scales, row_sums, x.row(tile.first_row + t), cols);
    for (int64_t i = 0; i < cols / 4; ++i) std::memcpy(codes + (i * n + t) * 4, row_codes + i * 4, 4);
    for (int64_t block = 0; block < cols / 32; ++block) scales[block * n + t] = row_scales[block];
    for (size_t c = 0; c < correction_count_; ++c) {
      const Correction& correction = corrections_[c];
      const int64_t groups = cols / correction.group;
      int32_t* start = correction.start.as<int32_t>() + tile.first_row * groups;
      float* sums = correction.scaled_sums.as<float>() + tile.first_row * groups;
      for (int64_t g = 0; g < groups; ++g) {
        const int32_t sum = correction.group == 16 ? row_sums[g] : row_sums[2 * g] + row_sums[2 * g + 1];
        start[g * n + t] = -correction.zero_point * sum;
        sums[g * n + t] = row_scales[g * correction.group / 32] * static_cast<float>(sum);
      }
    }
  }
}

QuantisedTile MatmulPlan::quantised_tile(const Tile& tile, int64_t cols, const Correction& correction) const {
  const int64_t groups = cols / correction.group;
  return {.rows = tile.rows,
          .codes = codes_.as<int8_t>() + tile.first_row * cols,
          .scales = scales_.as<float>() + tile.first_row * (cols / 32),
          .scaled_sums = correction.scaled_sums.as<float>() + tile.first_row * groups,
          .start = correction.start.as<int32_t>() + tile.first_row * groups};
}

void MatmulPlan::prepare_float(MatrixView<const float> x) {
  grow(floats_, x.rows * x.cols * 4);
  pool_.parallel_for(static_cast<int64_t>(tiles_.size()), [&](int64_t index) {
    const Tile& tile = tiles_[static_cast<size_t>(index)];
    float* out = floats_.as<float>() + tile.first_row * x.cols;
    for (int64_t t = 0; t < tile.rows; ++t) {
      const float* row = x.row(tile.first_row + t);
      for (int64_t k = 0; k < x.cols; ++k) out[k * tile.rows + t] = row[k];
    }
  });
}

void MatmulPlan::run_one_row(std::span<const MatmulOutput> outputs, const float* x) {
  int64_t tasks = 0;
  for (const MatmulOutput& output : outputs) tasks += row_tasks(output);
  pool_.parallel_for(tasks, [&](int64_t task) {
    const auto [index, chunk] = locate(outputs, task, row_tasks);
    const MatmulOutput& output = outputs[index];
    const CpuMatrix& w = matrix_of(output);
    const int64_t first = chunk * kPanelsPerRowTask;
    const int64_t panels = std::min(kPanelsPerRowTask, w.panels() - first);
    const int64_t valid = std::min(panels * kPanelRows, w.rows() - first * kPanelRows);
    // Whole panels are written even where the matrix ends inside one.
    float whole[kPanelsPerRowTask * kPanelRows];
    float* y = valid == panels * kPanelRows ? output.y.data + first * kPanelRows : whole;
    if (w.quantised()) {
      kernels_.quantised_gemv(y, w.panel(first), panels, w.format(), w.cols(),
                              quantised_tile(tiles_[0], w.cols(), correction_of(w.format())));
    } else {
      kernels_.float_gemv(y, w.panel(first), panels, w.source_dtype(), w.cols(), x);
    }
    float* target = output.y.data + first * kPanelRows;
    if (y == whole) std::copy_n(whole, valid, target);
    if (output.bias != nullptr) add_bias(target, output.bias + first * kPanelRows, valid);
  });
}

void MatmulPlan::run_rows(std::span<const MatmulOutput> outputs, int64_t cols) {
  wide_scratch_.resize(static_cast<size_t>(pool_.threads()));
  // Two panels: codes, at most cols/16 groups of 16 scales and minimums each, and the kernel's sums.
  for (Buffer& scratch : wide_scratch_) grow(scratch, 2 * (cols * 16 + 2 * cols * 4) + 2 * kMaxTile * 64);
  int64_t tasks = 0;
  for (const MatmulOutput& output : outputs) tasks += pair_tasks(output);
  pool_.parallel_for_worker(tasks, [&](int64_t task, int worker) {
    const auto [index, pair] = locate(outputs, task, pair_tasks);
    const MatmulOutput& output = outputs[index];
    const int panels = static_cast<int>(std::min<int64_t>(2, matrix_of(output).panels() - 2 * pair));
    if (matrix_of(output).quantised()) {
      run_wide_panels(output, 2 * pair, panels, worker);
    } else {
      run_float_panels(output, 2 * pair, panels);
    }
  });
}

namespace {

OutputTile output_tile(const MatmulOutput& output, int64_t first_panel, int panels, int64_t first_row) {
  const int64_t first = first_panel * kPanelRows;
  const int64_t valid = std::min(panels * kPanelRows, output.w->rows() - first);
  return {.y = output.y.row(first_row) + first,
          .ld = output.y.stride,
          .lanes_last = static_cast<int>(valid - (panels - 1) * kPanelRows),
          .bias = output.bias == nullptr ? nullptr : output.bias + first};
}

}  // namespace

void MatmulPlan::run_wide_panels(const MatmulOutput& output, int64_t first_panel, int panels, int worker) {
  const CpuMatrix& w = matrix_of(output);
  const PanelFormat& format = w.format();
  const int64_t cols = w.cols();
  const int64_t groups = cols / format.group();
  std::byte* scratch = wide_scratch_[static_cast<size_t>(worker)].data();
  uint8_t* codes = reinterpret_cast<uint8_t*>(scratch);
  float* scales = reinterpret_cast<float*>(scratch + 2 * cols * 16);
  float* minimums = scales + 2 * groups * 16;
  float* sums = minimums + 2 * groups * 16;
  for (int p = 0; p < panels; ++p) {
    kernels_.widen_panel(codes + p * cols * 16, scales + p * groups * 16, minimums + p * groups * 16,
                         w.panel(first_panel + p), format, cols);
  }
  const WidePanels wide{.panels = panels,
                        .codes = codes,
                        .scales = scales,
                        .minimums = format.has_minimum() ? minimums : nullptr,
                        .cols = cols,
                        .group = format.group()};
  const Correction& correction = correction_of(format);
  for (const Tile& tile : tiles_) {
    kernels_.quantised_tile(output_tile(output, first_panel, panels, tile.first_row), wide,
                            quantised_tile(tile, cols, correction), sums);
  }
}

void MatmulPlan::run_float_panels(const MatmulOutput& output, int64_t first_panel, int panels) {
  const CpuMatrix& w = matrix_of(output);
  for (const Tile& tile : tiles_) {
    kernels_.float_tile(output_tile(output, first_panel, panels, tile.first_row), w.panel(first_panel), panels,
                        w.source_dtype(), w.cols(), floats_.as<float>() + tile.first_row * w.cols(), tile.rows);
  }
}

}  // namespace quipu::cpu
