// 32 rows at a time, which stay in the first-level cache: A = 16 rows as they lie, B = 16 rows of the up-projection, whose 256 KiB
// of a head stay in the second-level cache. A 2 x 2 square of sums is 32 rows of 32 components; values are paired by rows as they
// come out, keys are turned.
#include "attention/shared/latent_expand_tiles.h"

#include "base/check.h"

#if defined(__x86_64__)

#include <type_traits>
#include <utility>
#include <immintrin.h>

#include "ops/kernels/inlining.h"
#include "tensor/float16.h"

#include "ops/kernels/amx_target_begin.h"

namespace quipu {
namespace {

#include "ops/kernels/simd_avx512.h"

#include "ops/kernels/math_body.h"

#include "ops/kernels/amx_tiles_body.h"

#include "ops/kernels/amx_halves_body.h"

#include "attention/shared/kernels/latent_rows_body.h"

constexpr int64_t kSquareFloats = 32 * 32;
constexpr int64_t kSquareBytes = 32 * 4;   // of a row of the square

// sums [32][32] = 32 rows times 32 rows of the up-projection: two panels, panel_bytes apart.
QUIPU_KERNEL void multiply_rows(float* sums, const Rows& rows, const std::byte* panel, int64_t blocks) {
  const std::byte* row = rows.data;
  const int64_t stride = rows.stride, panel_bytes = blocks * kPairedBlockBytes;
  zero_square<2, 2>();
  for (int64_t block = 0; block < blocks; ++block, row += 64, panel += kPairedBlockBytes) {
    tile_load<6>(panel, 64);
    tile_load<4>(row, stride);
    tile_dot_bf16<0, 4, 6>();
    tile_load<7>(panel + panel_bytes, 64);
    tile_dot_bf16<1, 4, 7>();
    tile_load<5>(row + 16 * stride, stride);
    tile_dot_bf16<2, 5, 6>();
    tile_dot_bf16<3, 5, 7>();
  }
  store_square<2, 2>(sums, kSquareBytes);
}

// A block of 32 components of 16 keys, each [16 pairs], as a tile [16 pairs][16 keys].
[[gnu::always_inline]] inline void store_key_tile(std::byte* tile, F32 (&keys)[16]) {
  turn(keys);
  repeat<16>([&](auto i) { f_store(reinterpret_cast<float*>(tile + 64 * i), keys[i]); });
}

QUIPU_KERNEL void put_keys(std::byte* first, std::byte* second, const float* sums) {
  repeat<2>([&](auto half) {
    F32 keys[16];
    repeat<16>([&](auto i) {
      const float* row = sums + (16 * half + i) * 32;
      keys[i] = _mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(f_load(row + 16), f_load(row)));
    });
    store_key_tile(half == 0 ? first : second, keys);
  });
}

// `count` components of the rows from column `column`, which all heads share, as they are.
QUIPU_KERNEL void put_shared_keys(std::byte* first, std::byte* second, const Rows& rows, int64_t column, int64_t count) {
  const __mmask32 there = count >= kBlock ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
  repeat<2>([&](auto half) {
    F32 keys[16];
    repeat<16>([&](auto i) {
      keys[i] = _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(there, rows.data + (16 * half + i) * rows.stride + 2 * column));
    });
    store_key_tile(half == 0 ? first : second, keys);
  });
}

// Rows 2 i and 2 i + 1 in word row i.
QUIPU_KERNEL void put_values(std::byte* tile, const float* sums) {
  repeat<16>([&](auto i) { u_store(tile + 64 * i, pair_lanes(f_load(sums + 64 * i), f_load(sums + 64 * i + 32))); });
}

void expand(PairedSegment& out, const TileSegment& s, const HeadUp& up, std::byte* work) {
  const int64_t steps = blocks_of(s.rows), depth = blocks_of(s.rank), rope_dim = s.width - s.rank;
  const int64_t nope_blocks = blocks_of(up.nope_dim), value_blocks = blocks_of(up.value_dim), tiles = (up.value_dim + 15) / 16;
  const int64_t block_bytes = 2 * depth * kPairedBlockBytes;   // of 32 rows of the up-projection
  out.key_dim = expanded_key_dim(up.nope_dim, rope_dim);
  out.value_dim = up.value_dim;
  out.keys = s.rows;
  float* sums = reinterpret_cast<float*>(work);
  uint16_t* rounded = reinterpret_cast<uint16_t*>(sums + kSquareFloats);
  configure_square(32, 64);
  for (int64_t step = 0; step < steps; ++step) {
    const Rows rows = rows_of_step(rounded, s, step * kBlock);
    std::byte *first = out.keys_at(2 * step), *second = out.keys_at(2 * step + 1);
    const std::byte* panel = up.tiles;
    for (int64_t block = 0; block < nope_blocks; ++block, panel += block_bytes) {
      multiply_rows(sums, rows, panel, depth);
      put_keys(first + block * kPairedBlockBytes, second + block * kPairedBlockBytes, sums);
    }
    for (int64_t column = 0; column < rope_dim; column += kBlock) {
      const int64_t at = (nope_blocks + column / kBlock) * kPairedBlockBytes;
      put_shared_keys(first + at, second + at, rows, s.rank + column, rope_dim - column);
    }
    for (int64_t block = 0; block < value_blocks; ++block, panel += block_bytes) {
      multiply_rows(sums, rows, panel, depth);
      std::byte* tile = out.values + (2 * block * kSegmentBlocks + step) * kPairedBlockBytes;
      put_values(tile, sums);
      if (2 * block + 1 < tiles) put_values(tile + kSegmentBlocks * kPairedBlockBytes, sums + 16);
    }
  }
  release_tiles();   // attention configures them otherwise
}

}  // namespace
}  // namespace quipu

#include "ops/kernels/amx_target_end.h"

namespace quipu {

int64_t expand_work_bytes(int64_t width) { return kSquareFloats * 4 + kBlock * blocks_of(width) * kBlock * 2; }
void expand_tiles(PairedSegment& out, const TileSegment& segment, const HeadUp& up, std::byte* work) {
  CHECK(segment.rows > 0 && segment.rows <= kTileSegmentRows && segment.dtype != DType::kF32) << segment.rows;
  expand(out, segment, up, work);
}

}  // namespace quipu

#else  // no AMX: never asked for

namespace quipu {

int64_t expand_work_bytes(int64_t) { return 0; }
void expand_tiles(PairedSegment&, const TileSegment&, const HeadUp&, std::byte*) { CHECK(false) << "no tiles on this machine"; }

}  // namespace quipu

#endif  // __x86_64__
