// The K formats: 256 elements a block, a small whole-number scale (and min) for each group of 16 or 32, and one
// binary16 unit for all the scales (and one for all the mins).
//
// All searches minimise the plain squared error. First each group finds its own best real scale; then the block's unit
// turns these into whole numbers, each group trying its neighbours too; then the unit is fitted again to the codes.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "tensor/quant_encode.h"

namespace quipu {
namespace {

constexpr int kElements = 256;

// Numbers below this decode to zero under any unit: half the smallest binary16 is 3e-8.
constexpr float kNegligible = 1e-9f;

// Fitting the unit again to the codes it led to takes off 0.1 to 0.5 % of the error; a second time 0.2 % at most.
// Trying the neighbours of scale and min takes off 0.1 to 4 %.
constexpr int kUnitRounds = 1;

// A unit as binary16. A wish for a tiny unit gets the smallest there is: whole numbers times that may still be close.
uint16_t unit_bits(float unit) {
  const uint16_t bits = f32_to_f16(saturated_to_f16_range(unit));
  return (bits & 0x7fffu) == 0 && unit != 0 ? static_cast<uint16_t>(bits | 1) : bits;
}

float inverse_or_zero(float x) { return std::fabs(x) < kNegligible ? 0.0f : 1.0f / x; }

// ---- Q2_K, Q4_K, Q5_K: value = d * scale * code - dmin * min --------------------------------------------------------

struct Line {
  float slope, offset;   // value = slope * code - offset, both >= 0
};

// Sums over a group for codes q: the least-squares line for them, and how much of <x, x> it explains.
struct LineSums {
  float n = 0, q = 0, qq = 0, x = 0, qx = 0;

  Line solve() const {
    const float determinant = n * qq - q * q;   // exact: sums of small whole numbers
    Line line = {0, 0};
    if (determinant > 0) {
      line.slope = (n * qx - q * x) / determinant;
      line.offset = (line.slope * q - x) / n;
    } else {
      line.offset = -x / n;   // all codes are equal: the mean, as an offset alone
    }
    if (line.offset < 0) {   // the format has no negative offset
      line.slope = qq > 0 ? qx / qq : 0;
      line.offset = 0;
    }
    line.slope = std::max(line.slope, 0.0f);
    return line;
  }
  float explained(const Line& line) const {
    const float a = line.slope, b = line.offset;
    return 2 * a * qx - 2 * b * x - a * a * qq + 2 * a * b * q - b * b * n;
  }
};

template <int kGroupElements, int kLargestCode>
Line best_line(const float* values) {
  const auto [low, high] = std::minmax_element(values, values + kGroupElements);
  const float smallest = std::min(*low, 0.0f), range = std::max(*high, 0.0f) - smallest;
  if (range < kNegligible) return {0, 0};
  Line best = {range / kLargestCode, -smallest};
  float most_explained = -1e30f;
  constexpr int kTrials = kLargestCode < 8 ? 12 : 10;
  for (int trial = 0; trial < kTrials; ++trial) {
    // From a step at which the largest value falls short of the last code to one at which it is clipped to it.
    const float inverse = (kLargestCode - 0.6f + 0.16f * static_cast<float>(trial)) / range;
    Line line = {1 / inverse, -smallest};
    for (int round = 0; round < 2; ++round) {
      LineSums sums;
      sums.n = kGroupElements;
      const float slope_inverse = inverse_or_zero(line.slope);
      for (int i = 0; i < kGroupElements; ++i) {
        const float q = static_cast<float>(nearest_code((values[i] + line.offset) * slope_inverse, kLargestCode));
        sums.q += q;
        sums.qq += q * q;
        sums.x += values[i];
        sums.qx += q * values[i];
      }
      line = sums.solve();
      const float explained = sums.explained(line);
      if (explained > most_explained) {
        most_explained = explained;
        best = line;
      }
    }
  }
  return best;
}

template <int kGroups>
struct AffineFit {
  uint16_t d = 0, dmin = 0;
  uint8_t scales[kGroups] = {}, mins[kGroups] = {};
  uint8_t codes[kElements] = {};
};

// Codes of a group for a given line; returns the squared error.
template <int kGroupElements, int kLargestCode>
float code_group(uint8_t* codes, const float* values, const Line& line) {
  const float inverse = inverse_or_zero(line.slope);
  float error = 0;
  for (int i = 0; i < kGroupElements; ++i) {
    const int code = nearest_code((values[i] + line.offset) * inverse, kLargestCode);
    codes[i] = static_cast<uint8_t>(code);
    const float miss = line.slope * static_cast<float>(code) - line.offset - values[i];
    error += miss * miss;
  }
  return error;
}

// Chooses scale, min and codes of group g under the units in `fit`; returns the squared error.
template <int kGroups, int kLargestScale, int kLargestCode>
float choose_group(AffineFit<kGroups>& fit, int g, const float* values, const Line& wish) {
  constexpr int kGroupElements = kElements / kGroups;
  const float d = f16_to_f32(fit.d), dmin = f16_to_f32(fit.dmin);
  const int scale = nearest_code(wish.slope * inverse_or_zero(d), kLargestScale);
  const int min = nearest_code(wish.offset * inverse_or_zero(dmin), kLargestScale);
  float least = -1;
  for (int s = std::max(scale - 1, 0); s <= std::min(scale + 1, kLargestScale); ++s) {
    for (int m = std::max(min - 1, 0); m <= std::min(min + 1, kLargestScale); ++m) {
      uint8_t codes[kGroupElements];
      const Line line = {d * static_cast<float>(s), dmin * static_cast<float>(m)};
      const float error = code_group<kGroupElements, kLargestCode>(codes, values, line);
      if (least >= 0 && error >= least) continue;
      least = error;
      fit.scales[g] = static_cast<uint8_t>(s);
      fit.mins[g] = static_cast<uint8_t>(m);
      std::memcpy(fit.codes + g * kGroupElements, codes, kGroupElements);
    }
  }
  return least;
}

// The units of least squared error for the whole numbers chosen. Keeps them when the equations are singular.
template <int kGroups>
Line refit_units(const AffineFit<kGroups>& fit, const float* values) {
  double pp = 0, pm = 0, mm = 0, px = 0, mx = 0;
  for (int i = 0; i < kElements; ++i) {
    const int g = i / (kElements / kGroups);
    const double p = fit.scales[g] * fit.codes[i], m = fit.mins[g];
    pp += p * p;
    pm += p * m;
    mm += m * m;
    px += p * static_cast<double>(values[i]);
    mx += m * static_cast<double>(values[i]);
  }
  const double determinant = pp * mm - pm * pm;
  if (determinant > 0) {
    const double d = (px * mm - mx * pm) / determinant, dmin = (px * pm - mx * pp) / determinant;
    if (d > 0 && dmin > 0) return {static_cast<float>(d), static_cast<float>(dmin)};
  }
  if (mm == 0 && pp > 0 && px > 0) return {static_cast<float>(px / pp), 0};
  return {f16_to_f32(fit.d), f16_to_f32(fit.dmin)};
}

template <int kGroups, int kLargestScale, int kLargestCode>
AffineFit<kGroups> fit_affine(const float* values) {
  constexpr int kGroupElements = kElements / kGroups;
  Line wishes[kGroups], units = {0, 0};
  for (int g = 0; g < kGroups; ++g) {
    wishes[g] = best_line<kGroupElements, kLargestCode>(values + g * kGroupElements);
    units.slope = std::max(units.slope, wishes[g].slope / kLargestScale);
    units.offset = std::max(units.offset, wishes[g].offset / kLargestScale);
  }
  AffineFit<kGroups> best;
  float least = -1;
  for (int round = 0; round <= kUnitRounds; ++round) {
    AffineFit<kGroups> fit;
    fit.d = unit_bits(units.slope);
    fit.dmin = unit_bits(units.offset);
    float error = 0;
    for (int g = 0; g < kGroups; ++g) {
      error += choose_group<kGroups, kLargestScale, kLargestCode>(fit, g, values + g * kGroupElements, wishes[g]);
    }
    if (least >= 0 && error >= least) break;
    least = error;
    best = fit;
    units = refit_units(fit, values);
  }
  return best;
}

// ---- Q3_K, Q6_K: value = d * scale * (code - kZero) -----------------------------------------------------------------

// The scale of least squared error for 16 values at whole levels from -kZero to kZero - 1; may be negative.
template <int kZero>
float best_scale(const float* values) {
  float extreme = 0;
  for (int i = 0; i < 16; ++i) {
    if (std::fabs(values[i]) > std::fabs(extreme)) extreme = values[i];
  }
  if (std::fabs(extreme) < kNegligible) return 0;
  float best = 0, most_explained = 0;
  constexpr bool kFewLevels = kZero < 8;
  constexpr int kTrials = kFewLevels ? 8 : 16;
  for (int trial = 0; trial < (kFewLevels ? 2 * kTrials : kTrials); ++trial) {
    // The extreme value around the lowest level; for the few levels of Q3_K also around the highest.
    const float around = 0.2f * static_cast<float>(trial % kTrials);
    const float inverse = (trial < kTrials ? 1.0f - kZero - around : kZero - 1.4f + around) / extreme;
    float lx = 0, ll = 0;
    for (int i = 0; i < 16; ++i) {
      const float l = static_cast<float>(nearest_code(values[i] * inverse + kZero, 2 * kZero - 1) - kZero);
      lx += l * values[i];
      ll += l * l;
    }
    if (lx * lx > most_explained * ll) {
      most_explained = lx * lx / ll;
      best = lx / ll;
    }
  }
  return best;
}

struct CentredFit {
  uint16_t d = 0;
  int scales[16] = {};
  uint8_t codes[kElements] = {};
};

// Chooses scale (from -kScaleZero to kScaleZero - 1) and codes of group g; returns the squared error.
template <int kScaleZero, int kZero>
float choose_centred_group(CentredFit& fit, int g, const float* values, float wish) {
  const float d = f16_to_f32(fit.d);
  const int scale = nearest_code(wish * inverse_or_zero(d) + kScaleZero, 2 * kScaleZero - 1) - kScaleZero;
  float least = -1;
  for (int s = std::max(scale - 1, -kScaleZero); s <= std::min(scale + 1, kScaleZero - 1); ++s) {
    const float step = d * static_cast<float>(s), inverse = inverse_or_zero(step);
    uint8_t codes[16];
    float error = 0;
    for (int i = 0; i < 16; ++i) {
      const int code = nearest_code(values[i] * inverse + kZero, 2 * kZero - 1);
      codes[i] = static_cast<uint8_t>(code);
      const float miss = step * static_cast<float>(code - kZero) - values[i];
      error += miss * miss;
    }
    if (least >= 0 && error >= least) continue;
    least = error;
    fit.scales[g] = s;
    std::memcpy(fit.codes + g * 16, codes, 16);
  }
  return least;
}

template <int kScaleZero, int kZero>
CentredFit fit_centred(const float* values) {
  float wishes[16], unit = 0;
  for (int g = 0; g < 16; ++g) {
    wishes[g] = best_scale<kZero>(values + g * 16);
    if (std::fabs(wishes[g]) > std::fabs(unit) * kScaleZero) unit = wishes[g] / -kScaleZero;
  }
  CentredFit best;
  float least = -1;
  for (int round = 0; round <= kUnitRounds; ++round) {
    CentredFit fit;
    fit.d = unit_bits(unit);
    float error = 0;
    for (int g = 0; g < 16; ++g) error += choose_centred_group<kScaleZero, kZero>(fit, g, values + g * 16, wishes[g]);
    if (least >= 0 && error >= least) break;
    least = error;
    best = fit;
    double px = 0, pp = 0;
    for (int i = 0; i < kElements; ++i) {
      const double p = fit.scales[i / 16] * (fit.codes[i] - kZero);
      px += p * static_cast<double>(values[i]);
      pp += p * p;
    }
    if (pp > 0) unit = static_cast<float>(px / pp);
  }
  return best;
}

}  // namespace

void encode(BlockQ2_K& block, const float* values) {
  const AffineFit<16> fit = fit_affine<16, 15, 3>(values);
  block = {};
  block.d = fit.d;
  block.dmin = fit.dmin;
  for (int g = 0; g < 16; ++g) block.scales[g] = static_cast<uint8_t>(fit.scales[g] | fit.mins[g] << 4);
  pack_plane<2, 32>(block.codes, fit.codes, kElements);
}

void encode(BlockQ3_K& block, const float* values) {
  const CentredFit fit = fit_centred<32, 4>(values);
  block = {};
  block.d = fit.d;
  uint8_t scales[16];
  for (int g = 0; g < 16; ++g) scales[g] = static_cast<uint8_t>(fit.scales[g] + 32);
  pack_plane<4, 8>(block.scales, scales, 16);
  pack_plane<2, 4>(block.scales + 8, scales, 16, 4);
  pack_plane<2, 32>(block.codes, fit.codes, kElements);
  pack_plane<1, 32>(block.high, fit.codes, kElements, 2);
}

void encode(BlockQ4_K& block, const float* values) {
  const AffineFit<8> fit = fit_affine<8, 63, 15>(values);
  block = {};
  block.d = fit.d;
  block.dmin = fit.dmin;
  pack_scales_6(block.scales, fit.scales, fit.mins);
  pack_plane<4, 32>(block.codes, fit.codes, kElements);
}

void encode(BlockQ5_K& block, const float* values) {
  const AffineFit<8> fit = fit_affine<8, 63, 31>(values);
  block = {};
  block.d = fit.d;
  block.dmin = fit.dmin;
  pack_scales_6(block.scales, fit.scales, fit.mins);
  pack_plane<4, 32>(block.codes, fit.codes, kElements);
  pack_plane<1, 32>(block.high, fit.codes, kElements, 4);
}

void encode(BlockQ6_K& block, const float* values) {
  const CentredFit fit = fit_centred<128, 32>(values);
  block = {};
  block.d = fit.d;
  for (int g = 0; g < 16; ++g) block.scales[g] = static_cast<int8_t>(fit.scales[g]);
  pack_plane<4, 64>(block.codes, fit.codes, kElements);
  pack_plane<2, 32>(block.high, fit.codes, kElements, 4);
}

}  // namespace quipu
