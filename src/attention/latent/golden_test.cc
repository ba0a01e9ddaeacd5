// Both latent rooms against files whose outputs other people's modules computed: DeepSeek's reference module and the
// official MTLA module. The files lie beside the checkout.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "attention/shared/latent_equations.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/reference/reference_backend.h"
#include "formats/safetensors/safetensors_file.h"

namespace quipu {

Result<std::unique_ptr<Attention>> create_latent(const AttentionShape&, const HyperParameters&, WeightSource&, Backend&);
Result<std::unique_ptr<Attention>> create_temporal_latent(const AttentionShape&, const HyperParameters&, WeightSource&,
                                                          Backend&);

namespace {

struct Golden {
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

  GivenWeights weights(Backend& backend) const {
    const std::pair<const char*, const char*> roles[] = {{"query", "wq.weight"},
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
    GivenWeights weights(backend);
    for (const auto& [role, name] : roles) {
      if (file.find(name) != nullptr) weights.give(role, floats(name));
    }
    return weights;
  }
};

class LatentGolden : public testing::TestWithParam<const char*> {};

TEST_P(LatentGolden, EveryBackEndFormAndChunkingAgrees) {
  const std::string path = std::string(QUIPU_SOURCE_DIR) + "/../shared/golden/" + GetParam() + ".safetensors";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no golden file at " << path;
  auto read = read_safetensors(path);
  ASSERT_TRUE(read.ok()) << read.error().message;
  const Golden golden{std::move(read).value()};
  const int64_t hidden = golden.number("hidden_size");
  const std::vector<float> x = golden.floats("input"), y = golden.floats("output");
  LatentEquations::Matrix wanted;
  for (auto it = y.begin(); it != y.end(); it += hidden) wanted.emplace_back(it, it + hidden);

  std::vector<std::unique_ptr<Backend>> backends;
  backends.push_back(make_reference_backend(1));
  for (const Isa isa : available_isas()) backends.push_back(std::move(make_cpu_backend({.threads = 2, .isa = isa})).value());
  for (const auto& backend : backends) {
    GivenWeights weights = golden.weights(*backend);
    for (const char* form : {"absorbed", "expanded", "auto"}) {
      const auto create = golden.text("room") == "latent" ? create_latent : create_temporal_latent;
      auto room = create({.hidden = hidden}, golden.parameters(form), weights, *backend);
      ASSERT_TRUE(room.ok()) << room.error().message;
      for (const std::vector<int64_t>& chunks : {std::vector<int64_t>{17}, {1}, {2}, {5, 1, 3}, {16, 1}}) {
        EXPECT_LT(largest_relative_error(SequenceRun(**room, *backend, x, hidden, chunks).out, wanted), 1e-5)
            << backend->name() << " " << form << " " << chunks[0];
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, LatentGolden,
                         testing::Values("latent_full_query", "latent_low_rank_query_yarn", "temporal_latent_stride2"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace quipu
