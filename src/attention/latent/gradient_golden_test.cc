// Gradients of both latent rooms against torch's autograd through the published modules: DeepSeek's reference module and
// the official MTLA module, in fp64 on golden weights. tools/make_latent_gradients.py wrote the files.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "attention/room_gradient_for_test.h"
#include "attention/shared/golden_layer_for_test.h"

namespace quipu {

template <class Real>
Result<std::unique_ptr<TrainableAttention<Real>>> create_training_latent(const AttentionShape& shape, const HyperParameters& parameters,
                                                                         std::span<const std::string> optional_roles);
template <class Real>
Result<std::unique_ptr<TrainableAttention<Real>>> create_training_temporal_latent(const AttentionShape& shape,
                                                                                  const HyperParameters& parameters,
                                                                                  std::span<const std::string> optional_roles);

namespace {

struct Case {
  std::string file, name, suffix;   // of tensor names
  int64_t stride = 0;               // 0: latent
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

// Largest difference over the largest entry of what is expected.
double relative_error(const std::vector<double>& got, const std::vector<double>& wanted) {
  double error = 0, largest = 0;
  if (got.size() != wanted.size()) return INFINITY;
  for (size_t i = 0; i < got.size(); ++i) {
    if (!std::isfinite(got[i])) return INFINITY;
    error = std::max(error, std::abs(got[i] - wanted[i]));
    largest = std::max(largest, std::abs(wanted[i]));
  }
  return largest > 0 ? error / largest : INFINITY;
}

class LatentGradientGolden : public testing::TestWithParam<Case> {};

TEST_P(LatentGradientGolden, AgreesWithAutogradThroughThePublishedModule) {
  const Case& c = GetParam();
  const std::string folder = std::string(QUIPU_SOURCE_DIR) + "/src/attention/latent/golden/";
  auto read = read_safetensors(folder + c.file + "_gradients.safetensors");
  ASSERT_TRUE(read.ok()) << read.error().message;
  const GoldenLayer golden{std::move(read).value()};
  const auto roles = golden.roles();
  std::map<std::string, std::string> name_of;
  std::vector<std::string> optional;
  for (const auto& [role, name] : roles) {
    name_of[role] = name;
    optional.push_back(role);
  }
  HyperParameters parameters = golden.parameters("absorbed");
  if (c.stride > 0) parameters.set("stride", c.stride);
  const int64_t hidden = golden.number("hidden_size");
  auto room = c.stride > 0 ? create_training_temporal_latent<double>({.hidden = hidden}, parameters, optional)
                           : create_training_latent<double>({.hidden = hidden}, parameters, optional);
  ASSERT_TRUE(room.ok()) << room.error().message;

  const std::vector<float> x = golden.floats("input"), cotangent = golden.floats("cotangent");
  const int64_t tokens = static_cast<int64_t>(x.size()) / hidden;
  const auto ops = make_reference_training_ops();
  // Twice the same sequence: gradients of weights are those of one, doubled.
  TrainingBench<double> bench(*ops, std::move(*room), hidden, {0, tokens, 2 * tokens});
  ASSERT_EQ(bench.weights.size(), roles.size());
  std::vector<double> dout;
  for (int64_t copy = 0; copy < 2; ++copy) {
    std::copy(x.begin(), x.end(), bench.x.begin() + copy * tokens * hidden);
    dout.insert(dout.end(), cotangent.begin(), cotangent.end());
  }
  for (size_t i = 0; i < bench.weights.size(); ++i) {
    const std::vector<float> values = golden.floats(name_of.at(bench.room->parameters()[i].role));
    ASSERT_EQ(values.size(), bench.weights[i].size());
    bench.weights[i].assign(values.begin(), values.end());
  }
  bench.forward();
  bench.backward(dout);
  const auto first = [](const std::vector<double>& both) { return std::vector<double>(both.begin(), both.begin() + static_cast<int64_t>(both.size() / 2)); };
  EXPECT_LT(relative_error(first(bench.out), golden.doubles("output" + c.suffix)), 1e-8);
  EXPECT_LT(relative_error(first(bench.dx), golden.doubles("input" + c.suffix + ".grad")), 1e-8);
  for (size_t i = 0; i < bench.gradients.size(); ++i) {
    const std::string name = name_of.at(bench.room->parameters()[i].role);
    std::vector<double> wanted = golden.doubles(name + c.suffix + ".grad");
    for (double& value : wanted) value *= 2;
    EXPECT_LT(relative_error(bench.gradients[i], wanted), 1e-8) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(All, LatentGradientGolden,
                         testing::Values(Case{"latent_full_query", "latent_full_query", ""},
                                         Case{"latent_low_rank_query_yarn", "latent_low_rank_query_yarn", ""},
                                         Case{"temporal_latent", "temporal_latent_stride1", ".stride1", 1},
                                         Case{"temporal_latent", "temporal_latent_stride2", ".stride2", 2},
                                         Case{"temporal_latent", "temporal_latent_stride3", ".stride3", 3},
                                         Case{"temporal_latent", "temporal_latent_stride4", ".stride4", 4}),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace quipu
