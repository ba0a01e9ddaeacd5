#include "backend/cpu/matmul_plan.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/scratch.h"

namespace quipu::cpu {
namespace {

constexpr int64_t kMostSplitFloats = int64_t{8} << 20;   // of products rounded twice, both parts
constexpr int64_t kPanelsPerRowTask = 16;   // products of few rows: 256 outputs a task, four panels in step

// Products of pairs are so fast that long rows of activations must not come from memory again for every two panels: then a
// task takes more panels, in stretches of columns whose weights (1 KiB a block and panel) and activations stay in the caches.
// On one core, 512 rows, 2048 x 2048: 16 panels in stretches of 8 blocks 1290 GFLOP/s, 8 panels of 32 blocks 940.
constexpr int64_t kPairedStretchBlocks = 8;
constexpr int64_t kPairedLongBlocks = 32;   // what is no longer than this needs no such care
constexpr int64_t kPairedTaskPanels = 16;
constexpr size_t kPairedTaskTiles = 16;     // and its sums too: 4 KiB for each of these and two panels
// Rows so few that products wait for their weights, and not long: at most two tiles, while whose stretch is multiplied the next
// one's weights are asked for. Of long rows the activations come from the second-level cache as well: 1 to 15 % slower so.
constexpr size_t kStreamedTiles = 2;
constexpr int64_t kStreamedBlocks = 8;

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

bool is_paired(PanelKind kind) { return kind == PanelKind::kPairedHalves || kind == PanelKind::kCodedHalves; }

int64_t panels_per_task(const CpuMatrix& w) {
  return is_paired(w.kind()) && paired_blocks(w.cols()) > kPairedLongBlocks ? kPairedTaskPanels : 2;
}

int64_t pair_tasks(const MatmulOutput& output) { return (matrix_of(output).panels() + 1) / 2; }

int64_t panel_tasks(const MatmulOutput& output) {
  const int64_t size = panels_per_task(matrix_of(output));
  return (matrix_of(output).panels() + size - 1) / size;
}

void add_bias(float* y, const float* bias, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += bias[i];
}

}  // namespace

void MatmulPlan::run(std::span<const MatmulOutput> outputs, MatrixView<const float> x) {
  once_.clear();
  twice_.clear();
  for (const MatmulOutput& output : outputs) (matrix_of(output).fine() ? twice_ : once_).push_back(output);
  if (!once_.empty()) run_rounded_once(once_, x);
  if (!twice_.empty()) run_rounded_twice(twice_, x);
}

// x = q(x) + r, and r is rounded like any other row: W x = W q(x) + W q(r) with 16 bits of x kept. Both products are rows
// of one batch, so the weights are read once.
void MatmulPlan::run_rounded_twice(std::span<const MatmulOutput> outputs, MatrixView<const float> x) {
  int64_t columns = 0;
  for (const MatmulOutput& output : outputs) columns += output.w->rows();
  // Logits of a whole chunk are large: a stretch of rows at a time keeps the scratch bounded.
  const int64_t rows_at_once = std::max<int64_t>(kMostSplitFloats / (2 * columns), 24);
  for (int64_t begin = 0; begin < x.rows; begin += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, x.rows - begin);
    stretch_.clear();
    for (const MatmulOutput& output : outputs) stretch_.push_back({output.y.rows_from(begin, rows), output.w, output.bias});
    run_split_rows(stretch_, x.rows_from(begin, rows), columns);
  }
}

void MatmulPlan::run_split_rows(std::span<const MatmulOutput> outputs, MatrixView<const float> x, int64_t columns) {
  split_rows(x);
  grow(split_y_, 2 * x.rows * columns * 4);
  split_outputs_.clear();
  float* next = split_y_.as<float>();
  for (const MatmulOutput& output : outputs) {
    split_outputs_.push_back({{next, 2 * x.rows, output.w->rows()}, output.w, nullptr});
    next += 2 * x.rows * output.w->rows();
  }
  run_rounded_once(split_outputs_, {split_x_.as<float>(), 2 * x.rows, x.cols});
  for (size_t i = 0; i < outputs.size(); ++i) {
    const MatmulOutput& output = outputs[i];
    const MatrixView<float> parts = split_outputs_[i].y;
    pool_.parallel_for((x.rows + 7) / 8, [&](int64_t task) {
      const int64_t end = std::min(x.rows, 8 * task + 8);
      for (int64_t row = 8 * task; row < end; ++row) {
        std::copy_n(parts.row(2 * row), parts.cols, output.y.row(row));
        kernels_.add_row(output.y.row(row), parts.row(2 * row + 1), parts.cols);
        if (output.bias != nullptr) kernels_.add_row(output.y.row(row), output.bias, parts.cols);
      }
    });
  }
}

void MatmulPlan::split_rows(MatrixView<const float> x) {
  grow(split_x_, 2 * x.rows * x.cols * 4);
  row_scratch_.resize(static_cast<size_t>(pool_.threads()));
  for (Buffer& scratch : row_scratch_) grow(scratch, x.cols * 2);
  const auto split = [&](int64_t row, int worker) {
    std::byte* scratch = row_scratch_[static_cast<size_t>(worker)].data();
    const int8_t* codes = reinterpret_cast<const int8_t*>(scratch);
    const float* scales = reinterpret_cast<const float*>(scratch + x.cols);
    float* whole = split_x_.as<float>() + 2 * row * x.cols;
    float* rest = whole + x.cols;
    std::copy_n(x.row(row), x.cols, whole);
    kernels_.quantise_row(reinterpret_cast<int8_t*>(scratch), reinterpret_cast<float*>(scratch + x.cols),
                          reinterpret_cast<int32_t*>(scratch + x.cols + x.cols / 32 * 4), whole, x.cols);
    for (int64_t k = 0; k < x.cols; ++k) rest[k] = whole[k] - static_cast<float>(codes[k]) * scales[k / 32];
  };
  if (x.rows < 4) {
    for (int64_t row = 0; row < x.rows; ++row) split(row, 0);
  } else {
    pool_.parallel_for_worker(x.rows, split);
  }
}

void MatmulPlan::run_rounded_once(std::span<const MatmulOutput> outputs, MatrixView<const float> x) {
  bool any_integer = false, any_float = false, any_paired = false, any_coded = false;
  for (const MatmulOutput& output : outputs) {
    switch (matrix_of(output).kind()) {
      case PanelKind::kQuantised: any_integer = true; break;
      case PanelKind::kFloat: any_float = true; break;
      case PanelKind::kPairedHalves: any_paired = true; break;
      case PanelKind::kCodedHalves: any_coded = true; break;
    }
  }
  if (any_integer) {
    collect_corrections(outputs);
    prepare_integer(x);
  }
  if (x.rows == 1 || (x.rows <= kernels_.few_rows && !any_float && !any_paired)) {
    if (any_paired) prepare_paired(x);
    if (any_coded) prepare_coded_rows(x);
    return run_few_rows(outputs, x);
  }
  if (any_paired || any_coded) prepare_paired(x);
  if (any_float) prepare_float(x);
  if (any_paired && !any_integer && !any_float && !any_coded && paired_tiles_.size() <= kStreamedTiles &&
      paired_blocks(x.cols) <= kPairedLongBlocks) {
    return run_streamed(outputs);
  }
  run_rows(outputs, x.cols, any_paired || any_coded, any_coded);
}

void MatmulPlan::cut(std::vector<Tile>& tiles, int64_t rows, const TileShape& shape) {
  tiles.clear();
  int64_t row = 0;
  for (const int* size = shape.rows; row < rows; ++size) {
    for (; rows - row >= *size; row += *size) tiles.push_back({row, *size});
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
    if (matrix_of(output).kind() == PanelKind::kQuantised) correction_of(matrix_of(output).format());
  }
}

void MatmulPlan::prepare_integer(MatrixView<const float> x) {
  static constexpr int kOneRow[] = {1};
  cut(integer_tiles_, x.rows, x.rows <= kernels_.few_rows ? TileShape{kOneRow} : kernels_.integer_tiles);
  grow(codes_, x.rows * x.cols + kernels_.integer_tiles.bytes_beyond);
  grow(scales_, x.rows * x.cols / 32 * 4);
  for (size_t i = 0; i < correction_count_; ++i) {
    grow(corrections_[i].start, x.rows * x.cols / corrections_[i].group * 4);
    grow(corrections_[i].scaled_sums, x.rows * x.cols / corrections_[i].group * 4);
  }
  row_scratch_.resize(static_cast<size_t>(pool_.threads()));
  for (Buffer& scratch : row_scratch_) grow(scratch, x.cols * 2);
  const auto prepare = [&](int64_t tile, int worker) { prepare_integer_tile(integer_tiles_[static_cast<size_t>(tile)], x, worker); };
  if (integer_tiles_.size() <= 4) {
    for (int64_t tile = 0; tile < static_cast<int64_t>(integer_tiles_.size()); ++tile) prepare(tile, 0);
  } else {
    pool_.parallel_for_worker(static_cast<int64_t>(integer_tiles_.size()), prepare);
  }
}

void MatmulPlan::prepare_integer_tile(const Tile& tile, MatrixView<const float> x, int worker) {
  const int64_t cols = x.cols;
  const int64_t n = tile.rows;
  const int64_t run = kernels_.integer_tiles.run;
  // The row's own arrays, then laid into the tile: runs of components, rows side by side.
  std::byte* scratch = row_scratch_[static_cast<size_t>(worker)].data();
  int8_t* row_codes = reinterpret_cast<int8_t*>(scratch);
  float* row_scales = reinterpret_cast<float*>(scratch + cols);
  int32_t* row_sums = reinterpret_cast<int32_t*>(scratch + cols + cols / 32 * 4);
  int8_t* codes = codes_.as<int8_t>() + tile.first_row * cols;
  float* scales = scales_.as<float>() + tile.first_row * (cols / 32);
  for (int64_t t = 0; t < n; ++t) {
    kernels_.quantise_row(row_codes, row_scales, row_sums, x.row(tile.first_row + t), cols);
    if (run == 4) {   // a constant size makes the copy a move
      for (int64_t i = 0; i < cols / 4; ++i) std::memcpy(codes + (i * n + t) * 4, row_codes + i * 4, 4);
    } else {
      for (int64_t k = 0; k < cols; k += run) std::memcpy(codes + k * n + t * run, row_codes + k, static_cast<size_t>(run));
    }
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

void MatmulPlan::prepare_paired(MatrixView<const float> x) {
  cut(paired_tiles_, x.rows, kernels_.paired_tiles);
  const int64_t padded = paired_blocks(x.cols) * kBlockCols;
  grow(halves_, x.rows * padded * 2);
  // All tiles but the last have the first one's rows.
  const auto prepare = [&](int64_t row) {
    const Tile& tile = paired_tiles_[static_cast<size_t>(row / paired_tiles_.front().rows)];
    uint16_t* out = halves_.as<uint16_t>() + tile.first_row * padded + (row - tile.first_row) * kBlockCols;
    kernels_.round_row(out, tile.rows * kBlockCols, x.row(row), x.cols);
  };
  constexpr int64_t kRowsAtOnce = 8;
  if (x.rows <= 2 * kRowsAtOnce) {
    for (int64_t row = 0; row < x.rows; ++row) prepare(row);
    return;
  }
  pool_.parallel_for((x.rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t task) {
    for (int64_t row = task * kRowsAtOnce; row < std::min(x.rows, (task + 1) * kRowsAtOnce); ++row) prepare(row);
  });
}

void MatmulPlan::prepare_coded_rows(MatrixView<const float> x) {
  grow(floats_, x.rows * x.cols * 4);
  for (int64_t row = 0; row < x.rows; ++row) kernels_.round_coded_row(floats_.as<float>() + row * x.cols, x.row(row), x.cols);
}

void MatmulPlan::prepare_float(MatrixView<const float> x) {
  cut(float_tiles_, x.rows, kernels_.float_tiles);
  grow(floats_, x.rows * x.cols * 4);
  pool_.parallel_for(static_cast<int64_t>(float_tiles_.size()), [&](int64_t index) {
    const Tile& tile = float_tiles_[static_cast<size_t>(index)];
    float* out = floats_.as<float>() + tile.first_row * x.cols;
    for (int64_t t = 0; t < tile.rows; ++t) {
      const float* row = x.row(tile.first_row + t);
      for (int64_t k = 0; k < x.cols; ++k) out[k * tile.rows + t] = row[k];
    }
  });
}

// Float and paired matrices: one row only. The panels of a task come from memory for the first rows and from the second-level
// cache for others.
void MatmulPlan::run_few_rows(std::span<const MatmulOutput> outputs, MatrixView<const float> x) {
  int64_t tasks = 0;
  for (const MatmulOutput& output : outputs) tasks += row_tasks(output);
  pool_.parallel_for(tasks, [&](int64_t task) {
    const auto [index, chunk] = locate(outputs, task, row_tasks);
    const MatmulOutput& output = outputs[index];
    const CpuMatrix& w = matrix_of(output);
    const int64_t first = chunk * kPanelsPerRowTask;
    const int64_t panels = std::min(kPanelsPerRowTask, w.panels() - first);
    const int64_t valid = std::min(panels * kPanelRows, w.rows() - first * kPanelRows);
    const bool inside = valid == panels * kPanelRows;
    // Whole panels are written even where the matrix ends inside one.
    float whole[kCodedRows * kPanelsPerRowTask * kPanelRows];
    const int most = w.kind() == PanelKind::kCodedHalves ? kCodedRows : 2;
    for (int64_t row = 0; row < x.rows; row += most) {
      const int count = static_cast<int>(std::min<int64_t>(most, x.rows - row));
      float* target = output.y.row(row) + first * kPanelRows;
      float* y = inside ? target : whole;
      const int64_t ld = inside ? output.y.stride : kPanelsPerRowTask * kPanelRows;
      switch (w.kind()) {
        case PanelKind::kQuantised: {
          QuantisedTile tiles[2];
          for (int i = 0; i < count; ++i) {
            tiles[i] = quantised_tile(integer_tiles_[static_cast<size_t>(row + i)], w.cols(), correction_of(w.format()));
          }
          kernels_.quantised_gemv(y, ld, w.panel(first), panels, w.format(), w.cols(), tiles, count);
          break;
        }
        case PanelKind::kFloat:
          kernels_.float_gemv(y, w.panel(first), panels, w.source_dtype(), w.cols(), x.row(row));
          break;
        case PanelKind::kPairedHalves:
          kernels_.paired_gemv(y, w.panel(first), panels, paired_blocks(w.cols()), halves_.as<uint16_t>());
          break;
        case PanelKind::kCodedHalves:
          kernels_.coded_gemv(y, ld, w.panel(first), panels, paired_blocks(w.cols()), floats_.as<float>() + row * x.cols, count);
          break;
      }
      for (int i = 0; i < count; ++i) {
        float* out = target + i * output.y.stride;
        if (!inside) std::copy_n(whole + i * ld, valid, out);
        if (output.bias != nullptr) add_bias(out, output.bias + first * kPanelRows, valid);
      }
    }
    kernels_.end_products();
  });
}

int64_t MatmulPlan::paired_sum_bytes() const {
  const int64_t products = static_cast<int64_t>(std::min(paired_tiles_.size(), kPairedTaskTiles)) * kPairedTaskPanels / 2;
  return products * kPairedSumFloats * 4;
}

void MatmulPlan::run_rows(std::span<const MatmulOutput> outputs, int64_t cols, bool any_paired, bool any_coded) {
  // Two panels: codes, at most cols/16 groups of 16 scales and minimums each, and the kernel's sums.
  int64_t scratch_bytes = 2 * (cols * 16 + 2 * cols * 4) + kernels_.tile_scratch_bytes;
  if (any_paired) {
    const int64_t expanded = any_coded ? kPairedTaskPanels * kPairedStretchBlocks * kPairedBlockBytes : 0;
    scratch_bytes = std::max(scratch_bytes, paired_sum_bytes() + expanded);
  }
  wide_scratch_.resize(static_cast<size_t>(pool_.threads()));
  for (Buffer& scratch : wide_scratch_) grow(scratch, scratch_bytes);
  int64_t tasks = 0;
  for (const MatmulOutput& output : outputs) tasks += panel_tasks(output);
  pool_.parallel_for_worker(tasks, [&](int64_t task, int worker) {
    const auto [index, chunk] = locate(outputs, task, panel_tasks);
    const MatmulOutput& output = outputs[index];
    const CpuMatrix& w = matrix_of(output);
    const int64_t size = panels_per_task(w);
    const int64_t first = chunk * size;
    const int panels = static_cast<int>(std::min(size, w.panels() - first));
    switch (w.kind()) {
      case PanelKind::kQuantised: run_wide_panels(output, first, panels, worker); break;
      case PanelKind::kFloat: run_float_panels(output, first, panels); break;
      case PanelKind::kPairedHalves:
      case PanelKind::kCodedHalves: run_paired_panels(output, first, panels, worker); break;
    }
    kernels_.end_products();
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
  for (const Tile& tile : integer_tiles_) {
    kernels_.quantised_tile(output_tile(output, first_panel, panels, tile.first_row), wide,
                            quantised_tile(tile, cols, correction), sums);
  }
}

void MatmulPlan::run_float_panels(const MatmulOutput& output, int64_t first_panel, int panels) {
  const CpuMatrix& w = matrix_of(output);
  for (const Tile& tile : float_tiles_) {
    kernels_.float_tile(output_tile(output, first_panel, panels, tile.first_row), w.panel(first_panel), panels,
                        w.source_dtype(), w.cols(), floats_.as<float>() + tile.first_row * w.cols(), tile.rows);
  }
}

void MatmulPlan::run_paired_panels(const MatmulOutput& output, int64_t first_panel, int panels, int worker) {
  const CpuMatrix& w = matrix_of(output);
  const int64_t blocks = paired_blocks(w.cols());
  const bool coded = w.kind() == PanelKind::kCodedHalves;
  // The weights of a single tile are used once: no stretches, unless they have to be expanded.
  const int64_t stretch = paired_tiles_.size() == 1 && !coded ? blocks : kPairedStretchBlocks;
  std::byte* scratch = wide_scratch_[static_cast<size_t>(worker)].data();
  std::byte* expanded = scratch + paired_sum_bytes();   // [panels][kPairedStretchBlocks] of a stretch
  for (size_t begin = 0; begin < paired_tiles_.size(); begin += kPairedTaskTiles) {
    const auto tiles = std::span(paired_tiles_).subspan(begin, std::min(kPairedTaskTiles, paired_tiles_.size() - begin));
    for (int64_t block = 0; block < blocks; block += stretch) {
      PairedProduct product{.blocks = std::min(stretch, blocks - block),
                            .panel_bytes = coded ? stretch * kPairedBlockBytes : w.panel_bytes(),
                            .first = block == 0,
                            .last = block + stretch >= blocks};
      if (coded) {
        for (int64_t p = 0; p < panels; ++p) {
          kernels_.expand_coded(expanded + p * product.panel_bytes, w.panel(first_panel + p) + block * kCodedBlockBytes, product.blocks);
        }
      }
      const std::byte* weights = coded ? expanded : w.panel(first_panel) + block * kPairedBlockBytes;
      product.sums = reinterpret_cast<float*>(scratch);
      for (const Tile& tile : tiles) {
        product.rows = tile.rows;
        product.x = halves_.as<uint16_t>() + (tile.first_row * blocks + block * tile.rows) * kBlockCols;
        for (int panel = 0; panel < panels; panel += 2, product.sums += kPairedSumFloats) {
          product.panels = std::min(2, panels - panel);
          product.panel = weights + panel * product.panel_bytes;
          kernels_.paired_tile(output_tile(output, first_panel + panel, product.panels, tile.first_row), product);
        }
      }
    }
  }
}

// Two panels are a task. A thread mostly takes one after the other and asks for the next one's weights while it multiplies.
void MatmulPlan::run_streamed(std::span<const MatmulOutput> outputs) {
  wide_scratch_.resize(static_cast<size_t>(pool_.threads()));
  for (Buffer& scratch : wide_scratch_) grow(scratch, static_cast<int64_t>(paired_tiles_.size()) * kPairedSumFloats * 4);
  int64_t tasks = 0;
  for (const MatmulOutput& output : outputs) tasks += pair_tasks(output);
  pool_.parallel_for_worker(tasks, [&](int64_t task, int worker) {
    stream_panels(outputs, task, task + 1 < tasks, worker);
    kernels_.end_products();
  });
}

void MatmulPlan::stream_panels(std::span<const MatmulOutput> outputs, int64_t task, bool more, int worker) {
  const auto [index, pair] = locate(outputs, task, pair_tasks);
  const MatmulOutput& output = outputs[index];
  const CpuMatrix& w = matrix_of(output);
  const int64_t first = 2 * pair, blocks = paired_blocks(w.cols());
  const int panels = static_cast<int>(std::min<int64_t>(2, w.panels() - first));
  const std::byte* next = nullptr;
  int next_panels = 0;
  if (more) {
    const auto [next_index, next_pair] = locate(outputs, task + 1, pair_tasks);
    const CpuMatrix& next_w = matrix_of(outputs[next_index]);
    next = next_w.panel(2 * next_pair);
    next_panels = static_cast<int>(std::min<int64_t>(2, next_w.panels() - 2 * next_pair));
  }
  float* sums = wide_scratch_[static_cast<size_t>(worker)].as<float>();
  for (int64_t block = 0; block < blocks; block += kStreamedBlocks) {
    PairedProduct product{.panels = panels,
                          .blocks = std::min(kStreamedBlocks, blocks - block),
                          .panel = w.panel(first) + block * kPairedBlockBytes,
                          .panel_bytes = w.panel_bytes(),
                          .first = block == 0,
                          .last = block + kStreamedBlocks >= blocks};
    const std::byte* ahead = product.last ? next : product.panel + product.blocks * kPairedBlockBytes;
    const int ahead_panels = product.last ? next_panels : panels;
    for (size_t i = 0; i < paired_tiles_.size(); ++i) {
      const Tile& tile = paired_tiles_[i];
      product.rows = tile.rows;
      product.x = halves_.as<uint16_t>() + (tile.first_row * blocks + block * tile.rows) * kBlockCols;
      product.sums = sums + static_cast<int64_t>(i) * kPairedSumFloats;
      // Each of two tiles asks for one panel, a single tile for both.
      for (size_t p = 0; p < 2; ++p) {
        const bool asks = static_cast<int>(p) < ahead_panels && (paired_tiles_.size() == 1 || p == i);
        product.ahead[p] = asks ? ahead + static_cast<int64_t>(p) * product.panel_bytes : nullptr;
      }
      kernels_.paired_tile(output_tile(output, first, panels, tile.first_row), product);
    }
  }
}

}  // namespace quipu::cpu
