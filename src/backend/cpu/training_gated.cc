#include "backend/cpu/training_gated.h"

#include <algorithm>
#include <vector>

#include "backend/cpu/pair_products.h"
#include "tensor/carver.h"

namespace quipu::cpu {
namespace {

size_t index_of(int64_t i) { return static_cast<size_t>(i); }

// Rows of a task: of a model 512 wide its factors and results take 1.1 MB of a second-level cache, and packed weights, which
// every task reads, come from further away no faster than tiles use them up.
constexpr int64_t kBlockPanels = 8;
// left[i] right for `count` panels of a left factor and one of a right one, which lie by part of the depth: left
// [parts][count]. after(i, tile) once the 32 x 32 tile i is done, at tiles + i * kPairTile or, where the depth is one part, all at
// `tiles`, which stays in the first-level cache. wanted(i): the 4 KiB it reads, asked for in time, or null.
template <class Wanted, class After>
void multiply_tiles(const TrainingKernels& kernels, float* tiles, const uint16_t* left, const uint16_t* right, const Parts& depth, int64_t count,
                    const Wanted& wanted, const After& after) {
  PairTile tile{.c_ld = kGemmPanel, .rows = kPairRows, .cols = kGemmPanel, .from_ld = kGemmPanel};
  const char* soon = reinterpret_cast<const char*>(right + depth.total * kPairTile);   // the next panel, a share with every tile
  tile.soon_bytes = depth.total * kPairTile * 2 / (depth.count * count);
  for (int64_t part = 0; part < depth.count; ++part) {
    tile.blocks = depth.length(part);
    tile.b = right + depth.first(part) * kPairTile;
    for (int64_t i = 0; i < count; ++i, soon += tile.soon_bytes) {
      tile.a = left + (depth.first(part) * count + i * tile.blocks) * kPairTile;
      tile.c = tiles + (depth.count > 1 ? i * kPairTile : 0);
      tile.from = part > 0 ? tile.c : nullptr;
      tile.soon = soon;
      tile.next_from = part == 0 ? wanted(i) : nullptr;
      kernels.pair_tile(tile);
      if (part + 1 == depth.count) after(i, tile.c);
    }
  }
}

// A panel of rows as a left factor, by part of their depth, one of `panels`.
void pack_rows(const TrainingKernels& kernels, uint16_t* out, const MatrixView<const float>& from, const Parts& depth, int64_t panel, int64_t panels) {
  for (int64_t part = 0; part < depth.count; ++part) {
    const int64_t first = depth.first(part), length = depth.length(part);
    kernels.pack_left_pairs(out + (first * panels + panel * length) * kPairTile,
                            {.from = from.data + first * kGemmPanel, .ld = from.stride, .lines = from.rows, .depth = length * kGemmPanel, .blocks = length});
  }
}

}  // namespace

// In panels (blocks) of 32. Where the last panel of inner is not whole, what is packed of the weights is zero there, and so is all
// that follows from it: gates, gradients, sums.
struct GatedPairs::Sizes {
  Sizes(int64_t rows_in, int64_t hidden_in, int64_t inner_in)
      : rows(rows_in), inner_cols(inner_in), row_panels((rows_in + kPairRows - 1) / kPairRows), hidden(hidden_in / kGemmPanel),
        inner((inner_in + kGemmPanel - 1) / kGemmPanel),
        blocks(row_panels, kBlockPanels), row_parts(row_panels, kDepthBlocks), hidden_parts(hidden, kDepthBlocks), inner_parts(inner, kDepthBlocks) {}
  // What there is of `panels` panels from `first` on.
  int64_t rows_there(int64_t panel) const { return std::min(kPairRows, rows - panel * kPairRows); }
  int64_t inner_there(int64_t first, int64_t panels) const { return std::min(panels * kGemmPanel, inner_cols - first * kGemmPanel); }
  int64_t rows, inner_cols;        // not panels
  int64_t row_panels, hidden, inner;
  Parts blocks;                    // of rows: tasks
  Parts row_parts, hidden_parts, inner_parts;   // of depths
  // What a worker has room for: not blocks.size, which may be less for more rows.
  int64_t most_panels() const { return std::min(kBlockPanels, row_panels); }
};

// [row panels][inner panels][2 x 16 columns][32][16 of gate, 16 of up]
struct GatedPairs::Saved {
  Saved(Carver& carver, const Sizes& s) : tiles(carver.take<uint16_t>(2 * s.row_panels * s.inner * kPairTile)), inner(s.inner) {}
  uint16_t* both(int64_t row_panel, int64_t panel) const { return tiles + 2 * (row_panel * inner + panel) * kPairTile; }
  uint16_t* tiles;
  int64_t inner;
};

struct GatedPairs::Forward {
  struct Worker {
    Worker(Carver& carver, const Sizes& s)
        : x(carver.take<uint16_t>(s.most_panels() * s.hidden * kPairTile)),
          activated(carver.take<uint16_t>(s.most_panels() * s.inner_parts.size * kPairTile)),
          wide(carver.take<float>((s.hidden_parts.count > 1 ? s.most_panels() : 1) * kPairTile)),
          sums(carver.take<float>(s.most_panels() * s.hidden * kPairTile)),
          normed(carver.take<float>(s.hidden * kPairTile)) {}
    uint16_t *x, *activated;       // left factors [rows, hidden], [rows, a part of inner]
    float* wide;                   // tiles of gate and up: one, unless they wait for the rest of a depth in parts
    float* sums;                   // [hidden panels] tiles of out
    float* normed;                 // a panel of rows
  };
  Forward(Carver& carver, const Sizes& sizes, int threads) : s(sizes) {
    wide = carver.take<uint16_t>(2 * s.inner * s.hidden * kPairTile);
    down = carver.take<uint16_t>(s.inner * s.hidden * kPairTile);
    for (int i = 0; i < threads; ++i) workers.emplace_back(carver, s);
  }
  Sizes s;
  uint16_t* wide;                  // [inner panels][2 x 16 columns]: right factors [hidden, 16 columns of gate and 16 of up]
  uint16_t* down;                  // by part of inner, by panel: right factors [inner, hidden]
  std::vector<Worker> workers;
  MatrixView<float> out;
  MatrixView<const float> x;
  const GatedCall<float>* call = nullptr;
  const Saved* saved = nullptr;
  bool gelu = false;
};

struct GatedPairs::Backward {
  struct Worker {
    Worker(Carver& carver, const Sizes& s) {
      const size_t mark = carver.mark();
      dout = carver.take<uint16_t>(s.most_panels() * s.hidden * kPairTile);
      dwide = carver.take<uint16_t>(2 * s.most_panels() * s.inner_parts.size * kPairTile);
      dactivated = carver.take<float>((s.hidden_parts.count > 1 ? s.most_panels() : 1) * kPairTile);
      sums = carver.take<float>(s.most_panels() * s.hidden * kPairTile);
      normed = carver.take<float>(s.hidden * kPairTile);
      const size_t rows_end = carver.mark();
      carver.rewind(mark);
      gradient = carver.take<float>(std::min(kGradientLefts, s.hidden) * std::min(kGradientRights, s.inner) * kPairTile);
      carver.rewind(std::max(rows_end, carver.mark()));
    }
    uint16_t *dout, *dwide;        // left factors [rows, hidden]; [gate, up] [rows, a part of inner]
    float* dactivated;             // tiles, or one
    float* sums;                   // [hidden panels] tiles of dx
    float* normed;                 // a panel of rows
    float* gradient;               // of a weight, when the others are done with
  };
  Backward(Carver& carver, const Sizes& sizes, int threads) : s(sizes) {
    down = carver.take<uint16_t>(s.inner * s.hidden * kPairTile);
    wide = carver.take<uint16_t>(2 * s.inner * s.hidden * kPairTile);
    x_columns = carver.take<uint16_t>(s.row_panels * s.hidden * kPairTile);
    dout_columns = carver.take<uint16_t>(s.row_panels * s.hidden * kPairTile);
    for (uint16_t** rows : {&activated, &dgate, &dup}) *rows = carver.take<uint16_t>(s.row_panels * s.inner * kPairTile);
    dnorm = carver.take<float>((s.row_panels + kBlockPanels - 1) * s.hidden * kGemmPanel);
    for (int i = 0; i < threads; ++i) workers.emplace_back(carver, s);
  }
  Sizes s;
  uint16_t* down;                  // [inner panels]: right factors [hidden, inner]
  uint16_t* wide;                  // by part of inner, by panel, gate and up: right factors [inner, hidden]
  // By part of the rows, by panel: left factors [hidden, rows] and right ones [rows, inner].
  uint16_t *x_columns, *dout_columns;
  uint16_t *activated, *dgate, *dup;
  float* dnorm;                    // of the norm's weight, by block of rows
  std::vector<Worker> workers;
  MatrixView<float> dx;
  MatrixView<const float> dout, x;
  const GatedCall<float>* call = nullptr;
  const Saved* saved = nullptr;
  bool gelu = false;
};

FusedMemory GatedPairs::memory(const GatedShape& shape, int64_t rows) const {
  const Sizes s(rows, shape.hidden, shape.inner);
  Carver saved, forward, backward;
  Saved(saved, s);
  Forward(forward, s, pool_.threads());
  Backward(backward, s, pool_.threads());
  return {saved.bytes(), std::max(forward.bytes(), backward.bytes())};
}

void GatedPairs::forward(MatrixView<float> out, MatrixView<const float> x, const GatedCall<float>& call) {
  const Sizes s(x.rows, x.cols, call.gate.rows);
  Carver saved_carver(call.saved), carver(call.scratch);
  const Saved saved(saved_carver, s);
  Forward f(carver, s, pool_.threads());
  f.out = out, f.x = x, f.call = &call, f.saved = &saved, f.gelu = call.activation == GateActivation::kGeluTanh;
  pool_.parallel_for(s.inner, [&](int64_t panel) {
    for (int64_t which = 0; which < 2; ++which) {
      const MatrixView<const float>& w = which == 0 ? call.gate : call.up;
      for (int64_t part = 0; part < s.hidden_parts.count; ++part) {
        const int64_t first = s.hidden_parts.first(part), length = s.hidden_parts.length(part);
        // 32 lines: half of one panel and the same half of the next.
        kernels_.pack_right_pairs(f.wide + (2 * panel * s.hidden + first) * kPairTile + which * length * 512,
                                  {.from = w.row(panel * kGemmPanel) + first * kGemmPanel, .ld = w.stride, .lines = s.inner_there(panel, 1),
                                   .depth = length * kGemmPanel, .blocks = length, .half_step = s.hidden * kPairTile});
      }
    }
  });
  pool_.parallel_for(s.hidden * s.inner_parts.count, [&](int64_t index) {
    const int64_t panel = index / s.inner_parts.count, part = index % s.inner_parts.count;
    const int64_t first = s.inner_parts.first(part), length = s.inner_parts.length(part);
    kernels_.pack_right_pairs(f.down + (first * s.hidden + panel * length) * kPairTile,
                              {.from = call.down.row(panel * kGemmPanel) + first * kGemmPanel, .ld = call.down.stride, .lines = kGemmPanel,
                               .depth = s.inner_there(first, length), .blocks = length});
  });
  pool_.parallel_for_worker(s.blocks.count, [&](int64_t block, int worker) { forward_rows(f, block, worker); });
}

// Products over a part of inner that add up to rows of out or dx.
struct GatedPairs::RowSums {
  float* sums;                     // [hidden panels][tiles]
  const uint16_t* left;            // [tiles] panels
  const uint16_t* right;           // [hidden panels], right_step apart
  int64_t right_step, blocks, tiles, rows;   // rows: of the whole matrix
  bool first, last;                // of what adds up
  MatrixView<const float> residual = {};   // what they are added to, or null
};

// The tiles of one panel of hidden; the last sum goes to `out`, whose rows from first_row on they are, unless that is null.
void GatedPairs::add_rows(const RowSums& sums, const MatrixView<float>& out, int64_t first_row, int64_t col) const {
  PairTile tile{.rows = kPairRows, .cols = kGemmPanel, .b = sums.right + col * sums.right_step, .blocks = sums.blocks, .from_ld = kGemmPanel};
  tile.soon_bytes = sums.right_step * 2 / sums.tiles;
  for (int64_t t = 0; t < sums.tiles; ++t) {
    float* partial = sums.sums + (col * sums.tiles + t) * kPairTile;
    tile.a = sums.left + t * sums.blocks * kPairTile;
    const int64_t row = first_row + t * kPairRows;
    tile.from = sums.first ? nullptr : partial;
    tile.from_ld = kGemmPanel;
    if (sums.first && sums.residual.data != nullptr) {
      tile.from = sums.residual.row(row) + col * kGemmPanel;
      tile.from_ld = sums.residual.stride;
    }
    tile.c = partial;
    tile.c_ld = kGemmPanel;
    if (sums.last && out.data != nullptr) {
      tile.c = out.row(row) + col * kGemmPanel;
      tile.c_ld = out.stride;
    }
    tile.rows = static_cast<int>(std::min(kPairRows, sums.rows - row));
    tile.soon = reinterpret_cast<const char*>(tile.b + sums.right_step) + t * tile.soon_bytes;
    // The next tile's rows of the two matrices; the last one's are the first of the next panel of columns.
    const int64_t next_row = t + 1 < sums.tiles ? row + kPairRows : first_row, next_col = (col + (t + 1 < sums.tiles ? 0 : 1)) * kGemmPanel;
    const bool ask = next_row + kPairRows <= sums.rows;
    tile.next_c = nullptr;
    if (tile.c != partial) {
      tile.next_c = ask && next_col < out.cols ? out.row(next_row) + next_col : nullptr;
    } else if (!sums.first && t + 1 < sums.tiles) {
      tile.next_c = partial + kPairTile;
    }
    tile.next_from = ask && sums.first && sums.residual.data != nullptr && next_col < sums.residual.cols ? sums.residual.row(next_row) + next_col : nullptr;
    kernels_.pair_tile(tile);
  }
}

void GatedPairs::forward_rows(const Forward& f, int64_t block, int worker) const {
  const Sizes& s = f.s;
  const Forward::Worker& w = f.workers[index_of(worker)];
  const int64_t first_panel = s.blocks.first(block), tiles = s.blocks.length(block), first_row = first_panel * kPairRows;
  const int64_t panel = s.hidden * kPairTile;
  const PartRows source{kernels_, f.x, f.call->norm};
  for (int64_t t = 0; t < tiles; ++t) {
    pack_rows(kernels_, w.x, source.take(first_row + t * kPairRows, s.rows_there(first_panel + t), w.normed), s.hidden_parts, t, tiles);
  }
  kernels_.begin_pairs();
  for (int64_t part = 0; part < s.inner_parts.count; ++part) {
    const int64_t first = s.inner_parts.first(part), length = s.inner_parts.length(part), step = length * kPairTile;
    for (int64_t half = 2 * first; half < 2 * (first + length); ++half) {
      const auto nothing = [](int64_t) { return nullptr; };   // asking for what is only written makes it slower
      multiply_tiles(kernels_, w.wide, w.x, f.wide + half * panel, s.hidden_parts, tiles, nothing, [&](int64_t t, const float* sums) {
        kernels_.gate_tile({.sums = sums, .rounded = f.saved->both(first_panel + t, half / 2) + half % 2 * kPairTile,
                            .activated = w.activated + t * step + (half / 2 - first) * 512 + half % 2 * 16, .half_step = length * 512, .gelu = f.gelu});
      });
    }
    const RowSums sums{w.sums, w.activated, f.down + first * panel, step, length, tiles, s.rows, part == 0, part + 1 == s.inner_parts.count,
                       source.normed() ? f.x : MatrixView<const float>{}};
    for (int64_t col = 0; col < s.hidden; ++col) add_rows(sums, f.out, first_row, col);
  }
  kernels_.end_pairs();
}

// Weights, x and dout as the factors backward wants.
void GatedPairs::pack_backward(const Backward& b) const {
  const Sizes& s = b.s;
  const Parts inner_groups(s.inner, kPackPanels), hidden_groups(s.hidden, kPackPanels);
  pool_.parallel_for(inner_groups.count, [&](int64_t group) {
    const int64_t first = inner_groups.first(group), panel = s.hidden * kPairTile;
    for (int64_t part = 0; part < s.hidden_parts.count; ++part) {
      const int64_t first_row = s.hidden_parts.first(part), length = s.hidden_parts.length(part);
      kernels_.pack_right_pairs(b.down + first * panel + first_row * kPairTile,
                                {.from = b.call->down.row(first_row * kGemmPanel) + first * kGemmPanel, .ld = b.call->down.stride,
                                 .lines = s.inner_there(first, inner_groups.length(group)), .depth = length * kGemmPanel, .blocks = length,
                                 .panel_step = panel, .across = true});
    }
  });
  pool_.parallel_for(hidden_groups.count * s.inner_parts.count * 2, [&](int64_t index) {
    const int64_t group = index / 2 / s.inner_parts.count, part = index / 2 % s.inner_parts.count, which = index % 2;
    const int64_t first = s.inner_parts.first(part), length = s.inner_parts.length(part), first_col = hidden_groups.first(group);
    const MatrixView<const float>& w = which == 0 ? b.call->gate : b.call->up;
    kernels_.pack_right_pairs(b.wide + 2 * (first * s.hidden + first_col * length) * kPairTile + which * length * kPairTile,
                              {.from = w.row(first * kGemmPanel) + first_col * kGemmPanel, .ld = w.stride,
                               .lines = hidden_groups.length(group) * kGemmPanel, .depth = s.inner_there(first, length), .blocks = length,
                               .panel_step = 2 * length * kPairTile, .across = true});
  });
  const PartRows source{kernels_, b.x, b.call->norm};
  pool_.parallel_for_worker(s.row_panels, [&](int64_t panel, int worker) {
    const int64_t part = panel / s.row_parts.size, first = s.row_parts.first(part), length = s.row_parts.length(part);
    const auto pack = [&](uint16_t* to, const MatrixView<const float>& from) {
      kernels_.pack_left_pairs(to + first * s.hidden * kPairTile + (panel - first) * 512,
                               {.from = from.data, .ld = from.stride, .lines = s.hidden * kGemmPanel, .depth = s.rows_there(panel), .blocks = 1,
                                .panel_step = length * kPairTile, .half_step = length * 512, .across = true});
    };
    pack(b.x_columns, source.take(panel * kPairRows, s.rows_there(panel), b.workers[index_of(worker)].normed));
    pack(b.dout_columns, b.dout.rows_from(panel * kPairRows, s.rows_there(panel)));
  });
}

void GatedPairs::backward(MatrixView<float> dx, const GatedGradients<float>& gradients, MatrixView<const float> dout,
                          MatrixView<const float> x, const GatedCall<float>& call) {
  const Sizes s(x.rows, x.cols, call.gate.rows);
  Carver saved_carver(call.saved), carver(call.scratch);
  const Saved saved(saved_carver, s);
  Backward b(carver, s, pool_.threads());
  b.dx = dx, b.dout = dout, b.x = x, b.call = &call, b.saved = &saved, b.gelu = call.activation == GateActivation::kGeluTanh;
  pack_backward(b);
  pool_.parallel_for_worker(s.blocks.count, [&](int64_t block, int worker) { backward_rows(b, block, worker); });
  PartRows{kernels_, x, call.norm}.add_dweight(b.dnorm, s.blocks.count);
  std::vector<WeightTask> tasks;
  const Parts left_groups(s.hidden, kGradientLefts), right_groups(s.inner, kGradientRights);
  const auto add = [&](const uint16_t* left, const uint16_t* right, const MatrixView<float>& gradient, bool transposed) {
    for (int64_t i = 0; i < left_groups.count * right_groups.count && gradient.data != nullptr; ++i) {
      const int64_t l = i / right_groups.count, r = i % right_groups.count, hidden = left_groups.first(l) * kGemmPanel, first = right_groups.first(r);
      float* to = transposed ? gradient.row(first * kGemmPanel) + hidden : gradient.row(hidden) + first * kGemmPanel;
      tasks.push_back({left, s.hidden, right, s.inner, left_groups.first(l), left_groups.length(l), first, right_groups.length(r), to, gradient.stride,
                       s.inner_there(first, right_groups.length(r)), transposed, gradients.gradient == Gradient::kAdd});
    }
  };
  add(b.x_columns, b.dgate, gradients.gate, true);
  add(b.x_columns, b.dup, gradients.up, true);
  add(b.dout_columns, b.activated, gradients.down, false);
  pool_.parallel_for_worker(static_cast<int64_t>(tasks.size()), [&](int64_t i, int worker) {
    give_weight_gradient(kernels_, tasks[index_of(i)], s.row_parts, b.workers[index_of(worker)].gradient);
  });
}

void GatedPairs::backward_rows(const Backward& b, int64_t block, int worker) const {
  const Sizes& s = b.s;
  const Backward::Worker& w = b.workers[index_of(worker)];
  const int64_t first_panel = s.blocks.first(block), tiles = s.blocks.length(block), first_row = first_panel * kPairRows;
  const int64_t panel = s.hidden * kPairTile;
  const PartRows source{kernels_, b.x, b.call->norm};
  for (int64_t t = 0; t < tiles; ++t) {
    pack_rows(kernels_, w.dout, b.dout.rows_from(first_row + t * kPairRows, s.rows_there(first_panel + t)), s.hidden_parts, t, tiles);
  }
  kernels_.begin_pairs();
  for (int64_t part = 0; part < s.inner_parts.count; ++part) {
    const int64_t first = s.inner_parts.first(part), length = s.inner_parts.length(part), step = length * kPairTile;
    for (int64_t inner = first; inner < first + length; ++inner) {
      const auto saved = [&](int64_t t) { return reinterpret_cast<const float*>(b.saved->both(first_panel + t, inner)); };
      multiply_tiles(kernels_, w.dactivated, w.dout, b.down + inner * panel, s.hidden_parts, tiles, saved, [&](int64_t t, const float* dactivated) {
        const int64_t row_panel = first_panel + t, row_part = row_panel / s.row_parts.size, part_blocks = s.row_parts.length(row_part);
        const int64_t left = t * step + (inner - first) * 512;
        const int64_t right = (s.row_parts.first(row_part) * s.inner + inner * part_blocks) * kPairTile + (row_panel - s.row_parts.first(row_part)) * 512;
        kernels_.gate_tile_backward({.dactivated = dactivated, .rounded = b.saved->both(row_panel, inner),
                                     .dgate = w.dwide + left, .dup = w.dwide + tiles * step + left, .half_step = length * 512,
                                     .activated_pairs = b.activated + right, .dgate_pairs = b.dgate + right, .dup_pairs = b.dup + right,
                                     .pairs_half_step = part_blocks * 512, .gelu = b.gelu});
      });
    }
    const uint16_t* wide = b.wide + 2 * first * panel;
    const bool last = part + 1 == s.inner_parts.count;
    const RowSums gate{w.sums, w.dwide, wide, 2 * step, length, tiles, s.rows, part == 0, false};
    const RowSums up{w.sums, w.dwide + tiles * step, wide + step, 2 * step, length, tiles, s.rows, false, last};
    const MatrixView<float> dx = source.normed() ? MatrixView<float>{} : b.dx;
    for (int64_t col = 0; col < s.hidden; ++col) {
      add_rows(gate, dx, first_row, col);
      add_rows(up, dx, first_row, col);
    }
  }
  kernels_.end_pairs();
  if (!source.normed()) return;
  float* dnorm = b.dnorm + block * s.hidden * kGemmPanel;
  std::fill_n(dnorm, s.hidden * kGemmPanel, 0.0f);
  for (int64_t t = 0; t < tiles; ++t) {
    for (int64_t row = 0; row < s.rows_there(first_panel + t); ++row) {
      for (int64_t col = 0; col < s.hidden; ++col) std::copy_n(w.sums + (col * tiles + t) * kPairTile + row * kGemmPanel, kGemmPanel, w.normed + col * kGemmPanel);
      source.give(b.dx, dnorm, w.normed, first_row + t * kPairRows + row);
    }
  }
}

}  // namespace quipu::cpu
