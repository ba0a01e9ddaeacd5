#include "backend/cpu/panel_format.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"

namespace quipu::cpu {
namespace {

constexpr PanelFormat kFormats[] = {
    // dtype           nibbles pairs bits bytes zero scales                     codebook
    {DType::kQ4_0,     1, 0, 0, 0,   8, ScaleKind::kHalf,       false},
    {DType::kQ4_1,     1, 0, 0, 0,   0, ScaleKind::kHalfMin,    false},
    {DType::kQ5_0,     1, 0, 1, 0,  16, ScaleKind::kHalf,       false},
    {DType::kQ5_1,     1, 0, 1, 0,   0, ScaleKind::kHalfMin,    false},
    {DType::kQ8_0,     0, 0, 0, 1, 128, ScaleKind::kHalf,       false},
    {DType::kQ2_K,     0, 1, 0, 0,   0, ScaleKind::kSuper16Min, false},
    {DType::kQ3_K,     0, 1, 1, 0,   4, ScaleKind::kSuper16,    false},
    {DType::kQ4_K,     1, 0, 0, 0,   0, ScaleKind::kSuper32Min, false},
    {DType::kQ5_K,     1, 0, 1, 0,   0, ScaleKind::kSuper32Min, false},
    {DType::kQ6_K,     1, 1, 0, 0,  32, ScaleKind::kSuper16,    false},
    {DType::kIQ4_NL,   1, 0, 0, 0, 128, ScaleKind::kHalf,       true},
};

// The codes of one block of 32 components of one row, one a byte, and its scale fields.
struct RowBlock {
  uint8_t codes[32];
  uint16_t scale = 0, minimum = 0;   // f16 bits: of the block, or of the super-block
  uint8_t fields[2] = {0, 0};        // K formats: the block's own scale bytes
};

uint16_t half_at(const std::byte* p) {
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  return bits;
}

const uint8_t* codes_at(const std::byte* p) { return reinterpret_cast<const uint8_t*>(p); }

void split_nibbles(uint8_t* codes, const uint8_t* packed) {
  for (int j = 0; j < 16; ++j) {
    codes[j] = packed[j] & 15;
    codes[j + 16] = packed[j] >> 4;
  }
}

void add_fifth_bits(uint8_t* codes, const uint8_t* bits) {
  for (int j = 0; j < 32; ++j) codes[j] |= static_cast<uint8_t>((bits[j / 8] >> (j % 8) & 1) << 4);
}

// The 6-bit scale and minimum of sub-block j (0..7) from the 12 bytes of Q4_K and Q5_K.
void six_bit_pair(uint8_t& scale, uint8_t& minimum, const uint8_t* q, int j) {
  if (j < 4) {
    scale = q[j] & 63;
    minimum = q[j + 4] & 63;
  } else {
    scale = static_cast<uint8_t>((q[j + 4] & 15) | (q[j - 4] >> 6) << 4);
    minimum = static_cast<uint8_t>((q[j + 4] >> 4) | (q[j] >> 6) << 4);
  }
}

// Signed 6-bit scale j (0..15) from the 12 bytes of Q3_K.
int8_t q3_scale(const uint8_t* s, int j) {
  const int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
  const int high = s[8 + j % 4] >> (2 * (j / 4)) & 3;
  return static_cast<int8_t>((low | high << 4) - 32);
}

// Reads block `block` (of 32) of a row in the file's format.
RowBlock read_block(DType dtype, const std::byte* row, int64_t block) {
  RowBlock out;
  const int64_t j = block % 8;
  const std::byte* super = row + block / 8 * traits(dtype).block_bytes;
  const std::byte* plain = row + block * traits(dtype).block_bytes;
  switch (dtype) {
    case DType::kQ4_0:
    case DType::kIQ4_NL:
      out.scale = half_at(plain);
      split_nibbles(out.codes, codes_at(plain + 2));
      break;
    case DType::kQ4_1:
      out.scale = half_at(plain);
      out.minimum = half_at(plain + 2);
      split_nibbles(out.codes, codes_at(plain + 4));
      break;
    case DType::kQ5_0:
      out.scale = half_at(plain);
      split_nibbles(out.codes, codes_at(plain + 6));
      add_fifth_bits(out.codes, codes_at(plain + 2));
      break;
    case DType::kQ5_1:
      out.scale = half_at(plain);
      out.minimum = half_at(plain + 2);
      split_nibbles(out.codes, codes_at(plain + 8));
      add_fifth_bits(out.codes, codes_at(plain + 4));
      break;
    case DType::kQ8_0:
      out.scale = half_at(plain);
      for (int i = 0; i < 32; ++i) out.codes[i] = codes_at(plain + 2)[i] ^ 0x80;
      break;
    case DType::kQ4_K:
    case DType::kQ5_K: {
      out.scale = half_at(super);
      out.minimum = half_at(super + 2);
      six_bit_pair(out.fields[0], out.fields[1], codes_at(super + 4), static_cast<int>(j));
      const uint8_t* nibbles = codes_at(super + (dtype == DType::kQ4_K ? 16 : 48)) + j / 2 * 32;
      const uint8_t* high = codes_at(super + 16);   // Q5_K: bit j of byte i is component i of sub-block j
      for (int i = 0; i < 32; ++i) {
        out.codes[i] = j % 2 == 0 ? nibbles[i] & 15 : nibbles[i] >> 4;
        if (dtype == DType::kQ5_K) out.codes[i] |= static_cast<uint8_t>((high[i] >> j & 1) << 4);
      }
      break;
    }
    case DType::kQ6_K: {
      // 256 = 2 halves of 128; in a half, sub-blocks 0 and 2 share low nibbles' bytes, as do 1 and 3.
      const int64_t half = j / 4, quarter = j % 4;
      const uint8_t* low = codes_at(super) + half * 64 + (quarter % 2) * 32;
      const uint8_t* high = codes_at(super + 128) + half * 32;
      const uint8_t* scales = codes_at(super + 192) + j * 2;
      out.scale = half_at(super + 208);
      for (int i = 0; i < 32; ++i) {
        const int nibble = quarter < 2 ? low[i] & 15 : low[i] >> 4;
        out.codes[i] = static_cast<uint8_t>(nibble | (high[i] >> (2 * quarter) & 3) << 4);
      }
      out.fields[0] = scales[0];
      out.fields[1] = scales[1];
      break;
    }
    case DType::kQ2_K:
    case DType::kQ3_K: {
      const bool three = dtype == DType::kQ3_K;
      const uint8_t* pairs = codes_at(super + (three ? 32 : 16)) + j / 4 * 32;
      for (int i = 0; i < 32; ++i) {
        out.codes[i] = pairs[i] >> (2 * (j % 4)) & 3;
        if (three && (codes_at(super)[i] >> j & 1) != 0) out.codes[i] |= 4;
      }
      if (three) {
        out.fields[0] = static_cast<uint8_t>(q3_scale(codes_at(super + 96), static_cast<int>(2 * j)));
        out.fields[1] = static_cast<uint8_t>(q3_scale(codes_at(super + 96), static_cast<int>(2 * j + 1)));
        out.scale = half_at(super + 108);
      } else {
        out.fields[0] = codes_at(super)[2 * j];
        out.fields[1] = codes_at(super)[2 * j + 1];
        out.scale = half_at(super + 80);
        out.minimum = half_at(super + 82);
      }
      break;
    }
    default: CHECK(false) << dtype_name(dtype);
  }
  return out;
}

void put_half(std::byte* at, int64_t lane, uint16_t bits) { std::memcpy(at + 2 * lane, &bits, 2); }

// Writes one row's codes into the planes of a panel block.
void write_codes(std::byte* block, const PanelFormat& format, int64_t lane, const uint8_t* codes) {
  uint8_t* out = reinterpret_cast<uint8_t*>(block);
  if (format.byte_planes != 0) {
    for (int i = 0; i < 8; ++i) std::memcpy(out + 64 * i + 4 * lane, codes + 4 * i, 4);
    return;
  }
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
  const int64_t blocks = cols / kBlockCols;
  const int64_t header_bytes = format.header_bytes();
  if (valid_rows < kPanelRows || format.bit_planes != 0) std::memset(panel, 0, static_cast<size_t>(format.panel_bytes(cols)));
  std::byte* at = panel;
  std::byte* header = panel;
  const int source_bytes = traits(format.dtype).block_bytes;
  for (int64_t block = 0; block < blocks; ++block, at += format.block_bytes()) {
    if (header_bytes > 0 && block % 8 == 0) {
      header = at;
      at += header_bytes;
    }
    for (int64_t lane = 0; lane < valid_rows; ++lane) {
      const std::byte* row = rows + lane * row_stride;
      if (is_plain(format)) {
        pack_plain_block(at, format, lane, row + block * source_bytes);
        continue;
      }
      const RowBlock source = read_block(format.dtype, row, block);
      write_codes(at, format, lane, source.codes);
      std::byte* fields = at + format.code_bytes();
      if (header_bytes == 0) {
        put_half(fields, lane, source.scale);
        if (format.has_minimum()) put_half(fields + 32, lane, source.minimum);
        continue;
      }
      if (block % 8 == 0) {
        put_half(header, lane, source.scale);
        if (header_bytes == 64) put_half(header + 32, lane, source.minimum);
      }
      fields[lane] = static_cast<std::byte>(source.fields[0]);
      fields[16 + lane] = static_cast<std::byte>(source.fields[1]);
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

}  // namespace quipu::cpu
