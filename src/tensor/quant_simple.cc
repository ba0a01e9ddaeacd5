// The formats with 32 elements a block and one scale. Q4_0 to Q8_0 are written byte for byte as GGML writes them (scale
// from the extreme value, no search), so that files can be compared; only scales that binary16 can hardly hold differ.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "tensor/quant_encode.h"

namespace quipu {
namespace {

constexpr int kElements = 32;

// The value of largest magnitude, with its sign; the first one where several tie.
float extreme_of(const float* values) {
  float extreme = 0;
  for (int i = 0; i < kElements; ++i) {
    if (std::fabs(values[i]) > std::fabs(extreme)) extreme = values[i];
  }
  return extreme;
}

// Below this binary16 keeps so few bits of a scale (steps of 2^-24) that codes are chosen for the scale as stored;
// above, for the scale before rounding, which is what GGML does everywhere.
constexpr float kCoarseScale = 0x1.0p-20f;

// Codes are x times this. 0 (every code becomes that of zero) where the stored scale is zero.
float inverse_scale(float d) {
  const float used = std::fabs(d) < kCoarseScale ? f16_to_f32(f32_to_f16(d)) : d;
  return used == 0 ? 0.0f : 1.0f / used;
}

// value = d * (code - kZero), the extreme value at code 0: the side with one code more.
template <int kZero>
uint16_t encode_centred(uint8_t codes[kElements], const float* values) {
  const float d = saturated_to_f16_range(extreme_of(values) / -kZero);
  const float inverse = inverse_scale(d);
  for (int i = 0; i < kElements; ++i) {
    // kZero + 0.5 in one addition: two would round differently from GGML now and then
    codes[i] = static_cast<uint8_t>(std::clamp(values[i] * inverse + (kZero + 0.5f), 0.0f, 2.0f * kZero - 1));
  }
  return f32_to_f16(d);
}

struct ScaleAndMin {
  uint16_t d, m;
};

// value = d * code + m, smallest and largest value at the ends of the range.
template <int kLargest>
ScaleAndMin encode_from_min(uint8_t codes[kElements], const float* values) {
  const auto [smallest, largest] = std::minmax_element(values, values + kElements);
  const float d = saturated_to_f16_range((*largest - *smallest) / kLargest);
  const float inverse = inverse_scale(d);
  float m = saturated_to_f16_range(*smallest);
  if (inverse == 0 && *largest != *smallest) {   // one value for all of them
    m = std::accumulate(values, values + kElements, 0.0f) / kElements;
  }
  for (int i = 0; i < kElements; ++i) {
    codes[i] = static_cast<uint8_t>(nearest_code((values[i] - m) * inverse, kLargest));
  }
  return {f32_to_f16(d), f32_to_f16(m)};
}

// IQ4_NL: all midpoints between neighbouring values are multiples of one half, so the nearest code is a function of
// floor(2 x), which runs from -254 to 226.
struct NearestIq4Nl {
  std::array<uint8_t, 481> code_of;
  constexpr NearestIq4Nl() : code_of{} {
    int code = 0;
    for (int i = 0; i < 481; ++i) {
      while (code < 15 && i - 254 >= kIq4NlValues[code] + kIq4NlValues[code + 1]) ++code;
      code_of[i] = static_cast<uint8_t>(code);
    }
  }
  int operator()(float x) const {
    return code_of[static_cast<int>(std::clamp(x * 2 + 254, 0.0f, 480.0f))];
  }
};
constexpr NearestIq4Nl kNearestIq4Nl;

}  // namespace

void encode(BlockQ4_0& block, const float* values) {
  block = {};
  uint8_t codes[kElements];
  block.d = encode_centred<8>(codes, values);
  pack_plane<4, 16>(block.codes, codes, kElements);
}

void encode(BlockQ4_1& block, const float* values) {
  block = {};
  uint8_t codes[kElements];
  const ScaleAndMin fit = encode_from_min<15>(codes, values);
  block.d = fit.d;
  block.m = fit.m;
  pack_plane<4, 16>(block.codes, codes, kElements);
}

void encode(BlockQ5_0& block, const float* values) {
  block = {};
  uint8_t codes[kElements];
  block.d = encode_centred<16>(codes, values);
  pack_plane<4, 16>(block.codes, codes, kElements);
  pack_plane<1, 1>(block.high, codes, kElements, 4);
}

void encode(BlockQ5_1& block, const float* values) {
  block = {};
  uint8_t codes[kElements];
  const ScaleAndMin fit = encode_from_min<31>(codes, values);
  block.d = fit.d;
  block.m = fit.m;
  pack_plane<4, 16>(block.codes, codes, kElements);
  pack_plane<1, 1>(block.high, codes, kElements, 4);
}

void encode(BlockQ8_0& block, const float* values) {
  const float d = saturated_to_f16_range(std::fabs(extreme_of(values)) / 127);
  const float inverse = inverse_scale(d);
  block.d = f32_to_f16(d);
  for (int i = 0; i < kElements; ++i) {
    // halves away from zero
    block.codes[i] = static_cast<int8_t>(std::clamp(std::round(values[i] * inverse), -127.0f, 127.0f));
  }
}

// Searches the scale of least squared error: for codes fixed by a trial scale the best scale is <x, v> / <v, v> (v the
// table's values), and what it leaves of <x, x> is less by <x, v>^2 / <v, v>.
void encode(BlockIQ4_NL& block, const float* values) {
  block = {};
  const float extreme = extreme_of(values);
  float d = 0;
  if (inverse_scale(extreme / 127) != 0) {
    float best_gain = 0;
    // Where the extreme value lands: near the end of the table on either side, or past it and clipped.
    for (int trial = 0; trial < 24; ++trial) {
      float inverse = ((trial < 12 ? -150.0f : 20.0f) + 5 * static_cast<float>(trial)) / extreme;
      for (int round = 0; round < 2; ++round) {
        float xv = 0, vv = 0;
        for (int i = 0; i < kElements; ++i) {
          const float v = kIq4NlValues[static_cast<size_t>(kNearestIq4Nl(values[i] * inverse))];
          xv += values[i] * v;
          vv += v * v;
        }
        if (xv * xv > best_gain * vv) {
          best_gain = xv * xv / vv;
          d = xv / vv;
        }
        if (xv == 0) break;
        inverse = vv / xv;
      }
    }
  }
  block.d = f32_to_f16(saturated_to_f16_range(d));
  const float stored = f16_to_f32(block.d);
  const float inverse = stored == 0 ? 0.0f : 1.0f / stored;
  uint8_t codes[kElements];
  for (int i = 0; i < kElements; ++i) codes[i] = static_cast<uint8_t>(kNearestIq4Nl(values[i] * inverse));
  pack_plane<4, 16>(block.codes, codes, kElements);
}

}  // namespace quipu
