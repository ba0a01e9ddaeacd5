// Configurations of other people's latent attention: DeepSeek-V2 and -V3 as transformers has them, and Llama with MTLA.
//
// As in config_hf.cc an absent key is an error unless the configuration class gives it a value of its own.
#include <nlohmann/json.hpp>

#include "base/byte_reader.h"
#include "model/config_readers.h"

namespace quipu {
namespace {

// Both classes construct the norms of latents with their own default, whatever rms_norm_eps says.
constexpr double kLatentEpsilon = 1e-6;
constexpr double kMtlaEpsilon = 1e-5;

// A factor that may be 0, which transformers takes for "not set".
Result<double> factor_or_zero(const JsonObject& rope, const char* key) {
  if (!rope.has(key)) return 0.0;
  if (rope.at(key).is_number() && rope.at(key) == 0) return 0.0;
  return rope.number(key);
}

Result<void> set_yarn(HyperParameters& p, const JsonObject& rope) {
  ASSIGN_OR_RETURN(const double fast, rope.number_or("beta_fast", 32));
  ASSIGN_OR_RETURN(const double slow, rope.number_or("beta_slow", 1));
  p.set("rope_beta_fast", fast);
  p.set("rope_beta_slow", slow);
  ASSIGN_OR_RETURN(const bool truncate, rope.boolean_or("truncate", true));
  if (!truncate) return rope.error("truncate", "is false; only true is supported");
  if (rope.has("mscale") || rope.has("mscale_all_dim")) {
    ASSIGN_OR_RETURN(const double mscale, factor_or_zero(rope, "mscale"));
    ASSIGN_OR_RETURN(const double all_dim, factor_or_zero(rope, "mscale_all_dim"));
    p.set("rope_mscale", mscale);
    p.set("rope_mscale_all_dim", all_dim);
  }
  if (rope.has("attention_factor")) {
    ASSIGN_OR_RETURN(const double factor, rope.number("attention_factor"));
    p.set("rope_attention_factor", factor);
  }
  return {};
}

Result<void> set_scaling(HyperParameters& p, const JsonObject& rope, int64_t trained_context) {
  const char* key = rope.has("rope_type") ? "rope_type" : "type";
  ASSIGN_OR_RETURN(const std::string type, rope.text(key));
  if (type == "default") return {};
  if (type != "linear" && type != "llama3" && type != "yarn") {
    return rope.error(key, "is \"" + printable(type) + "\", supported are default, linear, llama3, yarn");
  }
  ASSIGN_OR_RETURN(const double factor, rope.number("factor"));
  p.set("rope_scaling", type);
  p.set("rope_scaling_factor", factor);
  if (type == "linear") return {};
  double original = static_cast<double>(trained_context);  // as transformers does for yarn
  if (type == "llama3" || rope.has("original_max_position_embeddings")) {
    ASSIGN_OR_RETURN(original, rope.number("original_max_position_embeddings"));
  }
  p.set("rope_original_context", original);
  if (type == "yarn") return set_yarn(p, rope);
  ASSIGN_OR_RETURN(const double low, rope.number("low_freq_factor"));
  ASSIGN_OR_RETURN(const double high, rope.number("high_freq_factor"));
  p.set("rope_low_frequency_factor", low);
  p.set("rope_high_frequency_factor", high);
  return {};
}

// The settings both families share.
Result<HyperParameters> read_latent(const JsonObject& object) {
  HyperParameters p(object.file());
  const struct {
    const char *theirs, *ours;
    int64_t low;
  } keys[] = {{"num_attention_heads", "heads", 1},
              {"kv_lora_rank", "latent_rank", 1},
              {"qk_nope_head_dim", "nope_dim", 1},
              {"qk_rope_head_dim", "rope_dim", 0},
              {"v_head_dim", "value_dim", 1}};
  for (const auto& key : keys) {
    ASSIGN_OR_RETURN(const int64_t value,
                     object.integer(key.theirs, key.low, key.ours == std::string_view("heads") ? kMaxHeads : 1 << 16));
    p.set(key.ours, value);
  }
  ASSIGN_OR_RETURN(const int64_t rope_dim, object.integer("qk_rope_head_dim", 0, 1 << 16));
  if (rope_dim % 2 != 0)
    return object.error("qk_rope_head_dim", "is " + std::to_string(rope_dim) + "; rotary positions need an even one");
  ASSIGN_OR_RETURN(const int64_t query_rank, object.integer_or("q_lora_rank", 0, 1 << 16, 0));
  if (query_rank > 0) p.set("query_rank", query_rank);
  return p;
}

struct Routing {
  std::string scoring, method;
};

Result<Routing> read_routing(const JsonObject& object, bool third) {
  Routing routing{third ? "sigmoid" : "softmax", third ? "noaux_tc" : "greedy"};  // class values
  if (object.has("scoring_func")) {
    ASSIGN_OR_RETURN(routing.scoring, object.text("scoring_func"));
  }
  if (object.has("topk_method")) {
    ASSIGN_OR_RETURN(routing.method, object.text("topk_method"));
  }
  if (routing.scoring != "softmax" && routing.scoring != "sigmoid") {
    return object.error("scoring_func", "is \"" + printable(routing.scoring) + "\", supported are softmax, sigmoid");
  }
  if (routing.method != "greedy" && routing.method != "group_limited_greedy" && routing.method != "noaux_tc") {
    return object.error("topk_method", "is \"" + printable(routing.method) +
                                           "\", supported are greedy, group_limited_greedy, noaux_tc");
  }
  return routing;
}

Result<ExpertsSettings> read_experts(const JsonObject& object, bool third) {
  ASSIGN_OR_RETURN(const Routing routing, read_routing(object, third));
  ExpertsSettings e;
  ASSIGN_OR_RETURN(e.experts, object.integer("n_routed_experts", 1, kMaxHeads));
  ASSIGN_OR_RETURN(e.per_token, object.integer("num_experts_per_tok", 1, e.experts));
  ASSIGN_OR_RETURN(e.inner, object.integer("moe_intermediate_size", 1, kMaxFeedForward));
  ASSIGN_OR_RETURN(const int64_t shared, object.integer_or("n_shared_experts", 0, 1024, 0));
  e.shared_inner = shared * e.inner;
  e.sigmoid = routing.scoring == "sigmoid";
  e.correction = routing.method == "noaux_tc";
  if (routing.method != "greedy") {
    ASSIGN_OR_RETURN(e.groups, object.integer("n_group", 1, e.experts));
    ASSIGN_OR_RETURN(e.groups_kept, object.integer("topk_group", 1, e.groups));
  }
  e.group_top_two = routing.method == "noaux_tc";
  ASSIGN_OR_RETURN(e.normalise, object.boolean_or("norm_topk_prob", third));
  // The two published programs for the second generation differ here, and no checkpoint sets it.
  if (!third && e.normalise)
    return object.error("norm_topk_prob", "is true, which has no agreed meaning for DeepSeek-V2");
  ASSIGN_OR_RETURN(e.scaling, object.number_or("routed_scaling_factor", third ? 2.5 : 1));
  if (const auto fits = check_experts(e); !fits.ok()) return bad_input(object.file() + ": " + fits.error().message);
  return e;
}

}  // namespace

Result<void> set_rope(HyperParameters& p, const JsonObject& object, int64_t trained_context) {
  if (object.has("rope_parameters")) {
    ASSIGN_OR_RETURN(const JsonObject rope, object.object("rope_parameters"));
    ASSIGN_OR_RETURN(const double theta, rope.number("rope_theta"));
    p.set("rope_theta", theta);
    return set_scaling(p, rope, trained_context);
  }
  ASSIGN_OR_RETURN(const double theta, object.number_or("rope_theta", 10000));  // the classes' own value
  p.set("rope_theta", theta);
  if (!object.has("rope_scaling")) return {};
  ASSIGN_OR_RETURN(const JsonObject rope, object.object("rope_scaling"));
  return set_scaling(p, rope, trained_context);
}

Result<ModelConfig> read_deepseek_config(const JsonObject& object, bool third) {
  ASSIGN_OR_RETURN(ModelConfig config, read_common(object, third ? "deepseek_v3" : "deepseek_v2", false));
  RETURN_IF_ERROR(check_promises(config, object));
  LayerConfig layer;
  layer.room = "latent";
  ASSIGN_OR_RETURN(layer.attention, read_latent(object));
  HyperParameters& p = layer.attention;
  p.set("latent_norm", std::string("rms"));
  p.set("norm_epsilon", kLatentEpsilon);
  ASSIGN_OR_RETURN(const bool interleaved, object.boolean_or("rope_interleave", true));
  p.set("rope_interleaved", interleaved);
  RETURN_IF_ERROR(set_rope(p, object, config.trained_context));
  layer.summary = settings_text(p);
  ASSIGN_OR_RETURN(const bool bias, object.boolean_or("attention_bias", false));
  if (bias) {
    layer.required_roles = {"latent_down_bias", "output_bias"};
    if (p.has("query_rank")) layer.required_roles.emplace_back("query_down_bias");
  }
  ASSIGN_OR_RETURN(layer.feed_forward.activation, read_activation(object, "hidden_act"));
  ASSIGN_OR_RETURN(layer.feed_forward.inner, object.integer("intermediate_size", 1, kMaxFeedForward));
  ASSIGN_OR_RETURN(layer.feed_forward.bias, object.boolean_or("mlp_bias", false));

  ASSIGN_OR_RETURN(const int64_t layers, object.integer("num_hidden_layers", 1, kMaxLayers));
  ASSIGN_OR_RETURN(const int64_t dense, object.integer_or("first_k_dense_replace", 0, kMaxLayers, third ? 3 : 0));
  ASSIGN_OR_RETURN(const int64_t period, object.integer_or("moe_layer_freq", 1, kMaxLayers, 1));
  std::optional<ExpertsSettings> experts;
  if (object.has("n_routed_experts") && dense < layers) {
    ASSIGN_OR_RETURN(experts, read_experts(object, third));
  }
  for (int64_t i = 0; i < layers; ++i) {
    config.layers.push_back(layer);
    if (experts.has_value() && i >= dense && i % period == 0) config.layers.back().feed_forward.experts = experts;
  }
  ASSIGN_OR_RETURN(const int64_t further, object.integer_or("num_nextn_predict_layers", 0, kMaxLayers, 0));
  if (further > 0) {
    config.warnings.push_back(config.origin + ": num_nextn_predict_layers is " + std::to_string(further) +
                              "; the layers that guess further tokens are not used");
  }
  RETURN_IF_ERROR(validate_config(config));
  return config;
}

Result<ModelConfig> read_llama_mtla_config(const JsonObject& object) {
  ASSIGN_OR_RETURN(ModelConfig config, read_common(object, "llama-mtla", false));
  RETURN_IF_ERROR(check_promises(config, object));
  LayerConfig layer;
  layer.room = "temporal_latent";
  ASSIGN_OR_RETURN(layer.attention, read_latent(object));
  HyperParameters& p = layer.attention;
  p.set("latent_norm", std::string("layer"));
  p.set("norm_epsilon", kMtlaEpsilon);
  ASSIGN_OR_RETURN(const int64_t stride, object.integer_or("down_rate", 1, 1 << 20, 2));  // the class's own value
  p.set("stride", stride);
  // The package rotates with Llama's function (halves, theta of the file), unlike the module it came from. It takes the
  // width from head_dim * partial_rotary_factor, which is qk_rope_head_dim only where head_dim is qk_nope_head_dim;
  // elsewhere it cannot have been trained.
  p.set("rope_interleaved", false);
  RETURN_IF_ERROR(set_rope(p, object, config.trained_context));
  ASSIGN_OR_RETURN(const int64_t heads, p.integer("heads", 1, kMaxHeads));
  ASSIGN_OR_RETURN(const int64_t nope_dim, p.integer("nope_dim", 1, 1 << 16));
  ASSIGN_OR_RETURN(const int64_t head_dim, object.integer_or("head_dim", 1, kMaxHeadDim, config.hidden / heads));
  if (head_dim != nope_dim) {
    config.warnings.push_back(config.origin + ": head_dim is " + std::to_string(head_dim) + ", not qk_nope_head_dim " +
                              std::to_string(nope_dim) +
                              "; the published package turns by wrong angles there, this one by those of "
                              "qk_rope_head_dim");
  }
  layer.summary = settings_text(p);
  ASSIGN_OR_RETURN(const bool bias, object.boolean_or("attention_bias", false));
  if (bias) return object.error("attention_bias", "is true; llama-mtla is only known without");
  ASSIGN_OR_RETURN(layer.feed_forward.activation, read_activation(object, "hidden_act"));
  ASSIGN_OR_RETURN(layer.feed_forward.inner, object.integer("intermediate_size", 1, kMaxFeedForward));
  ASSIGN_OR_RETURN(layer.feed_forward.bias, object.boolean_or("mlp_bias", false));
  ASSIGN_OR_RETURN(const int64_t layers, object.integer("num_hidden_layers", 1, kMaxLayers));
  config.layers.assign(static_cast<size_t>(layers), layer);
  RETURN_IF_ERROR(validate_config(config));
  return config;
}

}  // namespace quipu
