// Hugging Face config.json -> ModelConfig: the spelling of transformers 4 (rope_theta, rope_scaling, rope_local_base_freq)
// and of transformers 5 (rope_parameters).
//
// An absent key is an error unless the architecture's configuration class gives it a value of its own; those values are
// written beside the place that uses them.
#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/byte_reader.h"
#include "model/bounded_json.h"
#include "model/config.h"
#include "model/config_readers.h"
#include "model/json_object.h"

namespace quipu {
namespace {

using nlohmann::json;

struct HfArchitecture {
  std::string_view name;          // in "architectures"
  std::string_view short_name;
  bool qkv_bias;                  // always there; otherwise attention_bias decides
  bool query_key_norm;
  bool gemma;
  bool needs_head_dim;            // head_dim is not hidden_size / num_attention_heads when absent
};

constexpr std::array<HfArchitecture, 7> kArchitectures = {{
    {"LlamaForCausalLM", "llama", false, false, false, false},
    {"MistralForCausalLM", "mistral", false, false, false, false},
    {"Qwen2ForCausalLM", "qwen2", true, false, false, false},
    {"Qwen3ForCausalLM", "qwen3", false, true, false, true},
    {"Gemma3ForCausalLM", "gemma3", false, true, true, true},
    {"DeepseekV2ForCausalLM", "deepseek_v2", false, false, false, false},
    {"DeepseekV3ForCausalLM", "deepseek_v3", false, false, false, false},
}};

Result<const HfArchitecture*> find_architecture(const JsonObject& config) {
  if (!config.has("architectures")) return config.error("architectures", "is missing");
  const json& list = config.at("architectures");
  if (!list.is_array() || list.empty() || !list[0].is_string()) {
    return config.error("architectures", "is not a list of names");
  }
  const std::string name = list[0].get<std::string>();
  for (const HfArchitecture& architecture : kArchitectures) {
    if (architecture.name == name) return &architecture;
  }
  return config.error("architectures", "is \"" + printable(name) + "\", supported are " + supported_hf_architectures());
}

struct RopeBase {
  double theta = 0;
  RopeScaling scaling;
  double magnitude = 1;
};

Result<void> read_yarn(RopeBase& base, const JsonObject& rope) {
  RopeScaling& scaling = base.scaling;
  ASSIGN_OR_RETURN(scaling.beta_fast, rope.number_or("beta_fast", 32));
  ASSIGN_OR_RETURN(scaling.beta_slow, rope.number_or("beta_slow", 1));
  ASSIGN_OR_RETURN(const bool truncate, rope.boolean_or("truncate", true));
  if (!truncate) return rope.error("truncate", "is false; only true is supported");
  double otherwise = yarn_magnitude(scaling.factor, 1);
  if (rope.has("mscale") && rope.has("mscale_all_dim")) {
    ASSIGN_OR_RETURN(const double mscale, rope.number("mscale"));
    ASSIGN_OR_RETURN(const double all_dim, rope.number("mscale_all_dim"));
    otherwise = yarn_magnitude(scaling.factor, mscale) / yarn_magnitude(scaling.factor, all_dim);
  }
  ASSIGN_OR_RETURN(base.magnitude, rope.number_or("attention_factor", otherwise));
  return {};
}

// rope: rope_scaling (version 4) or rope_parameters (version 5).
Result<void> read_scaling(RopeBase& base, const JsonObject& rope, int64_t trained_context) {
  RopeScaling& scaling = base.scaling;
  const char* type_key = rope.has("rope_type") ? "rope_type" : "type";
  if (!rope.has(type_key)) return rope.error("rope_type", "is missing");
  ASSIGN_OR_RETURN(const std::string type, rope.text(type_key));
  if (type == "default") return {};
  if (type != "linear" && type != "llama3" && type != "yarn") {
    return rope.error(type_key, "is \"" + printable(type) + "\", supported are default, linear, llama3, yarn");
  }
  ASSIGN_OR_RETURN(scaling.factor, rope.number("factor"));
  if (type == "linear") {
    scaling.kind = RopeScalingKind::kLinear;
    return {};
  }
  if (rope.has("original_max_position_embeddings")) {
    ASSIGN_OR_RETURN(scaling.original_context, rope.number("original_max_position_embeddings"));
  } else if (type == "yarn") {
    scaling.original_context = static_cast<double>(trained_context);   // as transformers does
  } else {
    return rope.error("original_max_position_embeddings", "is missing");
  }
  if (type == "yarn") {
    scaling.kind = RopeScalingKind::kYarn;
    return read_yarn(base, rope);
  }
  scaling.kind = RopeScalingKind::kLlama3;
  ASSIGN_OR_RETURN(scaling.low_frequency_factor, rope.number("low_freq_factor"));
  ASSIGN_OR_RETURN(scaling.high_frequency_factor, rope.number("high_freq_factor"));
  return {};
}

Result<RopeBase> read_rope_parameters(const JsonObject& rope, int64_t trained_context) {
  RopeBase base;
  ASSIGN_OR_RETURN(base.theta, rope.number("rope_theta"));
  ASSIGN_OR_RETURN(const double partial, rope.number_or("partial_rotary_factor", 1));
  if (partial != 1) return rope.error("partial_rotary_factor", "is " + std::to_string(partial) + "; only 1 is supported");
  RETURN_IF_ERROR(read_scaling(base, rope, trained_context));
  return base;
}

// The bases of global and of sliding layers.
Result<std::pair<RopeBase, RopeBase>> read_rope(const JsonObject& config, const HfArchitecture& architecture,
                                                int64_t trained_context) {
  if (config.has("rope_parameters")) {
    ASSIGN_OR_RETURN(const JsonObject rope, config.object("rope_parameters"));
    if (rope.has("full_attention")) {
      ASSIGN_OR_RETURN(const JsonObject full, rope.object("full_attention"));
      ASSIGN_OR_RETURN(const RopeBase global, read_rope_parameters(full, trained_context));
      if (!rope.has("sliding_attention")) return rope.error("sliding_attention", "is missing");
      ASSIGN_OR_RETURN(const JsonObject sliding, rope.object("sliding_attention"));
      ASSIGN_OR_RETURN(const RopeBase local, read_rope_parameters(sliding, trained_context));
      return std::pair(global, local);
    }
    if (!architecture.gemma) {
      ASSIGN_OR_RETURN(const RopeBase base, read_rope_parameters(rope, trained_context));
      return std::pair(base, base);
    }
    return rope.error("full_attention", "is missing");
  }
  RopeBase global;
  if (architecture.gemma) {
    ASSIGN_OR_RETURN(global.theta, config.number("rope_theta"));
  } else {
    ASSIGN_OR_RETURN(global.theta, config.number_or("rope_theta", 10000));   // every other class's own value
  }
  RopeBase local = global;
  if (config.has("rope_scaling")) {
    ASSIGN_OR_RETURN(const JsonObject rope, config.object("rope_scaling"));
    RETURN_IF_ERROR(read_scaling(global, rope, trained_context));
  }
  if (architecture.gemma) {
    ASSIGN_OR_RETURN(local.theta, config.number("rope_local_base_freq"));
  } else {
    local = global;
  }
  return std::pair(global, local);
}

Result<std::vector<bool>> flags_from_layer_types(const JsonObject& config, int64_t layers) {
  const json& types = config.at("layer_types");
  if (!types.is_array() || types.size() != static_cast<size_t>(layers)) {
    return config.error("layer_types", "has " + std::to_string(types.is_array() ? types.size() : 0) +
                                           " entries, expected num_hidden_layers " + std::to_string(layers));
  }
  std::vector<bool> sliding;
  for (const json& type : types) {
    const std::string name = type.is_string() ? type.get<std::string>() : std::string();
    if (name != "full_attention" && name != "sliding_attention") {
      return config.error("layer_types", "holds \"" + printable(name) + "\", supported are full_attention, sliding_attention");
    }
    sliding.push_back(name == "sliding_attention");
  }
  return sliding;
}

// Which layers slide.
Result<std::vector<bool>> sliding_layers(const JsonObject& config, const HfArchitecture& architecture, int64_t layers) {
  if (config.has("layer_types")) return flags_from_layer_types(config, layers);
  std::vector<bool> sliding(static_cast<size_t>(layers), false);
  if (architecture.gemma) {
    const char* key = config.has("_sliding_window_pattern") ? "_sliding_window_pattern" : "sliding_window_pattern";
    ASSIGN_OR_RETURN(const int64_t period, config.integer(key, 1, kMaxLayers));
    for (int64_t i = 0; i < layers; ++i) sliding[static_cast<size_t>(i)] = (i + 1) % period != 0;
  } else if (architecture.short_name == "mistral") {
    sliding.assign(sliding.size(), true);
  } else if (architecture.short_name == "qwen2" || architecture.short_name == "qwen3") {
    ASSIGN_OR_RETURN(const bool use, config.boolean_or("use_sliding_window", false));
    if (use) {
      ASSIGN_OR_RETURN(const int64_t full, config.integer("max_window_layers", 0, kMaxLayers));
      for (int64_t i = full; i < layers; ++i) sliding[static_cast<size_t>(i)] = true;
    }
  }
  return sliding;
}

Result<FeedForwardConfig> read_feed_forward(const JsonObject& object, const HfArchitecture& architecture) {
  FeedForwardConfig made;
  ASSIGN_OR_RETURN(made.inner, object.integer("intermediate_size", 1, kMaxFeedForward));
  ASSIGN_OR_RETURN(made.bias, object.boolean_or("mlp_bias", false));
  const char* key = architecture.gemma ? "hidden_activation" : "hidden_act";
  ASSIGN_OR_RETURN(made.activation, read_activation(object, key));
  return made;
}

Result<void> read_layers(ModelConfig& config, const JsonObject& object, const HfArchitecture& architecture) {
  ASSIGN_OR_RETURN(const int64_t layers, object.integer("num_hidden_layers", 1, kMaxLayers));
  GroupedQuerySettings settings;
  ASSIGN_OR_RETURN(settings.heads, object.integer("num_attention_heads", 1, kMaxHeads));
  ASSIGN_OR_RETURN(settings.kv_heads, object.integer_or("num_key_value_heads", 1, kMaxHeads, settings.heads));
  if (settings.heads % settings.kv_heads != 0) {
    return object.error("num_key_value_heads", "is " + std::to_string(settings.kv_heads) +
                                                   ", which does not divide num_attention_heads " +
                                                   std::to_string(settings.heads));
  }
  if (object.has("head_dim") || architecture.needs_head_dim) {
    ASSIGN_OR_RETURN(settings.head_dim, object.integer("head_dim", 1, kMaxHeadDim));
  } else if (config.hidden % settings.heads == 0) {
    settings.head_dim = config.hidden / settings.heads;
  } else {
    return object.error("num_attention_heads", "is " + std::to_string(settings.heads) +
                                                   ", which does not divide hidden_size " + std::to_string(config.hidden));
  }
  if (settings.head_dim % 2 != 0) {
    return object.error("head_dim", "is " + std::to_string(settings.head_dim) + "; rotary positions need an even one");
  }
  ASSIGN_OR_RETURN(const FeedForwardConfig feed_forward, read_feed_forward(object, architecture));
  settings.rotary_dim = settings.head_dim;
  settings.norm_epsilon = config.norm_epsilon;
  settings.query_key_norm = architecture.query_key_norm;
  ASSIGN_OR_RETURN(const bool bias, object.boolean_or("attention_bias", false));   // false in every class that has it
  settings.qkv_bias = architecture.qkv_bias || bias;
  settings.output_bias = architecture.qkv_bias ? false : bias;
  if (architecture.gemma) {
    ASSIGN_OR_RETURN(const double scalar, object.number("query_pre_attn_scalar"));
    settings.scale = 1.0 / std::sqrt(scalar);
  }
  if (object.has("attn_logit_softcapping")) {
    ASSIGN_OR_RETURN(settings.logit_softcap, object.number("attn_logit_softcapping"));
  }
  ASSIGN_OR_RETURN(const auto rope, read_rope(object, architecture, config.trained_context));
  ASSIGN_OR_RETURN(const std::vector<bool> sliding, sliding_layers(object, architecture, layers));
  // null means no window, whatever the layer types say.
  const bool any_sliding = object.has("sliding_window") && std::find(sliding.begin(), sliding.end(), true) != sliding.end();
  int64_t window = 0;
  if (any_sliding) {
    ASSIGN_OR_RETURN(window, object.integer("sliding_window", 1, kMaxContext));
  }
  for (const bool slides : sliding) {
    GroupedQuerySettings layer = settings;
    layer.window = slides ? window : 0;
    const RopeBase& base = slides ? rope.second : rope.first;
    layer.rope_theta = base.theta;
    layer.scaling = base.scaling;
    layer.rope_magnitude = base.magnitude;
    ASSIGN_OR_RETURN(LayerConfig made, grouped_query_layer(config.origin, layer));
    made.feed_forward = feed_forward;
    config.layers.push_back(std::move(made));
  }
  return {};
}

}  // namespace

Result<GateActivation> read_activation(const JsonObject& object, const char* key) {
  ASSIGN_OR_RETURN(const std::string activation, object.text(key));
  if (activation == "silu" || activation == "swish") return GateActivation::kSilu;
  if (activation == "gelu_pytorch_tanh" || activation == "gelu_new") return GateActivation::kGeluTanh;
  return object.error(key, "is \"" + printable(activation) + "\", supported are silu, gelu_pytorch_tanh");
}

std::string supported_hf_architectures() {
  std::string names;
  for (const HfArchitecture& architecture : kArchitectures) names += std::string(architecture.name) + ", ";
  return names + "LlamaMTLAForCausalLM, QuipuForCausalLM";
}

Result<ModelConfig> read_common(const JsonObject& object, std::string_view architecture, bool tied) {
  ModelConfig config;
  config.origin = object.file();
  config.architecture = std::string(architecture);
  ASSIGN_OR_RETURN(config.hidden, object.integer("hidden_size", 1, kMaxHidden));
  ASSIGN_OR_RETURN(config.vocabulary, object.integer("vocab_size", 1, kMaxVocabulary));
  ASSIGN_OR_RETURN(config.trained_context, object.integer("max_position_embeddings", 1, kMaxContext));
  ASSIGN_OR_RETURN(config.norm_epsilon, object.number("rms_norm_eps"));
  ASSIGN_OR_RETURN(config.tied_output, object.boolean_or("tie_word_embeddings", tied));
  return config;
}

Result<void> check_promises(ModelConfig& config, const JsonObject& object) {
  // Code or addresses named by the file are never run or fetched.
  for (const char* key : {"auto_map", "trust_remote_code", "quantization_config"}) {
    if (!object.has(key)) continue;
    if (std::string_view(key) == "quantization_config") {
      return object.error(key, "asks for a quantised checkpoint; only plain F32, F16 and BF16 safetensors are supported");
    }
    config.warnings.push_back(object.file() + ": " + key + " is ignored");
  }
  return {};
}

Result<ModelConfig> read_hf_config(std::string_view file, std::string_view text) {
  const std::string origin(file);
  ASSIGN_OR_RETURN(const json root, parse_bounded_json(origin, text));
  const JsonObject object(origin, "", root);
  if (const auto type = root.find("model_type"); type != root.end()) {
    if (*type == "quipu") return read_quipu_config(object);
    if (*type == "llama-mtla") return read_llama_mtla_config(object);
  }
  ASSIGN_OR_RETURN(const HfArchitecture* architecture, find_architecture(object));
  if (architecture->short_name.starts_with("deepseek")) {
    return read_deepseek_config(object, architecture->short_name == "deepseek_v3");
  }
  ASSIGN_OR_RETURN(ModelConfig config, read_common(object, architecture->short_name, architecture->gemma));
  if (architecture->gemma) {
    config.embedding_scale = std::sqrt(static_cast<double>(config.hidden));
    config.norm_weight_offset = 1;
    config.post_norms = true;
    if (object.has("final_logit_softcapping")) {
      ASSIGN_OR_RETURN(config.logit_softcap, object.number("final_logit_softcapping"));
    }
  }
  RETURN_IF_ERROR(read_layers(config, object, *architecture));
  RETURN_IF_ERROR(check_promises(config, object));
  RETURN_IF_ERROR(validate_config(config));
  return config;
}

}  // namespace quipu
