#include "tensor/quant_blocks.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "tensor/float16.h"
#include "tensor/quant_encode.h"
#include "tensor/quant_layout.h"

namespace quipu {
namespace {

// Blocks are copied out before use: tensors in files start at any byte.
template <typename T>
T load(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

template <typename T>
void decode_plain(float* out, const std::byte* bytes, int64_t elements) {
  for (int64_t i = 0; i < elements; ++i, bytes += sizeof(T)) out[i] = static_cast<float>(load<T>(bytes));
}

void decode(float* out, const BlockQ4_0& block) {
  uint8_t codes[32] = {};
  unpack_plane<4, 16>(codes, block.codes, 32);
  const float d = f16_to_f32(block.d);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(codes[i] - 8);
}

void decode(float* out, const BlockQ4_1& block) {
  uint8_t codes[32] = {};
  unpack_plane<4, 16>(codes, block.codes, 32);
  const float d = f16_to_f32(block.d), m = f16_to_f32(block.m);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(codes[i]) + m;
}

void decode(float* out, const BlockQ5_0& block) {
  uint8_t codes[32] = {};
  unpack_plane<4, 16>(codes, block.codes, 32);
  unpack_plane<1, 1>(codes, block.high, 32, 4);
  const float d = f16_to_f32(block.d);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(codes[i] - 16);
}

void decode(float* out, const BlockQ5_1& block) {
  uint8_t codes[32] = {};
  unpack_plane<4, 16>(codes, block.codes, 32);
  unpack_plane<1, 1>(codes, block.high, 32, 4);
  const float d = f16_to_f32(block.d), m = f16_to_f32(block.m);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(codes[i]) + m;
}

void decode(float* out, const BlockQ8_0& block) {
  const float d = f16_to_f32(block.d);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(block.codes[i]);
}

void decode(float* out, const BlockIQ4_NL& block) {
  uint8_t codes[32] = {};
  unpack_plane<4, 16>(codes, block.codes, 32);
  const float d = f16_to_f32(block.d);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(kIq4NlValues[codes[i]]);
}

// The K formats multiply d by the group's scale first: files are compared bit for bit with what others decode.
void decode(float* out, const BlockQ2_K& block) {
  uint8_t codes[256] = {};
  unpack_plane<2, 32>(codes, block.codes, 256);
  const float d = f16_to_f32(block.d), dmin = f16_to_f32(block.dmin);
  for (int i = 0; i < 256; ++i) {
    const float step = d * static_cast<float>(block.scales[i / 16] & 15);
    out[i] = step * static_cast<float>(codes[i]) - dmin * static_cast<float>(block.scales[i / 16] >> 4);
  }
}

void decode(float* out, const BlockQ3_K& block) {
  uint8_t codes[256] = {}, scales[16] = {};
  unpack_plane<2, 32>(codes, block.codes, 256);
  unpack_plane<1, 32>(codes, block.high, 256, 2);
  unpack_plane<4, 8>(scales, block.scales, 16);
  unpack_plane<2, 4>(scales, block.scales + 8, 16, 4);
  const float d = f16_to_f32(block.d);
  for (int i = 0; i < 256; ++i) {
    out[i] = d * static_cast<float>(scales[i / 16] - 32) * static_cast<float>(codes[i] - 4);
  }
}

void decode_k_affine(float* out, const uint8_t codes[256], const uint8_t packed_scales[12], float d, float dmin) {
  uint8_t scales[8], mins[8];
  unpack_scales_6(scales, mins, packed_scales);
  for (int i = 0; i < 256; ++i) {
    const float step = d * static_cast<float>(scales[i / 32]);
    out[i] = step * static_cast<float>(codes[i]) - dmin * static_cast<float>(mins[i / 32]);
  }
}

void decode(float* out, const BlockQ4_K& block) {
  uint8_t codes[256] = {};
  unpack_plane<4, 32>(codes, block.codes, 256);
  decode_k_affine(out, codes, block.scales, f16_to_f32(block.d), f16_to_f32(block.dmin));
}

void decode(float* out, const BlockQ5_K& block) {
  uint8_t codes[256] = {};
  unpack_plane<4, 32>(codes, block.codes, 256);
  unpack_plane<1, 32>(codes, block.high, 256, 4);
  decode_k_affine(out, codes, block.scales, f16_to_f32(block.d), f16_to_f32(block.dmin));
}

void decode(float* out, const BlockQ6_K& block) {
  uint8_t codes[256] = {};
  unpack_plane<4, 64>(codes, block.codes, 256);
  unpack_plane<2, 32>(codes, block.high, 256, 4);
  const float d = f16_to_f32(block.d);
  for (int i = 0; i < 256; ++i) {
    out[i] = d * static_cast<float>(block.scales[i / 16]) * static_cast<float>(codes[i] - 32);
  }
}

template <typename Block>
void decode_blocks(float* out, DType dtype, const std::byte* bytes, int64_t elements) {
  const int block_elements = traits(dtype).block_elements;
  for (int64_t i = 0; i < elements; i += block_elements, bytes += sizeof(Block)) decode(out + i, load<Block>(bytes));
}

template <typename Block>
void encode_blocks(std::byte* out, DType dtype, const float* values, int64_t elements) {
  const int block_elements = traits(dtype).block_elements;
  float cleaned[256];
  for (int64_t i = 0; i < elements; i += block_elements, out += sizeof(Block)) {
    for (int j = 0; j < block_elements; ++j) {
      const float x = values[i + j];
      cleaned[j] = std::isnan(x) ? 0.0f : std::clamp(x, -kLargestInput, kLargestInput);
    }
    Block block;
    encode(block, cleaned);
    std::memcpy(out, &block, sizeof(Block));
  }
}

}  // namespace

void dequantise_row(float* out, DType dtype, const std::byte* bytes, int64_t elements) {
  (void)row_bytes(dtype, elements);   // checks that the row is a whole number of blocks
  switch (dtype) {
    case DType::kF32: return decode_plain<float>(out, bytes, elements);
    case DType::kF16:
      for (int64_t i = 0; i < elements; ++i) out[i] = f16_to_f32(load<uint16_t>(bytes + 2 * i));
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < elements; ++i) out[i] = bf16_to_f32(load<uint16_t>(bytes + 2 * i));
      return;
    case DType::kF64: return decode_plain<double>(out, bytes, elements);
    case DType::kI8: return decode_plain<int8_t>(out, bytes, elements);
    case DType::kI16: return decode_plain<int16_t>(out, bytes, elements);
    case DType::kI32: return decode_plain<int32_t>(out, bytes, elements);
    case DType::kI64: return decode_plain<int64_t>(out, bytes, elements);
    case DType::kU8: return decode_plain<uint8_t>(out, bytes, elements);
    case DType::kBool:
      for (int64_t i = 0; i < elements; ++i) out[i] = bytes[i] != std::byte{0} ? 1.0f : 0.0f;
      return;
    case DType::kQ4_0: return decode_blocks<BlockQ4_0>(out, dtype, bytes, elements);
    case DType::kQ4_1: return decode_blocks<BlockQ4_1>(out, dtype, bytes, elements);
    case DType::kQ5_0: return decode_blocks<BlockQ5_0>(out, dtype, bytes, elements);
    case DType::kQ5_1: return decode_blocks<BlockQ5_1>(out, dtype, bytes, elements);
    case DType::kQ8_0: return decode_blocks<BlockQ8_0>(out, dtype, bytes, elements);
    case DType::kQ2_K: return decode_blocks<BlockQ2_K>(out, dtype, bytes, elements);
    case DType::kQ3_K: return decode_blocks<BlockQ3_K>(out, dtype, bytes, elements);
    case DType::kQ4_K: return decode_blocks<BlockQ4_K>(out, dtype, bytes, elements);
    case DType::kQ5_K: return decode_blocks<BlockQ5_K>(out, dtype, bytes, elements);
    case DType::kQ6_K: return decode_blocks<BlockQ6_K>(out, dtype, bytes, elements);
    case DType::kIQ4_NL: return decode_blocks<BlockIQ4_NL>(out, dtype, bytes, elements);
  }
  CHECK(false) << "no such dtype " << static_cast<int>(dtype);
}

bool can_quantise(DType dtype) {
  return traits(dtype).quantised || dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

void quantise_row(std::byte* out, DType dtype, const float* values, int64_t elements) {
  const int64_t bytes = row_bytes(dtype, elements);
  switch (dtype) {
    case DType::kF32:
      if (bytes != 0) std::memcpy(out, values, static_cast<size_t>(bytes));
      return;
    case DType::kF16:
    case DType::kBF16:
      for (int64_t i = 0; i < elements; ++i) {
        const uint16_t bits = dtype == DType::kF16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
        std::memcpy(out + 2 * i, &bits, 2);
      }
      return;
    case DType::kQ4_0: return encode_blocks<BlockQ4_0>(out, dtype, values, elements);
    case DType::kQ4_1: return encode_blocks<BlockQ4_1>(out, dtype, values, elements);
    case DType::kQ5_0: return encode_blocks<BlockQ5_0>(out, dtype, values, elements);
    case DType::kQ5_1: return encode_blocks<BlockQ5_1>(out, dtype, values, elements);
    case DType::kQ8_0: return encode_blocks<BlockQ8_0>(out, dtype, values, elements);
    case DType::kQ2_K: return encode_blocks<BlockQ2_K>(out, dtype, values, elements);
    case DType::kQ3_K: return encode_blocks<BlockQ3_K>(out, dtype, values, elements);
    case DType::kQ4_K: return encode_blocks<BlockQ4_K>(out, dtype, values, elements);
    case DType::kQ5_K: return encode_blocks<BlockQ5_K>(out, dtype, values, elements);
    case DType::kQ6_K: return encode_blocks<BlockQ6_K>(out, dtype, values, elements);
    case DType::kIQ4_NL: return encode_blocks<BlockIQ4_NL>(out, dtype, values, elements);
    default: CHECK(can_quantise(dtype)) << "no encoder for " << traits(dtype).name;
  }
}

}  // namespace quipu
