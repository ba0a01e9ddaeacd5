#include "model/config.h"

#include <cmath>
#include <cstdio>
#include <sstream>

namespace quipu {
namespace {

Error wrong(const std::string& origin, std::string_view key, const std::string& what) {
  return bad_input(origin + ": " + std::string(key) + " " + what);
}

Result<void> in_range(const std::string& origin, std::string_view key, int64_t value, int64_t high) {
  if (value >= 1 && value <= high) return {};
  return wrong(origin, key, "is " + std::to_string(value) + ", expected 1 to " + std::to_string(high));
}

Result<void> positive(const std::string& origin, std::string_view key, double value) {
  if (std::isfinite(value) && value > 0) return {};
  return wrong(origin, key, "is " + std::to_string(value) + ", expected a number above 0");
}

// What rope_inverse_frequencies relies on.
Result<void> check_scaling(const std::string& origin, const RopeScaling& s) {
  if (s.kind == RopeScalingKind::kNone) return {};
  if (!(std::isfinite(s.factor) && s.factor >= 1)) {
    return wrong(origin, "RoPE scaling factor", "is " + std::to_string(s.factor) + ", expected 1 or more");
  }
  if (s.kind == RopeScalingKind::kLinear) return {};
  RETURN_IF_ERROR(positive(origin, "RoPE scaling original context", s.original_context));
  if (s.kind == RopeScalingKind::kLlama3) {
    RETURN_IF_ERROR(positive(origin, "RoPE scaling low frequency factor", s.low_frequency_factor));
    if (s.high_frequency_factor > s.low_frequency_factor) return {};
    return wrong(origin, "RoPE scaling high frequency factor", "is " + std::to_string(s.high_frequency_factor) +
                                                                   ", expected more than the low one, " +
                                                                   std::to_string(s.low_frequency_factor));
  }
  RETURN_IF_ERROR(positive(origin, "RoPE scaling beta_slow", s.beta_slow));
  if (s.beta_fast >= s.beta_slow) return {};
  return wrong(origin, "RoPE scaling beta_fast", "is " + std::to_string(s.beta_fast) + ", expected at least beta_slow " +
                                                     std::to_string(s.beta_slow));
}

// Numbers are written in hexadecimal floating point: equal texts, equal bits.
std::string summary_of(const GroupedQuerySettings& s, const std::vector<double>& inverse_frequency, double scale) {
  std::ostringstream text;
  text << std::hexfloat << "heads=" << s.heads << " kv_heads=" << s.kv_heads << " head_dim=" << s.head_dim
       << " rotary_dim=" << s.rotary_dim << " interleaved=" << s.interleaved << " window=" << s.window << " scale=" << scale
       << " softcap=" << s.logit_softcap << " norm=" << s.query_key_norm << " norm_epsilon=" << s.norm_epsilon << " bias=" << s.qkv_bias << s.output_bias
       << " magnitude=" << s.rope_magnitude << " frequencies=";
  for (const double frequency : inverse_frequency) text << frequency << ",";
  return text.str();
}

std::string experts_text(const ExpertsSettings& e) {
  std::ostringstream text;
  text << std::hexfloat << " experts=" << e.experts << " per_token=" << e.per_token << " width=" << e.inner
       << " shared=" << e.shared_inner << " sigmoid=" << e.sigmoid << " correction=" << e.correction << " groups=" << e.groups
       << " kept=" << e.groups_kept << " top_two=" << e.group_top_two << " normalise=" << e.normalise << " scaling=" << e.scaling;
  return text.str();
}

}  // namespace

Result<LayerConfig> grouped_query_layer(const std::string& origin, const GroupedQuerySettings& s) {
  RETURN_IF_ERROR(in_range(origin, "number of attention heads", s.heads, kMaxHeads));
  RETURN_IF_ERROR(in_range(origin, "number of key/value heads", s.kv_heads, kMaxHeads));
  RETURN_IF_ERROR(in_range(origin, "head dimension", s.head_dim, kMaxHeadDim));
  if (s.heads % s.kv_heads != 0) {
    return wrong(origin, "attention", "has " + std::to_string(s.heads) + " heads for " + std::to_string(s.kv_heads) +
                                          " key/value heads; the first must be a multiple of the second");
  }
  if (s.rotary_dim < 2 || s.rotary_dim % 2 != 0 || s.rotary_dim > s.head_dim) {
    return wrong(origin, "rotary dimension", "is " + std::to_string(s.rotary_dim) +
                                                 ", expected an even number of at most the head dimension " +
                                                 std::to_string(s.head_dim));
  }
  if (!(std::isfinite(s.rope_theta) && s.rope_theta > 1 && s.rope_theta <= 1e15)) {
    return wrong(origin, "RoPE base (rope_theta)", "is " + std::to_string(s.rope_theta) + ", expected a number above 1");
  }
  if (s.window < 0 || s.window > kMaxContext) {
    return wrong(origin, "sliding window", "is " + std::to_string(s.window) + ", expected 1 to " + std::to_string(kMaxContext));
  }
  RETURN_IF_ERROR(check_scaling(origin, s.scaling));
  std::vector<double> inverse_frequency = rope_inverse_frequencies(s.rope_theta, s.rotary_dim, s.scaling);
  if (!s.frequency_divisors.empty()) {
    if (s.frequency_divisors.size() != inverse_frequency.size()) {
      return wrong(origin, "tensor rope_freqs.weight", "has " + std::to_string(s.frequency_divisors.size()) +
                                                           " elements, expected " + std::to_string(inverse_frequency.size()) +
                                                           " (half of the rotary dimension)");
    }
    for (size_t i = 0; i < inverse_frequency.size(); ++i) {
      const double divisor = s.frequency_divisors[i];
      if (!(std::isfinite(divisor) && divisor > 0)) {
        return wrong(origin, "tensor rope_freqs.weight", "element " + std::to_string(i) + " is " + std::to_string(divisor) +
                                                             ", expected a number above 0");
      }
      inverse_frequency[i] /= divisor;
    }
  }

  LayerConfig layer;
  layer.room = "grouped_query";
  const double scale = s.scale > 0 ? s.scale : 1.0 / std::sqrt(static_cast<double>(s.head_dim));
  layer.summary = summary_of(s, inverse_frequency, scale);
  HyperParameters& p = layer.attention = HyperParameters(origin);
  p.set("heads", s.heads);
  p.set("kv_heads", s.kv_heads);
  p.set("head_dim", s.head_dim);
  p.set("rope_dim", s.rotary_dim);
  p.set("rope_interleaved", s.interleaved);
  p.set("inverse_frequencies", std::move(inverse_frequency));
  p.set("rope_magnitude", s.rope_magnitude);
  p.set("scale", scale);
  p.set("softcap", s.logit_softcap);
  p.set("window", s.window);
  p.set("qk_norm", std::string(s.query_key_norm ? "rms" : "none"));
  if (s.query_key_norm) p.set("norm_epsilon", s.norm_epsilon);
  if (s.qkv_bias) layer.required_roles = {"query_bias", "key_bias", "value_bias"};
  if (s.output_bias) layer.required_roles.push_back("output_bias");
  return layer;
}

std::string settings_text(const HyperParameters& parameters) {
  std::string text;
  for (const auto& [name, value] : parameters.values()) {
    text += (text.empty() ? "" : " ") + name + "=";
    if (const auto* flag = std::get_if<bool>(&value)) text += *flag ? "1" : "0";
    if (const auto* whole = std::get_if<int64_t>(&value)) text += std::to_string(*whole);
    if (const auto* words = std::get_if<std::string>(&value)) text += *words;
    if (const auto* real = std::get_if<double>(&value)) {
      char digits[40];
      std::snprintf(digits, sizeof digits, "%a", *real);
      text += digits;
    }
  }
  return text;
}

NameStyle folder_names(const ModelConfig& config) {
  return config.architecture == "llama-mtla" ? NameStyle::kMtlaModule : NameStyle::kHuggingFace;
}

int64_t segment_tokens(const LayerConfig& layer) {
  const auto found = layer.attention.values().find("segment_tokens");
  const int64_t* tokens = found == layer.attention.values().end() ? nullptr : std::get_if<int64_t>(&found->second);
  return tokens == nullptr ? 0 : *tokens;
}

std::string config_text(const ModelConfig& c) {
  std::ostringstream text;
  text << std::hexfloat << c.architecture << " hidden=" << c.hidden << " vocabulary=" << c.vocabulary
       << " epsilon=" << c.norm_epsilon << " norm_offset=" << c.norm_weight_offset << " embedding_scale=" << c.embedding_scale
       << " logit_scale=" << c.logit_scale << " logit_softcap=" << c.logit_softcap << " tied=" << c.tied_output
       << " post_norms=" << c.post_norms << "\n";
  for (const LayerConfig& layer : c.layers) {
    text << layer.room << " " << layer.summary << " inner=" << layer.feed_forward.inner
         << " activation=" << static_cast<int>(layer.feed_forward.activation) << " mlp_bias=" << layer.feed_forward.bias;
    if (layer.feed_forward.experts.has_value()) text << experts_text(*layer.feed_forward.experts);
    text << "\n";
  }
  return text.str();
}

Result<void> validate_config(const ModelConfig& c) {
  RETURN_IF_ERROR(in_range(c.origin, "hidden size", c.hidden, kMaxHidden));
  RETURN_IF_ERROR(in_range(c.origin, "number of layers", static_cast<int64_t>(c.layers.size()), kMaxLayers));
  RETURN_IF_ERROR(in_range(c.origin, "vocabulary size", c.vocabulary, kMaxVocabulary));
  RETURN_IF_ERROR(in_range(c.origin, "trained context", c.trained_context, kMaxContext));
  for (const LayerConfig& layer : c.layers) {
    const auto& experts = layer.feed_forward.experts;
    if (!experts.has_value()) {
      RETURN_IF_ERROR(in_range(c.origin, "feed-forward size", layer.feed_forward.inner, kMaxFeedForward));
      continue;
    }
    if (const auto fits = check_experts(*experts); !fits.ok()) return bad_input(c.origin + ": " + fits.error().message);
    RETURN_IF_ERROR(in_range(c.origin, "width of an expert", experts->inner, kMaxFeedForward));
    if (experts->shared_inner > 0) RETURN_IF_ERROR(in_range(c.origin, "width of the shared expert", experts->shared_inner, kMaxFeedForward));
  }
  RETURN_IF_ERROR(positive(c.origin, "norm epsilon", c.norm_epsilon));
  if (c.norm_epsilon >= 1) {
    return wrong(c.origin, "norm epsilon", "is " + std::to_string(c.norm_epsilon) + ", expected a number below 1");
  }
  RETURN_IF_ERROR(positive(c.origin, "embedding scale", c.embedding_scale));
  RETURN_IF_ERROR(positive(c.origin, "logit scale", c.logit_scale));
  if (!(std::isfinite(c.logit_softcap) && c.logit_softcap >= 0)) {
    return wrong(c.origin, "logit softcap", "is " + std::to_string(c.logit_softcap) + ", expected 0 or a number above it");
  }
  return {};
}

}  // namespace quipu
