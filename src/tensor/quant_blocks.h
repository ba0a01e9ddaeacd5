// What the bytes of every tensor format mean, in portable code: the definition that kernels are tested against.
//
// The layouts are those of GGML files: tensor/quant_layout.h. Q4_0 to Q8_0 and IQ4_NL have 32 elements a block, the K
// formats 256.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace quipu {

// Writes `elements` floats decoded from a row of `dtype`, any of them: whole numbers as they are, bool as 0 or 1, f64
// rounded to float. elements must be a multiple of the block size. bytes: row_bytes(dtype, elements), any alignment.
// Every pattern of bytes is a valid row; NaN and infinity in a scale come out as NaN and infinity.
void dequantise_row(float* out, DType dtype, const std::byte* bytes, int64_t elements);

// Whether quantise_row can write the format: f32, f16, bf16 and every quantised one.
bool can_quantise(DType dtype);

// Encodes `elements` floats as a row of `dtype` (a format of can_quantise; anything else is a CHECK). elements must be
// a multiple of the block size. out: row_bytes(dtype, elements), any alignment, not overlapping values.
//
// Q4_0 to Q8_0 choose the scale from the extreme value, byte for byte as GGML does (except in blocks whose scale is
// under 2^-20, which come out closer). IQ4_NL and the K formats search scales for least squared error, every value
// counting the same.
//
// f16 and bf16 round to nearest even and keep NaN and infinity. Quantised formats have no code for them and always
// decode to finite values: NaN is taken as 0, infinity and numbers too large for the format as its largest (which
// leaves little of the other values in the block: check the input where that matters), and values too small for a
// binary16 scale become zeros.
void quantise_row(std::byte* out, DType dtype, const float* values, int64_t elements);

}  // namespace quipu
