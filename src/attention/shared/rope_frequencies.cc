#include "attention/shared/rope_frequencies.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"

namespace quipu {
namespace {

constexpr double kTwoPi = 2.0 * std::numbers::pi;

double llama3_frequency(double frequency, const RopeScaling& s) {
  const double turns = s.original_context * frequency / kTwoPi;   // within the original context
  if (turns < s.low_frequency_factor) return frequency / s.factor;
  if (turns > s.high_frequency_factor) return frequency;
  const double keep = (turns - s.low_frequency_factor) / (s.high_frequency_factor - s.low_frequency_factor);
  return (1.0 - keep) * frequency / s.factor + keep * frequency;
}

// The pair, as a real number, that makes `turns` turns within the original context.
double yarn_pair(double turns, double theta, double rotary_dim, const RopeScaling& s) {
  return rotary_dim * std::log(s.original_context / (kTwoPi * turns)) / (2.0 * std::log(theta));
}

Result<RopeScaling> read_scaling(const HyperParameters& p) {
  RopeScaling s;
  ASSIGN_OR_RETURN(const std::string kind, p.text_or("rope_scaling", "none"));
  if (kind == "none") return s;
  if (kind == "linear") {
    s.kind = RopeScalingKind::kLinear;
  } else if (kind == "llama3") {
    s.kind = RopeScalingKind::kLlama3;
  } else if (kind == "yarn") {
    s.kind = RopeScalingKind::kYarn;
  } else {
    return bad_input(p.origin() + ": attention setting rope_scaling is \"" + kind +
                     "\", expected none, linear, llama3 or yarn");
  }
  ASSIGN_OR_RETURN(s.factor, p.number("rope_scaling_factor", 1.0, 1e6));
  if (s.kind == RopeScalingKind::kLinear) return s;
  ASSIGN_OR_RETURN(s.original_context, p.number("rope_original_context", 1.0, 1e12));
  if (s.kind == RopeScalingKind::kLlama3) {
    ASSIGN_OR_RETURN(s.low_frequency_factor, p.number("rope_low_frequency_factor", 1e-6, 1e6));
    ASSIGN_OR_RETURN(s.high_frequency_factor, p.number("rope_high_frequency_factor", 1e-6, 1e6));
    if (s.high_frequency_factor <= s.low_frequency_factor) {
      return bad_input(p.origin() + ": attention setting rope_high_frequency_factor must be above rope_low_frequency_factor");
    }
    return s;
  }
  ASSIGN_OR_RETURN(s.beta_fast, p.number_or("rope_beta_fast", 1e-6, 1e6, 32.0));
  ASSIGN_OR_RETURN(s.beta_slow, p.number_or("rope_beta_slow", 1e-6, 1e6, 1.0));
  if (s.beta_fast < s.beta_slow) {
    return bad_input(p.origin() + ": attention setting rope_beta_fast must not be below rope_beta_slow");
  }
  return s;
}

Result<double> read_yarn_magnitude(const HyperParameters& p, double factor) {
  if (p.has("rope_attention_factor")) return p.number("rope_attention_factor", 1e-3, 1e3);
  if (p.has("rope_mscale") || p.has("rope_mscale_all_dim")) {
    ASSIGN_OR_RETURN(const double mscale, p.number("rope_mscale", 0.0, 1e3));
    ASSIGN_OR_RETURN(const double all_dim, p.number("rope_mscale_all_dim", 0.0, 1e3));
    // Hugging Face takes the ratio only when both are non-zero; zero means the setting is off.
    if (mscale > 0.0 && all_dim > 0.0) return yarn_magnitude(factor, mscale) / yarn_magnitude(factor, all_dim);
  }
  return yarn_magnitude(factor, 1.0);
}

}  // namespace

std::vector<double> rope_inverse_frequencies(double theta, int64_t rotary_dim, const RopeScaling& s) {
  CHECK(rotary_dim > 0 && rotary_dim % 2 == 0 && theta > 1.0 && s.factor >= 1.0) << rotary_dim << " " << theta;
  const double dim = static_cast<double>(rotary_dim);
  double low = 0.0, high = 0.0;
  if (s.kind == RopeScalingKind::kYarn) {
    low = std::clamp(std::floor(yarn_pair(s.beta_fast, theta, dim, s)), 0.0, dim - 1.0);
    high = std::clamp(std::ceil(yarn_pair(s.beta_slow, theta, dim, s)), 0.0, dim - 1.0);
    if (high <= low) high = low + 0.001;   // one pair wide: a step instead of a division by zero
  }
  std::vector<double> frequencies(static_cast<size_t>(rotary_dim / 2));
  for (size_t j = 0; j < frequencies.size(); ++j) {
    const double pair = static_cast<double>(j);
    double frequency = std::pow(theta, -2.0 * pair / dim);
    switch (s.kind) {
      case RopeScalingKind::kNone: break;
      case RopeScalingKind::kLinear: frequency /= s.factor; break;
      case RopeScalingKind::kLlama3: frequency = llama3_frequency(frequency, s); break;
      case RopeScalingKind::kYarn: {
        const double ramp = std::clamp((pair - low) / (high - low), 0.0, 1.0);
        frequency = frequency / s.factor * ramp + frequency * (1.0 - ramp);
        break;
      }
    }
    frequencies[j] = frequency;
  }
  return frequencies;
}

double yarn_magnitude(double factor, double multiplier) {
  return factor > 1.0 ? 0.1 * multiplier * std::log(factor) + 1.0 : 1.0;
}

Result<RopeSettings> rope_settings(const HyperParameters& p, int64_t head_dim) {
  RopeSettings settings;
  ASSIGN_OR_RETURN(settings.rotary_dim, p.integer_or("rope_dim", 0, head_dim, head_dim));
  if (settings.rotary_dim % 2 != 0) {
    return bad_input(p.origin() + ": attention setting rope_dim is " + std::to_string(settings.rotary_dim) +
                     ", expected an even number (head_dim is " + std::to_string(head_dim) + ")");
  }
  ASSIGN_OR_RETURN(settings.interleaved, p.boolean_or("rope_interleaved", false));
  if (settings.rotary_dim == 0) return settings;
  std::vector<double> frequencies;
  if (p.has("inverse_frequencies")) {
    for (const char* other : {"rope_theta", "rope_scaling"}) {
      if (p.has(other)) {
        return bad_input(p.origin() + ": attention settings inverse_frequencies and " + other + " exclude each other");
      }
    }
    ASSIGN_OR_RETURN(frequencies, p.numbers("inverse_frequencies", static_cast<size_t>(settings.rotary_dim / 2)));
    ASSIGN_OR_RETURN(const double magnitude, p.number_or("rope_magnitude", 1e-3, 1e3, 1.0));
    settings.magnitude = static_cast<float>(magnitude);
  } else {
    ASSIGN_OR_RETURN(const double theta, p.number("rope_theta", 1.0 + 1e-6, 1e15));
    ASSIGN_OR_RETURN(settings.scaling, read_scaling(p));
    frequencies = rope_inverse_frequencies(theta, settings.rotary_dim, settings.scaling);
    if (settings.scaling.kind == RopeScalingKind::kYarn) {
      ASSIGN_OR_RETURN(const double magnitude, read_yarn_magnitude(p, settings.scaling.factor));
      settings.magnitude = static_cast<float>(magnitude);
    }
  }
  settings.inverse_frequency.assign(frequencies.begin(), frequencies.end());
  return settings;
}

}  // namespace quipu
