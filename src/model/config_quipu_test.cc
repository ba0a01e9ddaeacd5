// config.json of our own models: what is read, what is refused, and which tensors follow from it.
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
