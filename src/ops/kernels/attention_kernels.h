// The arithmetic of attention over cached rows, as a table of functions for each instruction set. Rooms and back ends call
// it; it knows no cache, no thread and no batch. Results may differ between sets in the last bits; within a set a query row's
// result depends on that row and its keys only, whatever else a call works on.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/cpu_features.h"
#include "ops/kernels/segment_attention.h"
#include "tensor/dtype.h"

namespace quipu {

// Keys or values of one head's page as attention reads them.
struct HeadPage {
  const std::byte* bytes = nullptr;
  DType dtype = DType::kF16;
  int64_t dim = 0;
};

// Rows of `dim` floats, `stride` floats apart.
struct RowBlock {
  const float* data = nullptr;
  int64_t stride = 0, dim = 0, rows = 0;
};
// Cached rows as they are kept: f16, bf16 or q8_0 (dim in whole blocks), side by side.
struct RowPage {
  const std::byte* bytes = nullptr;
  DType dtype = DType::kF16;
  int64_t dim = 0, rows = 0;
};
// Memory that will be read next: asked for on the way, so that it is in a cache by then.
struct Ahead {
  const std::byte* data = nullptr;
  int64_t bytes = 0;
};
struct RowSums {
  float* data = nullptr;
  int64_t stride = 0, rows = 0;
};

struct AttentionKernels {
  // --- pages of one key head, as ops/kv_cache.h lays them out ---
  // Widens a key page to float [dim][64] and a value page to float [64][dim].
  void (*widen_key_page)(float* out, const HeadPage& page);
  void (*widen_value_page)(float* out, const HeadPage& page);
  // scores[r][64] = q[r] . key for `rows` rows; q rows are `dim` floats apart. Plain page or widened floats (kF32).
  void (*page_scores)(float* scores, const float* q, int64_t rows, const HeadPage& keys);
  // The same for q8_0 pages, with q rounded to int8 like quantise_row: codes [rows][dim], scales [rows][dim/32], sums
  // [rows][dim/16].
  void (*page_scores_q8)(float* scores, const int8_t* q_codes, const float* q_scales, const int32_t* q_sums,
                         int64_t rows, const HeadPage& keys);
  // One running-softmax step over a page: scores [rows][64] become probabilities relative to the new maximum; `first`
  // and `last` bound the visible keys of each row (first[r] <= key < last[r]); maximum, total [rows] are updated and
  // rescale[r] gets exp(old maximum - new maximum).
  void (*softmax_page)(float* scores, float* maximum, float* total, float* rescale, const int32_t* first,
                       const int32_t* last, int64_t rows, float scale, float softcap);
  // out[r] = rescale[r] * out[r] + p[r] . values over the page's first `keys` values; out rows are `dim` floats apart.
  // Later rows of a page may hold anything, NaN included, and are not read.
  void (*page_values)(float* out, const float* p, const float* rescale, int64_t rows, const HeadPage& values, int64_t keys);
  // Folds a segment's partial result (maximum, total, out) into the running one, row by row.
  void (*merge_partial)(float* out, float* maximum, float* total, const float* part, const float* part_maximum,
                        const float* part_total, int64_t rows, int64_t dim);

  // --- rows that all heads share: the key is the row, the value its beginning ---
  // n numbers of f32, f16, bf16 or q8_0 (n in whole blocks) that lie side by side, widened exactly.
  void (*widen_run)(float* out, const std::byte* in, DType dtype, int64_t n);
  // scores[r][64] = q row r . key row, keys.rows <= 64; entries beyond keys.rows may be overwritten.
  void (*row_scores)(float* scores, const RowBlock& q, const RowBlock& keys, const Ahead& ahead);
  // The same for keys as they are kept, which are written to `wide` [keys.rows][keys.dim] as floats on the way.
  void (*widen_row_scores)(float* scores, float* wide, const RowBlock& q, const RowPage& keys, const Ahead& ahead);
  // out row r = rescale[r] * out row r + p[r][64] . values, over all rows of values.
  void (*row_values)(const RowSums& out, const float* p, const float* rescale, const RowBlock& values, const Ahead& ahead);
  // out [dim][64]: rows (at most 64) turned into what page_scores takes for a page of f32 keys.
  void (*turn_rows)(float* out, const RowBlock& rows);

  // --- whole segments in bf16 tiles (segment_attention.h); null where a set has none ---
  // Rounds a row of queries to bf16: components 32 b to 32 b + 31 go to out + b * ld, zeros beyond cols.
  void (*round_row)(uint16_t* out, int64_t ld, const float* x, int64_t cols) = nullptr;
  void (*pair_segment)(const PairedSegment& out, const KeySegment& in) = nullptr;
  // scratch: kSegmentScratchBytes, aligned to 64.
  void (*attend_segment)(const SegmentSums& out, const SegmentQueries& q, const PairedSegment& keys, std::byte* scratch) = nullptr;
  // The same numbers from the cache's own pages, for at most kFewRows rows. scratch: few_rows_scratch_bytes of the larger dim.
  void (*attend_few)(const SegmentSums& out, const SegmentQueries& q, const KeySegment& keys, std::byte* scratch) = nullptr;
  // Gives the tile registers back, which burden a switch of threads: after a thread's last segment for now.
  void (*release_tiles)() = nullptr;
  bool has_tiles() const { return attend_segment != nullptr; }
};

const AttentionKernels& attention_kernels(Isa isa);

}  // namespace quipu
