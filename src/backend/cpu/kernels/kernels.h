// The kernels of one instruction set, as a table of function pointers. Each table is filled in its own source file, in a
// target region with internal linkage, so that no inline function compiled for AVX-512 can be linked into portable code.
//
// One body serves all sets: kernels/*_body.h is written against the 16-lane vectors of ops/kernels/simd_<isa>.h and included
// once per set. Results may differ between sets in the last bits; within a set they depend on a row's own data only.
#pragma once

#include <cstdint>

#include "backend/cpu/panel_format.h"
#include "ops/kernels/inlining.h"
#include "tensor/dtype.h"

namespace quipu::cpu {

// How a table's kernels want rows of activations: cut into tiles, and a tile laid out as x[cols / run][rows][run].
struct TileShape {
  const int* rows = nullptr;           // row counts there are kernels for, largest first, ending in 1
  int run = 1;                         // components of a row that lie side by side
  int64_t bytes_beyond = 0;            // readable memory behind the last tile
};
inline constexpr int kRegisterTileRows[] = {12, 8, 4, 2, 1};

// A tile of activations for integer products: rows rounded to int8 with one scale per 32 components.
struct QuantisedTile {
  int rows = 0;
  const int8_t* codes = nullptr;       // [cols/run][rows][run]
  const float* scales = nullptr;       // [cols/32][rows]
  const float* scaled_sums = nullptr;  // [cols/group][rows]: scale * sum of the group's codes
  const int32_t* start = nullptr;      // [cols/group][rows]: -zero_point * sum of the group's codes
};

// A pair of panels with its codes widened to one byte: what the many-row kernel reads. Panel p's part follows panel 0's.
// Codes are unsigned, or signed with the zero point taken off: as widen_panel and quantised_tile of one table agree.
struct WidePanels {
  int panels = 0;                      // 1 or 2
  const uint8_t* codes = nullptr;      // [panels][cols/4][16][4]
  const float* scales = nullptr;       // [panels][cols/group][16]
  const float* minimums = nullptr;     // [panels][cols/group][16], or null
  int64_t cols = 0;
  int group = 32;                      // components that share a scale: 16 or 32
};

// A stretch of 32-component blocks of a product of bf16 weights in pairs with activations rounded to bf16. A product may
// be cut into stretches so that their weights stay in a cache; its sums wait in memory, unrounded, and come out the same.
struct PairedProduct {
  int rows = 0;                        // of the tile of activations
  int panels = 0;                      // 1 or 2
  int64_t blocks = 0;
  const uint16_t* x = nullptr;         // [blocks][rows][32]
  const std::byte* panel = nullptr;    // [blocks * 16][16][2] bf16; panel 1 lies panel_bytes on
  int64_t panel_bytes = 0;
  float* sums = nullptr;               // kPairedSumFloats of this tile and these panels
  bool first = true, last = true;      // stretch of the product: starts from zero; finishes into the output
  // As many blocks of two panels that are multiplied next, to be asked for evenly on the way; null: nothing.
  const std::byte* ahead[2] = {nullptr, nullptr};
};
inline constexpr int64_t kPairedSumFloats = 32 * 2 * 16;
inline constexpr int kCodedRows = 4;

// y[row][panel*16 + lane] for `panels` panels; ld: floats between rows of y.
struct OutputTile {
  float* y = nullptr;
  int64_t ld = 0;
  int lanes_last = 16;                 // valid lanes of the last panel
  const float* bias = nullptr;         // [panels * 16] valid lanes only, or null
};

struct KernelTable {
  const char* name;

  // --- matrix products -------------------------------------------------------------------------------------------
  TileShape integer_tiles;     // of quantised_tile
  int few_rows;                // up to so many rows, quantised_gemv beats quantised_tile
  TileShape float_tiles;       // of float_tile
  TileShape paired_tiles;      // of paired_tile
  int64_t tile_scratch_bytes;  // what quantised_tile wants
  // Called by a thread that is done with its products for now: gives back registers that burden a switch of threads.
  void (*end_products)();
  // Rounds one row to int8: codes [cols], scales [cols/32], sums of codes [cols/16]. cols is a multiple of 32.
  void (*quantise_row)(int8_t* codes, float* scales, int32_t* sums16, const float* x, int64_t cols);
  // One or two rows times `panels` panels (any count) of a quantised matrix; x: a tile of one row for each, y rows ld apart.
  void (*quantised_gemv)(float* y, int64_t ld, const std::byte* panel, int64_t panels, const PanelFormat& format, int64_t cols,
                         const QuantisedTile* x, int rows);
  // Widens one panel into codes, scales and minimums of WidePanels.
  void (*widen_panel)(uint8_t* codes, float* scales, float* minimums, const std::byte* panel, const PanelFormat& format,
                      int64_t cols);
  // scratch: tile_scratch_bytes, aligned to 64.
  void (*quantised_tile)(const OutputTile& out, const WidePanels& w, const QuantisedTile& x, float* scratch);

  // Float panels [cols][16] of f32, f16 or bf16. x: [cols][rows] floats; panels 1 or 2 per call in float_tile, any
  // number in float_gemv.
  void (*float_gemv)(float* y, const std::byte* panel, int64_t panels, DType dtype, int64_t cols, const float* x);
  void (*float_tile)(const OutputTile& out, const std::byte* panel, int panels, DType dtype, int64_t cols, const float* x,
                     int rows);

  // bf16 weights in pairs (PanelKind::kPairedHalves) against activations rounded to bf16; null where a set multiplies bf16
  // weights in fp32 as float panels. round_row: components 32 b to 32 b + 31 go to out + b * ld, zeros beyond cols.
  void (*round_row)(uint16_t* out, int64_t ld, const float* x, int64_t cols);
  void (*paired_gemv)(float* y, const std::byte* panel, int64_t panels, int64_t blocks, const uint16_t* x);
  void (*paired_tile)(const OutputTile& out, const PairedProduct& product);
  bool pairs_bf16() const { return paired_tile != nullptr; }
  // Q8_0 weights that become bf16 (pack_coded_panel). expand_coded writes blocks of one panel as pairs. coded_gemv has the numbers
  // paired_tile finds on those, for at most kCodedRows rows, ld apart in y; x: [rows][blocks * 32] from round_coded_row: numbers
  // that round_row finds, as floats; subnormal ones are zero, which the tile unit takes them for. cols is a multiple of 32.
  void (*round_coded_row)(float* out, const float* x, int64_t cols);
  void (*expand_coded)(std::byte* pairs, const std::byte* panel, int64_t blocks);
  void (*coded_gemv)(float* y, int64_t ld, const std::byte* panel, int64_t panels, int64_t blocks, const float* x, int rows);

  // --- rows ---------------------------------------------------------------------------------------------------------
  void (*rms_norm_row)(float* out, const float* x, const float* weight, int64_t n, float epsilon);
  void (*add_row)(float* x, const float* y, int64_t n);
  void (*silu_gate_row)(float* out, const float* gate, const float* up, int64_t n);
  void (*gelu_gate_row)(float* out, const float* gate, const float* up, int64_t n);
  void (*rope_row)(float* head, const float* cos_sin, int64_t pairs, int64_t step, int64_t offset);
};

const KernelTable& portable_kernels();
#if defined(__x86_64__)
const KernelTable& avx2_kernels();
const KernelTable& avx512_kernels();
const KernelTable& amx_kernels();
#endif

}  // namespace quipu::cpu
