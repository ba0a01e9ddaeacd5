// general.architecture "deepseek2".
//
// Two layouts. Files of before April 2025 keep the up-projection in one tensor, attn_kv_b, and describe expanded heads:
// key_length is nope + rope. Files since then keep it in two, attn_k_b (transposed per head) and attn_v_b, and describe
// the cached row: key_length is latent + rope, and the heads are in key_length_mla and value_length_mla. kv_lora_rank
// is in both, so it does not tell them apart; which tensors there are does, and the room finds that out by itself.
#include <cmath>

#include "base/byte_reader.h"
#include "model/gguf_keys.h"

namespace quipu {
namespace {

constexpr int64_t kMostDim = 1 << 16;

Result<void> set_heads(HyperParameters& p, const GgufKeys& keys) {
  ASSIGN_OR_RETURN(const int64_t heads, keys.integer("attention.head_count", 1, kMaxHeads));
  ASSIGN_OR_RETURN(const int64_t rank, keys.integer("attention.kv_lora_rank", 1, kMostDim));
  ASSIGN_OR_RETURN(const int64_t rope_dim, keys.integer("rope.dimension_count", 0, kMostDim));
  if (rope_dim % 2 != 0)
    return keys.error("rope.dimension_count", "is " + std::to_string(rope_dim) + ", expected an even number");
  const bool split = keys.has("attention.key_length_mla");
  const char* key_length = split ? "attention.key_length_mla" : "attention.key_length";
  const char* value_length = split ? "attention.value_length_mla" : "attention.value_length";
  ASSIGN_OR_RETURN(const int64_t query_dim, keys.integer(key_length, 1, kMostDim));
  ASSIGN_OR_RETURN(const int64_t value_dim, keys.integer(value_length, 1, kMostDim));
  if (query_dim <= rope_dim) {
    return keys.error(key_length, "is " + std::to_string(query_dim) + ", expected more than rope.dimension_count " +
                                      std::to_string(rope_dim));
  }
  if (split && keys.has("attention.key_length")) {
    ASSIGN_OR_RETURN(const int64_t width, keys.integer("attention.key_length", 1, 2 * kMostDim));
    if (width != rank + rope_dim) {
      return keys.error("attention.key_length", "is " + std::to_string(width) + ", expected " +
                                                    std::to_string(rank + rope_dim) + " (attention.kv_lora_rank " +
                                                    std::to_string(rank) + " + rope.dimension_count " +
                                                    std::to_string(rope_dim) + ")");
    }
  }
  ASSIGN_OR_RETURN(const int64_t query_rank, keys.integer_or("attention.q_lora_rank", 0, kMostDim, 0));
  p.set("heads", heads);
  p.set("latent_rank", rank);
  p.set("nope_dim", query_dim - rope_dim);
  p.set("rope_dim", rope_dim);
  p.set("value_dim", value_dim);
  if (query_rank > 0) p.set("query_rank", query_rank);
  return {};
}

Result<void> set_rope(HyperParameters& p, const GgufKeys& keys) {
  ASSIGN_OR_RETURN(const double theta, keys.number_or("rope.freq_base", 1e4));
  p.set("rope_theta", theta);
  p.set("rope_interleaved", true);  // converters leave these rows as they are
  std::string type = "none";
  if (keys.has("rope.scaling.type")) {
    ASSIGN_OR_RETURN(const std::string_view text, keys.metadata().require_string(keys.key("rope.scaling.type"), 256));
    type = std::string(text);
  }
  if (type == "none" || type.empty()) return {};
  if (type != "linear" && type != "yarn") {
    return keys.error("rope.scaling.type", "is \"" + printable(type) + "\", supported are none, linear, yarn");
  }
  ASSIGN_OR_RETURN(const double factor, keys.number("rope.scaling.factor"));
  p.set("rope_scaling", type);
  p.set("rope_scaling_factor", factor);
  if (type == "linear") return {};
  ASSIGN_OR_RETURN(const int64_t original, keys.integer("rope.scaling.original_context_length", 1, kMaxContext));
  ASSIGN_OR_RETURN(const double fast, keys.number_or("rope.scaling.yarn_beta_fast", 32));
  ASSIGN_OR_RETURN(const double slow, keys.number_or("rope.scaling.yarn_beta_slow", 1));
  ASSIGN_OR_RETURN(const double magnitude, keys.number_or("rope.scaling.attn_factor", 1));
  p.set("rope_original_context", original);
  p.set("rope_beta_fast", fast);
  p.set("rope_beta_slow", slow);
  // Of the two magnitudes of YaRN this format assumes equal mscale and mscale_all_dim for the rotation, which cancel.
  p.set("rope_attention_factor", magnitude);
  // The key holds 0.1 * mscale_all_dim; absent means that scores are not scaled.
  double all_dim = 0;
  if (keys.has("rope.scaling.yarn_log_multiplier")) {
    ASSIGN_OR_RETURN(const double multiplier, keys.number("rope.scaling.yarn_log_multiplier"));
    all_dim = multiplier * 10;
  }
  p.set("rope_mscale", all_dim);
  p.set("rope_mscale_all_dim", all_dim);
  return {};
}

Result<ExpertsSettings> read_experts(const GgufKeys& keys, const GgufModelFacts& facts) {
  ExpertsSettings e;
  ASSIGN_OR_RETURN(e.experts, keys.integer("expert_count", 1, kMaxHeads));
  ASSIGN_OR_RETURN(e.per_token, keys.integer("expert_used_count", 1, e.experts));
  ASSIGN_OR_RETURN(e.inner, keys.integer("expert_feed_forward_length", 1, kMaxFeedForward));
  ASSIGN_OR_RETURN(const int64_t shared, keys.integer_or("expert_shared_count", 0, 1024, 0));
  e.shared_inner = shared * e.inner;
  // 0 and absent: files made before the key existed, all of them second generation.
  ASSIGN_OR_RETURN(const int64_t gating, keys.integer_or("expert_gating_func", 0, 2, 0));
  e.sigmoid = gating == 2;
  e.correction = facts.has_expert_correction;
  // Group keys are newer than the first files; without them all experts compete, as the program they are for has it.
  ASSIGN_OR_RETURN(e.groups, keys.integer_or("expert_group_count", 1, e.experts, 1));
  ASSIGN_OR_RETURN(e.groups_kept, keys.integer_or("expert_group_used_count", 1, e.groups, e.groups));
  e.group_top_two = e.sigmoid;
  if (keys.has("expert_weights_norm")) {
    ASSIGN_OR_RETURN(e.normalise, keys.metadata().require_bool(keys.key("expert_weights_norm")));
  }
  ASSIGN_OR_RETURN(e.scaling, keys.number_or("expert_weights_scale", 1));
  if (const auto fits = check_experts(e); !fits.ok())
    return bad_input(keys.metadata().file() + ": " + fits.error().message);
  return e;
}

}  // namespace

Result<void> read_deepseek2_layers(ModelConfig& config, const GgufKeys& keys, int64_t layers,
                                   const GgufModelFacts& facts) {
  LayerConfig layer;
  layer.room = "latent";
  layer.attention = HyperParameters(config.origin);
  HyperParameters& p = layer.attention;
  RETURN_IF_ERROR(set_heads(p, keys));
  RETURN_IF_ERROR(set_rope(p, keys));
  p.set("latent_norm", std::string("rms"));
  p.set("norm_epsilon", config.norm_epsilon);
  layer.summary = settings_text(p);
  ASSIGN_OR_RETURN(layer.feed_forward.inner, keys.integer("feed_forward_length", 1, kMaxFeedForward));
  ASSIGN_OR_RETURN(const int64_t experts, keys.integer_or("expert_count", 0, kMaxHeads, 0));
  ASSIGN_OR_RETURN(const int64_t dense, keys.integer_or("leading_dense_block_count", 0, kMaxLayers, 0));
  config.layers.assign(static_cast<size_t>(layers), layer);
  if (experts == 0) return {};
  ASSIGN_OR_RETURN(const ExpertsSettings settings, read_experts(keys, facts));
  for (int64_t i = dense; i < layers; ++i) config.layers[static_cast<size_t>(i)].feed_forward.experts = settings;
  return {};
}

}  // namespace quipu
