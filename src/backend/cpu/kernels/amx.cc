// Kernels for AMX (tile, int8, bf16) on top of AVX-512: the AVX-512 table with other products of many rows, and other
// products of bf16 weights. See kernels.h.
//
// Quantised weights. Tiles multiply the codes of one scale group (32 or 16 components) of up to 32 rows with two panels:
// 2 x 2 tiles of integer dots, which go through L1 and are scaled and summed by AVX-512 in the order of matmul_body.h. The
// dots are whole numbers, so results equal the one-row VNNI kernel's bit for bit. Weights are widened to signed values, the
// zero point taken off: TDPBSSD then needs no correction, which saves one of four vector operations a dot.
//
// What to expect for a group of 32, 32 rows, two panels (not measured: written where no processor had AMX): the tile unit
// is busy 4 x 16 cycles; the sums take 64 x 3 vector operations on two ports, 96 cycles, and 64 + 32 vector stores, 96
// cycles. They overlap, as a group's tile operations stand before half of another group's sums: about 100 cycles for 65536
// operations, 1.3 TOP/s a core at 2 GHz, where VNNI peaks at 0.6. Groups of 16 cost the same for half the operations.
//
// bf16 weights. 2 x 2 tiles over all columns, 64 tile-unit cycles a block of 32 columns for 65536 operations: 2 TFLOP/s a
// core at 2 GHz from L1. One row takes the same instruction with tiles of one row, so a row's result does not depend on
// how many rows are computed with it.
#if defined(__x86_64__)

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <immintrin.h>

#include "backend/cpu/kernels/kernels.h"
#include "tensor/float16.h"

// Everything below has internal linkage and instantiates no template of a header above; see avx512.cc.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-int8,amx-bf16,prefer-vector-width=512")
#endif

namespace quipu::cpu {
namespace {

#include "ops/kernels/simd_avx512.h"

#include "ops/kernels/math_body.h"

#include "backend/cpu/kernels/panel_body.h"

// ---- tile registers -----------------------------------------------------------------------------------------------

// Not the compiler's intrinsics: GCC 12's do not say that LDTILECFG reads 64 bytes and TILELOADD memory, so the stores
// before them are dropped or moved, and the first tile instruction is SIGILL (ggml-org/llama.cpp#26954).
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
// Sums += A B, signed bytes in fours.
template <int kSums, int kA, int kB>
inline void tile_dot_int8() { __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB)); }
// Sums += A B, bf16 in pairs.
template <int kSums, int kA, int kB>
inline void tile_dot_bf16() { __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB)); }

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
  void set(int tile, int tile_rows, int bytes) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};

// What this thread's tiles are configured for: a number for each configuration below, 0 for none. Loading one takes about as
// long as ten tile products, so it is done when the shape changes, and end_products() gives the registers back.
thread_local int configured = 0;

void load_config(const TileConfig& config, int shape) {
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
  configured = shape;
}

// Sums of row half h and panel p in tile 2 h + p; activations of half h in 4 + h; weights of panel p in 6 + p. A step
// multiplies step_bytes of every row.
void configure_square(int rows, int step_bytes) {
  const int shape = rows * 128 + step_bytes;
  if (shape == configured) return;
  TileConfig config;
  for (int half = 0; half < 2; ++half) {
    const int half_rows = half == 0 ? (rows < 16 ? rows : 16) : rows - 16;
    if (half_rows <= 0) continue;
    config.set(2 * half, half_rows, 64);
    config.set(2 * half + 1, half_rows, 64);
    config.set(4 + half, half_rows, step_bytes);
  }
  config.set(6, step_bytes / 4, 64);
  config.set(7, step_bytes / 4, 64);
  load_config(config, shape);
}

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

// Tiles in use make the system save 8 KiB at every switch of threads.
void release_tiles() {
  if (configured == 0) return;
  __asm__ volatile("tilerelease");
  configured = 0;
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
[[gnu::always_inline]] inline void zero_square() {
  tile_zero<0>();
  if constexpr (P == 2) tile_zero<1>();
  if constexpr (H == 2) tile_zero<2>();
  if constexpr (H == 2 && P == 2) tile_zero<3>();
}

// The square to or from memory: rows row_bytes apart, panel 1 beside panel 0.
template <int H, int P>
[[gnu::always_inline]] inline void store_square(void* to, int64_t row_bytes) {
  std::byte* at = static_cast<std::byte*>(to);
  tile_store<0>(at, row_bytes);
  if constexpr (P == 2) tile_store<1>(at + 64, row_bytes);
  if constexpr (H == 2) tile_store<2>(at + 16 * row_bytes, row_bytes);
  if constexpr (H == 2 && P == 2) tile_store<3>(at + 16 * row_bytes + 64, row_bytes);
}

template <int H, int P>
[[gnu::always_inline]] inline void load_square_sums(const float* from) {
  tile_load<0>(from, kSquareRowBytes);
  if constexpr (P == 2) tile_load<1>(from + 16, kSquareRowBytes);
  if constexpr (H == 2) tile_load<2>(from + kSquare / 2, kSquareRowBytes);
  if constexpr (H == 2 && P == 2) tile_load<3>(from + kSquare / 2 + 16, kSquareRowBytes);
}

// Whole-number dots of one group: H halves of 16 rows against P panels. Each load stands before its first use only.
template <int H, int P>
[[gnu::always_inline]] inline void multiply_group(int32_t* dots, const int8_t* x, const uint8_t* w, int64_t panel_codes) {
  zero_square<H, P>();
  tile_load<6>(w, 64);
  tile_load<4>(x, 32);
  tile_dot_int8<0, 4, 6>();
  if constexpr (P == 2) {
    tile_load<7>(w + panel_codes, 64);
    tile_dot_int8<1, 4, 7>();
  }
  if constexpr (H == 2) {
    tile_load<5>(x + 16 * 32, 32);
    tile_dot_int8<2, 5, 6>();
    if constexpr (P == 2) tile_dot_int8<3, 5, 7>();
  }
  store_square<H, P>(dots, kSquareRowBytes);
}

// What turns dots into sums. A copy in locals: the fields of the operands would be read again after every tile load.
struct Factors {
  const float* scales;        // [panels][groups][16]
  const float* minimums;
  const float* x_scales;      // [blocks][rows]
  const float* x_sums;        // [groups][rows]
  int64_t groups, rows;
};

// Adds the dots of the groups of `span` to the sums of R rows from `row`, in the order of quantised_tile_of.
template <int R, int P, int kGroup, bool kMinimum>
[[gnu::always_inline]] inline void add_dots(float* sums, const int32_t* dots, int64_t row, const Factors& f, Range span) {
  F32 sum[R][P];
  sums += row * 32;
  dots += row * 32;
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

template <int P, int kGroup, bool kMinimum>
[[gnu::always_inline]] inline void add_rows(float* sums, const int32_t* dots, Range rows, const Factors& f, Range span) {
  int64_t row = rows.begin;
  for (; row + 8 <= rows.end; row += 8) add_dots<8, P, kGroup, kMinimum>(sums, dots, row, f, span);
  for (; row < rows.end; ++row) add_dots<1, P, kGroup, kMinimum>(sums, dots, row, f, span);
}

// scratch: sums, then the dots of two steps of two groups: while one step's dots are summed the next step's are made.
template <int H, int P, int kGroup, bool kMinimum>
QUIPU_KERNEL void quantised_square(const OutputTile& out, const WidePanels& w, const QuantisedTile& x, float* scratch) {
  constexpr int64_t kStep = 2;
  const int64_t groups = w.cols / kGroup;
  const int64_t panel_codes = w.cols * 16;
  const int64_t rows = x.rows;
  const int64_t upper = rows < 16 ? rows : 16;
  const Factors factors{w.scales, w.minimums, x.scales, x.scaled_sums, groups, rows};
  const int8_t* x_codes = x.codes;
  const uint8_t* w_codes = w.codes;
  float* sums = scratch;
  int32_t* dots = reinterpret_cast<int32_t*>(scratch + kSquare);
  const auto multiply = [=](int64_t group) {
    if (group >= groups) return;
    const int8_t* codes = x_codes + (kGroup == 32 ? group * rows * 32 : (group >> 1) * rows * 32 + (group & 1) * 16);
    multiply_group<H, P>(dots + group % (2 * kStep) * kSquare, codes, w_codes + group * kGroup * 16, panel_codes);
  };
  for (int64_t i = 0; i < rows * 2; ++i) f_store(sums + 16 * i, f_zero());
  configure_square(x.rows, kGroup);
  multiply(0);
  multiply(1);
  for (int64_t group = 0; group < groups; group += kStep) {
    const Range span{group, group + kStep < groups ? group + kStep : groups};
    const int32_t* ready = dots + group % (2 * kStep) * kSquare;
    multiply(group + kStep);
    add_rows<P, kGroup, kMinimum>(sums, ready, {0, upper}, factors, span);
    multiply(group + kStep + 1);
    if constexpr (H == 2) add_rows<P, kGroup, kMinimum>(sums, ready, {16, rows}, factors, span);
  }
  for (int row = 0; row < x.rows; ++row) {
    repeat<P>([&](auto p) { finish_tile_row(out, row, p, p == P - 1, f_load(sums + (row * 2 + p) * 16)); });
  }
}

// Calls action.template operator()<H, P>() for the halves and panels there are.
template <class Action>
void for_square(int rows, int panels, const Action& action) {
  if (rows > 16) {
    return panels == 2 ? action.template operator()<2, 2>() : action.template operator()<2, 1>();
  }
  return panels == 2 ? action.template operator()<1, 2>() : action.template operator()<1, 1>();
}

void quantised_tile(const OutputTile& out, const WidePanels& w, const QuantisedTile& x, float* scratch) {
  for_square(x.rows, w.panels, [&]<int H, int P>() {
    if (w.group == 16) {
      if (w.minimums != nullptr) return quantised_square<H, P, 16, true>(out, w, x, scratch);
      return quantised_square<H, P, 16, false>(out, w, x, scratch);
    }
    if (w.minimums != nullptr) return quantised_square<H, P, 32, true>(out, w, x, scratch);
    return quantised_square<H, P, 32, false>(out, w, x, scratch);
  });
}

// ---- bf16 weights -------------------------------------------------------------------------------------------------

void round_row(uint16_t* out, int64_t ld, const float* x, int64_t cols) {
  for (int64_t k = 0; k < (cols + 31) / 32 * 32; k += 16) {
    const int64_t left = cols - k;
    const F32 values = left >= 16 ? f_load(x + k) : left > 0 ? f_load_part(x + k, static_cast<int>(left)) : f_zero();
    const __m256i halves = (__m256i)_mm512_cvtneps_pbh(values);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + k / 32 * ld + k % 32), halves);
  }
}

template <int H, int P>
QUIPU_KERNEL void paired_square(const OutputTile& out, const PairedProduct& product) {
  const std::byte* x = reinterpret_cast<const std::byte*>(product.x);
  const std::byte* w = product.panel;
  const int64_t x_block = product.rows * 64;
  const int64_t blocks = product.blocks, panel_bytes = product.panel_bytes;   // tile loads clobber memory, so to speak
  configure_square(product.rows, 64);
  if (product.first) {
    zero_square<H, P>();
  } else {
    load_square_sums<H, P>(product.sums);
  }
  for (int64_t block = 0; block < blocks; ++block, x += x_block, w += kPairedBlockBytes) {
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

}  // namespace
}  // namespace quipu::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace quipu::cpu {

const KernelTable& amx_kernels() {
  static const KernelTable table = [] {
    KernelTable t = avx512_kernels();
    t.name = "amx";
    t.integer_tiles = {kTileRowCounts, 32};
    t.paired_tiles = {kTileRowCounts, 32};
    t.tile_scratch_bytes = 5 * kSquare * 4;
    t.end_products = release_tiles;
    t.widen_panel = widen_panel_signed;
    t.quantised_tile = quantised_tile;
    t.round_row = round_row;
    t.paired_gemv = paired_gemv;
    t.paired_tile = paired_tile;
    return t;
  }();
  return table;
}

}  // namespace quipu::cpu

#endif  // __x86_64__
