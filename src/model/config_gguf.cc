// GGUF metadata -> ModelConfig. GgufKeys are "<architecture>.<rest>", as llama.cpp's converters write them.
#include <algorithm>
#include <array>
#include <cmath>

#include "base/byte_reader.h"
#include "model/config.h"
#include "model/gguf_keys.h"

namespace quipu {
namespace {

struct GgufArchitecture {
  std::string_view name;
  bool interleaved_rope;   // the converter permuted the rows of q and k so that pairs are neighbours
  bool qkv_bias;
  bool query_key_norm;
  bool post_norms;
  GateActivation activation;
};

constexpr std::array<GgufArchitecture, 5> kArchitectures = {{
    {"llama", true, false, false, false, GateActivation::kSilu},
    {"qwen2", false, true, false, false, GateActivation::kSilu},
    {"qwen3", false, false, true, false, GateActivation::kSilu},
    {"gemma3", false, false, true, true, GateActivation::kGeluTanh},
    {"deepseek2", true, false, false, false, GateActivation::kSilu},
}};

Result<void> read_scaling(GroupedQuerySettings& settings, const GgufKeys& keys) {
  RopeScaling& scaling = settings.scaling;
  std::string type = "none";
  if (keys.has("rope.scaling.type")) {
    ASSIGN_OR_RETURN(const std::string_view text, keys.metadata().require_string(keys.key("rope.scaling.type"), 256));
    type = std::string(text);
  } else if (keys.has("rope.scale_linear")) {   // before 2023-10
    ASSIGN_OR_RETURN(scaling.factor, keys.number("rope.scale_linear"));
    scaling.kind = scaling.factor == 1 ? RopeScalingKind::kNone : RopeScalingKind::kLinear;
    return {};
  }
  if (type == "none" || type.empty()) return {};
  if (type != "linear" && type != "yarn") {
    return keys.error("rope.scaling.type", "is \"" + printable(type) + "\", supported are none, linear, yarn");
  }
  ASSIGN_OR_RETURN(scaling.factor, keys.number("rope.scaling.factor"));
  if (type == "linear") {
    scaling.kind = scaling.factor == 1 ? RopeScalingKind::kNone : RopeScalingKind::kLinear;
    return {};
  }
  scaling.kind = RopeScalingKind::kYarn;
  ASSIGN_OR_RETURN(const int64_t original, keys.integer("rope.scaling.original_context_length", 1, kMaxContext));
  scaling.original_context = static_cast<double>(original);
  ASSIGN_OR_RETURN(scaling.beta_fast, keys.number_or("rope.scaling.yarn_beta_fast", 32));
  ASSIGN_OR_RETURN(scaling.beta_slow, keys.number_or("rope.scaling.yarn_beta_slow", 1));
  ASSIGN_OR_RETURN(const double attention_factor, keys.number_or("rope.scaling.attn_factor", 1));
  settings.rope_magnitude = attention_factor * yarn_magnitude(scaling.factor, 1);
  return {};
}

// True for layers with a sliding window. The key may be a period (every n-th layer is global) or one flag a layer; Gemma 3
// files written before the key existed mean 6.
Result<std::vector<bool>> sliding_layers(const GgufKeys& keys, std::string_view architecture, int64_t layers) {
  std::vector<bool> sliding(static_cast<size_t>(layers), true);
  constexpr std::string_view kKey = "attention.sliding_window_pattern";
  const GgufValue* value = keys.metadata().find(keys.key(kKey));
  if (value != nullptr && value->is_array()) {
    ASSIGN_OR_RETURN(const std::vector<int64_t> flags, keys.per_layer(kKey, layers, 0, 1));
    for (size_t i = 0; i < sliding.size(); ++i) sliding[i] = flags[i] != 0;
    return sliding;
  }
  const int64_t otherwise = architecture == "gemma3" ? 6 : 0;   // 0: every layer slides
  ASSIGN_OR_RETURN(const int64_t period, keys.integer_or(kKey, 0, kMaxLayers, otherwise));
  if (period == 0) return sliding;
  for (int64_t i = 0; i < layers; ++i) sliding[static_cast<size_t>(i)] = (i + 1) % period != 0;
  return sliding;
}

Result<void> read_layers(ModelConfig& config, const GgufKeys& keys, const GgufArchitecture& architecture, int64_t layers,
                         const GgufModelFacts& facts) {
  FeedForwardConfig feed_forward;
  feed_forward.activation = architecture.activation;
  ASSIGN_OR_RETURN(feed_forward.inner, keys.integer("feed_forward_length", 1, kMaxFeedForward));
  ASSIGN_OR_RETURN(const std::vector<int64_t> heads, keys.per_layer("attention.head_count", layers, 1, kMaxHeads));
  std::vector<int64_t> kv_heads = heads;   // absent: every head has its own, as llama.cpp defines it
  if (keys.has("attention.head_count_kv")) {
    ASSIGN_OR_RETURN(kv_heads, keys.per_layer("attention.head_count_kv", layers, 1, kMaxHeads));
  }
  if (!keys.has("attention.key_length") && config.hidden % heads[0] != 0) {
    return keys.error("attention.head_count", "is " + std::to_string(heads[0]) + ", which does not divide embedding_length " +
                                                  std::to_string(config.hidden));
  }
  GroupedQuerySettings settings;
  ASSIGN_OR_RETURN(settings.head_dim, keys.integer_or("attention.key_length", 1, kMaxHeadDim, config.hidden / heads[0]));
  ASSIGN_OR_RETURN(const int64_t value_dim,
                   keys.integer_or("attention.value_length", 1, kMaxHeadDim, settings.head_dim));
  if (value_dim != settings.head_dim) {
    return keys.error("attention.value_length", "is " + std::to_string(value_dim) + ", expected attention.key_length " +
                                                    std::to_string(settings.head_dim));
  }
  ASSIGN_OR_RETURN(settings.rotary_dim, keys.integer_or("rope.dimension_count", 1, kMaxHeadDim, settings.head_dim));
  if (settings.rotary_dim % 2 != 0 || settings.rotary_dim > settings.head_dim) {
    return keys.error("rope.dimension_count", "is " + std::to_string(settings.rotary_dim) +
                                                  ", expected an even number of at most the head dimension " +
                                                  std::to_string(settings.head_dim));
  }
  const bool gemma = architecture.name == "gemma3";
  ASSIGN_OR_RETURN(settings.rope_theta, keys.number_or("rope.freq_base", gemma ? 1e6 : 1e4));
  RETURN_IF_ERROR(read_scaling(settings, keys));
  settings.frequency_divisors = facts.frequency_divisors;
  settings.interleaved = architecture.interleaved_rope;
  settings.norm_epsilon = config.norm_epsilon;
  settings.query_key_norm = architecture.query_key_norm;
  settings.qkv_bias = architecture.qkv_bias;
  // Gemma 3 27B (62 layers) alone divides by sqrt(hidden / heads) instead of sqrt(head_dim); GGUF has no key for it.
  if (gemma && layers == 62) settings.scale = 1.0 / std::sqrt(static_cast<double>(config.hidden / heads[0]));

  ASSIGN_OR_RETURN(const int64_t window, keys.integer_or("attention.sliding_window", 0, kMaxContext, 0));
  ASSIGN_OR_RETURN(const std::vector<bool> sliding, sliding_layers(keys, architecture.name, layers));
  ASSIGN_OR_RETURN(const double local_theta, keys.number_or("rope.freq_base_swa", gemma ? 1e4 : settings.rope_theta));
  for (size_t i = 0; i < static_cast<size_t>(layers); ++i) {
    GroupedQuerySettings layer = settings;
    layer.heads = heads[i];
    layer.kv_heads = kv_heads[i];
    if (window > 0 && sliding[i]) {
      layer.window = window;
      layer.rope_theta = local_theta;
      if (gemma) {   // stretched positions are for the global layers only
        layer.scaling = {};
        layer.rope_magnitude = 1;
      }
    }
    ASSIGN_OR_RETURN(LayerConfig made, grouped_query_layer(config.origin, layer));
    made.feed_forward = feed_forward;
    config.layers.push_back(std::move(made));
  }
  return {};
}

Result<const GgufArchitecture*> find_architecture(const GgufMetadata& metadata) {
  ASSIGN_OR_RETURN(const std::string_view name, metadata.require_string("general.architecture", 4096));
  for (const GgufArchitecture& architecture : kArchitectures) {
    if (architecture.name == name) return &architecture;
  }
  return metadata.error("general.architecture", "is \"" + printable(name) + "\", supported are " +
                                                    supported_gguf_architectures());
}

}  // namespace

std::string supported_gguf_architectures() {
  std::string names;
  for (const GgufArchitecture& architecture : kArchitectures) {
    if (!names.empty()) names += ", ";
    names += architecture.name;
  }
  return names;
}

Result<ModelConfig> read_gguf_config(const GgufMetadata& metadata, const GgufModelFacts& facts) {
  ASSIGN_OR_RETURN(const GgufArchitecture* architecture, find_architecture(metadata));
  if (facts.embedding_rows <= 0) return bad_input(metadata.file() + ": tensor token_embd.weight is missing");
  const GgufKeys keys(metadata, architecture->name);
  ModelConfig config;
  config.origin = metadata.file();
  config.architecture = std::string(architecture->name);
  ASSIGN_OR_RETURN(const auto name, metadata.optional_string("general.name"));
  if (name.has_value()) config.name = printable(*name, 200);

  ASSIGN_OR_RETURN(const int64_t layers, keys.integer("block_count", 1, kMaxLayers));
  ASSIGN_OR_RETURN(config.hidden, keys.integer("embedding_length", 1, kMaxHidden));
  ASSIGN_OR_RETURN(config.trained_context, keys.integer("context_length", 1, kMaxContext));
  ASSIGN_OR_RETURN(config.norm_epsilon, keys.number("attention.layer_norm_rms_epsilon"));
  ASSIGN_OR_RETURN(const int64_t experts, keys.integer_or("expert_count", 0, kMaxContext, 0));
  const bool latent = architecture->name == "deepseek2";
  if (experts > 0 && !latent) {
    return keys.error("expert_count", "is " + std::to_string(experts) +
                                          "; mixtures of experts are supported for deepseek2 only");
  }
  ASSIGN_OR_RETURN(config.vocabulary, keys.integer_or("vocab_size", 1, kMaxVocabulary, facts.embedding_rows));
  if (config.vocabulary != facts.embedding_rows) {
    return keys.error("vocab_size", "is " + std::to_string(config.vocabulary) + ", but tensor token_embd.weight has " +
                                        std::to_string(facts.embedding_rows) + " rows");
  }
  config.tied_output = !facts.has_output;
  config.post_norms = architecture->post_norms;
  if (architecture->name == "gemma3") {
    config.embedding_scale = std::sqrt(static_cast<double>(config.hidden));
    ASSIGN_OR_RETURN(const auto softcap, metadata.optional_f32(keys.key("final_logit_softcapping")));
    config.logit_softcap = softcap.value_or(0.0f);
  }
  RETURN_IF_ERROR(latent ? read_deepseek2_layers(config, keys, layers, facts)
                         : read_layers(config, keys, *architecture, layers, facts));
  RETURN_IF_ERROR(validate_config(config));
  return config;
}

}  // namespace quipu
