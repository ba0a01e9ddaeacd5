#include "backend/cpu/training_self_attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "backend/cpu/pair_attention_blocks.h"
#include "backend/cpu/pair_products.h"
#include "tensor/carver.h"

namespace quipu::cpu {
namespace {

constexpr int64_t kBlock = kPairKeys;
constexpr int64_t kGroupBlocks = 4;   // of a task: 256 rows

size_t index_of(int64_t i) { return static_cast<size_t>(i); }
Parts doubled(const Parts& p) {
  Parts twice = p;
  twice.total *= 2;
  twice.size *= 2;
  return twice;
}

}  // namespace

// In panels of 32, rows in blocks of 64, too. The three projections side by side are `wide`: query, key, value.
struct SelfAttentionPairs::Sizes {
  Sizes(const SelfAttentionShape& s, int64_t blocks_in, int64_t longest_in)
      : heads(s.heads), kv_heads(s.kv_heads), key_dim(s.key_dim), value_dim(s.value_dim), blocks(blocks_in), longest(longest_in), panels(2 * blocks),
        hidden(s.hidden / kGemmPanel), out(s.heads * s.value_dim / kGemmPanel), query(s.heads * s.key_dim / kGemmPanel),
        key(s.kv_heads * s.key_dim / kGemmPanel), value(s.kv_heads * s.value_dim / kGemmPanel), wide(query + key + value),
        groups(blocks, kGroupBlocks), row_parts(doubled(Parts(blocks, kDepthBlocks / 2))), hidden_parts(hidden, kDepthBlocks),
        out_parts(out, kDepthBlocks), wide_parts(wide, kDepthBlocks) {}
  int64_t heads, kv_heads, key_dim, value_dim;   // not panels
  int64_t blocks, longest;                       // longest: blocks of a sequence
  int64_t panels, hidden, out, query, key, value, wide;
  Parts groups;                                  // of blocks: tasks
  Parts row_parts, hidden_parts, out_parts, wide_parts;   // of depths
  int64_t key_elements() const { return kBlock * key_dim; }
  int64_t value_elements() const { return kBlock * value_dim; }
  // What a worker has room for: not groups.size, which may be less for more rows.
  int64_t most_panels() const { return 2 * std::min(kGroupBlocks, blocks); }
  // Elements between rows: not a power of two, which few sets of a first-level cache would hold.
  int64_t normed_ld() const { return hidden * kGemmPanel + 16; }
  int64_t row_part(int64_t panel) const { return panel / row_parts.size; }
};

// By head, by block: q_columns and dout's are right factors [dim, 64 queries] of two panels, q_rows [64 queries, dim]; keys and
// values are left factors [64, dim] (rows) and [dim, 64] (columns).
struct SelfAttentionPairs::Saved {
  Saved(Carver& carver, const Sizes& s) {
    for (uint16_t** p : {&q_columns, &q_rows}) *p = carver.take<uint16_t>(s.heads * s.blocks * s.key_elements());
    for (uint16_t** p : {&k_rows, &k_columns}) *p = carver.take<uint16_t>(s.kv_heads * s.blocks * s.key_elements());
    for (uint16_t** p : {&v_rows, &v_columns}) *p = carver.take<uint16_t>(s.kv_heads * s.blocks * s.value_elements());
    attended = carver.take<uint16_t>(s.panels * s.out * kPairTile);
    attended_pairs = carver.take<uint16_t>(s.panels * s.out * kPairTile);
    log_sum_exp = carver.take<float>(s.heads * s.panels * kPairRows);
  }
  uint16_t *q_columns, *q_rows, *k_rows, *k_columns, *v_rows, *v_columns;
  uint16_t* attended;              // by panel of rows, by part of out: left factors [rows, out]
  uint16_t* attended_pairs;        // by part of the rows, by panel: right factors [rows, out]
  float* log_sum_exp;              // [heads][padded rows]
};

struct SelfAttentionPairs::Forward {
  struct Worker {
    Worker(Carver& carver, const Sizes& s)
        : x(carver.take<uint16_t>(s.most_panels() * s.hidden * kPairTile)), probabilities(carver.take<uint16_t>(kBlock * kPairQueries)),
          head(carver.take<float>(s.most_panels() * kPairRows * std::max(s.key_dim, s.value_dim))),
          sums(carver.take<float>(s.most_panels() * kPairTile)), normed(carver.take<float>(2 * s.hidden * kPairTile)),
          scores(carver.take<float>(kBlock * kPairQueries)),
          attended(carver.take<float>(s.value_dim * kPairQueries)) {}
    uint16_t* x;                   // by panel: left factors [rows, hidden]
    uint16_t* probabilities;
    float* head;                   // [rows][dim] of one head
    float* sums;                   // tiles
    float* normed;                 // a block of rows
    float* scores;
    float* attended;               // [value_dim][queries]
  };
  Forward(Carver& carver, const Sizes& sizes, int threads) : s(sizes) {
    wide = carver.take<uint16_t>(s.wide * s.hidden * kPairTile);
    output = carver.take<uint16_t>(s.hidden * s.out * kPairTile);
    for (int i = 0; i < threads; ++i) workers.emplace_back(carver, s);
  }
  Sizes s;
  uint16_t* wide;                  // by panel: right factors [hidden, wide]
  uint16_t* output;                // by panel: right factors [out, hidden]
  std::vector<Worker> workers;
  MatrixView<float> out;
  MatrixView<const float> x;
  const SelfAttentionCall<float>* call = nullptr;
  const Saved* saved = nullptr;
  const RotationTable* rotation = nullptr;
};

struct SelfAttentionPairs::Backward {
  struct Worker {
    Worker(Carver& carver, const Sizes& s) {
      const size_t mark = carver.mark();
      dout = carver.take<uint16_t>(s.most_panels() * s.hidden * kPairTile);
      normed = carver.take<float>(s.most_panels() * kPairRows * s.normed_ld());
      head = carver.take<float>(s.most_panels() * kPairRows * s.value_dim);
      sums = carver.take<float>(s.most_panels() * kPairTile);
      size_t end = carver.mark();
      carver.rewind(mark);
      for (uint16_t** p : {&probabilities, &dscore_rows, &dscore_columns}) *p = carver.take<uint16_t>(kBlock * kQueryBlocks * kBlock);
      scores = carver.take<float>(kBlock * kPairQueries);
      dscores = carver.take<float>(kBlock * kPairQueries);
      dq = carver.take<float>(s.longest * s.key_elements());
      rows = carver.take<float>(s.key_elements());
      const int64_t together = s.heads == s.kv_heads ? 1 : s.longest;
      dkeys = carver.take<float>(together * s.key_elements());
      dvalues = carver.take<float>(together * s.value_elements());
      end = std::max(end, carver.mark());
      carver.rewind(mark);
      gradient = carver.take<float>(std::min(kGradientLefts, s.hidden) * std::min(kGradientRights, std::max(s.wide, s.out)) * kPairTile);
      carver.rewind(std::max(end, carver.mark()));
    }
    uint16_t* dout;                // by panel: left factors [rows, hidden]
    float* normed;                 // rows behind the norm, or their gradient
    float *head, *sums;            // [rows][value_dim] of one head; tiles
    uint16_t *probabilities, *dscore_rows, *dscore_columns;
    float *scores, *dscores;
    float* dq;                     // by panel of queries: [key_dim][32]
    float* rows;                   // [64][key_dim]
    float *dkeys, *dvalues;        // [64][dim], of every block where heads share keys
    float* gradient;               // of a weight, when the others are done with
  };
  Backward(Carver& carver, const Sizes& sizes, int threads) : s(sizes) {
    output = carver.take<uint16_t>(s.hidden * s.out * kPairTile);
    wide = carver.take<uint16_t>(s.wide * s.hidden * kPairTile);
    for (uint16_t** p : {&x_columns, &dout_hidden}) *p = carver.take<uint16_t>(s.panels * s.hidden * kPairTile);
    for (uint16_t** p : {&dout_columns, &dout_rows}) *p = carver.take<uint16_t>(s.heads * s.blocks * s.value_elements());
    for (uint16_t** p : {&dwide, &dwide_pairs}) *p = carver.take<uint16_t>(s.panels * s.wide * kPairTile);
    delta = carver.take<float>(s.heads * s.panels * kPairRows);
    dnorm = carver.take<float>((s.blocks + kGroupBlocks - 1) * s.hidden * kGemmPanel);
    for (int i = 0; i < threads; ++i) workers.emplace_back(carver, s);
  }
  Sizes s;
  uint16_t* output;                // by panel: right factors [hidden, out]
  uint16_t* wide;                  // by panel: right factors [wide, hidden]
  uint16_t *x_columns, *dout_hidden;      // by part of the rows, by panel: left factors [hidden, rows]
  uint16_t *dout_columns, *dout_rows;     // of what attention gave: as q_columns, q_rows
  uint16_t* dwide;                 // by panel of rows, by part of wide: left factors [rows, wide]
  uint16_t* dwide_pairs;           // by part of the rows, by panel: right factors [rows, wide]
  float* delta;                    // [heads][padded rows]: dout . out
  float* dnorm;                    // of the norm's weight, by group of blocks
  std::vector<Worker> workers;
  MatrixView<float> dx;
  MatrixView<const float> dout, x;
  const SelfAttentionCall<float>* call = nullptr;
  const Saved* saved = nullptr;
  const RotationTable* rotation = nullptr;
};

FusedMemory SelfAttentionPairs::memory(const SelfAttentionShape& shape, std::span<const int64_t> offsets) const {
  int64_t blocks = 0, longest = 0;
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    const int64_t here = (offsets[i + 1] - offsets[i] + kBlock - 1) / kBlock;
    blocks += here;
    longest = std::max(longest, here);
  }
  const Sizes s(shape, blocks, longest);
  Carver saved, forward, backward;
  Saved(saved, s);
  Forward(forward, s, pool_.threads());
  Backward(backward, s, pool_.threads());
  return {saved.bytes(), std::max(forward.bytes(), backward.bytes())};
}

void SelfAttentionPairs::find_blocks(std::span<const AttentionSlice> slices) {
  blocks_.clear();
  slice_blocks_.clear();
  panel_order_.clear();
  for (size_t i = 0; i < slices.size(); ++i) {
    slice_blocks_.push_back(static_cast<int64_t>(blocks_.size()));
    for (int64_t first = 0; first < slices[i].queries; first += kBlock) {
      blocks_.push_back({slices[i].query_begin + first, std::min(kBlock, slices[i].queries - first), static_cast<int64_t>(i), first});
    }
    for (int64_t panel = 2 * static_cast<int64_t>(blocks_.size()); panel-- > 2 * slice_blocks_.back();) panel_order_.push_back(panel);
  }
  slice_blocks_.push_back(static_cast<int64_t>(blocks_.size()));
}

// 0 where the last block of a sequence has one panel only.
int64_t SelfAttentionPairs::rows_of_panel(int64_t panel) const {
  return std::clamp<int64_t>(blocks_[index_of(panel / 2)].rows - panel % 2 * kPairRows, 0, kPairRows);
}

void SelfAttentionPairs::rotate(float* rows, int64_t dim, const Block& block, const SelfAttentionCall<float>& call, const RotationTable& r) const {
  if (r.table == nullptr) return;
  for (int64_t i = 0; i < block.rows; ++i) {
    kernels_.rotate_row(rows + i * dim, r.table + call.positions[index_of(block.row + i)] * 2 * r.pairs, r.pairs, r.step, r.offset);
  }
}

// Panels of rows by one panel of a right factor.
struct SelfAttentionPairs::Projection {
  const uint16_t* left;            // of the first panel, left_step apart, each by part of the depth
  int64_t left_step;
  const uint16_t* right;           // by part of the depth
  const Parts& depth;
  float* sums;                     // tiles, of a depth in parts
  // Where the result goes: rows of a buffer, or (null) of a matrix.
  float* rows;
  int64_t rows_ld;
  MatrixView<float> matrix;
  int64_t col;
  MatrixView<const float> residual = {};   // what is added to it, or null
};

void SelfAttentionPairs::multiply(const Projection& p, int64_t first_panel, int64_t panels) const {
  PairTile tile{.cols = kGemmPanel};
  const char* soon = reinterpret_cast<const char*>(p.right + p.depth.total * kPairTile);   // the next panel, a share with every tile
  tile.soon_bytes = p.depth.total * kPairTile * 2 / (p.depth.count * panels);
  for (int64_t part = 0; part < p.depth.count; ++part) {
    tile.blocks = p.depth.length(part);
    tile.b = p.right + p.depth.first(part) * kPairTile;
    for (int64_t i = 0; i < panels; ++i, soon += tile.soon_bytes) {
      const int64_t there = rows_of_panel(first_panel + i);
      if (there == 0) continue;
      tile.a = p.left + i * p.left_step + p.depth.first(part) * kPairTile;
      const int64_t row = blocks_[index_of((first_panel + i) / 2)].row + (first_panel + i) % 2 * kPairRows;
      tile.from = part > 0 ? p.sums + i * kPairTile : nullptr;
      tile.from_ld = kGemmPanel;
      tile.c = p.sums + i * kPairTile;
      tile.c_ld = kGemmPanel;
      tile.rows = static_cast<int>(there);
      if (part == 0 && p.residual.data != nullptr) {
        tile.from = p.residual.row(row) + p.col;
        tile.from_ld = p.residual.stride;
      }
      if (part + 1 == p.depth.count && p.rows != nullptr) {
        tile.c = p.rows + i * kPairRows * p.rows_ld;
        tile.c_ld = p.rows_ld;
      } else if (part + 1 == p.depth.count) {
        tile.c = p.matrix.row(row) + p.col;
        tile.c_ld = p.matrix.stride;
      }
      tile.soon = soon;
      // The next tile's rows of the two matrices, or the first of the next panel of columns; never beyond the rows' end.
      const int64_t after = first_panel + (i + 1) % panels;
      const bool ask = rows_of_panel(after) == kPairRows && p.col + kGemmPanel < p.matrix.cols;
      const int64_t next_row = blocks_[index_of(after / 2)].row + after % 2 * kPairRows, next_col = p.col + (i + 1 == panels ? kGemmPanel : 0);
      tile.next_c = ask && part + 1 == p.depth.count && p.rows == nullptr ? p.matrix.row(next_row) + next_col : nullptr;
      tile.next_from = ask && part == 0 && p.residual.data != nullptr ? p.residual.row(next_row) + next_col : nullptr;
      kernels_.pair_tile(tile);
    }
  }
}

void SelfAttentionPairs::forward(MatrixView<float> out, MatrixView<const float> x, const SelfAttentionCall<float>& call, const RotationTable& rotation) {
  find_blocks(call.pattern.slices);
  const AttentionPattern& p = call.pattern;
  const Sizes s({x.cols, p.heads, p.kv_heads, p.key_dim, p.value_dim}, static_cast<int64_t>(blocks_.size()), 0);
  Carver saved_carver(call.saved), carver(call.scratch);
  const Saved saved(saved_carver, s);
  Forward f(carver, s, pool_.threads());
  f.out = out, f.x = x, f.call = &call, f.saved = &saved, f.rotation = &rotation;
  const auto pack = [&](uint16_t* to, const MatrixView<const float>& w, int64_t panel, const Parts& depth) {
    for (int64_t part = 0; part < depth.count; ++part) {
      const int64_t first = depth.first(part), length = depth.length(part);
      kernels_.pack_right_pairs(to + first * kPairTile, {.from = w.row(panel * kGemmPanel) + first * kGemmPanel, .ld = w.stride, .lines = kGemmPanel,
                                                         .depth = length * kGemmPanel, .blocks = length});
    }
  };
  pool_.parallel_for(s.wide + s.hidden, [&](int64_t i) {
    if (i >= s.wide) return pack(f.output + (i - s.wide) * s.out * kPairTile, call.output, i - s.wide, s.out_parts);
    uint16_t* to = f.wide + i * s.hidden * kPairTile;
    if (i < s.query) return pack(to, call.query, i, s.hidden_parts);
    if (i < s.query + s.key) return pack(to, call.key, i - s.query, s.hidden_parts);
    pack(to, call.value, i - s.query - s.key, s.hidden_parts);
  });
  pool_.parallel_for_worker(s.groups.count, [&](int64_t group, int worker) { project(f, group, worker); });
  // Head after head: the keys of one stay in a second-level cache while its queries go by.
  pool_.parallel_for_worker(s.panels * s.heads, [&](int64_t index, int worker) {
    attend_panel(f, panel_order_[index_of(index % s.panels)], index / s.panels, worker);
  });
  pool_.parallel_for_worker(s.groups.count, [&](int64_t group, int worker) { give_out(f, group, worker); });
}

// Rows to queries, keys and values.
void SelfAttentionPairs::project(const Forward& f, int64_t group, int worker) const {
  const Sizes& s = f.s;
  const Forward::Worker& w = f.workers[index_of(worker)];
  const int64_t first = s.groups.first(group), count = s.groups.length(group);
  const PartRows source{kernels_, f.x, f.call->norm};
  for (int64_t i = 0; i < count; ++i) {
    const Block& block = blocks_[index_of(first + i)];
    const MatrixView<const float> x = source.take(block.row, block.rows, w.normed);
    for (int64_t part = 0; part < s.hidden_parts.count; ++part) {
      const int64_t begin = s.hidden_parts.first(part), length = s.hidden_parts.length(part);
      kernels_.pack_left_pairs(w.x + (2 * i * s.hidden + begin) * kPairTile,
                               {.from = x.data + begin * kGemmPanel, .ld = x.stride, .lines = block.rows, .depth = length * kGemmPanel,
                                .blocks = length, .panel_step = s.hidden * kPairTile});
    }
  }
  kernels_.begin_pairs();
  const auto each_head = [&](int64_t first_wide, int64_t heads, int64_t dim, const auto& give) {
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t col = 0; col < dim; col += kGemmPanel) {
        const int64_t panel = first_wide + (head * dim + col) / kGemmPanel;
        multiply({w.x, s.hidden * kPairTile, f.wide + panel * s.hidden * kPairTile, s.hidden_parts, w.sums, w.head + col, dim, {}, 0}, 2 * first, 2 * count);
      }
      for (int64_t i = 0; i < count; ++i) give(w.head + i * kBlock * dim, blocks_[index_of(first + i)], head * s.blocks + first + i);
    }
  };
  each_head(0, s.heads, s.key_dim, [&](float* rows, const Block& block, int64_t at) {
    rotate(rows, s.key_dim, block, *f.call, *f.rotation);
    kernels_.pack_right_pairs(f.saved->q_columns + at * s.key_elements(), rows_of(rows, s.key_dim, block.rows, s.key_dim));
    kernels_.pack_right_pairs(f.saved->q_rows + at * s.key_elements(), components_of(rows, s.key_dim, block.rows, s.key_dim));
  });
  each_head(s.query, s.kv_heads, s.key_dim, [&](float* rows, const Block& block, int64_t at) {
    rotate(rows, s.key_dim, block, *f.call, *f.rotation);
    kernels_.pack_left_pairs(f.saved->k_rows + at * s.key_elements(), rows_of(rows, s.key_dim, block.rows, s.key_dim));
    kernels_.pack_left_pairs(f.saved->k_columns + at * s.key_elements(), components_of(rows, s.key_dim, block.rows, s.key_dim));
  });
  each_head(s.query + s.key, s.kv_heads, s.value_dim, [&](float* rows, const Block& block, int64_t at) {
    kernels_.pack_left_pairs(f.saved->v_rows + at * s.value_elements(), rows_of(rows, s.value_dim, block.rows, s.value_dim));
    kernels_.pack_left_pairs(f.saved->v_columns + at * s.value_elements(), components_of(rows, s.value_dim, block.rows, s.value_dim));
  });
  kernels_.end_pairs();
}

// A panel of queries of one head.
void SelfAttentionPairs::attend_panel(const Forward& f, int64_t panel, int64_t head, int worker) const {
  const Sizes& s = f.s;
  const AttentionPattern& p = f.call->pattern;
  const Forward::Worker& w = f.workers[index_of(worker)];
  const Block& block = blocks_[index_of(panel / 2)];
  const int64_t rows = rows_of_panel(panel), kv_block = head / (s.heads / s.kv_heads) * s.blocks + slice_blocks_[index_of(block.slice)];
  alignas(64) float maximum[kPairQueries], total[kPairQueries], inverse[kPairQueries];
  std::fill_n(maximum, kPairQueries, -std::numeric_limits<float>::infinity());
  std::fill_n(total, kPairQueries, 0.0f);
  std::fill_n(w.attended, s.value_dim * kPairQueries, 0.0f);
  if (rows > 0) {
    kernels_.begin_pairs();
    attend(kernels_, {.keys = f.saved->k_rows + kv_block * s.key_elements(), .values = f.saved->v_columns + kv_block * s.value_elements(),
                      .key_step = s.key_elements(), .value_step = s.value_elements(),
                      .queries = f.saved->q_columns + (head * s.panels + panel) * kPairQueries * s.key_dim, .key_dim = s.key_dim,
                      .value_dim = s.value_dim, .visible = p.visible.subspan(index_of(block.row + panel % 2 * kPairRows), index_of(rows)),
                      .scale = static_cast<float>(p.scale), .softcap = static_cast<float>(p.softcap), .maximum = maximum, .total = total,
                      .sums = w.attended, .scores = w.scores, .probabilities = w.probabilities});
    kernels_.end_pairs();
  }
  float* lse = f.saved->log_sum_exp + (head * s.panels + panel) * kPairRows;
  for (int64_t i = 0; i < kPairQueries; ++i) {
    lse[i] = total[i] == 0.0f ? maximum[i] : maximum[i] + std::log(total[i]);
    inverse[i] = total[i] == 0.0f ? 0.0f : 1.0f / total[i];   // 0: sees nothing, or is not there
  }
  kernels_.scale_columns(w.attended, inverse, s.value_dim);
  const int64_t row_part = s.row_part(panel), row_blocks = s.row_parts.length(row_part);
  for (int64_t c = 0; c < s.value_dim; c += kGemmPanel) {
    const int64_t col = (head * s.value_dim + c) / kGemmPanel, part = col / s.out_parts.size, first = s.out_parts.first(part), length = s.out_parts.length(part);
    kernels_.pack_left_pairs(f.saved->attended + (panel * s.out + first) * kPairTile + (col - first) * 512,
                             {.from = w.attended + c * kPairQueries, .ld = kPairQueries, .lines = kPairRows, .depth = kGemmPanel, .blocks = 1,
                              .half_step = length * 512, .across = true});
    kernels_.pack_right_pairs(f.saved->attended_pairs + (s.row_parts.first(row_part) * s.out + col * row_blocks) * kPairTile +
                                  (panel - s.row_parts.first(row_part)) * 512,
                              {.from = w.attended + c * kPairQueries, .ld = kPairQueries, .lines = kGemmPanel, .depth = kPairRows, .blocks = 1,
                               .half_step = row_blocks * 512});
  }
}

void SelfAttentionPairs::give_out(const Forward& f, int64_t group, int worker) const {
  const Sizes& s = f.s;
  const int64_t first = 2 * s.groups.first(group), count = 2 * s.groups.length(group);
  kernels_.begin_pairs();
  for (int64_t col = 0; col < s.hidden; ++col) {
    multiply({f.saved->attended + first * s.out * kPairTile, s.out * kPairTile, f.output + col * s.out * kPairTile, s.out_parts,
              f.workers[index_of(worker)].sums, nullptr, 0, f.out, col * kGemmPanel,
              f.call->norm.weight.empty() ? MatrixView<const float>{} : f.x}, first, count);
  }
  kernels_.end_pairs();
}

void SelfAttentionPairs::backward(MatrixView<float> dx, const SelfAttentionGradients<float>& gradients, MatrixView<const float> dout,
                                  MatrixView<const float> x, const SelfAttentionCall<float>& call, const RotationTable& rotation) {
  find_blocks(call.pattern.slices);
  const AttentionPattern& p = call.pattern;
  int64_t longest = 0;
  for (size_t i = 0; i + 1 < slice_blocks_.size(); ++i) longest = std::max(longest, slice_blocks_[i + 1] - slice_blocks_[i]);
  const Sizes s({x.cols, p.heads, p.kv_heads, p.key_dim, p.value_dim}, static_cast<int64_t>(blocks_.size()), longest);
  Carver saved_carver(call.saved), carver(call.scratch);
  const Saved saved(saved_carver, s);
  Backward b(carver, s, pool_.threads());
  b.dx = dx, b.dout = dout, b.x = x, b.call = &call, b.saved = &saved, b.rotation = &rotation;
  pack_weights(b);
  pool_.parallel_for_worker(s.groups.count, [&](int64_t group, int worker) { take_cotangents(b, group, worker); });
  pool_.parallel_for_worker(static_cast<int64_t>(p.slices.size()) * s.kv_heads, [&](int64_t index, int worker) {
    backward_head(b, index / s.kv_heads, index % s.kv_heads, worker);
  });
  pool_.parallel_for_worker(s.groups.count, [&](int64_t group, int worker) { give_dx(b, group, worker); });
  PartRows{kernels_, x, call.norm}.add_dweight(b.dnorm, s.groups.count);
  std::vector<WeightTask> tasks;
  // right: panels of the factor's right_total, from first_right on, that are this weight's.
  const auto add = [&](const uint16_t* left, const uint16_t* right, int64_t right_total, int64_t first_right, int64_t rights,
                       const MatrixView<float>& gradient, bool transposed) {
    const Parts left_groups(s.hidden, kGradientLefts), right_groups(rights, kGradientRights);
    for (int64_t i = 0; i < left_groups.count * right_groups.count && gradient.data != nullptr; ++i) {
      const int64_t l = i / right_groups.count, r = i % right_groups.count, hidden = left_groups.first(l) * kGemmPanel, col = right_groups.first(r) * kGemmPanel;
      tasks.push_back({left, s.hidden, right, right_total, left_groups.first(l), left_groups.length(l), first_right + right_groups.first(r),
                       right_groups.length(r), transposed ? gradient.row(col) + hidden : gradient.row(hidden) + col, gradient.stride,
                       right_groups.length(r) * kGemmPanel, transposed, gradients.gradient == Gradient::kAdd});
    }
  };
  add(b.x_columns, b.dwide_pairs, s.wide, 0, s.query, gradients.query, true);
  add(b.x_columns, b.dwide_pairs, s.wide, s.query, s.key, gradients.key, true);
  add(b.x_columns, b.dwide_pairs, s.wide, s.query + s.key, s.value, gradients.value, true);
  add(b.dout_hidden, saved.attended_pairs, s.out, 0, s.out, gradients.output, false);
  pool_.parallel_for_worker(static_cast<int64_t>(tasks.size()), [&](int64_t i, int worker) {
    give_weight_gradient(kernels_, tasks[index_of(i)], s.row_parts, b.workers[index_of(worker)].gradient);
  });
}

void SelfAttentionPairs::pack_weights(const Backward& b) const {
  const Sizes& s = b.s;
  const SelfAttentionCall<float>& call = *b.call;
  const Parts out_groups(s.out, kPackPanels), hidden_groups(s.hidden, kPackPanels);
  struct Weight {
    const MatrixView<const float>* w;
    int64_t first, panels;         // of wide
  };
  const std::array<Weight, 3> weights{{{&call.query, 0, s.query}, {&call.key, s.query, s.key}, {&call.value, s.query + s.key, s.value}}};
  const int64_t outputs = out_groups.count * s.hidden_parts.count;
  pool_.parallel_for(outputs + hidden_groups.count * s.wide_parts.count, [&](int64_t index) {
    if (index < outputs) {
      const int64_t group = index / s.hidden_parts.count, part = index % s.hidden_parts.count, col = out_groups.first(group);
      const int64_t first = s.hidden_parts.first(part), length = s.hidden_parts.length(part);
      return kernels_.pack_right_pairs(b.output + (col * s.hidden + first) * kPairTile,
                                       {.from = call.output.row(first * kGemmPanel) + col * kGemmPanel, .ld = call.output.stride,
                                        .lines = out_groups.length(group) * kGemmPanel, .depth = length * kGemmPanel, .blocks = length,
                                        .panel_step = s.hidden * kPairTile, .across = true});
    }
    const int64_t group = (index - outputs) / s.wide_parts.count, part = (index - outputs) % s.wide_parts.count, col = hidden_groups.first(group);
    const int64_t first = s.wide_parts.first(part), length = s.wide_parts.length(part);
    for (const Weight& weight : weights) {
      const int64_t from = std::max(first, weight.first), there = std::min(first + length, weight.first + weight.panels) - from;
      if (there <= 0) continue;
      kernels_.pack_right_pairs(b.wide + (col * s.wide + first) * kPairTile + (from - first) * 512,
                                {.from = weight.w->row((from - weight.first) * kGemmPanel) + col * kGemmPanel, .ld = weight.w->stride,
                                 .lines = hidden_groups.length(group) * kGemmPanel, .depth = there * kGemmPanel, .blocks = there,
                                 .panel_step = s.wide * kPairTile, .half_step = length * 512, .across = true});
    }
  });
}

// Undoes give_out; also packs x and dout as factors of the weights' gradients.
void SelfAttentionPairs::take_cotangents(const Backward& b, int64_t group, int worker) const {
  const Sizes& s = b.s;
  const Backward::Worker& w = b.workers[index_of(worker)];
  const int64_t first = s.groups.first(group), count = s.groups.length(group);
  const PartRows source{kernels_, b.x, b.call->norm};
  for (int64_t i = 0; i < count; ++i) {
    const Block& block = blocks_[index_of(first + i)];
    const int64_t panel = 2 * (first + i), row_part = s.row_part(panel), row_blocks = s.row_parts.length(row_part);
    const int64_t at = s.row_parts.first(row_part) * s.hidden * kPairTile + (panel - s.row_parts.first(row_part)) * 512;
    const auto columns = [&](uint16_t* to, const MatrixView<const float>& from) {
      kernels_.pack_left_pairs(to + at, {.from = from.data, .ld = from.stride, .lines = s.hidden * kGemmPanel, .depth = block.rows, .blocks = 2,
                                         .panel_step = row_blocks * kPairTile, .half_step = row_blocks * 512, .across = true});
    };
    columns(b.dout_hidden, b.dout.rows_from(block.row, block.rows));
    columns(b.x_columns, source.take(block.row, block.rows, w.normed));
    for (int64_t part = 0; part < s.hidden_parts.count; ++part) {
      const int64_t begin = s.hidden_parts.first(part), length = s.hidden_parts.length(part);
      kernels_.pack_left_pairs(w.dout + (2 * i * s.hidden + begin) * kPairTile,
                               {.from = b.dout.row(block.row) + begin * kGemmPanel, .ld = b.dout.stride, .lines = block.rows, .depth = length * kGemmPanel,
                                .blocks = length, .panel_step = s.hidden * kPairTile});
    }
  }
  kernels_.begin_pairs();
  for (int64_t head = 0; head < s.heads; ++head) {
    float* delta = b.delta + (head * s.panels + 2 * first) * kPairRows;
    std::fill_n(delta, 2 * count * kPairRows, 0.0f);
    for (int64_t c = 0; c < s.value_dim; c += kGemmPanel) {
      const int64_t col = (head * s.value_dim + c) / kGemmPanel, part = col / s.out_parts.size, begin = s.out_parts.first(part), length = s.out_parts.length(part);
      multiply({w.dout, s.hidden * kPairTile, b.output + col * s.hidden * kPairTile, s.hidden_parts, w.sums, w.head + c, s.value_dim, {}, 0}, 2 * first, 2 * count);
      for (int64_t i = 0; i < 2 * count; ++i) {
        if (rows_of_panel(2 * first + i) == 0) continue;
        kernels_.add_row_products(delta + i * kPairRows, w.head + i * kPairRows * s.value_dim + c, s.value_dim,
                                  b.saved->attended + ((2 * first + i) * s.out + begin) * kPairTile + (col - begin) * 512, length * 512);
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t rows = blocks_[index_of(first + i)].rows, at = (head * s.blocks + first + i) * s.value_elements();
      const float* from = w.head + i * kBlock * s.value_dim;
      kernels_.pack_right_pairs(b.dout_columns + at, rows_of(from, s.value_dim, rows, s.value_dim));
      kernels_.pack_right_pairs(b.dout_rows + at, components_of(from, s.value_dim, rows, s.value_dim));
    }
  }
  kernels_.end_pairs();
}

// A block's rows of gradients of some of wide as factors.
void SelfAttentionPairs::pack_gradient(const Backward& b, const float* rows, int64_t dim, int64_t block, int64_t first_wide) const {
  const Sizes& s = b.s;
  const int64_t there = blocks_[index_of(block)].rows, panel = 2 * block, row_part = s.row_part(panel), row_blocks = s.row_parts.length(row_part);
  for (int64_t c = 0; c < dim; c += kGemmPanel) {
    const int64_t col = first_wide + c / kGemmPanel, part = col / s.wide_parts.size, first = s.wide_parts.first(part);
    kernels_.pack_left_pairs(b.dwide + (panel * s.wide + first) * kPairTile + (col - first) * 512,
                             {.from = rows + c, .ld = dim, .lines = there, .depth = kGemmPanel, .blocks = 1, .panel_step = s.wide * kPairTile,
                              .half_step = s.wide_parts.length(part) * 512});
  }
  kernels_.pack_right_pairs(b.dwide_pairs + (s.row_parts.first(row_part) * s.wide + first_wide * row_blocks) * kPairTile +
                                (panel - s.row_parts.first(row_part)) * 512,
                            {.from = rows, .ld = dim, .lines = dim, .depth = there, .blocks = 2, .panel_step = row_blocks * kPairTile,
                             .half_step = row_blocks * 512, .across = true});
}

// The heads of one sequence that share a key head.
void SelfAttentionPairs::backward_head(const Backward& b, int64_t slice_index, int64_t kv_head, int worker) const {
  const Sizes& s = b.s;
  const AttentionPattern& p = b.call->pattern;
  const AttentionSlice& slice = p.slices[index_of(slice_index)];
  const Backward::Worker& w = b.workers[index_of(worker)];
  const int64_t group = s.heads / s.kv_heads, first_block = slice_blocks_[index_of(slice_index)], blocks = slice_blocks_[index_of(slice_index + 1)] - first_block;
  const auto visible = p.visible.subspan(index_of(slice.query_begin), index_of(slice.queries));
  kernels_.begin_pairs();
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    const bool first_of_group = head == kv_head * group, last_of_group = head + 1 == (kv_head + 1) * group;
    const int64_t q_block = head * s.blocks + first_block;
    std::fill_n(w.dq, blocks * s.key_elements(), 0.0f);
    int64_t first_query = 0;   // the first one that sees a key of this block or of a later one
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t key = block * kBlock, kv_block = kv_head * s.blocks + first_block + block;
      float *dkeys = w.dkeys + (group == 1 ? 0 : block * s.key_elements()), *dvalues = w.dvalues + (group == 1 ? 0 : block * s.value_elements());
      while (first_query < slice.queries && visible[index_of(first_query)].end <= key) ++first_query;
      const int64_t first_seeing = first_query == slice.queries ? blocks * kBlock : first_query / kBlock * kBlock;
      attend_backward(kernels_, {.key = key, .keys = blocks_[index_of(first_block + block)].rows, .first_query = first_seeing,
                                 .visible = visible, .key_rows = b.saved->k_rows + kv_block * s.key_elements(),
                                 .value_rows = b.saved->v_rows + kv_block * s.value_elements(), .key_columns = b.saved->k_columns + kv_block * s.key_elements(),
                                 .q_columns = b.saved->q_columns + q_block * s.key_elements(), .q_rows = b.saved->q_rows + q_block * s.key_elements(),
                                 .dout_columns = b.dout_columns + q_block * s.value_elements(), .dout_rows = b.dout_rows + q_block * s.value_elements(),
                                 .key_dim = s.key_dim, .value_dim = s.value_dim, .log_sum_exp = b.saved->log_sum_exp + q_block * kBlock,
                                 .delta = b.delta + q_block * kBlock, .scale = static_cast<float>(p.scale), .softcap = static_cast<float>(p.softcap),
                                 .dq = w.dq, .dkeys = dkeys, .dvalues = dvalues, .add = !first_of_group, .scores = w.scores, .dscores = w.dscores,
                                 .probabilities = w.probabilities, .dscore_rows = w.dscore_rows, .dscore_columns = w.dscore_columns});
      if (!last_of_group) continue;
      rotate(dkeys, s.key_dim, blocks_[index_of(first_block + block)], *b.call, *b.rotation);
      pack_gradient(b, dkeys, s.key_dim, first_block + block, s.query + kv_head * s.key_dim / kGemmPanel);
      pack_gradient(b, dvalues, s.value_dim, first_block + block, s.query + s.key + kv_head * s.value_dim / kGemmPanel);
    }
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t panel = 0; panel < 2; ++panel) {
        kernels_.store_transposed(w.rows + panel * kPairRows * s.key_dim, s.key_dim, w.dq + (2 * block + panel) * kPairQueries * s.key_dim, nullptr,
                                  s.key_dim, kPairQueries);
      }
      rotate(w.rows, s.key_dim, blocks_[index_of(first_block + block)], *b.call, *b.rotation);
      pack_gradient(b, w.rows, s.key_dim, first_block + block, head * s.key_dim / kGemmPanel);
    }
  }
  kernels_.end_pairs();
}

void SelfAttentionPairs::give_dx(const Backward& b, int64_t group, int worker) const {
  const Sizes& s = b.s;
  const int64_t first = 2 * s.groups.first(group), count = 2 * s.groups.length(group);
  const Backward::Worker& w = b.workers[index_of(worker)];
  const PartRows source{kernels_, b.x, b.call->norm};
  kernels_.begin_pairs();
  for (int64_t col = 0; col < s.hidden; ++col) {
    multiply({b.dwide + first * s.wide * kPairTile, s.wide * kPairTile, b.wide + col * s.wide * kPairTile, s.wide_parts, w.sums,
              source.normed() ? w.normed + col * kGemmPanel : nullptr, s.normed_ld(), b.dx, col * kGemmPanel}, first, count);
  }
  kernels_.end_pairs();
  if (!source.normed()) return;
  float* dnorm = b.dnorm + group * s.hidden * kGemmPanel;
  std::fill_n(dnorm, s.hidden * kGemmPanel, 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = blocks_[index_of((first + i) / 2)].row + (first + i) % 2 * kPairRows;
    for (int64_t r = 0; r < rows_of_panel(first + i); ++r) source.give(b.dx, dnorm, w.normed + (i * kPairRows + r) * s.normed_ld(), row + r);
  }
}

}  // namespace quipu::cpu
