// Both latent rooms against files whose outputs other people's modules computed: DeepSeek's reference module and the
// official MTLA module. The files lie beside the checkout.
#include <gtest/gtest.h>

#include <filesystem>

#include "attention/shared/golden_layer_for_test.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/reference/reference_backend.h"

namespace quipu {

Result<std::unique_ptr<Attention>> create_latent(const AttentionShape&, const HyperParameters&, WeightSource&, Backend&);
Result<std::unique_ptr<Attention>> create_temporal_latent(const AttentionShape&, const HyperParameters&, WeightSource&,
                                                          Backend&);

namespace {

class LatentGolden : public testing::TestWithParam<const char*> {};

TEST_P(LatentGolden, EveryBackEndFormAndChunkingAgrees) {
  const std::string path = std::string(QUIPU_SOURCE_DIR) + "/../shared/golden/" + GetParam() + ".safetensors";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no golden file at " << path;
  auto read = read_safetensors(path);
  ASSERT_TRUE(read.ok()) << read.error().message;
  const GoldenLayer golden{std::move(read).value()};
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
