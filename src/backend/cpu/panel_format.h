// How the CPU back end lays out weight matrices: panels of 16 rows, so that a vector register holds one component (or
// four 8-bit ones) of 16 outputs and no product needs a sum across lanes.
//
// Quantised panel: for every block of 32 components { codes, scale fields }, and for K formats a header before every 8th
// block. Codes are unsigned: code = value + zero_point. Within a block the code of row r, component 4 i + c, sits in
// byte [i][r][c] of an 8 x 64-byte square; narrower codes are kept as bit planes over the same square:
//   8 bits: 8 vectors of 64 bytes
//   4 bits: 4 vectors; vector i holds square rows i (low nibble) and i + 4 (high nibble)
//   2 bits: 2 vectors; vector i holds square rows 4 i + j in bits 2 j
//   1 bit:  8 words of 64 bits; word i, bit 4 r + c
// Q5 = 4 + 1 planes, Q6 = 4 + 2, Q3 = 2 + 1. The bytes of a panel equal the bytes of its 16 rows in the file, but for the
// K formats' 6-bit scales, which take 8 bits here.
#pragma once

#include <cstdint>

#include "ops/kernels/segment_attention.h"
#include "tensor/dtype.h"
#include "tensor/quant_layout.h"

namespace quipu::cpu {

inline constexpr int64_t kPanelRows = 16;

enum class ScaleKind : uint8_t {
  kHalf,          // f16 scale [16]
  kHalfMin,       // f16 scale [16], f16 minimum [16]: w = scale * code + minimum
  kSuper32Min,    // header f16 d [16], f16 dmin [16]; block u8 scale [16], u8 min [16]: w = d s code - dmin m
  kSuper16,       // header f16 d [16]; block i8 scale [2][16], one per 16 components: w = d s (code - zero)
  kSuper16Min,    // header f16 d [16], f16 dmin [16]; block u8 [2][16]: scale low nibble, min high nibble
};

struct PanelFormat {
  DType dtype;
  uint8_t nibble_planes;   // 4-bit planes: 0 or 1 (of 4 vectors)
  uint8_t pair_planes;     // 2-bit planes
  uint8_t bit_planes;      // 1-bit planes
  uint8_t byte_planes;     // 8-bit
  int zero_point;
  ScaleKind scale_kind;
  int group() const { return scale_kind == ScaleKind::kSuper16 || scale_kind == ScaleKind::kSuper16Min ? 16 : 32; }
  bool has_minimum() const {
    return scale_kind == ScaleKind::kHalfMin || scale_kind == ScaleKind::kSuper32Min || scale_kind == ScaleKind::kSuper16Min;
  }
  int64_t code_bytes() const { return byte_planes * 512 + nibble_planes * 256 + pair_planes * 128 + bit_planes * 64; }
  int64_t scale_bytes() const {
    switch (scale_kind) {
      case ScaleKind::kHalf: return 32;
      case ScaleKind::kHalfMin: return 64;
      default: return 32;
    }
  }
  int64_t header_bytes() const {   // before every 8th block
    switch (scale_kind) {
      case ScaleKind::kSuper32Min: case ScaleKind::kSuper16Min: return 64;
      case ScaleKind::kSuper16: return 32;
      default: return 0;
    }
  }
  int64_t block_bytes() const { return code_bytes() + scale_bytes(); }
  int64_t panel_bytes(int64_t cols) const {
    return cols / kBlockCols * block_bytes() + (header_bytes() > 0 ? cols / 256 * header_bytes() : 0);
  }
};

// The layout of a quantised dtype.
const PanelFormat& panel_format(DType dtype);

// IQ4_NL's table, shifted by its zero point of 128: what codes stand for once they are unsigned.
struct UnsignedCodeBook {
  uint8_t values[16];
};
inline constexpr UnsignedCodeBook kIq4CodeBook = [] {
  UnsignedCodeBook book{};
  for (size_t i = 0; i < 16; ++i) book.values[i] = static_cast<uint8_t>(kIq4NlValues[i] + 128);
  return book;
}();

// Packs 16 rows (fewer at the matrix's end: missing rows become zero) of a quantised matrix into one panel.
// rows: first row's bytes; row_stride: bytes between rows.
void pack_quantised_panel(std::byte* panel, const std::byte* rows, int64_t row_stride, int64_t valid_rows, int64_t cols,
                          const PanelFormat& format);

// Packs 16 rows of f32, f16 or bf16 into [cols][16].
void pack_float_panel(std::byte* panel, const std::byte* rows, int64_t row_stride, int64_t valid_rows, int64_t cols,
                      DType dtype);

// bf16 weights for instructions that multiply pairs: blocks of ops/kernels/segment_attention.h, cols filled up with zeros.
static_assert(kPairedBlockBytes == kBlockCols * kPanelRows * 2);
void pack_paired_panel(std::byte* panel, const std::byte* rows, int64_t row_stride, int64_t valid_rows, int64_t cols);

// Q8_0 weights that are multiplied as bf16 numbers: for every block of 32 components the square of panel_format(kQ8_0), but of
// signed codes, then 16 scales rounded to bf16. With scale = 2^e m, 1 <= m < 2, a weight is the bf16 number 2^e round(m code),
// |round(m code)| <= 256: at most 2^(e-1), half a code, away from what the file says, and 2^-8 of it for the scale's rounding.
// bf16's own rounding of scale * code would be finer, and cost a generated token twice the instructions.
inline constexpr int64_t kCodedBlockBytes = kBlockCols * kPanelRows + kPanelRows * 2;
void pack_coded_panel(std::byte* panel, const std::byte* rows, int64_t row_stride, int64_t valid_rows, int64_t cols);

}  // namespace quipu::cpu
