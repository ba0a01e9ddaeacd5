// config.json of our own models and of other people's latents: what is read, what is refused, and which tensors follow.
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "model/config.h"
#include "model/tensor_list.h"

namespace quipu {
namespace {

using nlohmann::json;

json grouped_query() {
  return {{"room", "grouped_query"}, {"heads", 4}, {"kv_heads", 2}, {"head_dim", 16}, {"rope_theta", 10000.0}};
}
json latent() {
  return {{"room", "latent"},     {"heads", 4},          {"latent_rank", 32},       {"query_rank", 24},
          {"nope_dim", 16},       {"rope_dim", 8},       {"value_dim", 12},         {"latent_norm", "rms"},
          {"norm_epsilon", 1e-6}, {"rope_theta", 10000}, {"rope_interleaved", true}};
}
json temporal() {
  json section = latent();
  section["room"] = "temporal_latent";
  section["latent_norm"] = "layer";
  section["stride"] = 2;
  section.erase("query_rank");
  return section;
}
json infini() {
  json section = grouped_query();
  section["room"] = "infini";
  section["segment_tokens"] = 64;
  section["rule"] = "delta";
  return section;
}

json good(json attention = grouped_query()) {
  return {{"model_type", "quipu"},
          {"architectures", {"QuipuForCausalLM"}},
          {"hidden_size", 64},
          {"num_hidden_layers", 4},
          {"vocab_size", 128},
          {"intermediate_size", 96},
          {"hidden_act", "silu"},
          {"max_position_embeddings", 4096},
          {"rms_norm_eps", 1e-6},
          {"tie_word_embeddings", true},
          {"attention", std::move(attention)}};
}

Result<ModelConfig> read(const json& config) { return read_hf_config("config.json", config.dump()); }

std::string refusal(const json& config) {
  const auto result = read(config);
  EXPECT_FALSE(result.ok()) << config.dump();
  if (result.ok()) return "";
  EXPECT_EQ(result.error().error_class, ErrorClass::kBadInput);
  return result.error().message;
}

TEST(QuipuConfig, EveryRoomIsReadByNameWithItsOwnSettings) {
  for (const json& section : {grouped_query(), latent(), temporal(), infini()}) {
    const auto config = read(good(section));
    ASSERT_TRUE(config.ok()) << config.error().message;
    EXPECT_EQ(config->architecture, "quipu");
    ASSERT_EQ(config->layers.size(), 4u);
    EXPECT_EQ(config->layers[3].room, section["room"]);
    EXPECT_EQ(config->layers[3].attention.integer("heads", 1, 9).value(), 4);
    EXPECT_EQ(config->layers[3].feed_forward.inner, 96);
    EXPECT_TRUE(config->tied_output);
  }
}

TEST(QuipuConfig, AnOverrideReplacesTheWholeSectionOfTheLayersItNames) {
  json config = good();
  config["layers"] = json::array(
      {{{"layers", {1, 3}}, {"attention", infini()}},
       {{"layers", {2}}, {"attention", latent()}, {"feed_forward", {{"kind", "gated"}, {"intermediate_size", 40}}}}});
  const auto read_config = read(config);
  ASSERT_TRUE(read_config.ok()) << read_config.error().message;
  const auto& layers = read_config->layers;
  EXPECT_EQ(layers[0].room, "grouped_query");
  EXPECT_EQ(layers[1].room, "infini");
  EXPECT_EQ(layers[2].room, "latent");
  EXPECT_EQ(layers[3].room, "infini");
  EXPECT_FALSE(layers[2].attention.has("kv_heads")) << "nothing of the common section is left";
  EXPECT_EQ(layers[2].feed_forward.inner, 40);
  EXPECT_EQ(layers[1].feed_forward.inner, 96);
  EXPECT_NE(layers[0].summary, layers[1].summary);
  EXPECT_EQ(layers[1].summary, layers[3].summary);
}

TEST(QuipuConfig, TheCommonSectionMayBeAbsentWhenEveryLayerHasItsOwn) {
  json config = good();
  config.erase("attention");
  config["layers"] = json::array({{{"layers", {0, 1, 2}}, {"attention", latent()}}});
  EXPECT_NE(refusal(config).find("config.json: attention is missing, and layer 3 has no section of its own"),
            std::string::npos);
  config["layers"][0]["layers"] = {0, 1, 2, 3};
  EXPECT_TRUE(read(config).ok());
}

struct Bad {
  std::function<void(json&)> change;
  const char* message;
};

TEST(QuipuConfig, EveryMistakeIsRefusedWithTheKeyAndTheNearestKnownOne) {
  const auto with = [](json section, const char* key, json value) {
    return [=](json& config) {
      config["attention"] = section;
      config["attention"][key] = value;
    };
  };
  const std::vector<Bad> table = {
      {[](json& c) { c["hiden_size"] = 3; }, "config.json: hiden_size is no key known here; did you mean hidden_size?"},
      {[](json& c) { c["attention"] = 7; }, "attention is 7, expected an object"},
      {[](json& c) { c["attention"].erase("room"); }, "attention.room is missing"},
      {with(grouped_query(), "room", "grouped"),
       "attention.room is unknown: no attention room is called \"grouped\"; there are: grouped_query"},
      {with(grouped_query(), "kv_head", 2),
       "attention setting kv_head is not one that room grouped_query reads with these settings; did you mean "
       "kv_heads?"},
      {with(grouped_query(), "stride", 2), "attention setting stride is not one that room grouped_query reads"},
      {with(grouped_query(), "heads", "4"), "attention setting heads is \"4\", expected a whole number"},
      {with(grouped_query(), "heads", {{"a", 1}}), "attention.heads is an object, expected a number"},
      {with(grouped_query(), "heads", 18446744073709551615u),
       "attention.heads is 18446744073709551615, which is too large"},
      {with(grouped_query(), "kv_heads", 3), "attention setting heads is 4, expected a multiple of kv_heads 3"},
      {with(latent(), "latent_rank", 0), "attention setting latent_rank is 0, expected a whole number in [1,"},
      {with(latent(), "rope_dim", 7), "attention setting rope_dim is 7, expected an even number"},
      {with(latent(), "latent_rank", nullptr), "attention setting latent_rank is missing"},
      {with(temporal(), "stride", 0), "attention setting stride is 0, expected"},
      {with(infini(), "segment_tokens", 4097),
       "attention.segment_tokens is 4097, more than max_position_embeddings 4096"},
      {[](json& c) {
         c["feed_forward"] = {
             {"kind", "experts"}, {"experts", 8}, {"experts_per_token", 3}, {"intermediate_size", 16}, {"groups", 4}};
         c["feed_forward"]["groups_kept"] = 1;
       },
       "number of experts per token is 3, expected 1 to 2"},
      {[](json& c) {
         c["feed_forward"] = {{"kind", "experts"},
                              {"experts", 8},
                              {"experts_per_token", 3},
                              {"intermediate_size", 16},
                              {"scoring", "tanh"}};
       },
       "feed_forward.scoring is \"tanh\", expected softmax or sigmoid"},
      {with(infini(), "rule", "cubic"), "attention setting rule is \"cubic\""},
      {with(infini(), "dpfp_nu", 2), "attention setting dpfp_nu is not one that room infini reads with these settings"},
      {[](json& c) {
         c["hidden_size"] = 1 << 12;
         c["attention"]["heads"] = c["attention"]["head_dim"] = 1 << 16;
       },
       "self_attn.q_proj.weight would be [4294967296, 4096]"},
      {with(grouped_query(), "optional_weights", {"query_bais"}),
       "attention.optional_weights names query_bais, which room grouped_query has no use for with these settings; did "
       "you mean query_bias?"},
      {[](json& c) { c["layers"] = 3; }, "layers is 3, expected a list"},
      {[](json& c) {
         c["layers"] = {{{"layers", {4}}}};
       },
       "layers[0].layers holds 4, expected 0 to 3"},
      {[](json& c) {
         c["layers"] = {{{"layers", {-1}}}};
       },
       "layers[0].layers holds -1, expected 0 to 3"},
      {[](json& c) {
         c["layers"] = {{{"layers", {1, 1}}}};
       },
       "layers[0].layers names layer 1 a second time"},
      {[](json& c) {
         c["layers"] = {{{"layers", {1}}, {"atention", {}}}};
       },
       "layers[0].atention is no key known here; did you mean attention?"},
      {[](json& c) {
         c["layers"] = {{{"layers", {1}}, {"attention", temporal()}}};
         c["layers"][0]["attention"]["stride"] = -3;
       },
       "layers[0].attention setting stride is -3"},
      {[](json& c) {
         c["mixture_of_depths"] = {{"capacity", 0}, {"decode", "threshold"}};
       },
       "mixture_of_depths setting capacity is 0, expected a number in"},
      {[](json& c) {
         c["mixture_of_depths"] = {{"capacity", 1.5}, {"decode", "threshold"}};
       },
       "mixture_of_depths setting capacity is 1.5"},
      {[](json& c) {
         c["feed_forward"] = {{"kind", "round"}};
       },
       "feed_forward.kind is \"round\""},
      {[](json& c) {
         c["feed_forward"] = {{"kind", "gated"}, {"inner", 3}};
       },
       "feed_forward.inner is no key known here"},
      {[](json& c) { c.erase("intermediate_size"); }, "intermediate_size is missing"},
      {[](json& c) { c["hidden_act"] = "relu"; }, "hidden_act is \"relu\""},
      {[](json& c) { c["num_hidden_layers"] = 0; }, "num_hidden_layers is 0"},
      {[](json& c) { c["rms_norm_eps"] = 2; }, "norm epsilon is 2"},
  };
  for (const Bad& bad : table) {
    json config = good();
    bad.change(config);
    const std::string message = refusal(config);
    EXPECT_NE(message.find(bad.message), std::string::npos) << message << "\nwanted " << bad.message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
}

TEST(QuipuConfig, TheTensorsFollowFromTheConfiguration) {
  json config = good(temporal());
  config["num_hidden_layers"] = 1;
  const auto read_config = read(config);
  ASSERT_TRUE(read_config.ok()) << read_config.error().message;
  const auto tensors = model_tensors(*read_config, NameStyle::kHuggingFace);
  ASSERT_TRUE(tensors.ok()) << tensors.error().message;
  std::map<std::string, Shape> found;
  for (const ModelTensor& tensor : *tensors)
    EXPECT_TRUE(found.emplace(tensor.name, tensor.shape).second) << tensor.name;
  const std::string self = "model.layers.0.self_attn.", mlp = "model.layers.0.mlp.";
  const std::map<std::string, Shape> expected = {
      {"model.embed_tokens.weight", {128, 64}},
      {"model.norm.weight", {64}},
      {"model.layers.0.input_layernorm.weight", {64}},
      {"model.layers.0.post_attention_layernorm.weight", {64}},
      {self + "q_proj.weight", {96, 64}},
      {self + "kv_a_proj_with_mqa.weight", {40, 64}},
      {self + "kv_a_layernorm.weight", {32}},
      {self + "kv_b_proj.weight", {112, 32}},
      {self + "o_proj.weight", {64, 48}},
      {self + "hypernet_down.fc_c.weight", {8, 32}},
      {self + "hypernet_down.fc_c.bias", {8}},
      {self + "hypernet_down.fc_p.weight", {8, 32}},
      {self + "hypernet_down.fc_p.bias", {8}},
      {mlp + "gate_proj.weight", {96, 64}},
      {mlp + "up_proj.weight", {96, 64}},
      {mlp + "down_proj.weight", {64, 96}},
  };
  EXPECT_EQ(found, expected);
}

TEST(QuipuConfig, ExpertsAreTensorsUnderTheNamesOfDeepseek) {
  json config = good(latent());
  config["num_hidden_layers"] = 2;
  config["layers"] = json::array({{{"layers", {1}},
                                   {"feed_forward",
                                    {{"kind", "experts"},
                                     {"experts", 3},
                                     {"experts_per_token", 2},
                                     {"intermediate_size", 16},
                                     {"shared_experts", 2},
                                     {"scoring", "sigmoid"},
                                     {"correction", true}}}}});
  const auto read_config = read(config);
  ASSERT_TRUE(read_config.ok()) << read_config.error().message;
  EXPECT_FALSE(read_config->layers[0].feed_forward.experts.has_value());
  const auto tensors = model_tensors(*read_config, NameStyle::kHuggingFace);
  ASSERT_TRUE(tensors.ok());
  std::map<std::string, Shape> found;
  for (const ModelTensor& tensor : *tensors) found.emplace(tensor.name, tensor.shape);
  const std::string mlp = "model.layers.1.mlp.";
  EXPECT_EQ(found[mlp + "gate.weight"], (Shape{3, 64}));
  EXPECT_EQ(found[mlp + "gate.e_score_correction_bias"], (Shape{3}));
  EXPECT_EQ(found[mlp + "experts.2.down_proj.weight"], (Shape{64, 16}));
  EXPECT_EQ(found[mlp + "shared_experts.gate_proj.weight"], (Shape{32, 64}));
  EXPECT_FALSE(found.contains(mlp + "experts.3.down_proj.weight"));
  EXPECT_TRUE(found.contains("model.layers.0.mlp.down_proj.weight"));
}

json mtla() {
  return {{"model_type", "llama-mtla"},
          {"architectures", {"LlamaMTLAForCausalLM"}},
          {"hidden_size", 64},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"intermediate_size", 96},
          {"hidden_act", "silu"},
          {"vocab_size", 128},
          {"max_position_embeddings", 512},
          {"rms_norm_eps", 1e-6},
          {"rope_theta", 500000.0},
          {"kv_lora_rank", 32},
          {"q_lora_rank", 0},
          {"qk_nope_head_dim", 16},
          {"qk_rope_head_dim", 8},
          {"v_head_dim", 16},
          {"down_rate", 3}};
}

TEST(MtlaConfig, IsTemporalLatentsRotatedByHalvesWithTheThetaOfTheFile) {
  const auto config = read(mtla());
  ASSERT_TRUE(config.ok()) << config.error().message;
  const HyperParameters& p = config->layers[1].attention;
  EXPECT_EQ(config->layers[1].room, "temporal_latent");
  EXPECT_EQ(p.integer("stride", 1, 9).value(), 3);
  EXPECT_FALSE(p.boolean("rope_interleaved").value());
  EXPECT_EQ(p.number("rope_theta", 1, 1e9).value(), 500000);
  EXPECT_EQ(p.text("latent_norm").value(), "layer");
  EXPECT_FALSE(p.has("query_rank"));
  EXPECT_TRUE(config->warnings.empty());
  const auto tensors = model_tensors(*config, folder_names(*config));
  ASSERT_TRUE(tensors.ok()) << tensors.error().message;
  const auto has = [&](const std::string& name) {
    return std::any_of(tensors->begin(), tensors->end(), [&](const ModelTensor& t) { return t.name == name; });
  };
  for (const char* name :
       {"wq.weight", "wkv_a.weight", "kv_norm.weight", "wkv_b.weight", "wo.weight", "hypernet_down.fc_c.bias"}) {
    EXPECT_TRUE(has(std::string("model.layers.0.self_attn.") + name)) << name;
  }
  EXPECT_TRUE(has("model.layers.0.mlp.gate_proj.weight"));
}

TEST(MtlaConfig, APartialRotationOfAnotherWidthIsAWarning) {
  json config = mtla();
  config["head_dim"] = 32;
  const auto read_config = read(config);
  ASSERT_TRUE(read_config.ok());
  ASSERT_EQ(read_config->warnings.size(), 1u);
  EXPECT_NE(read_config->warnings[0].find("head_dim is 32, not qk_nope_head_dim 16"), std::string::npos);
}

json deepseek() {
  return {{"architectures", {"DeepseekV3ForCausalLM"}},
          {"hidden_size", 64},
          {"num_hidden_layers", 4},
          {"num_attention_heads", 4},
          {"intermediate_size", 96},
          {"moe_intermediate_size", 32},
          {"hidden_act", "silu"},
          {"vocab_size", 128},
          {"max_position_embeddings", 16384},
          {"rms_norm_eps", 1e-5},
          {"kv_lora_rank", 512},
          {"q_lora_rank", nullptr},
          {"qk_nope_head_dim", 128},
          {"qk_rope_head_dim", 64},
          {"v_head_dim", 128},
          {"n_routed_experts", 8},
          {"num_experts_per_tok", 2},
          {"n_shared_experts", 1},
          {"n_group", 2},
          {"topk_group", 1},
          {"first_k_dense_replace", 1},
          {"num_nextn_predict_layers", 1}};
}

TEST(DeepseekConfig, ExpertsBeginAfterTheDenseLayersAndComeEverySoMany) {
  json source = deepseek();
  source["moe_layer_freq"] = 2;
  const auto config = read(source);
  ASSERT_TRUE(config.ok()) << config.error().message;
  std::vector<bool> experts;
  for (const LayerConfig& layer : config->layers) experts.push_back(layer.feed_forward.experts.has_value());
  EXPECT_EQ(experts, (std::vector<bool>{false, false, true, false}));
  const ExpertsSettings& e = *config->layers[2].feed_forward.experts;
  EXPECT_TRUE(e.sigmoid && e.correction && e.group_top_two && e.normalise);
  EXPECT_EQ(e.scaling, 2.5);
  EXPECT_EQ(config->layers[0].attention.number("norm_epsilon", 0, 1).value(), 1e-6)
      << "of latents, whatever rms_norm_eps is";
  ASSERT_EQ(config->warnings.size(), 1u);
  EXPECT_NE(config->warnings[0].find("num_nextn_predict_layers is 1"), std::string::npos);
}

TEST(DeepseekConfig, WhatItCannotRunIsRefusedByName) {
  const auto with = [](const char* key, json value) {
    json config = deepseek();
    config[key] = std::move(value);
    return refusal(config);
  };
  EXPECT_NE(with("quantization_config", {{"quant_method", "fp8"}})
                .find("quantization_config asks for a quantised checkpoint"),
            std::string::npos);
  EXPECT_NE(with("kv_lora_rank", 0).find("kv_lora_rank is 0"), std::string::npos);
  EXPECT_NE(with("qk_rope_head_dim", 7).find("qk_rope_head_dim is 7"), std::string::npos);
  EXPECT_NE(with("n_group", 3).find("number of expert groups is 3, expected a divisor"), std::string::npos);
  EXPECT_NE(with("topk_method", "best").find("topk_method is \"best\""), std::string::npos);
  EXPECT_NE(with("rope_scaling", {{"type", "dynamic"}, {"factor", 2}}).find("rope_scaling.type is \"dynamic\""),
            std::string::npos);
  json second = deepseek();
  second["architectures"] = {"DeepseekV2ForCausalLM"};
  second["norm_topk_prob"] = true;
  EXPECT_NE(refusal(second).find("norm_topk_prob is true"), std::string::npos);
}

TEST(QuipuConfig, OptionalWeightsThatTheConfigurationNamesAreTensorsOfTheModel) {
  json section = infini();
  section["optional_weights"] = {"query_bias"};
  json config = good(section);
  config["tie_word_embeddings"] = false;
  const auto read_config = read(config);
  ASSERT_TRUE(read_config.ok()) << read_config.error().message;
  const auto tensors = model_tensors(*read_config, NameStyle::kHuggingFace);
  ASSERT_TRUE(tensors.ok());
  const auto has = [&](const std::string& name) {
    return std::any_of(tensors->begin(), tensors->end(), [&](const ModelTensor& t) { return t.name == name; });
  };
  EXPECT_TRUE(has("model.layers.2.self_attn.q_proj.bias"));
  EXPECT_FALSE(has("model.layers.2.self_attn.k_proj.bias"));
  EXPECT_TRUE(has("model.layers.2.self_attn.memory_gate.weight")) << "a role without a name of its own keeps its word";
  EXPECT_TRUE(has("lm_head.weight"));
}

}  // namespace
}  // namespace quipu
