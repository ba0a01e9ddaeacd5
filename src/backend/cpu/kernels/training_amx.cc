// Training products of bfloat16 tiles for AMX; everything else is AVX-512's. See training_kernels.h and amx.cc (why the tile
// instructions are written in assembler).
//
// 2 x 2 tiles of sums: 32 rows of the left factor against a panel of 32 columns, 64 tile-unit cycles and four tile loads a
// block of 32 components. Written where no processor had AMX: tested by emulation, not measured.
#if defined(__x86_64__)

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <immintrin.h>

#include "backend/cpu/kernels/training_kernels.h"
#include "tensor/dtype.h"
#include "tensor/float16.h"

// Internal linkage and no templates of the headers above: see avx512.cc.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-bf16,prefer-vector-width=512")
#endif

namespace quipu::cpu {
namespace {

#include "ops/kernels/simd_avx512.h"

inline F32 load_lanes(const float* p, int64_t left) {
  return left >= 16 ? f_load(p) : left > 0 ? f_load_part(p, static_cast<int>(left)) : f_zero();
}

// 16 floats as bfloat16 in the low halves of 16 words.
inline __m512i low_halves(F32 x) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)); }
// Word i: (bfloat16 of even[i], bfloat16 of odd[i]).
inline __m512i pair_lanes(F32 even, F32 odd) { return _mm512_or_si512(low_halves(even), _mm512_slli_epi32(low_halves(odd), 16)); }
// 32 consecutive components as 16 words of pairs.
inline __m512i pair_neighbours(const float* p, int64_t left) {
  return (__m512i)_mm512_cvtne2ps_pbh(load_lanes(p + 16, left - 16), load_lanes(p, left));
}

// out[i][j] = in[j][i], 16 x 16 words.
void transpose_words(uint16_t* out, const uint32_t* in) {
  const __m512i index = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(16));
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + 32 * i, _mm512_i32gather_epi32(index, in + i, 4));
}

// Lines of 32 components side by side, line after line, for 16 lines: p[line * ld + k].
void pack_lines(uint16_t* out, const float* p, int64_t ld, int64_t lines, int64_t depth, bool transposed) {
  alignas(64) uint32_t words[16 * 16];
  for (int64_t line = 0; line < 16; ++line) {
    const __m512i pairs = line < lines ? pair_neighbours(p + line * ld, depth) : _mm512_setzero_si512();
    _mm512_storeu_si512(transposed ? static_cast<void*>(words + 16 * line) : static_cast<void*>(out + 32 * line), pairs);
  }
  if (transposed) transpose_words(out, words);
}
// Pairs of two rows, for 16 pairs: p[k * ld + lane].
void pack_row_pairs(uint16_t* out, const float* p, int64_t ld, int64_t lanes, int64_t depth, bool transposed) {
  alignas(64) uint32_t words[16 * 16];
  for (int64_t pair = 0; pair < 16; ++pair) {
    const F32 even = 2 * pair < depth ? load_lanes(p + 2 * pair * ld, lanes) : f_zero();
    const F32 odd = 2 * pair + 1 < depth ? load_lanes(p + (2 * pair + 1) * ld, lanes) : f_zero();
    _mm512_storeu_si512(transposed ? static_cast<void*>(words + 16 * pair) : static_cast<void*>(out + 32 * pair), pair_lanes(even, odd));
  }
  if (transposed) transpose_words(out, words);
}

void pack_left_pairs(uint16_t* out, const float* a, int64_t ld, int64_t rows, int64_t depth, bool by_columns) {
  for (int64_t first = 0; first < kPairRows; first += 16) {
    for (int64_t k = 0; k < depth; k += 32, out += 512) {
      const int64_t here = rows - first;   // may be none
      if (by_columns) {
        pack_row_pairs(out, a + k * ld + (here > 0 ? first : 0), ld, here, depth - k, true);
      } else {
        pack_lines(out, a + (here > 0 ? first * ld : 0) + k, ld, here, depth - k, false);
      }
    }
  }
}

void pack_right_pairs(uint16_t* out, const float* b, int64_t ld, int64_t cols, int64_t depth, bool transposed) {
  for (int64_t first = 0; first < kGemmPanel; first += 16) {
    for (int64_t k = 0; k < depth; k += 32, out += 512) {
      const int64_t here = cols - first;
      if (transposed) {
        pack_lines(out, b + (here > 0 ? first * ld : 0) + k, ld, here, depth - k, true);
      } else {
        pack_row_pairs(out, b + k * ld + (here > 0 ? first : 0), ld, here, depth - k, false);
      }
    }
  }
}

template <int kTile>
inline void tile_zero() { __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile)); }
template <int kTile>
inline void tile_load(const void* base, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(base), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void tile_store(void* base, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(base), "r"(stride), "i"(kTile) : "memory");
}
template <int kSums, int kA, int kB>
inline void tile_dot() { __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB)); }

void begin_pairs() {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = 16;
  }
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
}
void end_pairs() { __asm__ volatile("tilerelease"); }

void pair_tile(const PairTile& tile) {
  const bool whole = tile.rows == kPairRows && tile.cols == kGemmPanel;
  float* c = tile.c;
  const int64_t c_bytes = tile.c_ld * 4;
  if (whole && tile.add) {
    tile_load<0>(c, c_bytes);
    tile_load<1>(c + 16, c_bytes);
    tile_load<2>(c + 16 * tile.c_ld, c_bytes);
    tile_load<3>(c + 16 * tile.c_ld + 16, c_bytes);
  } else {
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
  }
  const uint16_t *a = tile.a, *b = tile.b;
  const int64_t half = tile.blocks * 512;
  for (int64_t block = 0; block < tile.blocks; ++block, a += 512, b += 512) {
    tile_load<6>(b, 64);
    tile_load<4>(a, 64);
    tile_dot<0, 4, 6>();
    tile_load<7>(b + half, 64);
    tile_dot<1, 4, 7>();
    tile_load<5>(a + half, 64);
    tile_dot<2, 5, 6>();
    tile_dot<3, 5, 7>();
  }
  if (whole && tile.bias == nullptr) {
    tile_store<0>(c, c_bytes);
    tile_store<1>(c + 16, c_bytes);
    tile_store<2>(c + 16 * tile.c_ld, c_bytes);
    tile_store<3>(c + 16 * tile.c_ld + 16, c_bytes);
    return;
  }
  alignas(64) float sums[kPairRows * kGemmPanel];
  tile_store<0>(sums, 128);
  tile_store<1>(sums + 16, 128);
  tile_store<2>(sums + 16 * kGemmPanel, 128);
  tile_store<3>(sums + 16 * kGemmPanel + 16, 128);
  for (int row = 0; row < tile.rows; ++row) {
    for (int col = 0; col < tile.cols; col += 16) {
      const int left = tile.cols - col < 16 ? tile.cols - col : 16;
      F32 sum = f_load(sums + row * kGemmPanel + col);
      float* to = c + row * tile.c_ld + col;
      if (tile.add && !whole) sum = f_add(load_lanes(to, left), sum);
      if (tile.bias != nullptr) sum = f_add(load_lanes(tile.bias + col, left), sum);
      if (left == 16) {
        f_store(to, sum);
      } else {
        f_store_part(to, sum, left);
      }
    }
  }
}

}  // namespace
}  // namespace quipu::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace quipu::cpu {

const TrainingKernels& amx_training_kernels() {
  static const TrainingKernels table = [] {
    TrainingKernels t = avx512_training_kernels();
    t.name = "amx";
    t.pair_tile = pair_tile;
    t.pack_left_pairs = pack_left_pairs;
    t.pack_right_pairs = pack_right_pairs;
    t.begin_pairs = begin_pairs;
    t.end_pairs = end_pairs;
    return t;
  }();
  return table;
}

}  // namespace quipu::cpu

#endif  // __x86_64__
