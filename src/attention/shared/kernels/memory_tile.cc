#include "attention/shared/memory_tile.h"

#include <cstring>

#include "base/check.h"

// Bodies are inlined into one function per instruction set, and are the only code compiled for it.
#define QUIPU_BODY inline __attribute__((always_inline))
#if defined(__clang__)
#define QUIPU_UNROLL _Pragma("clang loop unroll(full)")
#else
#define QUIPU_UNROLL _Pragma("GCC unroll 4")  // sums stay in registers only when the loop over them is gone
#endif
#if defined(__x86_64__)
#define QUIPU_FOR_AVX2 __attribute__((target("avx2")))
#define QUIPU_FOR_AVX512 __attribute__((target("avx512f")))
#endif

namespace quipu {
namespace {

// Half a tile's row; two, four or one register, as the instruction set has them.
using Lanes = float __attribute__((vector_size(64)));
constexpr int64_t kLanes = 16;
static_assert(kTileColumns == 2 * kLanes);

QUIPU_BODY void load(Lanes& lanes, const float* from) { std::memcpy(&lanes, from, sizeof(lanes)); }
// Rows of a memory lie one after the other, tile after tile: asked for this far ahead, beyond a tile's end into the next.
constexpr int64_t kAhead = 16 * kTileColumns;
QUIPU_BODY void ask_ahead(const float* row) {
  __builtin_prefetch(row + kAhead);
  __builtin_prefetch(row + kAhead + kLanes);
}

QUIPU_BODY void store(float* to, const Lanes& lanes) { std::memcpy(to, &lanes, sizeof(lanes)); }

template <size_t kCount>
QUIPU_BODY void read_rows(const TileRead* reads, const float* tile, int64_t features) {
  const float* feature[kCount];
  Lanes low[kCount] = {}, high[kCount] = {};
  QUIPU_UNROLL
  for (size_t q = 0; q < kCount; ++q) feature[q] = reads[q].feature;
  for (int64_t i = 0; i < features; ++i) {
    Lanes a, b;
    ask_ahead(tile + i * kTileColumns);
    load(a, tile + i * kTileColumns);
    load(b, tile + i * kTileColumns + kLanes);
    QUIPU_UNROLL
    for (size_t q = 0; q < kCount; ++q) {
      low[q] += feature[q][i] * a;
      high[q] += feature[q][i] * b;
    }
  }
  QUIPU_UNROLL
  for (size_t q = 0; q < kCount; ++q) {
    store(reads[q].out, low[q]);
    store(reads[q].out + kLanes, high[q]);
  }
}

template <size_t kCount>
QUIPU_BODY void write_rows(float* tile, const TileWrite* writes, int64_t features) {
  const float* feature[kCount];
  Lanes low[kCount], high[kCount];
  QUIPU_UNROLL
  for (size_t t = 0; t < kCount; ++t) {
    feature[t] = writes[t].feature;
    load(low[t], writes[t].value);
    load(high[t], writes[t].value + kLanes);
  }
  for (int64_t i = 0; i < features; ++i) {
    float* row = tile + i * kTileColumns;
    Lanes a, b;
    ask_ahead(row);
    load(a, row);
    load(b, row + kLanes);
    QUIPU_UNROLL
    for (size_t t = 0; t < kCount; ++t) {
      a += feature[t][i] * low[t];
      b += feature[t][i] * high[t];
    }
    store(row, a);
    store(row + kLanes, b);
  }
}

QUIPU_BODY void read_any(const TileRead* reads, size_t count, const float* tile, int64_t features) {
  switch (count) {
    case 1: return read_rows<1>(reads, tile, features);
    case 2: return read_rows<2>(reads, tile, features);
    case 3: return read_rows<3>(reads, tile, features);
    default: return read_rows<4>(reads, tile, features);
  }
}

QUIPU_BODY void write_any(float* tile, const TileWrite* writes, size_t count, int64_t features) {
  switch (count) {
    case 1: return write_rows<1>(tile, writes, features);
    case 2: return write_rows<2>(tile, writes, features);
    case 3: return write_rows<3>(tile, writes, features);
    default: return write_rows<4>(tile, writes, features);
  }
}

void read_portable(const TileRead* reads, size_t count, const float* tile, int64_t features) {
  read_any(reads, count, tile, features);
}
void write_portable(float* tile, const TileWrite* writes, size_t count, int64_t features) {
  write_any(tile, writes, count, features);
}
#if defined(__x86_64__)
QUIPU_FOR_AVX2 void read_avx2(const TileRead* reads, size_t count, const float* tile, int64_t features) {
  read_any(reads, count, tile, features);
}
QUIPU_FOR_AVX2 void write_avx2(float* tile, const TileWrite* writes, size_t count, int64_t features) {
  write_any(tile, writes, count, features);
}
QUIPU_FOR_AVX512 void read_avx512(const TileRead* reads, size_t count, const float* tile, int64_t features) {
  read_any(reads, count, tile, features);
}
QUIPU_FOR_AVX512 void write_avx512(float* tile, const TileWrite* writes, size_t count, int64_t features) {
  write_any(tile, writes, count, features);
}
#endif

// The last tile of a head may be narrower: one row of features at a time.
void read_narrow(const TileRead& read, const float* tile, int64_t features, int64_t columns) {
  float sums[kTileColumns] = {};
  for (int64_t i = 0; i < features; ++i) {
    for (int64_t c = 0; c < columns; ++c) sums[c] += read.feature[i] * tile[i * columns + c];
  }
  std::memcpy(read.out, sums, static_cast<size_t>(columns) * sizeof(float));
}

void write_narrow(float* tile, const TileWrite& write, int64_t features, int64_t columns) {
  for (int64_t i = 0; i < features; ++i) {
    for (int64_t c = 0; c < columns; ++c) tile[i * columns + c] += write.feature[i] * write.value[c];
  }
}

}  // namespace

void tile_read(std::span<const TileRead> reads, const float* tile, int64_t features, int64_t columns,
               [[maybe_unused]] Isa isa) {
  CHECK(reads.size() <= kTileBatch) << reads.size();
  if (reads.empty()) return;
  if (columns < kTileColumns) {
    for (const TileRead& read : reads) read_narrow(read, tile, features, columns);
    return;
  }
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return read_avx512(reads.data(), reads.size(), tile, features);
  if (isa >= Isa::kAvx2) return read_avx2(reads.data(), reads.size(), tile, features);
#endif
  read_portable(reads.data(), reads.size(), tile, features);
}

void tile_write(float* tile, std::span<const TileWrite> writes, int64_t features, int64_t columns,
                [[maybe_unused]] Isa isa) {
  CHECK(writes.size() <= kTileBatch) << writes.size();
  if (writes.empty()) return;
  if (columns < kTileColumns) {
    for (const TileWrite& write : writes) write_narrow(tile, write, features, columns);
    return;
  }
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return write_avx512(tile, writes.data(), writes.size(), features);
  if (isa >= Isa::kAvx2) return write_avx2(tile, writes.data(), writes.size(), features);
#endif
  write_portable(tile, writes.data(), writes.size(), features);
}

void fold_sums(float* total, float* sums, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (sums[i] != 0.0f) total[i] += sums[i];  // adding zero would turn -0 into 0
    sums[i] = 0.0f;
  }
}

void fold_sums_compensated(float* total, float* carry, float* sums, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (sums[i] == 0.0f) continue;
    const float wanted = sums[i] - carry[i];
    const float sum = total[i] + wanted;
    carry[i] = (sum - total[i]) - wanted;
    total[i] = sum;
    sums[i] = 0.0f;
  }
}

}  // namespace quipu
