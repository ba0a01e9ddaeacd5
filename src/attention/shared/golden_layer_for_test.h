// Test support: files with the weights of published latent attention modules, in their names and ours.
#pragma once

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "attention/shared/latent_equations.h"
#include "formats/safetensors/safetensors_file.h"

namespace quipu {

// A layer with its settings, weights, input and output, as those modules' names say it.
struct GoldenLayer {
  TensorFile file;
  std::string text(const std::string& key) const {
    const auto found = file.metadata().find(key);
    CHECK(found != file.metadata().end()) << key;
    return found->second;
  }
  int64_t number(const std::string& key) const { return std::stoll(text(key)); }
  std::vector<float> floats(const std::string& name) const {
    const NamedTensor* tensor = file.find(name);
    CHECK(tensor != nullptr && tensor->view.dtype == DType::kF32) << name;
    std::vector<float> values(static_cast<size_t>(element_count(tensor->view.shape)));
    std::memcpy(values.data(), tensor->view.bytes.data(), tensor->view.bytes.size());
    return values;
  }

  std::vector<double> doubles(const std::string& name) const {
    const NamedTensor* tensor = file.find(name);
    CHECK(tensor != nullptr && tensor->view.dtype == DType::kF64) << name;
    std::vector<double> values(static_cast<size_t>(element_count(tensor->view.shape)));
    std::memcpy(values.data(), tensor->view.bytes.data(), tensor->view.bytes.size());
    return values;
  }

  HyperParameters parameters(const std::string& form) const {
    HyperParameters p("golden");
    p.set("form", form);
    const std::pair<const char*, const char*> numbers[] = {
        {"heads", "num_attention_heads"}, {"query_rank", "q_lora_rank"},   {"latent_rank", "kv_lora_rank"},
        {"nope_dim", "qk_nope_head_dim"}, {"rope_dim", "qk_rope_head_dim"}, {"value_dim", "v_head_dim"}};
    for (const auto& [ours, theirs] : numbers) p.set(ours, number(theirs));
    p.set("latent_norm", text("latent_norm"));
    p.set("norm_epsilon", std::stod(text("norm_eps")));
    p.set("rope_theta", std::stod(text("rope_theta")));
    p.set("rope_interleaved", text("rope_layout") == "interleaved");
    if (file.metadata().contains("stride")) p.set("stride", number("stride"));
    if (file.metadata().contains("rope_scaling") && text("rope_scaling") != "null") {
      // The one that is there; its softmax scale must come out of it.
      p.set("rope_scaling", std::string("yarn"));
      p.set("rope_scaling_factor", 40.0);
      p.set("rope_original_context", 4096.0);
      p.set("rope_beta_fast", 32.0);
      p.set("rope_beta_slow", 1.0);
      p.set("rope_mscale", 1.0);
      p.set("rope_mscale_all_dim", 1.0);
    }
    return p;
  }

  // Our role and their name of every parameter the file has.
  std::vector<std::pair<std::string, std::string>> roles() const {
    const std::pair<const char*, const char*> all[] = {{"query", "wq.weight"},
                                                       {"query_down", "wq_a.weight"},
                                                       {"query_down_norm", "q_norm.weight"},
                                                       {"query_down_norm_bias", "q_norm.bias"},
                                                       {"query_up", "wq_b.weight"},
                                                       {"latent_down", "wkv_a.weight"},
                                                       {"latent_norm", "kv_norm.weight"},
                                                       {"latent_norm_bias", "kv_norm.bias"},
                                                       {"latent_up", "wkv_b.weight"},
                                                       {"output", "wo.weight"},
                                                       {"hypernet_fc_c", "hypernet_down.fc_c.weight"},
                                                       {"hypernet_fc_c_bias", "hypernet_down.fc_c.bias"},
                                                       {"hypernet_fc_p", "hypernet_down.fc_p.weight"},
                                                       {"hypernet_fc_p_bias", "hypernet_down.fc_p.bias"}};
    std::vector<std::pair<std::string, std::string>> found;
    for (const auto& [role, name] : all) {
      if (file.find(name) != nullptr) found.emplace_back(role, name);
    }
    return found;
  }

  GivenWeights weights(Backend& backend) const {
    GivenWeights weights(backend);
    for (const auto& [role, name] : roles()) weights.give(role, floats(name));
    return weights;
  }
};

}  // namespace quipu
