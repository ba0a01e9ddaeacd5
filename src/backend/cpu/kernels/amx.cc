// Kernels for AMX (tile, int8, bf16) on top of AVX-512: the AVX-512 table with other products of many rows, and other
// products of bf16 weights. See kernels.h.
//
// Quantised weights. Tiles multiply the codes of one scale group (32 or 16 components) of up to 32 rows with two panels:
// 2 x 2 tiles of integer dots, which go through L1 and are scaled and summed by AVX-512 in the order of matmul_body.h. The
// dots are whole numbers, so results equal the one-row VNNI kernel's bit for bit. Weights are widened to signed values, the
// zero point taken off: TDPBSSD then needs no correction, which saves one of four vector operations a dot.
//
// Measured on a Xeon with AMX at 3.5 GHz, for a group of 32, 32 rows, two panels (65536 operations): tile products with their
// loads 21 ns, stores of the dots 19 ns, both overlapped 27 ns; the sums 28 ns alone, but 56 ns beside tile instructions, which
// leave the floating-point vectors one port of two. All of it takes 65 to 82 ns: 0.8 to 1 TOP/s a core. Groups of 16 cost the
// same for half the operations.
//
// bf16 weights. 2 x 2 tiles over all columns, 64 tile-unit cycles a block of 32 columns for 65536 operations: 3.2 TFLOP/s
// a core from L1 or L2. One row takes the same instruction with tiles of one row, so a row's result does not depend on
// how many rows are computed with it.
//
// Q8_0 weights are multiplied as bf16 numbers (pack_coded_panel), but for those whose activations are rounded twice: that leaves
// no dots to scale. Their few extra bits of rounding are below what int8 activations lose. One row is done with vectors, in the
// tile unit's order, straight from the codes: 18 operations for 64 of them.
#if defined(__x86_64__)

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <immintrin.h>

#include "backend/cpu/kernels/kernels.h"
#include "tensor/float16.h"

#include "ops/kernels/amx_target_begin.h"

namespace quipu::cpu {
namespace {

#include "ops/kernels/simd_avx512.h"

#include "ops/kernels/math_body.h"

#include "backend/cpu/kernels/panel_body.h"

#include "ops/kernels/amx_tiles_body.h"

#include "ops/kernels/amx_halves_body.h"

// One row: sums of panel p in tile p, activations in 4, weights in 5 to 7 by turns.
void configure_one_row() {
  constexpr int kShape = 1;
  if (kShape == configured) return;
  TileConfig config;
  for (int tile = 0; tile < 4; ++tile) config.set(tile, 1, 64);
  config.set(4, 1, 64);
  for (int tile = 5; tile < 8; ++tile) config.set(tile, 16, 64);
  load_config(config, kShape);
}

// ---- quantised weights --------------------------------------------------------------------------------------------

constexpr int kTileRowCounts[] = {32, 31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17,
                                  16, 15, 14, 13, 12, 11, 10, 9,  8,  7,  6,  5,  4,  3,  2,  1};
constexpr int64_t kSquare = 32 * 2 * 16;   // numbers in 2 x 2 tiles, as [row][panel][16]
constexpr int64_t kSquareRowBytes = 2 * 16 * 4;

void widen_panel_signed(uint8_t* codes, float* scales, float* minimums, const std::byte* panel, const PanelFormat& format,
                        int64_t cols) {
  const U8 zero = _mm512_set1_epi8(static_cast<char>(format.zero_point));
  for_format(format.dtype, [&]<DType D>() {
    widen<D>(codes, scales, minimums, panel, cols, [&](U8 w) { return _mm512_sub_epi8(w, zero); });
  });
}

struct Range {
  int64_t begin, end;
};

template <int H, int P>
[[gnu::always_inline]] inline void load_square_sums(const float* from) {
  tile_load<0>(from, kSquareRowBytes);
  if constexpr (P == 2) tile_load<1>(from + 16, kSquareRowBytes);
  if constexpr (H == 2) tile_load<2>(from + kSquare / 2, kSquareRowBytes);
  if constexpr (H == 2 && P == 2) tile_load<3>(from + kSquare / 2 + 16, kSquareRowBytes);
}

// Activations of 16 rows, a group of step_bytes of them, against P panels: the even groups' sums in tiles 0 and 1, the odd ones'
// in 2 and 3, so that a store need not wait for the product that follows. Always 16 rows: what the last ones of a shorter
// tile hold is not looked at.
void configure_group(int step_bytes) {
  if (step_bytes == configured) return;
  TileConfig config;
  for (int tile = 0; tile < 4; ++tile) config.set(tile, 16, 64);
  for (int tile = 4; tile < 6; ++tile) config.set(tile, 16, step_bytes);
  for (int tile = 6; tile < 8; ++tile) config.set(tile, step_bytes / 4, 64);
  load_config(config, step_bytes);
}

// Whole-number dots of one group against P panels, and where they go.
template <int kOdd, int P>
[[gnu::always_inline]] inline void multiply_group(const int8_t* x, const uint8_t* w, int64_t panel_codes) {
  tile_load<4 + kOdd>(x, 32);
  tile_load<6>(w, 64);
  tile_zero<2 * kOdd>();
  tile_dot_int8<2 * kOdd, 4 + kOdd, 6>();
  if constexpr (P == 2) {
    tile_load<7>(w + panel_codes, 64);
    tile_zero<2 * kOdd + 1>();
    tile_dot_int8<2 * kOdd + 1, 4 + kOdd, 7>();
  }
}
template <int kOdd, int P>
[[gnu::always_inline]] inline void store_group(int32_t* dots) {
  tile_store<2 * kOdd>(dots, kSquareRowBytes);
  if constexpr (P == 2) tile_store<2 * kOdd + 1>(dots + 16, kSquareRowBytes);
}

// What turns dots into sums. A copy in locals: the fields of the operands would be read again after every tile load.
struct Factors {
  const float* scales;        // [panels][groups][16]
  const float* minimums;
  const float* x_scales;      // [blocks][rows]
  const float* x_sums;        // [groups][rows]
  int64_t groups, rows;
};

// Adds the dots of the groups of `span`, kSquare apart, to the sums of R rows from `row`, in the order of quantised_tile_of.
template <int R, int P, int kGroup, bool kMinimum>
[[gnu::always_inline]] inline void add_dots(float* sums, const int32_t* dots, int64_t row, const Factors& f, Range span) {
  F32 sum[R][P];
  sums += row * 32;
  repeat<R>([&](auto t) { repeat<P>([&](auto p) { sum[t][p] = f_load(sums + (t * 2 + p) * 16); }); });
  for (int64_t group = span.begin; group < span.end; ++group, dots += kSquare) {
    const float* x_scales = f.x_scales + (kGroup == 32 ? group : group >> 1) * f.rows + row;
    F32 scale[P], minimum[P];
    repeat<P>([&](auto p) {
      scale[p] = f_load(f.scales + (p * f.groups + group) * 16);
      minimum[p] = kMinimum ? f_load(f.minimums + (p * f.groups + group) * 16) : f_zero();
    });
    repeat<R>([&](auto t) {
      const F32 x_scale = f_set1(x_scales[t]);
      repeat<P>([&](auto p) {
        const F32 dot = f_from_i(u_load(dots + (t * 2 + p) * 16));
        sum[t][p] = f_fma(dot, f_mul(scale[p], x_scale), sum[t][p]);
        if constexpr (kMinimum) sum[t][p] = f_fma(minimum[p], f_set1(f.x_sums[group * f.rows + row + t]), sum[t][p]);
      });
    });
  }
  repeat<R>([&](auto t) { repeat<P>([&](auto p) { f_store(sums + (t * 2 + p) * 16, sum[t][p]); }); });
}

// Four rows from `row` (fewer at the tile's end).
template <int P, int kGroup, bool kMinimum>
[[gnu::always_inline]] inline void add_rows(float* sums, const int32_t* dots, int64_t row, const Factors& f, Range span) {
  if (row + 4 <= f.rows) return add_dots<4, P, kGroup, kMinimum>(sums, dots, row, f, span);
  for (; row < f.rows; ++row, dots += 32) add_dots<1, P, kGroup, kMinimum>(sums, dots, row, f, span);
}

constexpr int64_t kPhaseGroups = 4;

// Fetches a row of an output tile of two panels for writing: rows are pages apart and come from memory, and a store that
// waits for its line holds up the stores of dots behind it.
inline void prefetch_output(const OutputTile& out, int64_t row) {
  __builtin_prefetch(out.y + row * out.ld, 1);
  __builtin_prefetch(out.y + row * out.ld + 16, 1);
}

// Works in phases: four groups of 16 rows. While a phase's dots are made, those of the phase before are added, four rows
// after each group. scratch: sums [32][panel][16], then the dots of four groups, 4 KiB each: the even phases' in the first
// half of every 4 KiB, the odd ones' in the second. Loads never stand behind stores to the same place modulo 4 KiB then, which
// the processor takes for the same place until the store is done: that cost half of the time.
template <int P, int kGroup, bool kMinimum>
QUIPU_KERNEL void quantised_square(const OutputTile& out, const WidePanels& w, const QuantisedTile& x, float* scratch) {
  const int64_t groups = w.cols / kGroup;
  const int64_t panel_codes = w.cols * 16;
  const int64_t rows = x.rows;
  const Factors factors{w.scales, w.minimums, x.scales, x.scaled_sums, groups, rows};
  const int8_t* x_codes = x.codes;
  const uint8_t* w_codes = w.codes;
  float* sums = scratch;
  int32_t* dots = reinterpret_cast<int32_t*>(scratch + kSquare);
  const int64_t halves = rows > 16 ? 2 : 1;
  const int64_t phases = (groups + kPhaseGroups - 1) / kPhaseGroups * halves;
  for (int64_t i = 0; i < rows * 2; ++i) f_store(sums + 16 * i, f_zero());
  configure_group(kGroup);
  for (int64_t phase = 0; phase <= phases; ++phase) {
    const int64_t first = phase / halves * kPhaseGroups;
    const int64_t here = phase < phases ? (groups - first < kPhaseGroups ? groups - first : kPhaseGroups) : 0;
    int32_t* made = dots + phase % 2 * (kSquare / 2);
    const int64_t before = (phase - 1) / halves * kPhaseGroups;
    const Range span{before, before + kPhaseGroups < groups ? before + kPhaseGroups : groups};
    const int64_t ready_row = (phase - 1) % halves * 16;
    const int32_t* ready = dots + (phase - 1) % 2 * (kSquare / 2);
    repeat<kPhaseGroups>([&](auto i) {
      if (i < here) {
        const int64_t group = first + i;
        const int64_t at = kGroup == 32 ? group * rows * 32 : (group >> 1) * rows * 32 + (group & 1) * 16;
        multiply_group<i % 2, P>(x_codes + at + phase % halves * 16 * 32, w_codes + group * kGroup * 16, panel_codes);
        store_group<i % 2, P>(made + i * kSquare);
      }
      if (phase > 0) add_rows<P, kGroup, kMinimum>(sums, ready + 4 * i * 32, ready_row + 4 * i, factors, span);
    });
  }
  for (int row = 0; row < x.rows; ++row) {
    repeat<P>([&](auto p) { finish_tile_row(out, row, p, p == P - 1, f_load(sums + (row * 2 + p) * 16)); });
  }
}

// The same for 32 rows, two panels and whole phases, where everything but the codes has a fixed place: unrolled, the scales of
// a phase in registers, and a group's dots stored after the next group's product has begun, which hides its latency.
template <int kGroup, bool kMinimum>
QUIPU_KERNEL void quantised_whole(const OutputTile& out, const WidePanels& w, const QuantisedTile& x, float* scratch) {
  constexpr int64_t kRows = 32;
  constexpr int64_t kScaleStep = kGroup == 32 ? kRows : kRows / 2;   // of x.scales, a group
  const int64_t groups = w.cols / kGroup;
  const int64_t panel_codes = w.cols * 16;
  const int64_t phases = groups / kPhaseGroups * 2;
  const int8_t* x_codes = x.codes;
  const uint8_t* w_codes = w.codes;
  const float *w_scales = w.scales, *w_minimums = w.minimums, *x_scales = x.scales, *x_sums = x.scaled_sums;
  float* sums = scratch;
  int32_t* dots = reinterpret_cast<int32_t*>(scratch + kSquare);
  for (int64_t i = 0; i < kRows * 2; ++i) f_store(sums + 16 * i, f_zero());
  configure_group(kGroup);
  for (int64_t phase = 0; phase <= phases; ++phase) {
    const int64_t half = phase & 1, first = (phase >> 1) * kPhaseGroups;
    const bool making = phase < phases, adding = phase > 0;
    if (phase < kRows) prefetch_output(out, phase);
    int32_t* made = dots + half * (kSquare / 2);
    const int32_t* ready = dots + (half ^ 1) * (kSquare / 2);
    const int64_t before = ((phase - 1) >> 1) * kPhaseGroups;   // the first of the groups that are added
    float* ready_sums = sums + (half ^ 1) * (kSquare / 2);
    F32 scale[kPhaseGroups][2], minimum[kPhaseGroups][2];
    if (adding) {
      repeat<kPhaseGroups>([&](auto g) {
        repeat<2>([&](auto p) {
          scale[g][p] = f_load(w_scales + (p * groups + before + g) * 16);
          if constexpr (kMinimum) minimum[g][p] = f_load(w_minimums + (p * groups + before + g) * 16);
        });
      });
    }
    const float* xs = x_scales + before * kScaleStep + (half ^ 1) * 16;
    const float* xm = x_sums + before * kRows + (half ^ 1) * 16;
    repeat<kPhaseGroups>([&](auto i) {
      if (making) {
        const int64_t group = first + i;
        const int64_t at = (kGroup == 32 ? group * 1024 : (group >> 1) * 1024 + (group & 1) * 16) + half * 512;
        multiply_group<i % 2, 2>(x_codes + at, w_codes + group * kGroup * 16, panel_codes);
      }
      if constexpr (i > 0) {
        if (making) store_group<(i - 1) % 2, 2>(made + (i - 1) * kSquare);
      } else {
        if (adding) store_group<1, 2>(const_cast<int32_t*>(ready) + 3 * kSquare);
      }
      if (adding) {
        repeat<4>([&](auto r) {
          constexpr int64_t kRow = 4 * i + r;
          F32 sum[2];
          repeat<2>([&](auto p) { sum[p] = f_load(ready_sums + (kRow * 2 + p) * 16); });
          repeat<kPhaseGroups>([&](auto g) {
            const F32 x_scale = f_set1(xs[(kGroup == 32 ? g : g / 2) * kRows + kRow]);
            repeat<2>([&](auto p) {
              const F32 dot = f_from_i(u_load(ready + g * kSquare + (kRow * 2 + p) * 16));
              sum[p] = f_fma(dot, f_mul(scale[g][p], x_scale), sum[p]);
              if constexpr (kMinimum) sum[p] = f_fma(minimum[g][p], f_set1(xm[g * kRows + kRow]), sum[p]);
            });
          });
          repeat<2>([&](auto p) { f_store(ready_sums + (kRow * 2 + p) * 16, sum[p]); });
        });
      }
    });
  }
  for (int row = 0; row < kRows; ++row) {
    repeat<2>([&](auto p) { finish_tile_row(out, row, p, p == 1, f_load(sums + (row * 2 + p) * 16)); });
  }
}

void quantised_tile(const OutputTile& out, const WidePanels& w, const QuantisedTile& x, float* scratch) {
  if (x.rows == 32 && w.panels == 2 && w.cols % (kPhaseGroups * w.group) == 0) {
    if (w.group == 16) return w.minimums != nullptr ? quantised_whole<16, true>(out, w, x, scratch) : quantised_whole<16, false>(out, w, x, scratch);
    return w.minimums != nullptr ? quantised_whole<32, true>(out, w, x, scratch) : quantised_whole<32, false>(out, w, x, scratch);
  }
  const auto with_panels = [&]<int P>() {
    if (w.group == 16) {
      if (w.minimums != nullptr) return quantised_square<P, 16, true>(out, w, x, scratch);
      return quantised_square<P, 16, false>(out, w, x, scratch);
    }
    if (w.minimums != nullptr) return quantised_square<P, 32, true>(out, w, x, scratch);
    return quantised_square<P, 32, false>(out, w, x, scratch);
  };
  return w.panels == 2 ? with_panels.template operator()<2>() : with_panels.template operator()<1>();
}

// ---- bf16 weights -------------------------------------------------------------------------------------------------

// Not __builtin_prefetch, which the compiler may move out from between the products.
[[gnu::always_inline]] inline void ask_for_block(const std::byte* block) {
  repeat<kPairedBlockBytes / 64>([block](auto line) { __asm__ volatile("prefetcht1 %0" : : "m"(*(block + 64 * line))); });
}

template <int H, int P>
QUIPU_KERNEL void paired_square(const OutputTile& out, const PairedProduct& product) {
  const std::byte* x = reinterpret_cast<const std::byte*>(product.x);
  const std::byte* w = product.panel;
  const int64_t x_block = product.rows * 64;
  const int64_t blocks = product.blocks, panel_bytes = product.panel_bytes;   // tile loads clobber memory, so to speak
  const std::byte* const ahead[2] = {product.ahead[0], product.ahead[1]};
  configure_square(product.rows, 64);
  if (product.first) {
    zero_square<H, P>();
  } else {
    load_square_sums<H, P>(product.sums);
  }
  const int64_t rows = product.last ? product.rows : 0;
  const int64_t rows_a_block = (rows + blocks - 1) / blocks;
  for (int64_t block = 0; block < blocks; ++block, x += x_block, w += kPairedBlockBytes) {
    for (int64_t row = block * rows_a_block; row < (block + 1) * rows_a_block && row < rows; ++row) prefetch_output(out, row);
    tile_load<6>(w, 64);
    tile_load<4>(x, 64);
    tile_dot_bf16<0, 4, 6>();
    if constexpr (P == 2) {
      tile_load<7>(w + panel_bytes, 64);
      tile_dot_bf16<1, 4, 7>();
    }
    if constexpr (H == 2) {
      tile_load<5>(x + 16 * 64, 64);
      tile_dot_bf16<2, 5, 6>();
      if constexpr (P == 2) tile_dot_bf16<3, 5, 7>();
    }
    if (ahead[0] != nullptr) ask_for_block(ahead[0] + block * kPairedBlockBytes);
    if (ahead[1] != nullptr) ask_for_block(ahead[1] + block * kPairedBlockBytes);
  }
  if (product.last && out.bias == nullptr && out.lanes_last == 16) {
    store_square<H, P>(out.y, out.ld * 4);
    return;
  }
  store_square<H, P>(product.sums, kSquareRowBytes);
  if (!product.last) return;
  for (int row = 0; row < product.rows; ++row) {
    repeat<P>([&](auto p) { finish_tile_row(out, row, p, p == P - 1, f_load(product.sums + (row * 2 + p) * 16)); });
  }
}

void paired_tile(const OutputTile& out, const PairedProduct& product) {
  for_square(product.rows, product.panels, [&]<int H, int P>() { paired_square<H, P>(out, product); });
}

// P panels side by side: P streams of memory.
template <int P>
QUIPU_KERNEL void paired_gemv_panels(float* y, const std::byte* panel, int64_t blocks, const uint16_t* x) {
  const int64_t panel_bytes = blocks * kPairedBlockBytes;
  repeat<P>([&](auto p) { tile_zero<p>(); });
  for (int64_t block = 0; block < blocks; ++block, panel += kPairedBlockBytes) {
    tile_load<4>(x + block * 32, 64);
    repeat<P>([&](auto p) {
      tile_load<5 + p % 3>(panel + p * panel_bytes, 64);
      tile_dot_bf16<p, 4, 5 + p % 3>();
    });
  }
  repeat<P>([&](auto p) { tile_store<p>(y + 16 * p, 64); });
}

void paired_gemv(float* y, const std::byte* panel, int64_t panels, int64_t blocks, const uint16_t* x) {
  configure_one_row();
  const int64_t panel_bytes = blocks * kPairedBlockBytes;
  int64_t p = 0;
  for (; p + 4 <= panels; p += 4) paired_gemv_panels<4>(y + 16 * p, panel + p * panel_bytes, blocks, x);
  for (; p < panels; ++p) paired_gemv_panels<1>(y + 16 * p, panel + p * panel_bytes, blocks, x);
}

// ---- 8-bit codes as bf16 numbers -------------------------------------------------------------------------------------

// What one block's codes are multiplied by. Scales are 2^e m: whole_scale is 128 m in both words of a lane, unit 2^(e - 16).
struct CodedScale {
  __m512i whole;
  F32 unit;
};

[[gnu::always_inline]] inline CodedScale coded_scale(const std::byte* block) {
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + kBlockCols * kPanelRows)));
  const __m512i whole = _mm512_ternarylogic_epi32(bits, _mm512_set1_epi32(0x7f), _mm512_set1_epi32(0x80), 0xea);   // a & b | c
  const __m512i power = _mm512_slli_epi32(_mm512_and_si512(bits, _mm512_set1_epi32(0xff80)), 16);
  return {_mm512_or_si512(whole, _mm512_slli_epi32(whole, 16)), f_mul(_mm512_castsi512_ps(power), f_set1(0x1p-16f))};
}

// Components 4 i to 4 i + 3 of 16 rows as whole numbers, round(m code) 2^16. One VPMULHRSW has 32 of them: code 2^8 * 128 m,
// halved 15 times with rounding.
[[gnu::always_inline]] inline void open_codes(F32 (&out)[4], const std::byte* at, __m512i whole_scale) {
  const __m512i codes = u_load(at);
  const __m512i high_words = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512i even = _mm512_mulhrs_epi16(_mm512_slli_epi16(codes, 8), whole_scale);
  const __m512i odd = _mm512_mulhrs_epi16(_mm512_and_si512(codes, _mm512_set1_epi16(static_cast<short>(0xff00))), whole_scale);
  out[0] = f_from_i(_mm512_slli_epi32(even, 16));
  out[1] = f_from_i(_mm512_slli_epi32(odd, 16));
  out[2] = f_from_i(_mm512_and_si512(even, high_words));
  out[3] = f_from_i(_mm512_and_si512(odd, high_words));
}

void round_coded_row(float* out, const float* x, int64_t cols) {
  for (int64_t k = 0; k < cols; k += 16) {
    const __m256i halves = (__m256i)_mm512_cvtneps_pbh(f_load(x + k));
    const __mmask16 normal = _mm256_test_epi16_mask(halves, _mm256_set1_epi16(0x7f80));
    f_store(out + k, _mm512_castsi512_ps(_mm512_maskz_slli_epi32(normal, _mm512_cvtepu16_epi32(halves), 16)));
  }
}

QUIPU_KERNEL void expand_coded(std::byte* pairs, const std::byte* panel, int64_t blocks) {
  for (int64_t block = 0; block < blocks; ++block, panel += kCodedBlockBytes, pairs += kPairedBlockBytes) {
    const CodedScale scale = coded_scale(panel);
    repeat<8>([&](auto i) {
      F32 w[4];
      open_codes(w, panel + 64 * i, scale.whole);
      repeat<2>([&](auto pair) {   // bf16 numbers, exactly: their lower halves are zero
        const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(f_mul(w[2 * pair], scale.unit)), 16);
        u_store(pairs + 64 * (2 * i + pair), u_or(low, _mm512_castps_si512(f_mul(w[2 * pair + 1], scale.unit))));
      });
    });
  }
}

// The tile unit's order: of a block, the sum of even components and that of odd ones, each from zero, both together, and that
// to the sum of the blocks before. The block's unit is a power of two, so it does not matter when it is multiplied with.
// R rows against P panels side by side: P streams of memory, more than the processor follows by itself, so what comes four
// blocks later is asked for; after a panel that is the panel P on (21.3 to 23.3 tokens/s with four).
template <int P, int R>
QUIPU_KERNEL void coded_gemv_panels(float* y, int64_t ld, const std::byte* panel, int64_t blocks, const float* x) {
  constexpr int64_t kAhead = 4;
  F32 sum[R][P];
  repeat<R>([&](auto r) { repeat<P>([&](auto p) { sum[r][p] = f_zero(); }); });
  const int64_t panel_bytes = blocks * kCodedBlockBytes;
  const int64_t cols = blocks * kBlockCols;
  for (int64_t block = 0; block < blocks; ++block, panel += kCodedBlockBytes, x += kBlockCols) {
    const int64_t ahead = kAhead * kCodedBlockBytes + (block + kAhead < blocks ? 0 : (P - 1) * panel_bytes);
    repeat<P>([&](auto p) {
      const std::byte* at = panel + p * panel_bytes;
      const CodedScale scale = coded_scale(at);
      F32 even[R], odd[R];
      repeat<R>([&](auto r) { even[r] = odd[r] = f_zero(); });
      repeat<8>([&](auto i) {
        F32 w[4];
        open_codes(w, at + 64 * i, scale.whole);
        prefetch(at + 64 * i + ahead);
        repeat<R>([&](auto r) {
          const float* values = x + r * cols + 4 * i;
          even[r] = f_fma(w[0], f_set1(values[0]), even[r]);
          odd[r] = f_fma(w[1], f_set1(values[1]), odd[r]);
          even[r] = f_fma(w[2], f_set1(values[2]), even[r]);
          odd[r] = f_fma(w[3], f_set1(values[3]), odd[r]);
        });
      });
      repeat<R>([&](auto r) { sum[r][p] = f_fma(f_add(even[r], odd[r]), scale.unit, sum[r][p]); });
    });
  }
  repeat<R>([&](auto r) { repeat<P>([&](auto p) { f_store(y + r * ld + 16 * p, sum[r][p]); }); });
}

template <int R>
void coded_gemv_rows(float* y, int64_t ld, const std::byte* panel, int64_t panels, int64_t blocks, const float* x) {
  const int64_t panel_bytes = blocks * kCodedBlockBytes;
  int64_t p = 0;
  for (; p + 4 <= panels; p += 4) coded_gemv_panels<4, R>(y + 16 * p, ld, panel + p * panel_bytes, blocks, x);
  for (; p < panels; ++p) coded_gemv_panels<1, R>(y + 16 * p, ld, panel + p * panel_bytes, blocks, x);
}

void coded_gemv(float* y, int64_t ld, const std::byte* panel, int64_t panels, int64_t blocks, const float* x, int rows) {
  switch (rows) {
    case 1: return coded_gemv_rows<1>(y, ld, panel, panels, blocks, x);
    case 2: return coded_gemv_rows<2>(y, ld, panel, panels, blocks, x);
    case 3: return coded_gemv_rows<3>(y, ld, panel, panels, blocks, x);
    default: return coded_gemv_rows<4>(y, ld, panel, panels, blocks, x);
  }
}

}  // namespace
}  // namespace quipu::cpu

#include "ops/kernels/amx_target_end.h"

namespace quipu::cpu {

const KernelTable& amx_kernels() {
  static const KernelTable table = [] {
    KernelTable t = avx512_kernels();
    t.name = "amx";
    t.integer_tiles = {kTileRowCounts, 32, 512};
    t.few_rows = 4;
    t.paired_tiles = {kTileRowCounts, 32};
    t.tile_scratch_bytes = 5 * kSquare * 4;
    t.end_products = release_tiles;
    t.widen_panel = widen_panel_signed;
    t.quantised_tile = quantised_tile;
    t.round_row = round_row;
    t.paired_gemv = paired_gemv;
    t.paired_tile = paired_tile;
    t.round_coded_row = round_coded_row;
    t.expand_coded = expand_coded;
    t.coded_gemv = coded_gemv;
    return t;
  }();
  return table;
}

}  // namespace quipu::cpu

#endif  // __x86_64__
