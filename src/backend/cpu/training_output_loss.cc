#include "backend/cpu/training_output_loss.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backend/cpu/pair_products.h"
#include "tensor/carver.h"

namespace quipu::cpu {
namespace {

size_t index_of(int64_t i) { return static_cast<size_t>(i); }

// Rows of a task, as the gated part's; fewer where there would be too few tasks.
constexpr int64_t kBlockPanels = 8, kTasks = 4;
// Tiles of the weight's gradient summed by one task: all of hidden up to 512, so that gradients of logits, which no cache holds,
// are read once (16 by 11 as in other parts: a quarter slower).
constexpr int64_t kTaskVocabulary = 8, kTaskHidden = 16;

}  // namespace

// In panels (blocks) of 32.
struct OutputLossPairs::Sizes {
  Sizes(int64_t rows_in, int64_t hidden_in, int64_t vocabulary_in)
      : rows(rows_in), row_panels((rows_in + kPairRows - 1) / kPairRows), hidden(hidden_in / kGemmPanel), vocabulary(vocabulary_in / kGemmPanel),
        blocks(row_panels, std::clamp<int64_t>(row_panels / kTasks, 1, kBlockPanels)), row_parts(row_panels, kDepthBlocks), hidden_parts(hidden, kDepthBlocks),
        vocabulary_parts(vocabulary, kDepthBlocks) {}
  int64_t rows_there(int64_t panel) const { return std::min(kPairRows, rows - panel * kPairRows); }
  int64_t rows;                    // not panels
  int64_t row_panels, hidden, vocabulary;
  Parts blocks;                    // of rows: tasks
  Parts row_parts, hidden_parts, vocabulary_parts;   // of depths
  int64_t most_panels() const { return std::min(kBlockPanels, row_panels); }
};

struct OutputLossPairs::Work {
  struct Worker {
    Worker(Carver& carver, const Sizes& s, bool backward) {
      const size_t mark = carver.mark();
      logits = carver.take<float>((s.hidden_parts.count > 1 ? s.most_panels() : 1) * kPairTile);
      if (!backward) return;
      gradients = carver.take<uint16_t>(s.most_panels() * s.vocabulary_parts.size * kPairTile);
      sums = carver.take<float>(s.most_panels() * s.hidden * kPairTile);
      const size_t rows_end = carver.mark();
      carver.rewind(mark);
      gradient = carver.take<float>(std::min(kTaskVocabulary, s.vocabulary) * std::min(kTaskHidden, s.hidden) * kPairTile);
      carver.rewind(std::max(rows_end, carver.mark()));
    }
    float* logits;                 // tiles [vocabulary, rows]: one, unless they wait for the rest of a depth in parts
    uint16_t* gradients = nullptr;   // by panel of rows: right factors [a part of the vocabulary, rows]
    float* sums = nullptr;         // [hidden panels] tiles of dx, transposed
    float* gradient = nullptr;     // of the weight, when the others are done with
  };
  Work(Carver& carver, const Sizes& sizes, int threads, bool backward_in) : s(sizes), backward(backward_in) {
    w_rows = carver.take<uint16_t>(s.vocabulary * s.hidden * kPairTile);
    x_columns = carver.take<uint16_t>(s.row_panels * s.hidden * kPairTile);
    for (float** p : {&maximum, &total, &target_value, &log_sum_exp, &factor, &target_factor}) *p = carver.take<float>(s.row_panels * kPairRows);
    for (int32_t** p : {&best, &target}) *p = carver.take<int32_t>(s.row_panels * kPairRows);
    if (backward) {
      w_columns = carver.take<uint16_t>(s.vocabulary * s.hidden * kPairTile);
      x_pairs = carver.take<uint16_t>(s.row_panels * s.hidden * kPairTile);
      gradients = carver.take<uint16_t>(s.row_panels * s.vocabulary * kPairTile);
    }
    for (int i = 0; i < threads; ++i) workers.emplace_back(carver, s, backward);
  }
  Sizes s;
  bool backward;
  uint16_t* w_rows;                // by panel: left factors [vocabulary, hidden]
  uint16_t* w_columns = nullptr;   // by part of the vocabulary, by panel: left factors [hidden, vocabulary]
  uint16_t* x_columns;             // by block of rows, by part of hidden, by panel: right factors [hidden, rows]
  uint16_t* x_pairs = nullptr;     // by part of the rows, by panel: right factors [rows, hidden]
  uint16_t* gradients = nullptr;   // of logits, by part of the rows, by panel: left factors [vocabulary, rows]
  float *maximum, *total, *target_value;              // [padded rows]: see LossColumns
  float *log_sum_exp, *factor, *target_factor;        // and LossColumnsBackward
  int32_t *best, *target;
  std::vector<Worker> workers;
  MatrixView<const float> x;
  const OutputLossCall<float>* call = nullptr;
  std::span<LossRow> rows;
};

int64_t OutputLossPairs::memory(const OutputLossShape& shape, int64_t rows, bool backward) const {
  Carver carver;
  Work(carver, Sizes(rows, shape.hidden, shape.vocabulary), pool_.threads(), backward);
  return carver.bytes();
}

void OutputLossPairs::run(const OutputLossCall<float>& call, MatrixView<const float> x, std::span<LossRow> rows, bool backward) const {
  const Sizes s(x.rows, x.cols, call.w.rows);
  Carver carver(call.scratch);
  Work w(carver, s, pool_.threads(), backward);
  w.x = x, w.call = &call, w.rows = rows;
  pack(w);
  pool_.parallel_for_worker(s.blocks.count, [&](int64_t block, int worker) {
    kernels_.begin_pairs();
    sum_rows(w, block, worker);
    if (backward) give_gradients(w, block, worker);
    kernels_.end_pairs();
  });
  if (!backward || call.dw.data == nullptr) return;
  const Parts left_groups(s.vocabulary, kTaskVocabulary), right_groups(s.hidden, kTaskHidden);
  pool_.parallel_for_worker(left_groups.count * right_groups.count, [&](int64_t i, int worker) {
    const int64_t left = left_groups.first(i / right_groups.count), right = right_groups.first(i % right_groups.count);
    const int64_t lefts = left_groups.length(i / right_groups.count), rights = right_groups.length(i % right_groups.count);
    give_weight_gradient(kernels_, {w.gradients, s.vocabulary, w.x_pairs, s.hidden, left, lefts, right, rights,
                                   call.dw.row(left * kGemmPanel) + right * kGemmPanel, call.dw.stride, rights * kGemmPanel, false, call.gradient == Gradient::kAdd},
                        s.row_parts, w.workers[index_of(worker)].gradient);
  });
}

// The weight and x as factors.
void OutputLossPairs::pack(const Work& w) const {
  const Sizes& s = w.s;
  const MatrixView<const float>& weight = w.call->w;
  pool_.parallel_for(s.vocabulary, [&](int64_t panel) {
    for (int64_t part = 0; part < s.hidden_parts.count; ++part) {
      const int64_t first = s.hidden_parts.first(part), length = s.hidden_parts.length(part);
      kernels_.pack_left_pairs(w.w_rows + (panel * s.hidden + first) * kPairTile,
                               {.from = weight.row(panel * kGemmPanel) + first * kGemmPanel, .ld = weight.stride, .lines = kGemmPanel,
                                .depth = length * kGemmPanel, .blocks = length});
    }
  });
  const Parts hidden_groups(s.hidden, kPackPanels);
  const int64_t columns = w.backward ? s.vocabulary_parts.count * hidden_groups.count : 0;
  pool_.parallel_for(columns, [&](int64_t index) {
    const int64_t part = index / hidden_groups.count, group = index % hidden_groups.count, col = hidden_groups.first(group);
    const int64_t first = s.vocabulary_parts.first(part), length = s.vocabulary_parts.length(part);
    kernels_.pack_left_pairs(w.w_columns + (first * s.hidden + col * length) * kPairTile,
                             {.from = weight.row(first * kGemmPanel) + col * kGemmPanel, .ld = weight.stride,
                              .lines = hidden_groups.length(group) * kGemmPanel, .depth = length * kGemmPanel, .blocks = length,
                              .panel_step = length * kPairTile, .across = true});
  });
  pool_.parallel_for(s.row_panels, [&](int64_t panel) {
    const int64_t block = panel / s.blocks.size, first_panel = s.blocks.first(block), tiles = s.blocks.length(block), there = s.rows_there(panel);
    for (int64_t part = 0; part < s.hidden_parts.count; ++part) {
      const int64_t first = s.hidden_parts.first(part), length = s.hidden_parts.length(part);
      kernels_.pack_right_pairs(w.x_columns + (first_panel * s.hidden + first * tiles + (panel - first_panel) * length) * kPairTile,
                                {.from = w.x.row(panel * kPairRows) + first * kGemmPanel, .ld = w.x.stride, .lines = there,
                                 .depth = length * kGemmPanel, .blocks = length});
    }
    if (!w.backward) return;
    const int64_t row_part = panel / s.row_parts.size, first_row = s.row_parts.first(row_part), row_blocks = s.row_parts.length(row_part);
    kernels_.pack_right_pairs(w.x_pairs + first_row * s.hidden * kPairTile + (panel - first_row) * 512,
                              {.from = w.x.row(panel * kPairRows), .ld = w.x.stride, .lines = s.hidden * kGemmPanel, .depth = there, .blocks = 1,
                               .panel_step = row_blocks * kPairTile, .half_step = row_blocks * 512, .across = true});
  });
}

// Logits of a panel of the vocabulary for a block of rows: after(i, tile) once the tile [vocabulary, rows] of its panel i is done.
template <class After>
void OutputLossPairs::multiply(const Work& w, int64_t block, int64_t panel, int worker, const After& after) const {
  const Sizes& s = w.s;
  const int64_t tiles = s.blocks.length(block);
  const uint16_t *left = w.w_rows + panel * s.hidden * kPairTile, *right = w.x_columns + s.blocks.first(block) * s.hidden * kPairTile;
  PairTile tile{.c_ld = kGemmPanel, .rows = kPairRows, .cols = kGemmPanel, .left_stays = true, .from_ld = kGemmPanel};
  const char* soon = reinterpret_cast<const char*>(left + s.hidden * kPairTile);   // the next panel, a share with every tile
  tile.soon_bytes = s.hidden * kPairTile * 2 / (s.hidden_parts.count * tiles);
  for (int64_t part = 0; part < s.hidden_parts.count; ++part) {
    tile.blocks = s.hidden_parts.length(part);
    tile.a = left + s.hidden_parts.first(part) * kPairTile;
    for (int64_t i = 0; i < tiles; ++i, soon += tile.soon_bytes) {
      tile.b = right + (s.hidden_parts.first(part) * tiles + i * tile.blocks) * kPairTile;
      tile.c = w.workers[index_of(worker)].logits + (s.hidden_parts.count > 1 ? i * kPairTile : 0);
      tile.from = part > 0 ? tile.c : nullptr;
      tile.soon = soon;
      kernels_.pair_tile(tile);
      if (part + 1 == s.hidden_parts.count) after(i, tile.c);
    }
  }
}

// What a block of rows has of sums over the vocabulary, and its results.
void OutputLossPairs::sum_rows(const Work& w, int64_t block, int worker) const {
  const Sizes& s = w.s;
  const int64_t first_row = s.blocks.first(block) * kPairRows, padded = s.blocks.length(block) * kPairRows;
  const float scale = w.rows.front().logit_scale;
  std::fill_n(w.maximum + first_row, padded, -std::numeric_limits<float>::infinity());
  for (float* p : {w.total, w.target_value, w.factor, w.target_factor, w.log_sum_exp}) std::fill_n(p + first_row, padded, 0.0f);
  std::fill_n(w.best + first_row, padded, 0);
  std::fill_n(w.target + first_row, padded, -1);
  const int64_t end = std::min(s.rows, first_row + padded);
  for (int64_t row = first_row; row < end; ++row) w.target[row] = w.rows[index_of(row)].target;
  for (int64_t panel = 0; panel < s.vocabulary; ++panel) {
    multiply(w, block, panel, worker, [&](int64_t i, const float* logits) {
      const int64_t row = first_row + i * kPairRows;
      kernels_.loss_columns({.logits = logits, .first = static_cast<int32_t>(panel * kGemmPanel), .target = w.target + row, .scale = scale,
                             .maximum = w.maximum + row, .total = w.total + row, .target_value = w.target_value + row, .best = w.best + row});
    });
  }
  for (int64_t row = first_row; row < end; ++row) {
    LossRow& r = w.rows[index_of(row)];
    r.log_sum_exp = w.maximum[row] * scale + std::log(w.total[row]);
    r.target_value = w.target_value[row] * scale;
    r.best = w.best[row];
    if (r.target < 0) continue;
    w.log_sum_exp[row] = r.log_sum_exp;
    w.factor[row] = r.weight * scale * (1.0f + 2.0f * r.z_loss * r.log_sum_exp);
    w.target_factor[row] = r.weight * scale;
  }
}

void OutputLossPairs::give_gradients(const Work& w, int64_t block, int worker) const {
  const Sizes& s = w.s;
  const Work::Worker& own = w.workers[index_of(worker)];
  const int64_t first_panel = s.blocks.first(block), tiles = s.blocks.length(block), first_row = first_panel * kPairRows;
  const float scale = w.rows.front().logit_scale;
  for (int64_t part = 0; part < s.vocabulary_parts.count; ++part) {
    const int64_t first = s.vocabulary_parts.first(part), length = s.vocabulary_parts.length(part);
    for (int64_t panel = first; panel < first + length; ++panel) {
      multiply(w, block, panel, worker, [&](int64_t i, const float* logits) {
        const int64_t row_panel = first_panel + i, row = row_panel * kPairRows, row_part = row_panel / s.row_parts.size;
        const int64_t part_first = s.row_parts.first(row_part), row_blocks = s.row_parts.length(row_part);
        kernels_.loss_columns_backward(
            {.logits = logits, .first = static_cast<int32_t>(panel * kGemmPanel), .target = w.target + row, .scale = scale,
             .log_sum_exp = w.log_sum_exp + row, .factor = w.factor + row, .target_factor = w.target_factor + row,
             .gradients = w.gradients + (part_first * s.vocabulary + panel * row_blocks) * kPairTile + (row_panel - part_first) * 512,
             .half_step = row_blocks * 512, .gradient_columns = own.gradients + i * length * kPairTile + (panel - first) * 512,
             .columns_half_step = length * 512});
      });
    }
    PairTile tile{.c_ld = kGemmPanel, .rows = kPairRows, .cols = kGemmPanel, .a = w.w_columns + first * s.hidden * kPairTile, .blocks = length,
                  .left_stays = true, .from_ld = kGemmPanel};
    tile.c = own.sums;
    tile.soon_bytes = length * kPairTile * 2 / tiles;
    for (int64_t col = 0; col < s.hidden; ++col, tile.a += length * kPairTile) {
      tile.b = own.gradients;
      for (int64_t i = 0; i < tiles; ++i, tile.b += length * kPairTile, tile.c += kPairTile) {
        tile.from = part > 0 ? tile.c : nullptr;
        tile.next_c = part > 0 && (i + 1 < tiles || col + 1 < s.hidden) ? tile.c + kPairTile : nullptr;
        tile.soon = reinterpret_cast<const char*>(tile.a + length * kPairTile) + i * tile.soon_bytes;
        kernels_.pair_tile(tile);
      }
    }
  }
  for (int64_t i = 0; i < tiles; ++i) {
    for (int64_t col = 0; col < s.hidden; ++col) {
      kernels_.store_transposed(w.call->dx.row(first_row + i * kPairRows) + col * kGemmPanel, w.call->dx.stride, own.sums + (col * tiles + i) * kPairTile,
                                nullptr, kGemmPanel, s.rows_there(first_panel + i));
    }
  }
}

}  // namespace quipu::cpu
