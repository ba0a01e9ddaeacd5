// Rotary position frequencies: one explicit number a pair, made once per layer, so that every scaling rule, sub-sampled
// set and list from a file is the same thing to the operations.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/hyperparameters.h"
#include "base/result.h"

namespace quipu {

enum class RopeScalingKind { kNone, kLinear, kLlama3, kYarn };

struct RopeScaling {
  RopeScalingKind kind = RopeScalingKind::kNone;
  double factor = 1.0;                  // context extension, >= 1
  double original_context = 0.0;        // kLlama3, kYarn: tokens the model was trained on first
  double low_frequency_factor = 1.0;    // kLlama3
  double high_frequency_factor = 4.0;   // kLlama3, > low_frequency_factor
  double beta_fast = 32.0;              // kYarn: turns within original_context above which a pair is kept
  double beta_slow = 1.0;               // kYarn: ... below which it is slowed by factor
};

// Radians per token of each pair, [rotary_dim / 2]: theta^(-2 j / rotary_dim), then scaled.
//   kLinear  f / factor                                                                       [Chen et al. 2023]
//   kLlama3  wavelengths above original_context / low are divided by factor, those below original_context / high kept,
//            a linear blend in original_context / wavelength between                          [Llama 3.1 release]
//   kYarn    f / factor * ramp + f * (1 - ramp), ramp linear in the pair between the two betas  [Peng et al. 2023, 3.2]
// rotary_dim even and positive, theta > 1, finite settings (CHECK: rope_settings() has verified them).
std::vector<double> rope_inverse_frequencies(double theta, int64_t rotary_dim, const RopeScaling& scaling);

// get_mscale(factor, a) = 0.1 a ln(factor) + 1 for factor > 1, else 1.          [Peng et al. 2023, 3.4; DeepSeek-V2 code]
double yarn_magnitude(double factor, double multiplier);

// Everything a layer needs to call Backend::rope.
struct RopeSettings {
  int64_t rotary_dim = 0;                 // 0: no rotation
  bool interleaved = false;               // pairs (2i, 2i+1), else half-split
  float magnitude = 1.0f;                 // multiplies cos and sin
  RopeScaling scaling;
  std::vector<float> inverse_frequency;   // [rotary_dim / 2]
};

// Reads and checks these settings (errors name the key):
//   rope_dim              even, 0 .. head_dim; absent: head_dim
//   rope_interleaved      absent: false
//   inverse_frequencies   explicit list of rope_dim / 2 numbers; then rope_theta and rope_scaling must be absent
//   rope_theta            > 1, required without that list (unless rope_dim is 0)
//   rope_scaling          "none" (absent), "linear", "llama3", "yarn"; the others require
//     rope_scaling_factor             >= 1
//     rope_original_context           llama3, yarn
//     rope_low_frequency_factor, rope_high_frequency_factor     llama3
//     rope_beta_fast, rope_beta_slow  yarn; absent: 32, 1
//     rope_mscale, rope_mscale_all_dim   yarn; both or neither: magnitude = ratio of their yarn_magnitude()s
//     rope_attention_factor           yarn: the magnitude itself, before the two above; without any: yarn_magnitude(factor, 1)
//   rope_magnitude        with inverse_frequencies only: multiplies cos and sin; absent: 1
Result<RopeSettings> rope_settings(const HyperParameters& parameters, int64_t head_dim);

}  // namespace quipu
