#include "backend/cpu/training_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backend/cpu/scratch.h"
#include "tensor/carver.h"

namespace quipu::cpu {
namespace {

constexpr int64_t kQueries = 48;   // of a block: whole tiles of every instruction set
constexpr int64_t kKeys = 64;      // of a block: what softmax_block takes

int64_t panels_of(int64_t cols) { return (cols + kGemmPanel - 1) / kGemmPanel; }
int64_t padded(int64_t cols) { return panels_of(cols) * kGemmPanel; }
size_t index_of(int64_t i) { return static_cast<size_t>(i); }

// A left factor whose rows lie side by side, cut into depths a tile has a form for.
struct LeftRows {
  explicit LeftRows(int64_t depth_in) : depth(depth_in), stride(depth <= 64 ? 64 : depth <= 128 ? 128 : 256) {}
  int64_t depth, stride;
  LeftForm form() const { return stride == 64 ? LeftForm::kRows64 : stride == 128 ? LeftForm::kRows128 : LeftForm::kRows256; }
  int64_t cuts() const { return (depth + stride - 1) / stride; }
  int64_t floats(int64_t rows) const { return cuts() * rows * stride; }
  // Cut i of rows that are `rows` rows together.
  float* at(float* data, int64_t rows, int64_t cut) const { return data + cut * rows * stride; }
  void pack(const TrainingKernels& kernels, float* data, int64_t room, const float* from, int64_t ld, int64_t rows) const {
    for (int64_t cut = 0; cut < cuts(); ++cut) {
      kernels.pack_rows(at(data, room, cut), stride, from + cut * stride, ld, rows, std::min(stride, depth - cut * stride));
    }
  }
};

// c[rows, cols] (+)= left right, right packed as [panel][depth][32].
struct Product {
  float* c;
  int64_t c_ld, rows, cols;
  bool add;
};
void multiply_rows(const TrainingKernels& kernels, const Product& to, const LeftRows& left, float* a, int64_t room, const float* right) {
  for (int64_t cut = 0; cut < left.cuts(); ++cut) {
    const int64_t first_k = cut * left.stride;
    GemmTile tile{.c_ld = to.c_ld, .form = left.form(), .depth = std::min(left.stride, left.depth - first_k), .add = to.add || cut > 0};
    for (int64_t col = 0; col < to.cols; col += kGemmPanel) {
      tile.cols = static_cast<int>(std::min(kGemmPanel, to.cols - col));
      tile.b = right + (col / kGemmPanel * left.depth + first_k) * kGemmPanel;
      for (int64_t row = 0; row < to.rows; row += kernels.tile_rows) {
        tile.rows = static_cast<int>(std::min<int64_t>(kernels.tile_rows, to.rows - row));
        tile.a = left.at(a, room, cut) + row * left.stride;
        tile.c = to.c + row * to.c_ld + col;
        kernels.gemm_tile(tile);
      }
    }
  }
}
// The left factor by columns, as it lies: a[k * 64 + row].
void multiply_columns(const TrainingKernels& kernels, const Product& to, const float* a, int64_t depth, const float* right, int64_t panel_depth) {
  GemmTile tile{.c_ld = to.c_ld, .form = LeftForm::kColumns, .a_step = kKeys, .depth = depth, .add = to.add};
  for (int64_t col = 0; col < to.cols; col += kGemmPanel) {
    tile.cols = static_cast<int>(std::min(kGemmPanel, to.cols - col));
    tile.b = right + col / kGemmPanel * panel_depth * kGemmPanel;
    for (int64_t row = 0; row < to.rows; row += kernels.tile_rows) {
      tile.rows = static_cast<int>(std::min<int64_t>(kernels.tile_rows, to.rows - row));
      tile.a = a + row;
      tile.c = to.c + row * to.c_ld + col;
      kernels.gemm_tile(tile);
    }
  }
}

// All panels of a right factor [rows of k, cols].
void pack_panels(const TrainingKernels& kernels, float* out, const float* from, int64_t ld, int64_t depth, int64_t cols) {
  for (int64_t col = 0; col < cols; col += kGemmPanel) {
    kernels.pack_panel(out + col / kGemmPanel * depth * kGemmPanel, from + col, ld, std::min(kGemmPanel, cols - col), depth);
  }
}
// The same of the transpose of [cols, depth].
void pack_panels_transposed(const TrainingKernels& kernels, float* out, const float* from, int64_t ld, int64_t depth, int64_t cols) {
  for (int64_t col = 0; col < cols; col += kGemmPanel) {
    kernels.pack_panel_transposed(out + col / kGemmPanel * depth * kGemmPanel, from + col * ld, ld, std::min(kGemmPanel, cols - col),
                                  depth);
  }
}

// Which keys of the block that begins at `first_key` each query sees.
void visible_lanes(int32_t* first, int32_t* last, std::span<const KeyRange> visible, int64_t first_key) {
  for (size_t i = 0; i < visible.size(); ++i) {
    first[i] = static_cast<int32_t>(std::clamp<int64_t>(visible[i].begin - first_key, 0, kKeys));
    last[i] = static_cast<int32_t>(std::clamp<int64_t>(visible[i].end - first_key, 0, kKeys));
  }
}

// Queries, scores and sums of a block.
int64_t forward_floats(const AttentionPattern& p) {
  return LeftRows(p.key_dim).floats(kQueries) + kQueries * kKeys + kQueries * padded(p.value_dim);
}

float capped(float score, double softcap) {
  return softcap > 0 ? static_cast<float>(softcap) * std::tanh(score / static_cast<float>(softcap)) : score;
}

}  // namespace

struct TrainingAttention::Forward {
  MatrixView<float> out, log_sum_exp;
  const AttentionInputs<float>& in;
  const AttentionPattern& pattern;
  int64_t block_floats, key_floats;   // of a packed block of keys and values; its keys
};

// Keys transposed, [2 panels][key_dim][32], and values, [panels][64][32], of every block of 64 keys of every key head.
void TrainingAttention::pack_keys(const AttentionInputs<float>& in, const AttentionPattern& p) {
  slice_blocks_.clear();
  int64_t blocks = 0;
  for (const AttentionSlice& slice : p.slices) {
    slice_blocks_.push_back(blocks);
    blocks += (slice.keys + kKeys - 1) / kKeys;
  }
  slice_blocks_.push_back(blocks);
  const int64_t key_floats = kKeys * p.key_dim, block_floats = key_floats + kKeys * padded(p.value_dim);
  grow(keys_, blocks * p.kv_heads * block_floats * static_cast<int64_t>(sizeof(float)));
  pool_.parallel_for(blocks, [&](int64_t block) {
    const size_t slice_index = index_of(std::ranges::upper_bound(slice_blocks_, block) - slice_blocks_.begin() - 1);
    const AttentionSlice& slice = p.slices[slice_index];
    const int64_t first = (block - slice_blocks_[slice_index]) * kKeys;
    const int64_t rows = std::min(kKeys, slice.keys - first);
    for (int64_t head = 0; head < p.kv_heads; ++head) {
      float* out = keys_.as<float>() + (block * p.kv_heads + head) * block_floats;
      const float* k = in.k.row(slice.key_begin + first) + head * p.key_dim;
      const float* v = in.v.row(slice.key_begin + first) + head * p.value_dim;
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t cols = std::clamp<int64_t>(rows - half * kGemmPanel, 0, kGemmPanel);
        kernels_.pack_panel_transposed(out + half * p.key_dim * kGemmPanel, k + half * kGemmPanel * in.k.stride, in.k.stride, cols,
                                       p.key_dim);
      }
      for (int64_t panel = 0; panel < panels_of(p.value_dim); ++panel) {
        float* to = out + key_floats + panel * kKeys * kGemmPanel;
        kernels_.pack_panel(to, v + panel * kGemmPanel, in.v.stride, std::min(kGemmPanel, p.value_dim - panel * kGemmPanel), rows);
        std::fill(to + rows * kGemmPanel, to + kKeys * kGemmPanel, 0.0f);   // probability 0 times anything finite
      }
    }
  });
}

void TrainingAttention::forward(MatrixView<float> out, MatrixView<float> log_sum_exp, const AttentionInputs<float>& in,
                                const AttentionPattern& p) {
  pack_keys(in, p);
  const int64_t key_floats = kKeys * p.key_dim;
  const Forward call{out, log_sum_exp, in, p, key_floats + kKeys * padded(p.value_dim), key_floats};
  tasks_.clear();
  for (const AttentionSlice& slice : p.slices) {
    // The last queries see the most keys: long tasks first.
    for (int64_t first = (slice.queries - 1) / kQueries * kQueries; slice.queries > 0 && first >= 0; first -= kQueries) {
      tasks_.push_back({&slice, first, std::min(kQueries, slice.queries - first)});
    }
  }
  grow(work_, pool_.threads() * forward_floats(p) * static_cast<int64_t>(sizeof(float)));
  pool_.parallel_for_worker(static_cast<int64_t>(tasks_.size()) * p.heads, [&](int64_t index, int worker) {
    forward_block(call, tasks_[index_of(index / p.heads)], index % p.heads, worker);
  });
}

void TrainingAttention::forward_block(const Forward& call, const QueryTask& task, int64_t head, int worker) {
  const AttentionPattern& p = call.pattern;
  const AttentionInputs<float>& in = call.in;
  const int64_t kv_head = head / (p.heads / p.kv_heads);
  const int64_t first_row = task.slice->query_begin + task.first;
  const LeftRows left(p.key_dim);
  float* q = work_.as<float>() + worker * forward_floats(p);
  float* scores = q + left.floats(kQueries);
  // Sums lie together until they are done: rows of `out` are a power of two apart and would fight for the same cache sets.
  float* sums = scores + kQueries * kKeys;
  const int64_t sums_ld = padded(p.value_dim);
  left.pack(kernels_, q, kQueries, in.q.row(first_row) + head * p.key_dim, in.q.stride, task.rows);

  float maximum[kQueries], total[kQueries];
  int32_t first[kQueries], last[kQueries];
  for (int64_t i = 0; i < task.rows; ++i) {
    float* row = sums + i * sums_ld;
    maximum[i] = -std::numeric_limits<float>::infinity();
    total[i] = 0.0f;
    std::fill(row, row + p.value_dim, 0.0f);
    if (in.self_k.data == nullptr) continue;
    const float* self_v = in.self_v.row(first_row + i) + kv_head * p.value_dim;
    const float score = kernels_.dot(in.q.row(first_row + i) + head * p.key_dim, in.self_k.row(first_row + i) + kv_head * p.key_dim, p.key_dim);
    maximum[i] = capped(score * static_cast<float>(p.scale), p.softcap);
    total[i] = 1.0f;
    std::copy(self_v, self_v + p.value_dim, row);
  }

  const auto visible = p.visible.subspan(index_of(first_row), index_of(task.rows));
  const int64_t first_block = visible.front().begin / kKeys, last_block = (visible.back().end + kKeys - 1) / kKeys;
  const int64_t slice_block = slice_blocks_[index_of(task.slice - p.slices.data())];
  for (int64_t block = first_block; block < last_block; ++block) {
    const float* keys = keys_.as<float>() + ((slice_block + block) * p.kv_heads + kv_head) * call.block_floats;
    visible_lanes(first, last, visible, block * kKeys);
    multiply_rows(kernels_, {scores, kKeys, task.rows, kKeys, false}, left, q, kQueries, keys);
    kernels_.softmax_block({.scores = scores, .rows = task.rows, .first = first, .last = last, .maximum = maximum, .total = total,
                            .out = sums, .out_ld = sums_ld, .value_dim = p.value_dim, .scale = static_cast<float>(p.scale),
                            .softcap = static_cast<float>(p.softcap)});
    multiply_rows(kernels_, {sums, sums_ld, task.rows, p.value_dim, true}, LeftRows(kKeys), scores, kQueries, keys + call.key_floats);
  }
  for (int64_t i = 0; i < task.rows; ++i) {
    const float* row = sums + i * sums_ld;
    float* out = call.out.row(first_row + i) + head * p.value_dim;
    call.log_sum_exp(first_row + i, head) = total[i] == 0.0f ? maximum[i] : maximum[i] + std::log(total[i]);
    const float inverse = total[i] == 0.0f ? 0.0f : 1.0f / total[i];   // 0: sees nothing
    for (int64_t c = 0; c < p.value_dim; ++c) out[c] = row[c] * inverse;
  }
}

// What one task of backward works with, in its thread's part of work_.
struct TrainingAttention::Backward {
  const AttentionGradients<float>& gradients;
  MatrixView<const float> dout;
  const AttentionInputs<float>& in;
  const AttentionSaved<float>& saved;
  const AttentionPattern& pattern;
  int64_t longest;                 // queries of a slice, in whole blocks
  int64_t worker_bytes = 0;

  struct Work {
    Work(Carver& carver, const AttentionPattern& p, int64_t longest) {
      const int64_t blocks = longest / kQueries;
      q_rows = carver.take<float>(blocks * LeftRows(p.key_dim).floats(kQueries));
      dout_rows = carver.take<float>(blocks * LeftRows(p.value_dim).floats(kQueries));
      q_panels = carver.take<float>(longest * padded(p.key_dim));
      dout_panels = carver.take<float>(longest * padded(p.value_dim));
      keys_transposed = carver.take<float>(kKeys * p.key_dim);
      values_transposed = carver.take<float>(kKeys * p.value_dim);
      keys = carver.take<float>(kKeys * padded(p.key_dim));
      dq = carver.take<float>(longest * padded(p.key_dim));
      dkeys = carver.take<float>(kKeys * padded(p.key_dim));
      dvalues = carver.take<float>(kKeys * padded(p.value_dim));
      scores = carver.take<float>(kQueries * kKeys + 16);
      dscores = carver.take<float>(kQueries * kKeys + 16);
      delta = carver.take<float>(longest);
      lse = carver.take<float>(longest);
    }
    float *q_rows, *dout_rows, *q_panels, *dout_panels;   // of one head, by block of queries
    float *keys_transposed, *values_transposed, *keys;    // of one block of keys
    // Sums, together rather than where they go: rows of the gradients fight for the same cache sets.
    float *dq, *dkeys, *dvalues;
    float *scores, *dscores, *delta, *lse;
  };
};

void TrainingAttention::backward(const AttentionGradients<float>& gradients, MatrixView<const float> dout, const AttentionInputs<float>& in,
                                 const AttentionSaved<float>& saved, const AttentionPattern& p) {
  int64_t longest = 0;
  for (const AttentionSlice& slice : p.slices) longest = std::max(longest, (slice.queries + kQueries - 1) / kQueries * kQueries);
  Backward call{gradients, dout, in, saved, p, longest};
  Carver measure;
  const Backward::Work plan(measure, p, longest);
  call.worker_bytes = measure.bytes();
  grow(work_, pool_.threads() * call.worker_bytes);
  pool_.parallel_for_worker(static_cast<int64_t>(p.slices.size()) * p.kv_heads, [&](int64_t index, int worker) {
    backward_head(call, p.slices[index_of(index / p.kv_heads)], index % p.kv_heads, worker);
  });
}

// One query head of one sequence.
struct TrainingAttention::Head {
  const Backward& call;
  const Backward::Work& work;
  const AttentionSlice& slice;
  int64_t head, kv_head;

  int64_t key_ld() const { return padded(call.pattern.key_dim); }        // of the sums
  int64_t value_ld() const { return padded(call.pattern.value_dim); }
  int64_t key_col() const { return kv_head * call.pattern.key_dim; }
  int64_t value_col() const { return kv_head * call.pattern.value_dim; }
  const float* q(int64_t row) const { return call.in.q.row(row) + head * call.pattern.key_dim; }
  const float* dout(int64_t row) const { return call.dout.row(row) + head * call.pattern.value_dim; }
  std::span<const KeyRange> visible() const {
    return call.pattern.visible.subspan(index_of(slice.query_begin), index_of(slice.queries));
  }
};

void TrainingAttention::backward_head(const Backward& call, const AttentionSlice& slice, int64_t kv_head, int worker) {
  const AttentionPattern& p = call.pattern;
  const AttentionGradients<float>& g = call.gradients;
  Carver carver({work_.data() + worker * call.worker_bytes, index_of(call.worker_bytes)});
  const Backward::Work w(carver, p, call.longest);
  const int64_t group = p.heads / p.kv_heads;
  Head h{call, w, slice, 0, kv_head};
  const auto clear = [](MatrixView<float> m, int64_t first, int64_t rows, int64_t col, int64_t cols) {
    for (int64_t row = first; row < first + rows; ++row) std::fill(m.row(row) + col, m.row(row) + col + cols, 0.0f);
  };
  clear(g.dk, slice.key_begin, slice.keys, h.key_col(), p.key_dim);
  clear(g.dv, slice.key_begin, slice.keys, h.value_col(), p.value_dim);
  if (call.in.self_k.data != nullptr) {
    clear(g.dself_k, slice.query_begin, slice.queries, h.key_col(), p.key_dim);
    clear(g.dself_v, slice.query_begin, slice.queries, h.value_col(), p.value_dim);
  }
  for (h.head = kv_head * group; h.head < (kv_head + 1) * group; ++h.head) {
    prepare_queries(h);
    int64_t first_query = 0;   // the first one that sees a key of this block or of a later one
    for (int64_t key = 0; key < slice.keys; key += kKeys) {
      while (first_query < slice.queries && h.visible()[index_of(first_query)].end <= key) ++first_query;
      if (first_query == slice.queries) break;
      backward_keys(h, key, first_query / kQueries * kQueries);
    }
    for (int64_t i = 0; i < slice.queries; ++i) {
      std::copy_n(w.dq + i * h.key_ld(), p.key_dim, g.dq.row(slice.query_begin + i) + h.head * p.key_dim);
    }
  }
}

// Packs the head's queries and cotangents, and does what needs no keys but the rows' own.
void TrainingAttention::prepare_queries(const Head& h) {
  const AttentionPattern& p = h.call.pattern;
  const AttentionInputs<float>& in = h.call.in;
  const AttentionGradients<float>& g = h.call.gradients;
  const Backward::Work& w = h.work;
  const LeftRows q_left(p.key_dim), dout_left(p.value_dim);
  std::fill_n(w.dq, h.slice.queries * h.key_ld(), 0.0f);
  for (int64_t first = 0; first < h.slice.queries; first += kQueries) {
    const int64_t rows = std::min(kQueries, h.slice.queries - first), row = h.slice.query_begin + first, block = first / kQueries;
    q_left.pack(kernels_, w.q_rows + block * q_left.floats(kQueries), kQueries, h.q(row), in.q.stride, rows);
    dout_left.pack(kernels_, w.dout_rows + block * dout_left.floats(kQueries), kQueries, h.dout(row), h.call.dout.stride, rows);
    pack_panels(kernels_, w.q_panels + first * h.key_ld(), h.q(row), in.q.stride, rows, p.key_dim);
    pack_panels(kernels_, w.dout_panels + first * h.value_ld(), h.dout(row), h.call.dout.stride, rows, p.value_dim);
  }
  const float scale = static_cast<float>(p.scale), softcap = static_cast<float>(p.softcap);
  for (int64_t i = 0; i < h.slice.queries; ++i) {
    const int64_t row = h.slice.query_begin + i;
    w.delta[i] = kernels_.dot(h.dout(row), h.call.saved.out.row(row) + h.head * p.value_dim, p.value_dim);
    w.lse[i] = h.call.saved.log_sum_exp(row, h.head);
    if (in.self_k.data == nullptr) continue;
    const float* k = in.self_k.row(row) + h.key_col();
    const float score = capped(kernels_.dot(h.q(row), k, p.key_dim) * scale, p.softcap);
    const float probability = std::exp(score - w.lse[i]);
    float ds = probability * scale * (kernels_.dot(h.dout(row), in.self_v.row(row) + h.value_col(), p.value_dim) - w.delta[i]);
    if (softcap > 0) ds *= 1.0f - (score / softcap) * (score / softcap);
    kernels_.add_row(w.dq + i * h.key_ld(), k, p.key_dim, ds);
    kernels_.add_row(g.dself_k.row(row) + h.key_col(), h.q(row), p.key_dim, ds);
    kernels_.add_row(g.dself_v.row(row) + h.value_col(), h.dout(row), p.value_dim, probability);
  }
}

// The block of keys that begins at `key`, against every block of queries from `first_query` on that sees some of it.
void TrainingAttention::backward_keys(const Head& h, int64_t key, int64_t first_query) {
  const AttentionPattern& p = h.call.pattern;
  const AttentionInputs<float>& in = h.call.in;
  const AttentionGradients<float>& g = h.call.gradients;
  const Backward::Work& w = h.work;
  const int64_t keys = std::min(kKeys, h.slice.keys - key), key_row = h.slice.key_begin + key;
  const LeftRows q_left(p.key_dim), dout_left(p.value_dim);
  LeftRows score_left(kKeys);
  score_left.depth = keys;
  pack_panels_transposed(kernels_, w.keys_transposed, in.k.row(key_row) + h.key_col(), in.k.stride, p.key_dim, keys);
  pack_panels_transposed(kernels_, w.values_transposed, in.v.row(key_row) + h.value_col(), in.v.stride, p.value_dim, keys);
  pack_panels(kernels_, w.keys, in.k.row(key_row) + h.key_col(), in.k.stride, keys, p.key_dim);
  std::fill_n(w.dkeys, keys * h.key_ld(), 0.0f);
  std::fill_n(w.dvalues, keys * h.value_ld(), 0.0f);
  for (int64_t first = first_query; first < h.slice.queries; first += kQueries) {
    const int64_t rows = std::min(kQueries, h.slice.queries - first), block = first / kQueries;
    const auto visible = h.visible().subspan(index_of(first), index_of(rows));
    if (visible.front().begin >= key + keys) break;   // this window and all later ones lie behind
    int32_t first_lane[kQueries], last_lane[kQueries];
    visible_lanes(first_lane, last_lane, visible, key);
    multiply_rows(kernels_, {w.scores, kKeys, rows, keys, false}, q_left, w.q_rows + block * q_left.floats(kQueries), kQueries,
                  w.keys_transposed);
    multiply_rows(kernels_, {w.dscores, kKeys, rows, keys, false}, dout_left, w.dout_rows + block * dout_left.floats(kQueries), kQueries,
                  w.values_transposed);
    kernels_.softmax_block_backward({.scores = w.scores, .dscores = w.dscores, .rows = rows, .first = first_lane, .last = last_lane,
                                     .log_sum_exp = w.lse + first, .delta = w.delta + first, .scale = static_cast<float>(p.scale),
                                     .softcap = static_cast<float>(p.softcap)});
    multiply_columns(kernels_, {w.dvalues, h.value_ld(), keys, p.value_dim, true}, w.scores, rows, w.dout_panels + first * h.value_ld(), rows);
    multiply_columns(kernels_, {w.dkeys, h.key_ld(), keys, p.key_dim, true}, w.dscores, rows, w.q_panels + first * h.key_ld(), rows);
    multiply_rows(kernels_, {w.dq + first * h.key_ld(), h.key_ld(), rows, p.key_dim, true}, score_left, w.dscores, kQueries, w.keys);
  }
  for (int64_t i = 0; i < keys; ++i) {
    kernels_.add_row(g.dk.row(key_row + i) + h.key_col(), w.dkeys + i * h.key_ld(), p.key_dim, 1.0f);
    kernels_.add_row(g.dv.row(key_row + i) + h.value_col(), w.dvalues + i * h.value_ld(), p.value_dim, 1.0f);
  }
}

}  // namespace quipu::cpu
