// Attention over packed pairs, block by block: what training_pair_attention.h and training_self_attention.h have in common.
// Both are called between begin_pairs() and end_pairs(); dimensions are padded to whole panels.
#pragma once

#include <cstdint>
#include <span>

#include "backend/cpu/kernels/training_kernels.h"
#include "ops/training_types.h"

namespace quipu::cpu {

// Blocks of queries that are one step of backward: gradients of keys and values are loaded and stored once a step.
inline constexpr int64_t kQueryBlocks = 2;

// Whole panels of 32: what packed factors are filled up to.
inline int64_t panels_of(int64_t cols) { return (cols + kGemmPanel - 1) / kGemmPanel; }

// A head's rows as lines.
inline PairSource rows_of(const float* from, int64_t ld, int64_t rows, int64_t dim) {
  return {.from = from, .ld = ld, .lines = rows, .depth = dim, .blocks = panels_of(dim), .panel_step = kGemmPanel * kGemmPanel * panels_of(dim)};
}
// Its components as lines, over a block of rows of which there are `rows`.
inline PairSource components_of(const float* from, int64_t ld, int64_t rows, int64_t dim) {
  return {.from = from, .ld = ld, .lines = dim, .depth = rows, .blocks = kPairKeys / 32, .panel_step = kGemmPanel * kPairKeys, .across = true};
}

// One panel of queries of a head against the keys it sees.
struct PanelAttention {
  // Of the slice's first block, block_step apart: left factors [64 keys, key_dim] and [value_dim, 64 keys].
  const uint16_t* keys = nullptr;
  const uint16_t* values = nullptr;
  int64_t key_step = 0, value_step = 0;
  const uint16_t* queries = nullptr;   // right factor [key_dim, 32 queries]
  int64_t key_dim = 0, value_dim = 0;
  std::span<const KeyRange> visible;   // of the queries there are
  float scale = 1.0f, softcap = 0.0f;
  float* maximum = nullptr;        // [32]
  float* total = nullptr;          // [32]
  float* sums = nullptr;           // [value_dim][32]: added to and rescaled
  // Room: [64][32], and a panel of a right factor [64 keys, 32 queries].
  float* scores = nullptr;
  uint16_t* probabilities = nullptr;
};
void attend(const TrainingKernels& kernels, const PanelAttention& p);

// A block of keys of a head against every query from first_query on (a multiple of 64) that sees some of it.
struct KeysBackward {
  int64_t key = 0, keys = 0;       // the first one, counted from the slice's, and how many there are
  int64_t first_query = 0;
  std::span<const KeyRange> visible;   // of the slice's queries
  // Left factors of the block: [keys, key_dim], [keys, value_dim], [key_dim, keys].
  const uint16_t* key_rows = nullptr;
  const uint16_t* value_rows = nullptr;
  const uint16_t* key_columns = nullptr;
  // Of the slice, by block of 64 queries: right factors [dim, queries] and [queries, dim].
  const uint16_t* q_columns = nullptr;
  const uint16_t* q_rows = nullptr;
  const uint16_t* dout_columns = nullptr;
  const uint16_t* dout_rows = nullptr;
  int64_t key_dim = 0, value_dim = 0;
  const float* log_sum_exp = nullptr;   // [queries]
  const float* delta = nullptr;         // [queries]: dout . out
  float scale = 1.0f, softcap = 0.0f;
  float* dq = nullptr;             // by panel of queries: [key_dim][32], added to
  float* dkeys = nullptr;          // [64][key_dim]
  float* dvalues = nullptr;        // [64][value_dim]
  bool add = false;                // to dkeys and dvalues, else they are written
  // Room: two of [64][32], three of [64][kQueryBlocks * 64].
  float* scores = nullptr;
  float* dscores = nullptr;
  uint16_t* probabilities = nullptr;
  uint16_t* dscore_rows = nullptr;
  uint16_t* dscore_columns = nullptr;
};
void attend_backward(const TrainingKernels& kernels, const KeysBackward& b);

}  // namespace quipu::cpu
