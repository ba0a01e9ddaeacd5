// The memory's arithmetic, on a tile: all feature rows of up to kTileColumns neighbouring columns of one head's memory,
// contiguous, [features][columns]. Columns never meet each other, so tiles run on any thread; within a column the order
// of additions is fixed (features, and tokens, upwards), so that no result depends on how a prompt was cut.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/cpu_features.h"

namespace quipu {

inline constexpr int64_t kTileColumns = 32;

// How one head's memory [features, dim] lies in a state: tile after tile, the last one narrower, no padding.
struct TileGrid {
  int64_t features = 0;
  int64_t dim = 0;

  int64_t tiles() const { return (dim + kTileColumns - 1) / kTileColumns; }
  int64_t columns(int64_t tile) const { return std::min(kTileColumns, dim - tile * kTileColumns); }
  int64_t offset(int64_t tile) const { return tile * kTileColumns * features; }
  int64_t floats(int64_t tile) const { return features * columns(tile); }
};

// One feature row and the numbers that go with it: what was read, or what is to be written; `columns` of them.
struct TileRead {
  const float* feature = nullptr;
  float* out = nullptr;
};
struct TileWrite {
  const float* feature = nullptr;
  const float* value = nullptr;
};
inline constexpr size_t kTileBatch = 4;  // rows of features that share one pass over a tile

// out[c] = sum_i feature[i] tile[i][c] for each of at most kTileBatch reads.
// Multiplication and addition are rounded apart, so that every instruction set gives the same bits.
void tile_read(std::span<const TileRead> reads, const float* tile, int64_t features, int64_t columns, Isa isa);
// tile[i][c] += feature[i] value[c] for each of at most kTileBatch writes, in their order.
void tile_write(float* tile, std::span<const TileWrite> writes, int64_t features, int64_t columns, Isa isa);
// total[i] += sums[i], sums[i] = 0, i < count. Where sums[i] is zero, no bit of total[i] changes.
void fold_sums(float* total, float* sums, int64_t count);
// The same with the rounding error of each addition kept in carry and given back to the next.      [Kahan 1965]
void fold_sums_compensated(float* total, float* carry, float* sums, int64_t count);

}  // namespace quipu
