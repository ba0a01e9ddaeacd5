#include "model/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "formats/gguf/gguf_file.h"
#include "formats/gguf/gguf_writer.h"

namespace quipu {
namespace {

using nlohmann::json;

json good() {
  return {{"architectures", {"LlamaForCausalLM"}}, {"hidden_size", 576},          {"num_hidden_layers", 2},
          {"num_attention_heads", 9},              {"num_key_value_heads", 3},    {"intermediate_size", 1536},
          {"vocab_size", 49152},                   {"max_position_embeddings", 8192}, {"rms_norm_eps", 1e-5},
          {"rope_theta", 100000.0},                {"hidden_act", "silu"}};
}

json gemma() {
  json config = good();
  config["architectures"] = {"Gemma3ForCausalLM"};
  config["head_dim"] = 256;
  config["hidden_activation"] = "gelu_pytorch_tanh";
  config["query_pre_attn_scalar"] = 256;
  config["rope_local_base_freq"] = 10000.0;
  config["sliding_window"] = 512;
  config["sliding_window_pattern"] = 6;
  config["num_hidden_layers"] = 8;
  return config;
}

ModelConfig read(const json& config) {
  auto result = read_hf_config("config.json", config.dump());
  EXPECT_TRUE(result.ok()) << (result.ok() ? "" : result.error().message);
  return result.ok() ? *result : ModelConfig{};
}

std::vector<double> frequencies(const ModelConfig& config, size_t layer, size_t pairs) {
  return config.layers[layer].attention.numbers("inverse_frequencies", pairs).value();
}

int64_t window(const ModelConfig& config, size_t layer) {
  return config.layers[layer].attention.integer("window", 0, kMaxContext).value();
}

TEST(HfConfig, ReadsLlamaWithTheDefaultsOfItsClass) {
  const ModelConfig config = read(good());
  EXPECT_EQ(config.architecture, "llama");
  EXPECT_EQ(config.hidden, 576);
  EXPECT_EQ(config.layers.size(), 2u);
  EXPECT_EQ(config.layers[0].attention.integer("head_dim", 1, 256).value(), 64);
  EXPECT_FALSE(config.tied_output);
  EXPECT_EQ(window(config, 1), 0);
  EXPECT_NEAR(frequencies(config, 0, 32)[1], std::pow(100000.0, -2.0 / 64), 1e-15);
}

TEST(HfConfig, Gemma3HasFiveLocalLayersToOneGlobal) {
  json source = gemma();
  source["rope_theta"] = 1e6;
  source["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 8.0}};
  const ModelConfig config = read(source);
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(window(config, i), i == 5 ? 0 : 512) << i;
    const double expected = i == 5 ? std::pow(1e6, -2.0 / 256) / 8 : std::pow(1e4, -2.0 / 256);
    EXPECT_NEAR(frequencies(config, i, 128)[1], expected, 1e-15) << i;
  }
  EXPECT_TRUE(config.tied_output);
  EXPECT_TRUE(config.post_norms);
  EXPECT_EQ(config.norm_weight_offset, 1);
  EXPECT_EQ(config.embedding_scale, 24);
}

TEST(HfConfig, Qwen2SlidesOnlyAboveMaxWindowLayersWhenAskedTo) {
  json source = good();
  source["architectures"] = {"Qwen2ForCausalLM"};
  source["sliding_window"] = 128;
  source["max_window_layers"] = 1;
  EXPECT_EQ(window(read(source), 1), 0);
  source["use_sliding_window"] = true;
  EXPECT_EQ(window(read(source), 0), 0);
  EXPECT_EQ(window(read(source), 1), 128);
}

TEST(HfConfig, CodeAndAddressesInTheFileAreIgnoredWithAWarning) {
  json source = good();
  source["auto_map"] = {{"AutoModel", "http://example.com/evil.py"}};
  source["_name_or_path"] = "https://example.com";
  const ModelConfig config = read(source);
  ASSERT_EQ(config.warnings.size(), 1u);
  EXPECT_EQ(config.warnings[0], "config.json: auto_map is ignored");
}

struct BadConfig {
  const char* key;
  json value;          // null: the key is removed
  const char* message; // must be in the error
};

TEST(HfConfig, EveryBadValueIsRefusedWithFileAndKey) {
  const std::vector<BadConfig> table = {
      {"hidden_size", nullptr, "hidden_size is missing"},
      {"hidden_size", 0, "hidden_size is 0, expected 1 to"},
      {"hidden_size", -1, "hidden_size is -1"},
      {"hidden_size", 2147483648, "hidden_size is 2147483648"},
      {"hidden_size", 1000000000, "hidden_size is 1000000000"},
      {"hidden_size", "768", "hidden_size is \"768\", expected an integer"},
      {"hidden_size", 576.0, "hidden_size is 576.0, expected an integer"},
      {"hidden_size", 18446744073709551615u, "hidden_size is 18446744073709551615"},
      {"hidden_size", 577, "num_attention_heads is 9, which does not divide hidden_size 577"},
      {"num_key_value_heads", 18, "num_key_value_heads is 18"},
      {"num_key_value_heads", 2, "num_key_value_heads is 2, which does not divide"},
      {"head_dim", 63, "head_dim is 63; rotary positions need an even one"},
      {"head_dim", 0, "head_dim is 0"},
      {"num_hidden_layers", 1000000000, "num_hidden_layers is 1000000000"},
      {"vocab_size", 1000000000000, "vocab_size is 1000000000000"},
      {"rope_theta", 0, "rope_theta is 0, expected a number above 0"},
      {"rope_theta", -1, "rope_theta is -1"},
      {"rope_theta", 1e300, "rope_theta"},
      {"rms_norm_eps", 0, "rms_norm_eps is 0"},
      {"rms_norm_eps", -1e-5, "rms_norm_eps is -1e-05"},
      {"rms_norm_eps", nullptr, "rms_norm_eps is missing"},
      {"hidden_act", "relu", "hidden_act is \"relu\", supported are silu"},
      {"hidden_act", nullptr, "hidden_act is missing"},
      {"intermediate_size", nullptr, "intermediate_size is missing"},
      {"max_position_embeddings", 0, "max_position_embeddings is 0"},
      {"tie_word_embeddings", "yes", "tie_word_embeddings is \"yes\", expected true or false"},
      {"architectures", nullptr, "architectures is missing"},
      {"architectures", {"BloomForCausalLM"}, "\"BloomForCausalLM\", supported are LlamaForCausalLM, MistralForCausalLM"},
      {"architectures", {"Evil\nName"}, "Evil\\x0aName"},
      {"architectures", json::array(), "architectures is not a list"},
      {"rope_scaling", {{"rope_type", "dynamic"}, {"factor", 2.0}}, "rope_scaling.rope_type is \"dynamic\", supported are default"},
      {"rope_scaling", {{"type", "magic"}, {"factor", 2.0}}, "rope_scaling.type is \"magic\""},
      {"rope_scaling", {{"type", "linear"}, {"factor", 0}}, "rope_scaling.factor is 0"},
      {"rope_scaling", {{"type", "linear"}, {"factor", 0.5}}, "scaling factor is 0.5"},
      {"rope_scaling", {{"type", "linear"}}, "rope_scaling.factor is missing"},
      {"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8}}, "original_max_position_embeddings is missing"},
      {"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8}, {"original_max_position_embeddings", 8192},
                        {"low_freq_factor", 4}, {"high_freq_factor", 1}}, "high frequency factor"},
      {"rope_scaling", 7, "rope_scaling is 7, expected an object"},
      {"rope_parameters", {{"rope_type", "default"}}, "rope_parameters.rope_theta is missing"},
      {"rope_parameters", {{"rope_theta", 1e4}, {"rope_type", "default"}, {"partial_rotary_factor", 0.5}}, "partial_rotary_factor"},
      {"layer_types", {"full_attention"}, "layer_types has 1 entries, expected num_hidden_layers 2"},
      {"layer_types", {"full_attention", "linear_attention"}, "layer_types holds \"linear_attention\""},
      {"quantization_config", {{"bits", 4}}, "quantization_config asks for a quantised checkpoint"},
  };
  for (const BadConfig& bad : table) {
    json source = good();
    source[bad.key] = bad.value;
    if (bad.value.is_null()) source.erase(bad.key);
    const auto result = read_hf_config("dir/config.json", source.dump());
    ASSERT_FALSE(result.ok()) << bad.message;
    EXPECT_EQ(result.error().error_class, ErrorClass::kBadInput);
    EXPECT_EQ(result.error().message.find("dir/config.json: "), 0u) << result.error().message;
    EXPECT_NE(result.error().message.find(bad.message), std::string::npos) << result.error().message << "\nwanted " << bad.message;
  }
}

TEST(HfConfig, TextThatIsNoJsonObjectIsRefused) {
  const std::string deep(200000, '[');
  const std::vector<std::pair<std::string, std::string>> table = {
      {"", "not valid JSON"}, {"[]", "not a JSON object"}, {"{\"hidden_size\": NaN}", "not valid JSON at byte"},
      {"{\"a\": 1", "not valid JSON"}, {deep, "nested more than 128 levels"}, {"{\"a\": 1e999}", "not valid JSON"},
      {std::string("{\"a\xff\": 1}"), "not valid JSON"}};
  for (const auto& [text, message] : table) {
    const auto result = read_hf_config("config.json", text);
    ASSERT_FALSE(result.ok()) << text.substr(0, 40);
    EXPECT_NE(result.error().message.find(message), std::string::npos) << result.error().message;
  }
}

TEST(HfConfig, EveryByteChangedOrCutOffEitherReadsOrIsRefused) {
  const std::string text = good().dump();
  for (size_t i = 0; i < text.size(); ++i) {
    (void)read_hf_config("config.json", std::string_view(text).substr(0, i));
    for (const int bit : {0, 3, 7}) {
      std::string changed = text;
      changed[i] = static_cast<char>(changed[i] ^ (1 << bit));
      const auto result = read_hf_config("config.json", changed);
      EXPECT_TRUE(result.ok() || result.error().error_class == ErrorClass::kBadInput) << i;
    }
  }
}

// A GGUF header of these keys alone, read back.
class GgufKeys {
 public:
  GgufKeys() {
    text("general.architecture", "llama");
    for (const auto& [key, value] : {std::pair<const char*, uint32_t>{"block_count", 2}, {"embedding_length", 576},
                                     {"feed_forward_length", 1536}, {"context_length", 8192}, {"attention.head_count", 9},
                                     {"attention.head_count_kv", 3}}) {
      u32(key, value);
    }
    f32("attention.layer_norm_rms_epsilon", 1e-5f);
    f32("rope.freq_base", 1e5f);
  }
  void text(const std::string& key, const std::string& value) { EXPECT_TRUE(header_.set_string(key, value).ok()); }
  void u32(const std::string& key, uint32_t value) { EXPECT_TRUE(header_.set_u32("llama." + key, value).ok()); }
  void f32(const std::string& key, float value) { EXPECT_TRUE(header_.set_f32("llama." + key, value).ok()); }
  void i32s(const std::string& key, const std::vector<int32_t>& values) {
    EXPECT_TRUE(header_.set_i32s("llama." + key, values).ok());
  }
  Result<ModelConfig> read(GgufModelFacts facts = {49152, false, {}}) const {
    const std::string bytes = header_.encode();
    auto file = read_gguf_bytes("model.gguf", std::as_bytes(std::span(bytes.data(), bytes.size())));
    EXPECT_TRUE(file.ok()) << (file.ok() ? "" : file.error().message);
    return read_gguf_config(file->metadata, facts);
  }

 private:
  GgufHeader header_;
};

TEST(GgufConfig, ReadsLlamaAsInterleavedAndTiedWithoutAnOutputMatrix) {
  auto config = GgufKeys().read();
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_TRUE(config->tied_output);
  EXPECT_EQ(config->vocabulary, 49152);
  EXPECT_TRUE(config->layers[0].attention.boolean("rope_interleaved").value());
  EXPECT_EQ(config->layers[0].attention.integer("head_dim", 1, 256).value(), 64);
}

TEST(GgufConfig, RopeDivisorsAreApplied) {
  std::vector<double> divisors(32, 1.0);
  divisors[31] = 8;
  auto plain = GgufKeys().read();
  auto scaled = GgufKeys().read({49152, false, divisors});
  ASSERT_TRUE(scaled.ok());
  EXPECT_EQ(frequencies(*scaled, 0, 32)[30], frequencies(*plain, 0, 32)[30]);
  EXPECT_EQ(frequencies(*scaled, 0, 32)[31], frequencies(*plain, 0, 32)[31] / 8);
}

TEST(GgufConfig, EveryBadValueIsRefusedWithFileAndKey) {
  struct Row {
    std::function<void(GgufKeys&)> change;
    const char* message;
  };
  const std::vector<Row> table = {
      {[](GgufKeys& k) { k.text("general.architecture", "mamba"); }, "\"mamba\", supported are llama, qwen2, qwen3, gemma3"},
      {[](GgufKeys& k) { k.u32("block_count", 0); }, "llama.block_count is 0"},
      {[](GgufKeys& k) { k.u32("block_count", 1000000000); }, "llama.block_count is 1000000000"},
      {[](GgufKeys& k) { k.u32("embedding_length", 577); }, "does not divide embedding_length 577"},
      {[](GgufKeys& k) { k.u32("attention.head_count_kv", 2); }, "multiple of the second"},
      {[](GgufKeys& k) { k.u32("attention.head_count_kv", 0); }, "head_count_kv is 0"},
      {[](GgufKeys& k) { k.u32("attention.key_length", 63); }, "rope.dimension_count is 63, expected an even number"},
      {[](GgufKeys& k) { k.u32("attention.value_length", 32); }, "value_length is 32, expected attention.key_length 64"},
      {[](GgufKeys& k) { k.u32("rope.dimension_count", 128); }, "rope.dimension_count is 128"},
      {[](GgufKeys& k) { k.f32("attention.layer_norm_rms_epsilon", 0); }, "layer_norm_rms_epsilon is 0"},
      {[](GgufKeys& k) { k.f32("attention.layer_norm_rms_epsilon", NAN); }, "layer_norm_rms_epsilon is nan"},
      {[](GgufKeys& k) { k.f32("rope.freq_base", INFINITY); }, "rope.freq_base is inf"},
      {[](GgufKeys& k) { k.text("llama.rope.scaling.type", "longrope"); }, "rope.scaling.type is \"longrope\", supported are"},
      {[](GgufKeys& k) { k.text("llama.rope.scaling.type", "linear"); k.f32("rope.scaling.factor", 0); }, "rope.scaling.factor is 0"},
      {[](GgufKeys& k) { k.u32("expert_count", 8); }, "expert_count is 8; mixtures of experts"},
      {[](GgufKeys& k) { k.u32("vocab_size", 32000); }, "vocab_size is 32000, but tensor token_embd.weight has 49152 rows"},
      {[](GgufKeys& k) { k.i32s("attention.head_count", {9, 9, 9}); }, "has 3 entries, expected one for each of 2 layers"},
      {[](GgufKeys& k) { k.i32s("attention.head_count", {9, -9}); }, "head_count holds -9"},
      {[](GgufKeys& k) { k.text("llama.context_length", "many"); }, "llama.context_length"},
  };
  for (const Row& row : table) {
    GgufKeys keys;
    row.change(keys);
    const auto result = keys.read();
    ASSERT_FALSE(result.ok()) << row.message;
    EXPECT_EQ(result.error().error_class, ErrorClass::kBadInput);
    EXPECT_EQ(result.error().message.find("model.gguf: "), 0u) << result.error().message;
    EXPECT_NE(result.error().message.find(row.message), std::string::npos) << result.error().message << "\nwanted " << row.message;
  }
  const auto no_embedding = GgufKeys().read({0, false, {}});
  ASSERT_FALSE(no_embedding.ok());
  EXPECT_NE(no_embedding.error().message.find("token_embd.weight is missing"), std::string::npos);
}

}  // namespace
}  // namespace quipu
