#include "backend/cpu/panel_format.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "tensor/float16.h"
#include "tensor/quant_layout.h"

namespace quipu::cpu {
namespace {

constexpr PanelFormat kFormats[] = {
    // dtype           nibbles pairs bits bytes zero scales
    {DType::kQ4_0,     1, 0, 0, 0,   8, ScaleKind::kHalf},
    {DType::kQ4_1,     1, 0, 0, 0,   0, ScaleKind::kHalfMin},
    {DType::kQ5_0,     1, 0, 1, 0,  16, ScaleKind::kHalf},
    {DType::kQ5_1,     1, 0, 1, 0,   0, ScaleKind::kHalfMin},
    {DType::kQ8_0,     0, 0, 0, 1, 128, ScaleKind::kHalf},
    {DType::kQ2_K,     0, 1, 0, 0,   0, ScaleKind::kSuper16Min},
    {DType::kQ3_K,     0, 1, 1, 0,   4, ScaleKind::kSuper16},
    {DType::kQ4_K,     1, 0, 0, 0,   0, ScaleKind::kSuper32Min},
    {DType::kQ5_K,     1, 0, 1, 0,   0, ScaleKind::kSuper32Min},
    {DType::kQ6_K,     1, 1, 0, 0,  32, ScaleKind::kSuper16},
    {DType::kIQ4_NL,   1, 0, 0, 0, 128, ScaleKind::kHalf},
};

// One block of a row in the file's format (32 or 256 components), its fields laid open.
struct OpenBlock {
  uint8_t codes[256] = {};           // one a byte, unsigned
  uint16_t scale = 0, minimum = 0;   // f16 bits of the block's d and m or dmin
  uint8_t fields[8][2] = {};         // K formats: the two scale bytes of every 32 components, as panels keep them
};

template <class Block>
Block load_block(const std::byte* bytes) {
  Block block;
  std::memcpy(&block, bytes, sizeof(block));
  return block;
}

void open_block(OpenBlock& out, const BlockQ5_0& b) {
  out.scale = b.d;
  unpack_plane<4, 16>(out.codes, b.codes, 32);
  unpack_plane<1, 1>(out.codes, b.high, 32, 4);
}

void open_block(OpenBlock& out, const BlockQ5_1& b) {
  out.scale = b.d;
  out.minimum = b.m;
  unpack_plane<4, 16>(out.codes, b.codes, 32);
  unpack_plane<1, 1>(out.codes, b.high, 32, 4);
}

void open_block(OpenBlock& out, const BlockQ2_K& b) {
  out.scale = b.d;
  out.minimum = b.dmin;
  unpack_plane<2, 32>(out.codes, b.codes, 256);
  std::memcpy(out.fields, b.scales, sizeof(out.fields));
}

void open_block(OpenBlock& out, const BlockQ3_K& b) {
  out.scale = b.d;
  unpack_plane<2, 32>(out.codes, b.codes, 256);
  unpack_plane<1, 32>(out.codes, b.high, 256, 2);
  uint8_t scales[16] = {};
  unpack_plane<4, 8>(scales, b.scales, 16);
  unpack_plane<2, 4>(scales, b.scales + 8, 16, 4);
  for (int g = 0; g < 16; ++g) out.fields[g / 2][g % 2] = static_cast<uint8_t>(scales[g] - 32);
}

template <class Block>
void open_six_bit_scales(OpenBlock& out, const Block& b) {
  out.scale = b.d;
  out.minimum = b.dmin;
  uint8_t scales[8], minimums[8];
  unpack_scales_6(scales, minimums, b.scales);
  for (int g = 0; g < 8; ++g) {
    out.fields[g][0] = scales[g];
    out.fields[g][1] = minimums[g];
  }
  unpack_plane<4, 32>(out.codes, b.codes, 256);
}

void open_block(OpenBlock& out, const BlockQ4_K& b) { open_six_bit_scales(out, b); }

void open_block(OpenBlock& out, const BlockQ5_K& b) {
  open_six_bit_scales(out, b);
  unpack_plane<1, 32>(out.codes, b.high, 256, 4);
}

void open_block(OpenBlock& out, const BlockQ6_K& b) {
  out.scale = b.d;
  unpack_plane<4, 64>(out.codes, b.codes, 256);
  unpack_plane<2, 32>(out.codes, b.high, 256, 4);
  std::memcpy(out.fields, b.scales, sizeof(out.fields));
}

// Opens the block at `bytes`. Formats that only change places (is_plain) are not opened.
OpenBlock open_block(DType dtype, const std::byte* bytes) {
  OpenBlock out;
  switch (dtype) {
    case DType::kQ5_0: open_block(out, load_block<BlockQ5_0>(bytes)); break;
    case DType::kQ5_1: open_block(out, load_block<BlockQ5_1>(bytes)); break;
    case DType::kQ2_K: open_block(out, load_block<BlockQ2_K>(bytes)); break;
    case DType::kQ3_K: open_block(out, load_block<BlockQ3_K>(bytes)); break;
    case DType::kQ4_K: open_block(out, load_block<BlockQ4_K>(bytes)); break;
    case DType::kQ5_K: open_block(out, load_block<BlockQ5_K>(bytes)); break;
    case DType::kQ6_K: open_block(out, load_block<BlockQ6_K>(bytes)); break;
    default: CHECK(false) << dtype_name(dtype);
  }
  return out;
}

void put_half(std::byte* at, int64_t lane, uint16_t bits) { std::memcpy(at + 2 * lane, &bits, 2); }

// Writes one row's codes into the planes of a panel block.
void write_codes(std::byte* block, const PanelFormat& format, int64_t lane, const uint8_t* codes) {
  uint8_t* out = reinterpret_cast<uint8_t*>(block);
  int low_bits = 0;
  if (format.nibble_planes != 0) {
    for (int i = 0; i < 4; ++i) {
      for (int c = 0; c < 4; ++c) {
        out[64 * i + 4 * lane + c] = static_cast<uint8_t>((codes[4 * i + c] & 15) | (codes[16 + 4 * i + c] & 15) << 4);
      }
    }
    out += 256;
    low_bits = 4;
  }
  if (format.pair_planes != 0) {
    for (int v = 0; v < 2; ++v) {
      for (int c = 0; c < 4; ++c) {
        int packed = 0;
        for (int j = 0; j < 4; ++j) packed |= (codes[4 * (4 * v + j) + c] >> low_bits & 3) << (2 * j);
        out[64 * v + 4 * lane + c] = static_cast<uint8_t>(packed);
      }
    }
    out += 128;
    low_bits += 2;
  }
  if (format.bit_planes != 0) {
    for (int i = 0; i < 8; ++i) {
      for (int c = 0; c < 4; ++c) {
        const int64_t bit = 4 * lane + c;
        const int value = codes[4 * i + c] >> low_bits & 1;
        out[8 * i + bit / 8] = static_cast<uint8_t>(out[8 * i + bit / 8] | value << (bit % 8));
      }
    }
  }
}

// Q4_0, Q4_1, Q8_0: the file's bytes only change places, four at a time.
void pack_plain_block(std::byte* block, const PanelFormat& format, int64_t lane, const std::byte* source) {
  const bool minimum = format.scale_kind == ScaleKind::kHalfMin;
  std::byte* fields = block + format.code_bytes();
  std::memcpy(fields + 2 * lane, source, 2);
  if (minimum) std::memcpy(fields + 32 + 2 * lane, source + 2, 2);
  const std::byte* codes = source + (minimum ? 4 : 2);
  const int vectors = format.byte_planes != 0 ? 8 : 4;
  const uint32_t flip = format.byte_planes != 0 ? 0x80808080u : 0u;
  for (int i = 0; i < vectors; ++i) {
    uint32_t word;
    std::memcpy(&word, codes + 4 * i, 4);
    word ^= flip;
    std::memcpy(block + 64 * i + 4 * lane, &word, 4);
  }
}

// The others: their codes are laid open first.
void pack_open_block(std::byte* at, const PanelFormat& format, int64_t lane, const OpenBlock& source) {
  const int64_t header_bytes = format.header_bytes();
  std::byte* units = header_bytes > 0 ? at : at + format.code_bytes();
  put_half(units, lane, source.scale);
  if (format.has_minimum()) put_half(units + 32, lane, source.minimum);
  if (header_bytes == 0) return write_codes(at, format, lane, source.codes);
  at += header_bytes;
  for (int g = 0; g < 8; ++g, at += format.block_bytes()) {
    write_codes(at, format, lane, source.codes + kBlockCols * g);
    std::byte* fields = at + format.code_bytes();
    fields[lane] = static_cast<std::byte>(source.fields[g][0]);
    fields[16 + lane] = static_cast<std::byte>(source.fields[g][1]);
  }
}

bool is_plain(const PanelFormat& format) {
  return format.dtype == DType::kQ4_0 || format.dtype == DType::kQ4_1 || format.dtype == DType::kQ8_0 ||
         format.dtype == DType::kIQ4_NL;
}

}  // namespace

const PanelFormat& panel_format(DType dtype) {
  for (const PanelFormat& format : kFormats) {
    if (format.dtype == dtype) return format;
  }
  CHECK(false) << "no panel format for " << dtype_name(dtype);
  return kFormats[0];
}

void pack_quantised_panel(std::byte* panel, const std::byte* rows, int64_t row_stride, int64_t valid_rows, int64_t cols,
                          const PanelFormat& format) {
  const DTypeTraits& source = traits(format.dtype);
  const int64_t panel_bytes = format.panel_bytes(cols);
  if (valid_rows < kPanelRows || format.bit_planes != 0) std::memset(panel, 0, static_cast<size_t>(panel_bytes));
  const int64_t blocks = cols / source.block_elements;   // of the file: one panel block each, or eight after a header
  for (int64_t block = 0; block < blocks; ++block) {
    std::byte* at = panel + block * (panel_bytes / blocks);
    for (int64_t lane = 0; lane < valid_rows; ++lane) {
      const std::byte* bytes = rows + lane * row_stride + block * source.block_bytes;
      if (is_plain(format)) {
        pack_plain_block(at, format, lane, bytes);
      } else {
        pack_open_block(at, format, lane, open_block(format.dtype, bytes));
      }
    }
  }
}

void pack_float_panel(std::byte* panel, const std::byte* rows, int64_t row_stride, int64_t valid_rows, int64_t cols,
                      DType dtype) {
  const int64_t size = row_bytes(dtype, 1);
  if (valid_rows < kPanelRows) std::memset(panel, 0, static_cast<size_t>(cols * kPanelRows * size));
  // Tiles of 64 columns keep both sides in the cache.
  for (int64_t begin = 0; begin < cols; begin += 64) {
    const int64_t end = std::min<int64_t>(cols, begin + 64);
    for (int64_t lane = 0; lane < valid_rows; ++lane) {
      const std::byte* row = rows + lane * row_stride;
      if (size == 2) {
        for (int64_t k = begin; k < end; ++k) std::memcpy(panel + (k * kPanelRows + lane) * 2, row + k * 2, 2);
      } else {
        for (int64_t k = begin; k < end; ++k) std::memcpy(panel + (k * kPanelRows + lane) * 4, row + k * 4, 4);
      }
    }
  }
}

void pack_paired_panel(std::byte* panel, const std::byte* rows, int64_t row_stride, int64_t valid_rows, int64_t cols) {
  if (valid_rows < kPanelRows || cols % kBlockCols != 0) {
    std::memset(panel, 0, static_cast<size_t>(paired_blocks(cols) * kPairedBlockBytes));
  }
  // Blocks of 64 columns keep both sides in the cache.
  for (int64_t begin = 0; begin < cols; begin += 64) {
    const int64_t end = std::min<int64_t>(cols, begin + 64);
    for (int64_t lane = 0; lane < valid_rows; ++lane) {
      const std::byte* row = rows + lane * row_stride;
      for (int64_t k = begin; k < end; k += 2) {
        std::memcpy(panel + (k / 2 * kPanelRows + lane) * 4, row + k * 2, k + 1 < cols ? 4 : 2);
      }
    }
  }
}

void pack_coded_panel(std::byte* panel, const std::byte* rows, int64_t row_stride, int64_t valid_rows, int64_t cols) {
  if (valid_rows < kPanelRows) std::memset(panel, 0, static_cast<size_t>(cols / kBlockCols * kCodedBlockBytes));
  for (int64_t block = 0; block < cols / kBlockCols; ++block, panel += kCodedBlockBytes) {
    for (int64_t lane = 0; lane < valid_rows; ++lane) {
      const auto source = load_block<BlockQ8_0>(rows + lane * row_stride + block * static_cast<int64_t>(sizeof(BlockQ8_0)));
      for (int64_t i = 0; i < kBlockCols / 4; ++i) std::memcpy(panel + 64 * i + 4 * lane, source.codes + 4 * i, 4);
      put_half(panel + kBlockCols * kPanelRows, lane, f32_to_bf16(f16_to_f32(source.d)));
    }
  }
}

}  // namespace quipu::cpu
