#include "backend/cpu/training_pair_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/pair_attention_blocks.h"
#include "backend/cpu/scratch.h"
#include "tensor/carver.h"

namespace quipu::cpu {
namespace {

constexpr int64_t kBlock = kPairKeys;

size_t index_of(int64_t i) { return static_cast<size_t>(i); }
int64_t padded(int64_t cols) { return panels_of(cols) * kGemmPanel; }

float capped(float score, double softcap) {
  return softcap > 0 ? static_cast<float>(softcap) * std::tanh(score / static_cast<float>(softcap)) : score;
}

}  // namespace

struct PairAttention::Forward {
  MatrixView<float> out, log_sum_exp;
  const AttentionInputs<float>& in;
  const AttentionPattern& pattern;
  int64_t key_dim, value_dim;      // padded
  int64_t key_elements() const { return kBlock * key_dim; }
  int64_t block_elements() const { return kBlock * (key_dim + value_dim); }

  // What a task works with, in its thread's part of work_.
  struct Work {
    Work(Carver& carver, const Forward& call) {
      queries = carver.take<uint16_t>(kPairQueries * call.key_dim);
      probabilities = carver.take<uint16_t>(kBlock * kPairQueries);
      scores = carver.take<float>(kBlock * kPairQueries);
      sums = carver.take<float>(call.value_dim * kPairQueries);
    }
    uint16_t *queries, *probabilities;
    float *scores, *sums;          // sums: [value_dim][queries]
  };
};

// Keys as a left factor [64 keys, key_dim] and values as one [value_dim, 64 keys], of every block of every key head.
void PairAttention::pack_keys(const Forward& call) {
  const AttentionInputs<float>& in = call.in;
  const AttentionPattern& p = call.pattern;
  slice_blocks_.clear();
  int64_t blocks = 0;
  for (const AttentionSlice& slice : p.slices) {
    slice_blocks_.push_back(blocks);
    blocks += (slice.keys + kBlock - 1) / kBlock;
  }
  slice_blocks_.push_back(blocks);
  grow(keys_, blocks * p.kv_heads * call.block_elements() * static_cast<int64_t>(sizeof(uint16_t)));
  pool_.parallel_for(blocks, [&](int64_t block) {
    const size_t slice_index = index_of(std::ranges::upper_bound(slice_blocks_, block) - slice_blocks_.begin() - 1);
    const AttentionSlice& slice = p.slices[slice_index];
    const int64_t first = (block - slice_blocks_[slice_index]) * kBlock, rows = std::min(kBlock, slice.keys - first);
    for (int64_t head = 0; head < p.kv_heads; ++head) {
      uint16_t* out = keys_.as<uint16_t>() + (block * p.kv_heads + head) * call.block_elements();
      if (rows < kBlock) std::fill_n(out, call.key_elements(), uint16_t{0});
      const float* v = in.v.row(slice.key_begin + first) + head * p.value_dim;
      kernels_.pack_left_pairs(out, rows_of(in.k.row(slice.key_begin + first) + head * p.key_dim, in.k.stride, rows, p.key_dim));
      kernels_.pack_left_pairs(out + call.key_elements(), components_of(v, in.v.stride, rows, p.value_dim));
    }
  });
}

void PairAttention::forward(MatrixView<float> out, MatrixView<float> log_sum_exp, const AttentionInputs<float>& in,
                            const AttentionPattern& p) {
  const Forward call{out, log_sum_exp, in, p, padded(p.key_dim), padded(p.value_dim)};
  pack_keys(call);
  tasks_.clear();
  for (const AttentionSlice& slice : p.slices) {
    // The last queries see the most keys: long tasks first.
    for (int64_t first = (slice.queries - 1) / kPairQueries * kPairQueries; slice.queries > 0 && first >= 0; first -= kPairQueries) {
      tasks_.push_back({&slice, first, std::min(kPairQueries, slice.queries - first)});
    }
  }
  Carver measure;
  const Forward::Work plan(measure, call);
  grow(work_, pool_.threads() * measure.bytes());
  // Head after head: the keys of one stay in a second-level cache while its queries go by.
  const int64_t tasks = static_cast<int64_t>(tasks_.size());
  pool_.parallel_for_worker(tasks * p.heads, [&](int64_t index, int worker) {
    forward_block(call, tasks_[index_of(index % tasks)], index / tasks, worker);
  });
}

void PairAttention::forward_block(const Forward& call, const QueryTask& task, int64_t head, int worker) {
  const AttentionPattern& p = call.pattern;
  const AttentionInputs<float>& in = call.in;
  Carver measure;
  const Forward::Work plan(measure, call);
  Carver carver({work_.data() + worker * measure.bytes(), index_of(measure.bytes())});
  const Forward::Work w(carver, call);
  const int64_t kv_head = head / (p.heads / p.kv_heads), first_row = task.slice->query_begin + task.first;
  kernels_.pack_right_pairs(w.queries, rows_of(in.q.row(first_row) + head * p.key_dim, in.q.stride, task.rows, p.key_dim));

  alignas(64) float maximum[kPairQueries], total[kPairQueries], rescale[kPairQueries];
  std::fill_n(maximum, kPairQueries, -std::numeric_limits<float>::infinity());
  std::fill_n(total, kPairQueries, 0.0f);
  std::fill_n(w.sums, call.value_dim * kPairQueries, 0.0f);
  for (int64_t i = 0; i < task.rows && in.self_k.data != nullptr; ++i) {
    const float* self_v = in.self_v.row(first_row + i) + kv_head * p.value_dim;
    const float score = kernels_.dot(in.q.row(first_row + i) + head * p.key_dim, in.self_k.row(first_row + i) + kv_head * p.key_dim, p.key_dim);
    maximum[i] = capped(score * static_cast<float>(p.scale), p.softcap);
    total[i] = 1.0f;
    for (int64_t c = 0; c < p.value_dim; ++c) w.sums[c * kPairQueries + i] = self_v[c];
  }

  const int64_t slice_block = slice_blocks_[index_of(task.slice - p.slices.data())], step = p.kv_heads * call.block_elements();
  const uint16_t* keys = keys_.as<uint16_t>() + (slice_block * p.kv_heads + kv_head) * call.block_elements();
  kernels_.begin_pairs();
  attend(kernels_, {.keys = keys, .values = keys + call.key_elements(), .key_step = step, .value_step = step, .queries = w.queries,
                    .key_dim = call.key_dim, .value_dim = call.value_dim, .visible = p.visible.subspan(index_of(first_row), index_of(task.rows)),
                    .scale = static_cast<float>(p.scale), .softcap = static_cast<float>(p.softcap), .maximum = maximum, .total = total,
                    .sums = w.sums, .scores = w.scores, .probabilities = w.probabilities});
  kernels_.end_pairs();
  for (int64_t i = 0; i < task.rows; ++i) {
    call.log_sum_exp(first_row + i, head) = total[i] == 0.0f ? maximum[i] : maximum[i] + std::log(total[i]);
    rescale[i] = total[i] == 0.0f ? 0.0f : 1.0f / total[i];   // 0: sees nothing
  }
  kernels_.store_transposed(call.out.row(first_row) + head * p.value_dim, call.out.stride, w.sums, rescale, p.value_dim, task.rows);
}

// What one task of backward works with, in its thread's part of work_.
struct PairAttention::Backward {
  const AttentionGradients<float>& gradients;
  MatrixView<const float> dout;
  const AttentionInputs<float>& in;
  const AttentionSaved<float>& saved;
  const AttentionPattern& pattern;
  int64_t key_dim, value_dim;      // padded
  int64_t longest;                 // queries of a slice, in whole blocks
  int64_t worker_bytes = 0;

  struct Work {
    Work(Carver& carver, const Backward& call) {
      q_columns = carver.take<uint16_t>(call.longest * call.key_dim);
      q_rows = carver.take<uint16_t>(call.longest * call.key_dim);
      dout_columns = carver.take<uint16_t>(call.longest * call.value_dim);
      dout_rows = carver.take<uint16_t>(call.longest * call.value_dim);
      keys = carver.take<uint16_t>(kBlock * call.key_dim);
      values = carver.take<uint16_t>(kBlock * call.value_dim);
      key_columns = carver.take<uint16_t>(kBlock * call.key_dim);
      probabilities = carver.take<uint16_t>(kBlock * kQueryBlocks * kBlock);
      dscore_rows = carver.take<uint16_t>(kBlock * kQueryBlocks * kBlock);
      dscore_columns = carver.take<uint16_t>(kBlock * kQueryBlocks * kBlock);
      scores = carver.take<float>(kBlock * kPairQueries);
      dscores = carver.take<float>(kBlock * kPairQueries);
      dq = carver.take<float>(call.longest * call.key_dim);
      dkeys = carver.take<float>(kBlock * call.key_dim);
      dvalues = carver.take<float>(kBlock * call.value_dim);
      delta = carver.take<float>(call.longest);
      lse = carver.take<float>(call.longest);
    }
    // By block of 64 queries of one head: right factors [dim, queries] and [queries, dim].
    uint16_t *q_columns, *q_rows, *dout_columns, *dout_rows;
    // Left factors of a block of keys: [keys, dim], and keys as [dim, keys].
    uint16_t *keys, *values, *key_columns;
    uint16_t *probabilities, *dscore_rows, *dscore_columns;
    float *scores, *dscores;       // [keys][a panel of queries]
    float *dq;                     // by panel of queries: [key_dim][32]
    float *dkeys, *dvalues, *delta, *lse;
  };
};

void PairAttention::backward(const AttentionGradients<float>& gradients, MatrixView<const float> dout, const AttentionInputs<float>& in,
                             const AttentionSaved<float>& saved, const AttentionPattern& p) {
  int64_t longest = 0;
  for (const AttentionSlice& slice : p.slices) longest = std::max(longest, (slice.queries + kBlock - 1) / kBlock * kBlock);
  Backward call{gradients, dout, in, saved, p, padded(p.key_dim), padded(p.value_dim), longest};
  Carver measure;
  const Backward::Work plan(measure, call);
  call.worker_bytes = measure.bytes();
  grow(work_, pool_.threads() * call.worker_bytes);
  // Of all heads of a row at once: a head's columns alone lie a row apart, which memory is slow to give.
  grow(delta_, p.heads * dout.rows * static_cast<int64_t>(sizeof(float)));
  constexpr int64_t kDeltaRows = 32;
  pool_.parallel_for((dout.rows + kDeltaRows - 1) / kDeltaRows, [&](int64_t task) {
    for (int64_t row = task * kDeltaRows; row < std::min(dout.rows, (task + 1) * kDeltaRows); ++row) {
      for (int64_t head = 0; head < p.heads; ++head) {
        delta_.as<float>()[head * dout.rows + row] = kernels_.dot(dout.row(row) + head * p.value_dim, saved.out.row(row) + head * p.value_dim, p.value_dim);
      }
    }
  });
  pool_.parallel_for_worker(static_cast<int64_t>(p.slices.size()) * p.kv_heads, [&](int64_t index, int worker) {
    backward_head(call, p.slices[index_of(index / p.kv_heads)], index % p.kv_heads, worker);
  });
}

// One query head of one sequence.
struct PairAttention::Head {
  const Backward& call;
  const Backward::Work& work;
  const AttentionSlice& slice;
  int64_t head, kv_head;

  // Its gradients of keys and values are written, those of the group's other heads added.
  bool first_of_group() const { return head == kv_head * (call.pattern.heads / call.pattern.kv_heads); }
  int64_t key_col() const { return kv_head * call.pattern.key_dim; }
  int64_t value_col() const { return kv_head * call.pattern.value_dim; }
  const float* q(int64_t row) const { return call.in.q.row(row) + head * call.pattern.key_dim; }
  const float* dout(int64_t row) const { return call.dout.row(row) + head * call.pattern.value_dim; }
  std::span<const KeyRange> visible() const {
    return call.pattern.visible.subspan(index_of(slice.query_begin), index_of(slice.queries));
  }
};

void PairAttention::backward_head(const Backward& call, const AttentionSlice& slice, int64_t kv_head, int worker) {
  const AttentionPattern& p = call.pattern;
  const AttentionGradients<float>& g = call.gradients;
  Carver carver({work_.data() + worker * call.worker_bytes, index_of(call.worker_bytes)});
  const Backward::Work w(carver, call);
  const int64_t group = p.heads / p.kv_heads;
  Head h{call, w, slice, 0, kv_head};
  const auto clear = [](MatrixView<float> m, int64_t first, int64_t rows, int64_t col, int64_t cols) {
    for (int64_t row = first; row < first + rows; ++row) std::fill(m.row(row) + col, m.row(row) + col + cols, 0.0f);
  };
  if (call.in.self_k.data != nullptr) {
    clear(g.dself_k, slice.query_begin, slice.queries, h.key_col(), p.key_dim);
    clear(g.dself_v, slice.query_begin, slice.queries, h.value_col(), p.value_dim);
  }
  kernels_.begin_pairs();
  for (h.head = kv_head * group; h.head < (kv_head + 1) * group; ++h.head) {
    prepare_queries(h);
    int64_t first_query = 0;   // the first one that sees a key of this block or of a later one
    int64_t key = 0;
    for (; key < slice.keys; key += kBlock) {
      while (first_query < slice.queries && h.visible()[index_of(first_query)].end <= key) ++first_query;
      if (first_query == slice.queries) break;
      backward_keys(h, key, first_query / kBlock * kBlock);
    }
    if (h.first_of_group() && key < slice.keys) {   // nobody sees the rest
      clear(g.dk, slice.key_begin + key, slice.keys - key, h.key_col(), p.key_dim);
      clear(g.dv, slice.key_begin + key, slice.keys - key, h.value_col(), p.value_dim);
    }
    for (int64_t first = 0; first < slice.queries; first += kPairQueries) {
      kernels_.store_transposed(g.dq.row(slice.query_begin + first) + h.head * p.key_dim, g.dq.stride, w.dq + first * call.key_dim, nullptr,
                                p.key_dim, std::min(kPairQueries, slice.queries - first));
    }
  }
  kernels_.end_pairs();
}

// Packs the head's queries and cotangents, and does what needs no keys but the rows' own.
void PairAttention::prepare_queries(const Head& h) {
  const AttentionPattern& p = h.call.pattern;
  const AttentionInputs<float>& in = h.call.in;
  const AttentionGradients<float>& g = h.call.gradients;
  const Backward::Work& w = h.work;
  std::fill_n(w.dq, (h.slice.queries + kBlock - 1) / kBlock * kBlock * h.call.key_dim, 0.0f);
  for (int64_t first = 0; first < h.slice.queries; first += kBlock) {
    const int64_t rows = std::min(kBlock, h.slice.queries - first), row = h.slice.query_begin + first;
    const auto pack_both = [&](uint16_t* columns, uint16_t* sums, const float* from, int64_t ld, int64_t dim, int64_t whole_dim) {
      columns += first * whole_dim;
      sums += first * whole_dim;
      kernels_.pack_right_pairs(columns, rows_of(from, ld, rows, dim));
      kernels_.pack_right_pairs(sums, components_of(from, ld, rows, dim));
    };
    pack_both(w.q_columns, w.q_rows, h.q(row), in.q.stride, p.key_dim, h.call.key_dim);
    pack_both(w.dout_columns, w.dout_rows, h.dout(row), h.call.dout.stride, p.value_dim, h.call.value_dim);
  }
  const float scale = static_cast<float>(p.scale), softcap = static_cast<float>(p.softcap);
  for (int64_t i = 0; i < h.slice.queries; ++i) {
    const int64_t row = h.slice.query_begin + i;
    w.delta[i] = delta_.as<float>()[h.head * h.call.dout.rows + row];
    w.lse[i] = h.call.saved.log_sum_exp(row, h.head);
    if (in.self_k.data == nullptr) continue;
    const float* k = in.self_k.row(row) + h.key_col();
    const float score = capped(kernels_.dot(h.q(row), k, p.key_dim) * scale, p.softcap);
    const float probability = std::exp(score - w.lse[i]);
    float ds = probability * scale * (kernels_.dot(h.dout(row), in.self_v.row(row) + h.value_col(), p.value_dim) - w.delta[i]);
    if (softcap > 0) ds *= 1.0f - (score / softcap) * (score / softcap);
    float* dq = w.dq + i / kPairQueries * kPairQueries * h.call.key_dim + i % kPairQueries;
    for (int64_t c = 0; c < p.key_dim; ++c) dq[c * kPairQueries] = ds * k[c];
    kernels_.add_row(g.dself_k.row(row) + h.key_col(), h.q(row), p.key_dim, ds);
    kernels_.add_row(g.dself_v.row(row) + h.value_col(), h.dout(row), p.value_dim, probability);
  }
  std::fill(w.delta + h.slice.queries, w.delta + (h.slice.queries + kBlock - 1) / kBlock * kBlock, 0.0f);
  std::fill(w.lse + h.slice.queries, w.lse + (h.slice.queries + kBlock - 1) / kBlock * kBlock, 0.0f);
}

// The block of keys that begins at `key`, against every block of queries from `first_query` on that sees some of it.
void PairAttention::backward_keys(const Head& h, int64_t key, int64_t first_query) {
  const AttentionPattern& p = h.call.pattern;
  const AttentionInputs<float>& in = h.call.in;
  const AttentionGradients<float>& g = h.call.gradients;
  const Backward::Work& w = h.work;
  const int64_t key_dim = h.call.key_dim, value_dim = h.call.value_dim;
  const int64_t keys = std::min(kBlock, h.slice.keys - key), key_row = h.slice.key_begin + key;
  const float *k = in.k.row(key_row) + h.key_col(), *v = in.v.row(key_row) + h.value_col();
  kernels_.pack_left_pairs(w.keys, rows_of(k, in.k.stride, keys, p.key_dim));
  kernels_.pack_left_pairs(w.values, rows_of(v, in.v.stride, keys, p.value_dim));
  kernels_.pack_left_pairs(w.key_columns, components_of(k, in.k.stride, keys, p.key_dim));
  attend_backward(kernels_, {.key = key, .keys = keys, .first_query = first_query, .visible = h.visible(), .key_rows = w.keys, .value_rows = w.values,
                             .key_columns = w.key_columns, .q_columns = w.q_columns, .q_rows = w.q_rows, .dout_columns = w.dout_columns,
                             .dout_rows = w.dout_rows, .key_dim = key_dim, .value_dim = value_dim, .log_sum_exp = w.lse, .delta = w.delta,
                             .scale = static_cast<float>(p.scale), .softcap = static_cast<float>(p.softcap), .dq = w.dq, .dkeys = w.dkeys,
                             .dvalues = w.dvalues, .scores = w.scores, .dscores = w.dscores, .probabilities = w.probabilities,
                             .dscore_rows = w.dscore_rows, .dscore_columns = w.dscore_columns});
  const auto give = [&](float* to, const float* sum, int64_t dim) {
    if (h.first_of_group()) {
      std::copy_n(sum, dim, to);
    } else {
      kernels_.add_row(to, sum, dim, 1.0f);
    }
  };
  for (int64_t i = 0; i < keys; ++i) {
    give(g.dk.row(key_row + i) + h.key_col(), w.dkeys + i * key_dim, p.key_dim);
    give(g.dv.row(key_row + i) + h.value_col(), w.dvalues + i * value_dim, p.value_dim);
  }
}

}  // namespace quipu::cpu
