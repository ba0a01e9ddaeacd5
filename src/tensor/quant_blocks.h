// What the bytes of every tensor format mean, in portable code: the definition that kernels are tested against.
//
// The layouts are those of GGML files. Q4_0 to Q8_0 and IQ4_NL have 32 elements a block, the K formats 256.
#pragma once

#include <cstdint>
#include <span>

#include "tensor/dtype.h"

namespace quipu {

// Writes `elements` floats decoded from a row of `dtype`. Any float type or block format; elements must be a multiple of
// the block size. bytes: row_bytes(dtype, elements). NaN and infinity in the file come out as they are.
void dequantise_row(float* out, DType dtype, const std::byte* bytes, int64_t elements);

// Whether quantise_row can write the format.
bool can_quantise(DType dtype);

// Encodes `elements` floats as a row of `dtype` (a format of can_quantise). Rounds to nearest; Q4_0 to Q5_1 choose the
// scale from the extreme value as GGML does, the K formats search scales for least squared error.
void quantise_row(std::byte* out, DType dtype, const float* values, int64_t elements);

}  // namespace quipu
