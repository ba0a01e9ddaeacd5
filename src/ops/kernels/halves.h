// Floats to 16-bit numbers, many at a time.
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace quipu {

// out[i] = x[i] as dtype, kF16 or kBF16: f32_to_f16() and f32_to_bf16() to the bit, whatever instructions the machine has.
void round_to_halves(uint16_t* out, DType dtype, const float* x, int64_t count);

}  // namespace quipu
