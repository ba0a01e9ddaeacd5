// Training products of bfloat16 tiles for AMX; everything else is AVX-512's. See training_kernels.h, and
// ops/kernels/amx_tile_registers.h for why the tile instructions are written in assembler.
//
// 2 x 2 tiles of sums: 32 rows of the left factor against a panel of 32 columns, 64 tile-unit cycles and four tile loads a
// block of 32 components. What a step reaches, and what bounds it: bench/NOTES.md.
#if defined(__x86_64__)

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <immintrin.h>

#include "backend/cpu/kernels/training_kernels.h"
#include "tensor/dtype.h"
#include "tensor/float16.h"

#include "ops/kernels/amx_target_begin.h"

namespace quipu::cpu {
namespace {

#include "ops/kernels/simd_avx512.h"

inline F32 load_lanes(const float* p, int64_t left) {
  return left >= 16 ? f_load(p) : left > 0 ? f_load_part(p, static_cast<int>(left)) : f_zero();
}

#include "ops/kernels/math_body.h"

// 16 words: (bfloat16 of even[i], bfloat16 of odd[i]).
inline __m512i pair_lanes(F32 even, F32 odd) {
  alignas(64) static constexpr uint16_t kPlace[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kPlace), (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}
// 32 consecutive components as 16 words of pairs.
inline __m512i pair_neighbours(const float* p, int64_t left) {
  if (left >= 32) return (__m512i)_mm512_cvtne2ps_pbh(f_load(p + 16), f_load(p));
  return (__m512i)_mm512_cvtne2ps_pbh(load_lanes(p + 16, left - 16), load_lanes(p, left));
}

// w[i] word j becomes w[j] word i.
QUIPU_KERNEL_INLINE inline void transpose_words(__m512i (&w)[16]) {
  __m512i t[16];
  repeat<4>([&](auto q) {
    constexpr int i = 4 * q;
    const __m512i a = _mm512_unpacklo_epi32(w[i], w[i + 1]), b = _mm512_unpackhi_epi32(w[i], w[i + 1]);
    const __m512i c = _mm512_unpacklo_epi32(w[i + 2], w[i + 3]), d = _mm512_unpackhi_epi32(w[i + 2], w[i + 3]);
    t[i] = _mm512_unpacklo_epi64(a, c);       // column 0 of each group of four
    t[i + 1] = _mm512_unpackhi_epi64(a, c);
    t[i + 2] = _mm512_unpacklo_epi64(b, d);
    t[i + 3] = _mm512_unpackhi_epi64(b, d);
  });
  repeat<4>([&](auto c) {
    const __m512i a = _mm512_shuffle_i32x4(t[c], t[c + 4], 0x88), b = _mm512_shuffle_i32x4(t[c], t[c + 4], 0xdd);
    const __m512i d = _mm512_shuffle_i32x4(t[c + 8], t[c + 12], 0x88), e = _mm512_shuffle_i32x4(t[c + 8], t[c + 12], 0xdd);
    w[c] = _mm512_shuffle_i32x4(a, d, 0x88);
    w[c + 8] = _mm512_shuffle_i32x4(a, d, 0xdd);
    w[c + 4] = _mm512_shuffle_i32x4(b, e, 0x88);
    w[c + 12] = _mm512_shuffle_i32x4(b, e, 0xdd);
  });
}

// Lines of 32 components side by side, line after line, for 16 lines: p[line * ld + k].
template <bool kTransposed>
QUIPU_KERNEL void pack_lines(uint16_t* out, const float* p, int64_t ld, int64_t lines, int64_t depth) {
  __m512i words[16];
  if (lines >= 16 && depth >= 32) {
    repeat<16>([&](auto line) { words[line] = (__m512i)_mm512_cvtne2ps_pbh(f_load(p + line * ld + 16), f_load(p + line * ld)); });
  } else {
    repeat<16>([&](auto line) { words[line] = line < lines ? pair_neighbours(p + line * ld, depth) : _mm512_setzero_si512(); });
  }
  if constexpr (kTransposed) transpose_words(words);
  repeat<16>([&](auto line) { _mm512_storeu_si512(out + 32 * line, words[line]); });
}
// Pairs of two rows, for 16 pairs: p[k * ld + lane].
template <bool kTransposed>
QUIPU_KERNEL void pack_row_pairs(uint16_t* out, const float* p, int64_t ld, int64_t lanes, int64_t depth) {
  __m512i words[16];
  if (lanes >= 16 && depth >= 32) {
    repeat<16>([&](auto pair) { words[pair] = pair_lanes(f_load(p + 2 * pair * ld), f_load(p + (2 * pair + 1) * ld)); });
  } else {
    repeat<16>([&](auto pair) {
      const F32 even = 2 * pair < depth ? load_lanes(p + 2 * pair * ld, lanes) : f_zero();
      const F32 odd = 2 * pair + 1 < depth ? load_lanes(p + (2 * pair + 1) * ld, lanes) : f_zero();
      words[pair] = pair_lanes(even, odd);
    });
  }
  if constexpr (kTransposed) transpose_words(words);
  repeat<16>([&](auto pair) { _mm512_storeu_si512(out + 32 * pair, words[pair]); });
}

// Components `across` lines lie in rows of their own: all lines of 32 such rows are packed before the next 32 are touched.
template <bool kLeft>
void pack_pairs(uint16_t* out, const PairSource& s) {
  const int64_t halves = (s.lines + kPairRows - 1) / kPairRows * 2, depth = 32 * s.blocks, half_step = s.half_step == 0 ? 16 * depth : s.half_step;
  const auto to = [&](int64_t half, int64_t k) { return out + half / 2 * s.panel_step + half % 2 * half_step + 16 * k; };
  if (s.across) {
    for (int64_t k = 0; k < depth; k += 32) {
      for (int64_t half = 0; half < halves; ++half) {
        const int64_t here = s.lines - 16 * half;   // may be none
        pack_row_pairs<kLeft>(to(half, k), s.from + k * s.ld + (here > 0 ? 16 * half : 0), s.ld, here, s.depth - k);
      }
    }
    return;
  }
  for (int64_t half = 0; half < halves; ++half) {
    const int64_t here = s.lines - 16 * half;
    const float* from = s.from + (here > 0 ? 16 * half * s.ld : 0);
    for (int64_t k = 0; k < depth; k += 32) pack_lines<!kLeft>(to(half, k), from + k, s.ld, here, s.depth - k);
  }
}
void pack_left_pairs(uint16_t* out, const PairSource& source) { pack_pairs<true>(out, source); }
void pack_right_pairs(uint16_t* out, const PairSource& source) { pack_pairs<false>(out, source); }

// A cache line past the caches: of what is larger than they are and read much later.
inline void store_past(uint16_t* to, __m512i line) { _mm512_stream_si512(reinterpret_cast<__m512i*>(to), line); }
inline void prefetch_to_write(const void* p) { __asm__ volatile("prefetchw %0" : : "m"(*static_cast<const char*>(p))); }

#include "ops/kernels/amx_tile_registers.h"

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
void end_pairs() {
  __asm__ volatile("tilerelease");
  _mm_sfence();                    // behind store_past
}

template <int kTile, bool kOnce>
inline void load_factor(const uint16_t* from) {
  if constexpr (kOnce) {
    tile_load_once<kTile>(from, 64);
  } else {
    tile_load<kTile>(from, 64);
  }
}

// kLeftOnce, kRightOnce: that factor by loads that leave the first-level cache to the other.
template <bool kLeftOnce, bool kRightOnce>
QUIPU_KERNEL void pair_tile_of(const PairTile& tile) {
  const bool whole = tile.rows == kPairRows && tile.cols == kGemmPanel;
  float* c = tile.c;
  const int64_t c_bytes = tile.c_ld * 4;
  if (whole && tile.from != nullptr) {
    const int64_t from_bytes = tile.from_ld * 4;
    tile_load<0>(tile.from, from_bytes);
    tile_load<1>(tile.from + 16, from_bytes);
    tile_load<2>(tile.from + 16 * tile.from_ld, from_bytes);
    tile_load<3>(tile.from + 16 * tile.from_ld + 16, from_bytes);
  } else {
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
  }
  const int64_t b_half = tile.blocks * 512, a_half = tile.a_half == 0 ? b_half : tile.a_half;
  // In a product's long blocks there is time to ask for memory; short ones work in the cache.
  const int64_t soon_step = tile.soon_bytes == 0 ? 0 : (tile.soon_bytes / tile.blocks + 63) / 64 * 64;
  const char *soon = static_cast<const char*>(tile.soon), *soon_end = soon + tile.soon_bytes;
  const int64_t next_rows = tile.next_c == nullptr ? 0 : (kPairRows + tile.blocks - 1) / tile.blocks;
  float *next = tile.next_c, *next_end = next + (next_rows > 0 ? kPairRows * tile.c_ld : 0);
  const int64_t from_rows = tile.next_from == nullptr ? 0 : (kPairRows + tile.blocks - 1) / tile.blocks;
  const float *next_from = tile.next_from, *from_end = next_from + (from_rows > 0 ? kPairRows * tile.from_ld : 0);
  for (int64_t stretch = 0; stretch < tile.stretches; ++stretch) {
    const uint16_t *a = tile.a + stretch * tile.a_stretch, *b = tile.b + stretch * tile.b_stretch;
    for (int64_t block = 0; block < tile.blocks; ++block, a += 512, b += 512) {
      for (const char* end = soon + soon_step; soon < end && soon < soon_end; soon += 64) prefetch_far(soon);
      for (float* end = next + next_rows * tile.c_ld; next < end && next < next_end; next += tile.c_ld) {
        prefetch_to_write(next);
        prefetch_to_write(next + 16);
      }
      for (const float* end = next_from + from_rows * tile.from_ld; next_from < end && next_from < from_end; next_from += tile.from_ld) {
        prefetch_far(next_from);
        prefetch_far(next_from + 16);
      }
      load_factor<6, kRightOnce>(b);
      load_factor<4, kLeftOnce>(a);
      tile_dot_bf16<0, 4, 6>();
      load_factor<7, kRightOnce>(b + b_half);
      tile_dot_bf16<1, 4, 7>();
      load_factor<5, kLeftOnce>(a + a_half);
      tile_dot_bf16<2, 5, 6>();
      tile_dot_bf16<3, 5, 7>();
    }
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
      if (tile.from != nullptr && !whole) sum = f_add(load_lanes(tile.from + row * tile.from_ld + col, left), sum);
      if (tile.bias != nullptr) sum = f_add(load_lanes(tile.bias + col, left), sum);
      if (left == 16) {
        f_store(to, sum);
      } else {
        f_store_part(to, sum, left);
      }
    }
  }
}

// Two panels of this many blocks, and what is summed, are more than a first-level cache holds.
constexpr int64_t kLongBlocks = 10;
void pair_tile(const PairTile& tile) {
  if (tile.blocks < kLongBlocks) return pair_tile_of<false, false>(tile);
  tile.left_stays ? pair_tile_of<false, true>(tile) : pair_tile_of<true, false>(tile);
}

// 2^x; x over 127 is infinite, under -149 it is 0, NaN stays. Relative error under 3e-6 (a polynomial of 2^r of least largest
// relative error, 0 <= r < 1), where probabilities are rounded to 2^-9.
inline F32 exp2_lanes(F32 x) {
  const F32 r = _mm512_reduce_ps(x, 1);   // x - floor(x); 0 where x is infinite
  F32 p = f_set1(1.35341668e-2f);
  p = f_fma(p, r, f_set1(5.20114638e-2f));
  p = f_fma(p, r, f_set1(2.41442755e-1f));
  p = f_fma(p, r, f_set1(6.93003833e-1f));
  p = f_fma(p, r, f_set1(1.0000026226f));
  return _mm512_scalef_ps(p, x);          // p 2^floor(x)
}
constexpr float kLog2E = 1.44269504f;

// ---- gates --------------------------------------------------------------------------------------------------------

struct Activated {
  F32 value, slope;
};
// As training_body.h's, to what bfloat16 can tell apart: 1 / x is off by 2^-14.
template <bool kGelu>
inline Activated activate_lanes(F32 g) {
  const F32 one = f_set1(1.0f);
  if constexpr (!kGelu) {
    const F32 s = _mm512_rcp14_ps(f_add(one, exp2_lanes(f_mul(g, f_set1(-kLog2E))))), value = f_mul(g, s);
    return {value, _mm512_fnmadd_ps(value, s, f_add(value, s))};
  } else {
    const F32 square = f_mul(g, g), half = f_set1(0.5f), root = f_set1(0.7978845608f);
    const F32 t = f_tanh(f_mul(f_mul(root, g), f_fma(square, f_set1(0.044715f), one)));
    const F32 outer = f_mul(half, f_add(one, t));
    const F32 inner_slope = f_mul(root, f_fma(square, f_set1(3.0f * 0.044715f), one));
    return {f_mul(g, outer), f_fma(f_mul(f_mul(half, g), f_sub(one, f_mul(t, t))), inner_slope, outer)};
  }
}

inline __m512i round_row(F32 low, F32 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
inline F32 low_half(__m512i row) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(row)), 16)); }
inline F32 high_half(__m512i row) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(row, 1)), 16));
}

template <bool kGelu>
QUIPU_KERNEL void gate_tile_of(const GateTile& tile) {
  for (int row = 0; row < kPairRows; ++row) {
    const float* sums = tile.sums + row * kGemmPanel;
    const __m512i both = round_row(f_load(sums), f_load(sums + 16));
    store_past(tile.rounded + row * kGemmPanel, both);
    const F32 activated = f_mul(activate_lanes<kGelu>(low_half(both)).value, high_half(both));
    _mm256_storeu_si256((__m256i*)(tile.activated + row / 16 * tile.half_step + row % 16 * 32), (__m256i)_mm512_cvtneps_pbh(activated));
  }
}
void gate_tile(const GateTile& tile) { tile.gelu ? gate_tile_of<true>(tile) : gate_tile_of<false>(tile); }

// Two rows of 32 columns as pairs of rows: 16 columns, and the other 16.
inline void store_row_pairs(uint16_t* to, int64_t half_step, __m512i even, __m512i odd) {
  alignas(64) static constexpr uint16_t kLow[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                    8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  _mm512_storeu_si512(to, _mm512_permutex2var_epi16(even, low, odd));
  _mm512_storeu_si512(to + half_step, _mm512_permutex2var_epi16(even, high, odd));
}

template <bool kGelu>
QUIPU_KERNEL void gate_tile_backward_of(const GateTileBackward& tile) {
  for (int row = 0; row < kPairRows; row += 2) {
    __m512i activated[2], dgate[2], dup[2];
    repeat<2>([&](auto i) {
      const float* d = tile.dactivated + (row + i) * kGemmPanel;
      const __m512i first = _mm512_loadu_si512(tile.rounded + (row + i) * kGemmPanel);
      const __m512i second = _mm512_loadu_si512(tile.rounded + kPairTile + (row + i) * kGemmPanel);
      const Activated low = activate_lanes<kGelu>(low_half(first)), high = activate_lanes<kGelu>(low_half(second));
      const F32 d_low = f_load(d), d_high = f_load(d + 16), up_low = high_half(first), up_high = high_half(second);
      activated[i] = round_row(f_mul(low.value, up_low), f_mul(high.value, up_high));
      dgate[i] = round_row(f_mul(f_mul(d_low, up_low), low.slope), f_mul(f_mul(d_high, up_high), high.slope));
      dup[i] = round_row(f_mul(d_low, low.value), f_mul(d_high, high.value));
      const int64_t at = (row + i) / 16 * tile.half_step + (row + i) % 16 * 32;
      _mm512_storeu_si512(tile.dgate + at, dgate[i]);
      _mm512_storeu_si512(tile.dup + at, dup[i]);
    });
    const int64_t pair = row / 2 * 32;
    store_row_pairs(tile.activated_pairs + pair, tile.pairs_half_step, activated[0], activated[1]);
    store_row_pairs(tile.dgate_pairs + pair, tile.pairs_half_step, dgate[0], dgate[1]);
    store_row_pairs(tile.dup_pairs + pair, tile.pairs_half_step, dup[0], dup[1]);
  }
}
void gate_tile_backward(const GateTileBackward& tile) {
  tile.gelu ? gate_tile_backward_of<true>(tile) : gate_tile_backward_of<false>(tile);
}

// kAdd: to what is there; else kPast: past the caches, `to` and its rows on cache lines.
template <bool kAdd, bool kPast>
QUIPU_KERNEL void give_tile_of(float* to, int64_t ld, const float* sums, bool transposed) {
  const auto give = [](float* p, F32 sum) {
    if constexpr (kAdd) {
      f_store(p, f_add(f_load(p), sum));
    } else if constexpr (kPast) {
      _mm512_stream_ps(p, sum);
    } else {
      f_store(p, sum);
    }
  };
  if (!transposed) {
    for (int row = 0; row < kPairRows; ++row) {
      repeat<2>([&](auto i) { give(to + row * ld + 16 * i, f_load(sums + row * kGemmPanel + 16 * i)); });
    }
    return;
  }
  for (int row = 0; row < kPairRows; row += 16) {
    for (int col = 0; col < kGemmPanel; col += 16) {
      __m512i w[16];
      repeat<16>([&](auto i) { w[i] = _mm512_castps_si512(f_load(sums + (row + i) * kGemmPanel + col)); });
      transpose_words(w);
      repeat<16>([&](auto i) { give(to + (col + i) * ld + row, _mm512_castsi512_ps(w[i])); });
    }
  }
}
void give_tile(float* to, int64_t ld, const float* sums, bool transposed, bool add) {
  if (add) return give_tile_of<true, false>(to, ld, sums, transposed);
  const bool lines = reinterpret_cast<uintptr_t>(to) % 64 == 0 && ld % 16 == 0;
  lines ? give_tile_of<false, true>(to, ld, sums, transposed) : give_tile_of<false, false>(to, ld, sums, transposed);
}

QUIPU_KERNEL void add_row_products(float* sums, const float* x, int64_t ld, const uint16_t* block, int64_t half_step) {
  for (int row = 0; row < kPairRows; ++row) {
    const __m512i y = _mm512_loadu_si512(block + row / 16 * half_step + row % 16 * 32);
    sums[row] += _mm512_reduce_add_ps(f_fma(f_load(x + row * ld), low_half(y), f_mul(f_load(x + row * ld + 16), high_half(y))));
  }
}

// ---- attention: scores lie as [keys][queries], so that nothing is summed or compared across lanes ---------------------

inline F32 capped_lanes(F32 s, float softcap) { return f_mul(f_set1(softcap), f_tanh(f_mul(s, f_set1(1.0f / softcap)))); }

struct Visible {
  __m512i first, last;
  __mmask16 at(int key) const {
    const __m512i k = _mm512_set1_epi32(key);
    return _mm512_cmple_epi32_mask(first, k) & _mm512_cmpgt_epi32_mask(last, k);
  }
};

// 16 queries from `column` on. kWhole: they see every key of the block. kCapped: scores have a soft cap.
template <bool kWhole, bool kCapped>
QUIPU_KERNEL bool score_columns_of(const ScoreColumns& b, int column) {
  const Visible visible{_mm512_loadu_si512(b.first + column), _mm512_loadu_si512(b.last + column)};
  const float* s = b.scores + column;
  // In units of log2, so that the exponential is 2^x; `maximum` keeps natural ones. scale > 0: the largest score is that of the
  // largest product.
  const F32 scale = f_set1(kCapped ? kLog2E : b.scale * kLog2E);
  const auto score = [&](int key) {
    const F32 raw = f_load(s + key * kPairQueries);
    if constexpr (kCapped) return capped_lanes(f_mul(raw, f_set1(b.scale)), b.softcap);
    return raw;
  };
  const F32 nothing = f_set1(-__builtin_inff());
  F32 largest[4] = {nothing, nothing, nothing, nothing};
  for (int key = 0; key < kPairKeys; key += 4) {
    repeat<4>([&](auto i) {
      if constexpr (kWhole) {
        largest[i] = f_max(score(key + i), largest[i]);
      } else {
        largest[i] = _mm512_mask_max_ps(largest[i], visible.at(key + i), score(key + i), largest[i]);
      }
    });
  }
  const F32 old = f_load(b.maximum + column), before = f_mul(old, f_set1(kLog2E));
  const F32 maximum = f_max(f_mul(f_max(f_max(largest[0], largest[1]), f_max(largest[2], largest[3])), scale), before);
  F32 total[2] = {f_zero(), f_zero()};
  uint16_t* out = b.probabilities + column * kPairKeys;
  for (int key = 0; key < kPairKeys; key += 2, out += 32) {
    F32 p[2];
    repeat<2>([&](auto i) {
      p[i] = exp2_lanes(_mm512_fmsub_ps(score(key + i), scale, maximum));
      if constexpr (!kWhole) p[i] = _mm512_maskz_mov_ps(visible.at(key + i), p[i]);
      total[i] = f_add(total[i], p[i]);
    });
    _mm512_storeu_si512(out, pair_lanes(p[0], p[1]));
  }
  // Equal maxima: both may be minus infinity.
  const __mmask16 moved = _mm512_cmp_ps_mask(maximum, before, _CMP_NEQ_UQ);
  const F32 rescale = _mm512_mask_mov_ps(f_set1(1.0f), moved, exp2_lanes(f_sub(before, maximum)));
  f_store(b.maximum + column, _mm512_mask_mov_ps(old, moved, f_mul(maximum, f_set1(1.0f / kLog2E))));
  f_store(b.total + column, f_fma(f_load(b.total + column), rescale, f_add(total[0], total[1])));
  f_store(b.rescale + column, rescale);
  return moved != 0;
}

inline bool sees_all(const int32_t* first, const int32_t* last) {
  return _mm512_cmple_epi32_mask(_mm512_loadu_si512(first), _mm512_setzero_si512()) == 0xffff &&
         _mm512_cmpge_epi32_mask(_mm512_loadu_si512(last), _mm512_set1_epi32(static_cast<int>(kPairKeys))) == 0xffff;
}

bool score_columns(const ScoreColumns& b) {
  bool moved = false;
  for (int column = 0; column < kPairQueries; column += 16) {
    if (b.softcap > 0.0f) {
      moved |= score_columns_of<false, true>(b, column);
    } else if (sees_all(b.first + column, b.last + column)) {
      moved |= score_columns_of<true, false>(b, column);
    } else {
      moved |= score_columns_of<false, false>(b, column);
    }
  }
  return moved;
}

template <bool kWhole, bool kCapped>
QUIPU_KERNEL void score_columns_backward_of(const ScoreColumnsBackward& b) {
  const Visible visible[2] = {{_mm512_loadu_si512(b.first), _mm512_loadu_si512(b.last)},
                              {_mm512_loadu_si512(b.first + 16), _mm512_loadu_si512(b.last + 16)}};
  const F32 scale = f_set1(b.scale), to_log2 = f_set1(kCapped ? kLog2E : b.scale * kLog2E);
  F32 lse[2], delta[2];
  repeat<2>([&](auto i) {
    lse[i] = f_mul(f_load(b.log_sum_exp + 16 * i), f_set1(kLog2E));
    delta[i] = f_mul(f_load(b.delta + 16 * i), scale);
  });
  for (int key = 0; key < kPairKeys; key += 2) {
    F32 p[2][2], ds[2][2];   // [key][half of the queries]
    repeat<2>([&](auto k) {
      repeat<2>([&](auto i) {
        const int64_t at = (key + k) * kPairQueries + 16 * i;
        F32 score = f_load(b.scores + at);
        if constexpr (kCapped) score = capped_lanes(f_mul(score, scale), b.softcap);
        p[k][i] = exp2_lanes(_mm512_fmsub_ps(score, to_log2, lse[i]));
        ds[k][i] = f_mul(p[k][i], _mm512_fmsub_ps(f_load(b.dscores + at), scale, delta[i]));
        if constexpr (kCapped) {
          const F32 ratio = f_mul(score, f_set1(1.0f / b.softcap));
          ds[k][i] = f_mul(ds[k][i], _mm512_fnmadd_ps(ratio, ratio, f_set1(1.0f)));
        }
        if constexpr (!kWhole) {
          const __mmask16 mask = visible[i].at(key + k);
          p[k][i] = _mm512_maskz_mov_ps(mask, p[k][i]);
          ds[k][i] = _mm512_maskz_mov_ps(mask, ds[k][i]);
        }
      });
      // [4 x 16 keys][16 keys][32 queries]
      const int64_t row = (key + k) / 16 * b.half_step + (key + k) % 16 * 32;
      _mm512_storeu_si512(b.probabilities + row, (__m512i)_mm512_cvtne2ps_pbh(p[k][1], p[k][0]));
      _mm512_storeu_si512(b.gradients + row, (__m512i)_mm512_cvtne2ps_pbh(ds[k][1], ds[k][0]));
    });
    uint16_t* columns = b.gradient_columns + key / 2 * 32;
    repeat<2>([&](auto i) { _mm512_storeu_si512(columns + i * (kPairKeys * 16), pair_lanes(ds[0][i], ds[1][i])); });
  }
}

void score_columns_backward(const ScoreColumnsBackward& b) {
  if (b.softcap > 0.0f) {
    score_columns_backward_of<false, true>(b);
  } else if (sees_all(b.first, b.last) && sees_all(b.first + 16, b.last + 16)) {
    score_columns_backward_of<true, false>(b);
  } else {
    score_columns_backward_of<false, false>(b);
  }
}

// ---- loss: logits lie as [vocabulary][rows] ---------------------------------------------------------------------------------

// Lanes whose target is among the 32 from `first` on.
inline __mmask16 targets_here(__m512i target, int32_t first) {
  return _mm512_cmplt_epu32_mask(_mm512_sub_epi32(target, _mm512_set1_epi32(first)), _mm512_set1_epi32(static_cast<int>(kGemmPanel)));
}

QUIPU_KERNEL void loss_columns(const LossColumns& tile) {
  for (int column = 0; column < kPairRows; column += 16) {
    const float* logits = tile.logits + column;
    const auto logit = [&](int i) { return f_load(logits + i * kPairRows); };
    F32 largest[4];
    repeat<4>([&](auto i) { largest[i] = logit(i); });
    for (int k = 4; k < kGemmPanel; k += 4) {
      repeat<4>([&](auto i) { largest[i] = f_max(logit(k + i), largest[i]); });
    }
    const F32 here = f_max(f_max(largest[0], largest[1]), f_max(largest[2], largest[3])), old = f_load(tile.maximum + column);
    const __mmask16 larger = _mm512_cmp_ps_mask(here, old, _CMP_GT_OQ);
    const F32 maximum = _mm512_mask_mov_ps(old, larger, here), scale = f_set1(tile.scale * kLog2E), offset = f_mul(maximum, scale);
    F32 total[4] = {f_zero(), f_zero(), f_zero(), f_zero()};
    for (int k = 0; k < kGemmPanel; k += 4) {
      repeat<4>([&](auto i) { total[i] = f_add(total[i], exp2_lanes(_mm512_fmsub_ps(logit(k + i), scale, offset))); });
    }
    const F32 sum = f_add(f_add(total[0], total[1]), f_add(total[2], total[3]));
    const F32 rescale = _mm512_mask_mov_ps(f_set1(1.0f), larger, exp2_lanes(_mm512_fmsub_ps(old, scale, offset)));
    f_store(tile.total + column, f_fma(f_load(tile.total + column), rescale, sum));
    f_store(tile.maximum + column, maximum);
    alignas(64) float values[16];
    f_store(values, maximum);
    for (unsigned lanes = larger; lanes != 0; lanes &= lanes - 1) {
      const int lane = __builtin_ctz(lanes);
      int k = 0;
      while (k + 1 < kGemmPanel && !(logits[k * kPairRows + lane] == values[lane])) ++k;
      tile.best[column + lane] = tile.first + k;
    }
    for (unsigned lanes = targets_here(_mm512_loadu_si512(tile.target + column), tile.first); lanes != 0; lanes &= lanes - 1) {
      const int lane = __builtin_ctz(lanes);
      tile.target_value[column + lane] = logits[(tile.target[column + lane] - tile.first) * kPairRows + lane];
    }
  }
}

template <bool kTargets>
QUIPU_KERNEL void loss_columns_backward_of(const LossColumnsBackward& tile) {
  const F32 scale = f_set1(tile.scale * kLog2E);
  F32 lse[2], factor[2];
  repeat<2>([&](auto i) {
    lse[i] = f_mul(f_load(tile.log_sum_exp + 16 * i), f_set1(kLog2E));
    factor[i] = f_load(tile.factor + 16 * i);
  });
  for (int k = 0; k < kGemmPanel; k += 2) {
    F32 g[2][2];   // [vocabulary][half of the rows]
    repeat<2>([&](auto j) {
      repeat<2>([&](auto i) {
        g[j][i] = f_mul(factor[i], exp2_lanes(_mm512_fmsub_ps(f_load(tile.logits + (k + j) * kPairRows + 16 * i), scale, lse[i])));
        if constexpr (kTargets) {
          const __mmask16 target = _mm512_cmpeq_epi32_mask(_mm512_loadu_si512(tile.target + 16 * i), _mm512_set1_epi32(tile.first + k + j));
          g[j][i] = _mm512_mask_sub_ps(g[j][i], target, g[j][i], f_load(tile.target_factor + 16 * i));
        }
      });
      store_past(tile.gradients + (k + j) / 16 * tile.half_step + (k + j) % 16 * 32, round_row(g[j][0], g[j][1]));
    });
    repeat<2>([&](auto i) { _mm512_storeu_si512(tile.gradient_columns + i * tile.columns_half_step + k / 2 * 32, pair_lanes(g[0][i], g[1][i])); });
  }
}

void loss_columns_backward(const LossColumnsBackward& tile) {
  const __mmask16 low = targets_here(_mm512_loadu_si512(tile.target), tile.first), high = targets_here(_mm512_loadu_si512(tile.target + 16), tile.first);
  (low | high) != 0 ? loss_columns_backward_of<true>(tile) : loss_columns_backward_of<false>(tile);
}

void scale_columns(float* x, const float* factor, int64_t rows) {
  F32 f[kPairQueries / 16];
  repeat<kPairQueries / 16>([&](auto i) { f[i] = f_load(factor + 16 * i); });
  for (int64_t row = 0; row < rows; ++row, x += kPairQueries) {
    repeat<kPairQueries / 16>([&](auto i) { f_store(x + 16 * i, f_mul(f_load(x + 16 * i), f[i])); });
  }
}

QUIPU_KERNEL void store_transposed(float* out, int64_t out_ld, const float* in, const float* factor, int64_t rows, int64_t cols) {
  for (int64_t col = 0; col < cols; col += 16) {
    const F32 scale = factor == nullptr ? f_set1(1.0f) : f_load(factor + col);
    for (int64_t row = 0; row < rows; row += 16) {
      __m512i w[16];
      repeat<16>([&](auto i) {
        w[i] = row + i < rows ? _mm512_castps_si512(f_mul(f_load(in + (row + i) * kPairQueries + col), scale)) : _mm512_setzero_si512();
      });
      transpose_words(w);
      const int64_t left = rows - row;
      repeat<16>([&](auto i) {
        float* to = out + (col + i) * out_ld + row;
        if (col + i >= cols) return;
        if (left >= 16) {
          f_store(to, _mm512_castsi512_ps(w[i]));
        } else {
          f_store_part(to, _mm512_castsi512_ps(w[i]), static_cast<int>(left));
        }
      });
    }
  }
}

}  // namespace
}  // namespace quipu::cpu

#include "ops/kernels/amx_target_end.h"

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
    t.gate_tile = gate_tile;
    t.gate_tile_backward = gate_tile_backward;
    t.give_tile = give_tile;
    t.add_row_products = add_row_products;
    t.score_columns = score_columns;
    t.score_columns_backward = score_columns_backward;
    t.loss_columns = loss_columns;
    t.loss_columns_backward = loss_columns_backward;
    t.scale_columns = scale_columns;
    t.store_transposed = store_transposed;
    return t;
  }();
  return table;
}

}  // namespace quipu::cpu

#endif  // __x86_64__
