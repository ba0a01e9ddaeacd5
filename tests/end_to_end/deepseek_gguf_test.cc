// The tiny DeepSeek checkpoints as GGUF files, in the layout of before April 2025 (attn_kv_b) and in the one since then
// (attn_k_b transposed, attn_v_b): equal logits, and those of Hugging Face transformers.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/mapped_file.h"
#include "end_to_end/tiny_model.h"
#include "engine/model_source.h"
#include "formats/gguf/gguf_writer.h"
#include "formats/safetensors/safetensors_file.h"
#include "tensor/quant_blocks.h"

namespace quipu {
namespace {

using nlohmann::json;

std::string folder_of(const std::string& model) {
  return std::string(QUIPU_SOURCE_DIR) + "/tests/end_to_end/hf/" + model;
}

std::vector<float> floats_of(const TensorFile& file, const std::string& name) {
  const NamedTensor* tensor = file.find(name);
  if (tensor == nullptr) {
    ADD_FAILURE() << name;
    return {};
  }
  std::vector<float> values(static_cast<size_t>(element_count(tensor->view.shape)));
  dequantise_row(values.data(), tensor->view.dtype, tensor->view.bytes.data(), static_cast<int64_t>(values.size()));
  return values;
}

// Builds a GGUF file as converters do.
class Converter {
 public:
  Converter(const std::string& model, bool split) : split_(split), source_(read_safetensors(folder_of(model)).value()) {
    const auto file = MappedFile::open(folder_of(model) + "/config.json").value();
    config_ = json::parse(reinterpret_cast<const char*>(file->bytes().data()),
                          reinterpret_cast<const char*>(file->bytes().data()) + file->bytes().size());
  }

  // change: a last word on the metadata.
  void write(const std::string& path, const std::function<void(GgufHeader&)>& change = {}) {
    metadata();
    if (change) change(header_);
    add("token_embd.weight", "model.embed_tokens.weight");
    add("output_norm.weight", "model.norm.weight");
    add("output.weight", "lm_head.weight");
    for (int64_t i = 0; i < number("num_hidden_layers"); ++i) layer(i);
    auto writer = GgufWriter::create(path, std::move(header_));
    ASSERT_TRUE(writer.ok()) << writer.error().message;
    for (const auto& values : data_) ASSERT_TRUE(writer->write(std::as_bytes(std::span(values))).ok());
    ASSERT_TRUE(writer->commit().ok());
  }

 private:
  int64_t number(const char* key) const { return config_.at(key).get<int64_t>(); }
  bool given(const char* key) const { return config_.contains(key) && !config_[key].is_null(); }
  bool third() const { return config_["model_type"] == "deepseek_v3"; }
  void u32(const std::string& key, int64_t value) {
    ASSERT_TRUE(header_.set_u32("deepseek2." + key, static_cast<uint32_t>(value)).ok());
  }
  void f32(const std::string& key, double value) {
    ASSERT_TRUE(header_.set_f32("deepseek2." + key, static_cast<float>(value)).ok());
  }

  void metadata() {
    ASSERT_TRUE(header_.set_string("general.architecture", "deepseek2").ok());
    const int64_t heads = number("num_attention_heads"), rank = number("kv_lora_rank"),
                  nope = number("qk_nope_head_dim"), rope = number("qk_rope_head_dim"), value = number("v_head_dim");
    u32("block_count", number("num_hidden_layers"));
    u32("context_length", number("max_position_embeddings"));
    u32("embedding_length", number("hidden_size"));
    u32("feed_forward_length", number("intermediate_size"));
    u32("attention.head_count", heads);
    u32("attention.head_count_kv", split_ ? 1 : heads);
    f32("attention.layer_norm_rms_epsilon", 1e-6);
    if (given("q_lora_rank")) u32("attention.q_lora_rank", number("q_lora_rank"));
    u32("attention.kv_lora_rank", rank);
    u32("attention.key_length", split_ ? rank + rope : nope + rope);
    u32("attention.value_length", split_ ? rank : value);
    if (split_) {
      u32("attention.key_length_mla", nope + rope);
      u32("attention.value_length_mla", value);
    }
    u32("rope.dimension_count", rope);
    f32("rope.freq_base", 10000);
    u32("leading_dense_block_count", number("first_k_dense_replace"));
    const json& scaling = config_["rope_parameters"];
    if (scaling["rope_type"] == "yarn") {
      const double factor = scaling["factor"], mscale = scaling["mscale"], all_dim = scaling["mscale_all_dim"];
      ASSERT_TRUE(header_.set_string("deepseek2.rope.scaling.type", "yarn").ok());
      f32("rope.scaling.factor", factor);
      u32("rope.scaling.original_context_length", scaling["original_max_position_embeddings"].get<int64_t>());
      f32("rope.scaling.yarn_log_multiplier", 0.1 * all_dim);
      f32("rope.scaling.attn_factor", (0.1 * mscale * std::log(factor) + 1) / (0.1 * all_dim * std::log(factor) + 1));
    }
    u32("expert_count", number("n_routed_experts"));
    u32("expert_used_count", number("num_experts_per_tok"));
    u32("expert_shared_count", number("n_shared_experts"));
    u32("expert_feed_forward_length", number("moe_intermediate_size"));
    f32("expert_weights_scale", config_["routed_scaling_factor"].get<double>());
    ASSERT_TRUE(header_.set_bool("deepseek2.expert_weights_norm", config_["norm_topk_prob"].get<bool>()).ok());
    if (third()) u32("expert_gating_func", 2);  // absent: softmax
    if (third() || config_["topk_method"] != "greedy") {
      u32("expert_group_count", number("n_group"));
      u32("expert_group_used_count", number("topk_group"));
    }
  }

  void add(const std::string& name, const std::string& from) {
    const NamedTensor* tensor = source_.find(from);
    ASSERT_NE(tensor, nullptr) << from;
    put(name, tensor->view.shape, floats_of(source_, from));
  }
  void put(const std::string& name, const Shape& shape, std::vector<float> values) {
    ASSERT_TRUE(header_.add_tensor(name, DType::kF32, shape).ok()) << name;
    data_.push_back(std::move(values));
  }

  void layer(int64_t i) {
    const std::string to = "blk." + std::to_string(i) + ".", from = "model.layers." + std::to_string(i) + ".";
    add(to + "attn_norm.weight", from + "input_layernorm.weight");
    add(to + "ffn_norm.weight", from + "post_attention_layernorm.weight");
    if (given("q_lora_rank")) {
      add(to + "attn_q_a.weight", from + "self_attn.q_a_proj.weight");
      add(to + "attn_q_a_norm.weight", from + "self_attn.q_a_layernorm.weight");
      add(to + "attn_q_b.weight", from + "self_attn.q_b_proj.weight");
    } else {
      add(to + "attn_q.weight", from + "self_attn.q_proj.weight");
    }
    add(to + "attn_kv_a_mqa.weight", from + "self_attn.kv_a_proj_with_mqa.weight");
    add(to + "attn_kv_a_norm.weight", from + "self_attn.kv_a_layernorm.weight");
    add(to + "attn_output.weight", from + "self_attn.o_proj.weight");
    up_projection(to, from);
    if (i < number("first_k_dense_replace")) {
      for (const char* part : {"gate", "up", "down"}) {
        add(to + "ffn_" + part + ".weight", from + "mlp." + part + "_proj.weight");
      }
      return;
    }
    add(to + "ffn_gate_inp.weight", from + "mlp.gate.weight");
    if (third()) add(to + "exp_probs_b.bias", from + "mlp.gate.e_score_correction_bias");
    for (const std::string part : {"gate", "up", "down"}) {
      add(to + "ffn_" + part + "_shexp.weight", from + "mlp.shared_experts." + part + "_proj.weight");
      Shape shape;
      std::vector<float> all;
      for (int64_t e = 0; e < number("n_routed_experts"); ++e) {
        const std::string one = from + "mlp.experts." + std::to_string(e) + "." + part + "_proj.weight";
        const std::vector<float> values = floats_of(source_, one);
        all.insert(all.end(), values.begin(), values.end());
        shape = source_.find(one)->view.shape;
      }
      shape.insert(shape.begin(), number("n_routed_experts"));
      put(to + "ffn_" + part + "_exps.weight", shape, std::move(all));
    }
  }

  void up_projection(const std::string& to, const std::string& from) {
    const std::string whole = from + "self_attn.kv_b_proj.weight";
    if (!split_) return add(to + "attn_kv_b.weight", whole);
    const int64_t heads = number("num_attention_heads"), rank = number("kv_lora_rank"),
                  nope = number("qk_nope_head_dim"), value = number("v_head_dim");
    const std::vector<float> both = floats_of(source_, whole);
    std::vector<float> keys, values;
    for (int64_t h = 0; h < heads; ++h) {
      const float* head = both.data() + h * (nope + value) * rank;
      for (int64_t c = 0; c < rank; ++c) {
        for (int64_t i = 0; i < nope; ++i) keys.push_back(head[i * rank + c]);
      }
      values.insert(values.end(), head + nope * rank, head + (nope + value) * rank);
    }
    put(to + "attn_k_b.weight", {heads, rank, nope}, std::move(keys));
    put(to + "attn_v_b.weight", {heads, value, rank}, std::move(values));
  }

  bool split_;
  TensorFile source_;
  json config_;
  GgufHeader header_;
  std::vector<std::vector<float>> data_;
};

std::vector<float> logits_of(const std::string& path, const std::vector<int32_t>& ids) {
  auto source = open_model(path);
  EXPECT_TRUE(source.ok()) << (source.ok() ? "" : source.error().message);
  if (!source.ok()) return {};
  auto runtime = std::make_shared<Runtime>();
  runtime->backend = backends_under_test().back().make();
  runtime->state = {DType::kF32, 33};
  auto model = Model::load(source->config, source->tensors(), source->style(), *runtime->backend, {});
  EXPECT_TRUE(model.ok()) << (model.ok() ? "" : model.error().message);
  if (!model.ok()) return {};
  runtime->model = std::move(*model);
  return all_logits(runtime, ids);
}

constexpr const char* kModels[] = {"deepseek_v2_dense", "deepseek_v2_moe_qlora", "deepseek_v2_moe_yarn",
                                   "deepseek_v3_dense_yarn", "deepseek_v3_moe_qlora_yarn"};

TEST(DeepseekGguf, BothLayoutsGiveTheLogitsOfTransformers) {
  const TemporaryFolder folder;
  for (const std::string model : kModels) {
    SCOPED_TRACE(model);
    auto golden = read_safetensors(folder_of(model) + "/golden.safetensors");
    ASSERT_TRUE(golden.ok());
    const NamedTensor* stored = golden->find("ids_65");
    std::vector<int32_t> ids(65);
    std::memcpy(ids.data(), stored->view.bytes.data(), ids.size() * sizeof(int32_t));
    const std::vector<float> want = floats_of(*golden, "logits_65");
    Converter(model, false).write(folder / "old.gguf");
    Converter(model, true).write(folder / "new.gguf");
    const std::vector<float> old_layout = logits_of(folder / "old.gguf", ids),
                             new_layout = logits_of(folder / "new.gguf", ids);
    EXPECT_EQ(old_layout, new_layout) << "the same weights in another order";
    ASSERT_EQ(old_layout.size(), want.size());
    double largest = 0, difference = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      const double off = std::abs(double{old_layout[i]} - want[i]);
      largest = std::max(largest, std::abs(double{want[i]}));
      difference = off <= difference ? difference : off;  // NaN sticks
    }
    EXPECT_LE(difference / largest, 1e-4);
  }
}

TEST(DeepseekGguf, MetadataThatContradictsItselfIsRefused) {
  const TemporaryFolder folder;
  const auto refusal = [&](bool split, auto change) {
    Converter("deepseek_v3_moe_qlora_yarn", split).write(folder / "bad.gguf", change);
    const auto source = open_model(folder / "bad.gguf");
    EXPECT_FALSE(source.ok());
    return source.ok() ? std::string() : source.error().message;
  };
  const auto set = [](const char* key, uint32_t value) {
    return [=](GgufHeader& header) { EXPECT_TRUE(header.set_u32(std::string("deepseek2.") + key, value).ok()); };
  };
  EXPECT_NE(refusal(true, set("attention.key_length", 24)).find("attention.key_length is 24, expected 40"),
            std::string::npos)
      << "the width of an expanded head beside key_length_mla";
  EXPECT_NE(refusal(false, set("attention.key_length", 8)).find("attention.key_length is 8, expected more than"),
            std::string::npos);
  EXPECT_NE(refusal(true, set("rope.dimension_count", 7)).find("rope.dimension_count is 7"), std::string::npos);
  EXPECT_NE(refusal(true, set("attention.kv_lora_rank", 0)).find("attention.kv_lora_rank is 0"), std::string::npos);
  EXPECT_NE(refusal(true, set("expert_used_count", 5)).find("number of experts per token is 5"), std::string::npos);
  EXPECT_NE(refusal(true, set("expert_gating_func", 3)).find("expert_gating_func is 3"), std::string::npos);
}

TEST(DeepseekGguf, TensorsOfAnotherShapeAreRefusedByName) {
  const TemporaryFolder folder;
  const auto refusal = [&](auto change) {
    Converter("deepseek_v3_moe_qlora_yarn", false).write(folder / "bad.gguf", change);
    const auto source = open_model(folder / "bad.gguf");
    EXPECT_TRUE(source.ok());
    const auto backend = backends_under_test().front().make();
    const auto model = Model::load(source->config, source->tensors(), source->style(), *backend, {});
    EXPECT_FALSE(model.ok());
    return model.ok() ? std::string() : model.error().message;
  };
  const auto set = [](const char* key, uint32_t value) {
    return [=](GgufHeader& header) { EXPECT_TRUE(header.set_u32(std::string("deepseek2.") + key, value).ok()); };
  };
  EXPECT_NE(refusal(set("attention.kv_lora_rank", 30)).find("attn_kv_a_mqa.weight is [40, 64], expected [38, 64]"),
            std::string::npos);
  const std::string fewer = refusal([&](GgufHeader& header) { set("expert_count", 4)(header); });
  EXPECT_NE(fewer.find("ffn_gate_inp.weight is [8, 64], expected [4, 64]"), std::string::npos) << fewer;
  EXPECT_NE(refusal(set("expert_feed_forward_length", 16)).find("expected [8, 16, 64]"), std::string::npos);
}

}  // namespace
}  // namespace quipu
