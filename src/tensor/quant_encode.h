// One block of each quantised format from its values; what quantise_row calls.
//
// values: as many as the block holds, all finite and within +-kLargestInput. Scales too large for binary16 saturate at
// its largest finite number, so that every block decodes to finite values.
#pragma once

#include <algorithm>

#include "tensor/float16.h"
#include "tensor/quant_layout.h"

namespace quipu {

// Past what any format can express (Q6_K reaches 65504 * 128 * 32 = 2.7e8), small enough that squares stay finite.
inline constexpr float kLargestInput = 1e9f;

void encode(BlockQ4_0& block, const float* values);     // quant_simple.cc
void encode(BlockQ4_1& block, const float* values);
void encode(BlockQ5_0& block, const float* values);
void encode(BlockQ5_1& block, const float* values);
void encode(BlockQ8_0& block, const float* values);
void encode(BlockIQ4_NL& block, const float* values);
void encode(BlockQ2_K& block, const float* values);     // quant_k.cc
void encode(BlockQ3_K& block, const float* values);
void encode(BlockQ4_K& block, const float* values);
void encode(BlockQ5_K& block, const float* values);
void encode(BlockQ6_K& block, const float* values);

inline float saturated_to_f16_range(float x) { return std::clamp(x, -65504.0f, 65504.0f); }

// The whole number nearest to x, halves upwards, kept within [0, largest].
inline int nearest_code(float x, int largest) {
  return static_cast<int>(std::clamp(x + 0.5f, 0.0f, static_cast<float>(largest)));
}

}  // namespace quipu
