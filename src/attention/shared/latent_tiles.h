// The absorbed form on AMX: scores and sums of a segment of latent rows as products of bf16 tiles, in fp32 sums. A cached row
// meets the tiles of all queries once; rows kept in f16 or q8_0 are rounded to bf16 first, rows kept in bf16 are used as they
// lie. Queries and probabilities are not rounded to bf16 but split into an upper and a lower half, q = bf16(q) + bf16(q -
// bf16(q)), so that a product loses 2^-17 of it, not 2^-9: eight queries' halves fill the sixteen columns of a tile.
//
// A query's result depends on its own numbers and rows alone, whatever else is in the tiles.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/cpu_features.h"
#include "ops/kernels/attention_kernels.h"
#include "tensor/dtype.h"

namespace quipu {

inline constexpr int64_t kTileSegmentPages = 4;
inline constexpr int64_t kTileSegmentRows = 64 * kTileSegmentPages;
inline constexpr int64_t kTileQueries = 8;     // a group: queries whose halves fill a tile

// Whether rows of that dtype are multiplied by tiles on that instruction set.
bool multiplies_latents_by_tiles(Isa isa, DType dtype);

// Halves of a group of queries of `width` components, as tiles read them.
int64_t tile_query_halves(int64_t width);
// packed [tile_query_halves(q.dim)] of at most kTileQueries rows; the others of the group are zero.
void pack_tile_queries(uint16_t* packed, const RowBlock& q);

// Some rows of a sequence, and what is read after them.
struct TileSegment {
  const std::byte* pages[kTileSegmentPages] = {};  // null: none
  const std::byte* next[kTileSegmentPages] = {};   // asked for on the way
  int64_t rows = 0;                                // in the segment; no more are read of them
  int64_t next_rows = 0;                           // in the next one; 0: nothing is asked for
  DType dtype = DType::kBF16;
  int64_t width = 0, rank = 0;
};
struct TileQuerySet {
  const uint16_t* packed = nullptr;   // [groups][tile_query_halves(width)]
  int64_t count = 0;                  // queries
  const int32_t* visible = nullptr;   // [count] of the segment's rows, at most `rows`
  float scale = 1.0f;
};
// What the queries make of the rows they see: softmax numerators' sums. A query that sees none gets maximum minus infinity.
struct TileSums {
  float* out = nullptr;               // [count][rank]
  float* maximum = nullptr;           // [count]
  float* total = nullptr;             // [count]
};

// Bytes of work attend_tiles() takes, aligned to 64.
int64_t tile_work_bytes(int64_t most_queries, int64_t width);
void attend_tiles(const TileSums& sums, const TileQuerySet& queries, const TileSegment& segment, std::byte* work);

// Gives the tile registers back, which burden a switch of threads: after a thread's last segment for now.
void release_latent_tiles();

}  // namespace quipu
