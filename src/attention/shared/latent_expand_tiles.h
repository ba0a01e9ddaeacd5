// Keys and values of one head made of latent rows by bf16 tiles, in pairs as attention of segments takes them: they never exist
// in fp32 or in memory, only in a core's second-level cache. Rows are rounded to bf16 unless kept so, keys and values are
// rounded to bf16 once, their sums are fp32.
//
// A key's and a value's numbers depend on its own row alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/shared/latent_tiles.h"
#include "ops/kernels/segment_attention.h"

namespace quipu {

// The up-projection of one head as PackedMatrix::tile_pairs() has it: nope_dim rows, filled up with zeros to whole blocks of 32,
// then value_dim rows, filled up likewise.
struct HeadUp {
  const std::byte* tiles = nullptr;
  int64_t nope_dim = 0, value_dim = 0;
};

// Components of an expanded key: both parts filled up with zeros to whole blocks.
inline int64_t expanded_key_dim(int64_t nope_dim, int64_t rope_dim) {
  return (paired_blocks(nope_dim) + paired_blocks(rope_dim)) * kBlockCols;
}
// Rows of a head's up-projection.
inline int64_t head_up_rows(int64_t nope_dim, int64_t value_dim) {
  return (paired_blocks(nope_dim) + paired_blocks(value_dim)) * kBlockCols;
}

// Bytes of work expand_tiles() takes, aligned to 64.
int64_t expand_work_bytes(int64_t width);
// out: the segment's keys [nope | rope] and values; its dims and keys are set, as are the keys up to the next multiple of 32.
void expand_tiles(PairedSegment& out, const TileSegment& segment, const HeadUp& up, std::byte* work);

}  // namespace quipu
