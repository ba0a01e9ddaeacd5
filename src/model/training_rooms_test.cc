// Whole models of every room, routed and not, as they are configured: gradients in double, one learned task, CPU against
// reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "backend/cpu/cpu_training.h"
#include "backend/reference/reference_training.h"
#include "model/training.h"
#include "ops/gradient_check_for_test.h"

namespace quipu {
namespace {

ModelConfig config_of(const std::string& room, const std::string& decode) {
  ModelConfig c;
  c.origin = "tiny";
  c.architecture = "quipu";
  c.hidden = 16;
  c.vocabulary = 23;
  c.trained_context = 64;
  c.norm_epsilon = 1e-5;
  c.tied_output = true;
  for (int i = 0; i < 2; ++i) {
    LayerConfig layer;
    layer.room = room;
    HyperParameters& p = layer.attention;
    p.set("heads", int64_t{4});
    p.set("rope_theta", 1e4);
    if (room == "latent" || room == "temporal_latent") {
      p.set("latent_rank", int64_t{12});
      p.set("nope_dim", int64_t{6});
      p.set("rope_dim", int64_t{4});
      p.set("value_dim", int64_t{5});
      p.set("latent_norm", std::string("layer"));
      p.set("norm_epsilon", 1e-5);
      layer.required_roles = {"latent_norm_bias"};
      if (room == "temporal_latent") p.set("stride", int64_t{2});
    } else {
      p.set("kv_heads", int64_t{2});
      p.set("head_dim", int64_t{6});
      if (room == "infini") {
        p.set("rule", std::string("linear"));
        p.set("segment_tokens", int64_t{8});
      }
    }
    layer.feed_forward.inner = 20;
    if (i == 1 && !decode.empty()) {   // every other layer
      MixtureOfDepthsConfig depths;
      depths.settings = HyperParameters("tiny", "mixture_of_depths");
      depths.settings.set("capacity", 0.5);
      depths.settings.set("decode", decode);
      if (decode == "predictor") depths.settings.set("predictor_dim", int64_t{4});
      layer.mixture_of_depths = depths;
      layer.required_roles.push_back("mixture_of_depths.router_bias");
    }
    c.layers.push_back(layer);
  }
  return c;
}

template <class Real>
std::unique_ptr<TrainableModel<Real>> make(const ModelConfig& config, TrainingOps<Real>& ops) {
  auto model = TrainableModel<Real>::create(config, ops, {});
  CHECK(model.ok()) << model.error().message;
  (*model)->initialise(3);
  RandomStream random(4, 4);
  for (const NamedParameter& p : (*model)->parameters()) {
    const auto w = (*model)->weights().subspan(static_cast<size_t>(p.offset), static_cast<size_t>(p.elements));
    for (Real& value : w) value = static_cast<Real>((p.group == ParameterGroup::kNorm ? 1.0 : 0.0) + 0.3 * random.normal());
  }
  return std::move(*model);
}

struct Batch {
  std::vector<int32_t> tokens, targets;
  std::vector<int64_t> offsets{0, 9, 10, 33};
  Batch() {
    RandomStream random(5, 5);
    for (int i = 0; i < 33; ++i) {
      tokens.push_back(static_cast<int32_t>(random.below(23)));
      targets.push_back(i % 5 == 3 ? -1 : static_cast<int32_t>(random.below(23)));
    }
  }
  TrainBatch view() const { return {tokens, targets, {}, offsets}; }
};

const char* const kRooms[] = {"grouped_query", "latent", "temporal_latent", "infini"};

TEST(ModelTrainingRooms, GradientsOfWholeModelsOfEveryRoomRoutedAndNot) {
  const auto ops = make_reference_training_ops();
  const Batch batch;
  for (const std::string room : kRooms) {
    for (const std::string decode : {"", "threshold"}) {
      SCOPED_TRACE(room + " " + decode);
      const auto model = make<double>(config_of(room, decode), *ops);
      const TrainOptions options{.router_loss = 0.2};
      model->zero_gradients();
      const auto step = model->forward_backward(batch.view(), options);
      ASSERT_TRUE(step.ok()) << step.error().message;
      EXPECT_EQ(step->extra > 0, !decode.empty());
      const std::vector<double> gradients(model->gradients().begin(), model->gradients().end());
      RoutingCounts counts;
      ASSERT_TRUE(model->evaluate(batch.view(), {}, {.serving = true, .routing = &counts}).ok());
      EXPECT_EQ(counts.rows, decode.empty() ? 0 : 33);
      EXPECT_EQ(counts.let_in, decode.empty() ? 0 : 5 + 1 + 12);
      const auto loss = [&] { return model->evaluate(batch.view(), {}, options)->total(); };
      for (const NamedParameter& p : model->parameters()) {
        const auto at = static_cast<size_t>(p.offset), n = static_cast<size_t>(p.elements);
        expect_gradient(p.name, loss, model->weights().subspan(at, n), std::span(gradients).subspan(at, n), 4);
      }
    }
  }
}

TEST(ModelTrainingRooms, TheCpuComputesTheReferencesLossAndGradients) {
  const auto reference = make_reference_training_ops();
  auto cpu = make_cpu_training_ops({.threads = 2, .isa = best_isa()});
  ASSERT_TRUE(cpu.ok()) << cpu.error().message;
  const Batch batch;
  for (const std::string room : kRooms) {
    for (const std::string decode : {"", "threshold", "predictor", "moving"}) {
      SCOPED_TRACE(room + " " + decode);
      const auto exact = make<double>(config_of(room, decode), *reference);
      const auto fast = make<float>(config_of(room, decode), **cpu);
      for (size_t i = 0; i < exact->weights().size(); ++i) exact->weights()[i] = static_cast<double>(fast->weights()[i]);
      exact->zero_gradients();
      fast->zero_gradients();
      const TrainOptions options{.router_loss = 0.2};
      const auto a = exact->forward_backward(batch.view(), options);
      const auto b = fast->forward_backward(batch.view(), options);
      ASSERT_TRUE(a.ok() && b.ok());
      EXPECT_NEAR(b->total(), a->total(), 1e-4 * std::abs(a->total()));
      for (const NamedParameter& p : exact->parameters()) {
        double error = 0, largest = 0;
        for (int64_t i = p.offset; i < p.offset + p.elements; ++i) {
          const double g = exact->gradients()[static_cast<size_t>(i)];
          error = std::max(error, std::abs(g - static_cast<double>(fast->gradients()[static_cast<size_t>(i)])));
          largest = std::max(largest, std::abs(g));
        }
        EXPECT_LE(error, 1e-3 * largest) << p.name;
        EXPECT_GT(largest, 0.0) << p.name;
      }
    }
  }
}

TEST(ModelTrainingRooms, AStepsGradientsCountFromZeroAndMicrobatchesAddUp) {
  // Sizes that operations in one piece take, where there are any: they write gradients over.
  auto cpu = make_cpu_training_ops({.threads = 2, .isa = best_isa(), .precision = MatmulPrecision::kBfloat16});
  ASSERT_TRUE(cpu.ok()) << cpu.error().message;
  const Batch batch;
  Batch without = batch;
  std::ranges::fill(without.targets, -1);
  for (const std::string room : {"grouped_query", "infini"}) {
    for (const std::string decode : {"", "threshold"}) {
      for (const bool tied : {true, false}) {
        SCOPED_TRACE(room + " " + decode + (tied ? " tied" : ""));
        ModelConfig config = config_of(room, decode);
        config.hidden = 64;
        config.vocabulary = 32;
        config.tied_output = tied;
        for (LayerConfig& layer : config.layers) layer.attention.set("head_dim", int64_t{32});
        const auto model = make<float>(config, **cpu);
        const auto step = [&](const Batch& first, int microbatches) {
          for (const NamedParameter& p : model->parameters()) {
            std::ranges::fill(model->gradients().subspan(static_cast<size_t>(p.offset), static_cast<size_t>(p.elements)), NAN);
          }
          model->zero_gradients();
          EXPECT_TRUE(model->forward_backward(first.view()).ok());
          for (int i = 1; i < microbatches; ++i) EXPECT_TRUE(model->forward_backward(batch.view()).ok());
          return std::vector<float>(model->gradients().begin(), model->gradients().end());
        };
        const std::vector<float> once = step(batch, 1), twice = step(batch, 2), none = step(without, 1), after_none = step(without, 2);
        for (const NamedParameter& p : model->parameters()) {
          for (auto i = static_cast<size_t>(p.offset); i < static_cast<size_t>(p.offset + p.elements); ++i) {
            ASSERT_TRUE(std::isfinite(once[i])) << p.name;
            ASSERT_NEAR(twice[i], 2 * once[i], 1e-5f * std::abs(once[i]) + 1e-6f) << p.name;   // sums in another order
            ASSERT_EQ(none[i], 0.0f) << p.name;
            ASSERT_EQ(after_none[i], once[i]) << p.name;
          }
        }
      }
    }
  }
}

TEST(ModelTrainingRooms, LatentModelsLearnToRecallRoutedOrNot) {
  // The last target is the token the sequence began with: only attention can know it.
  auto ops = make_cpu_training_ops({.threads = 1, .isa = best_isa()});
  ASSERT_TRUE(ops.ok());
  for (const std::string room : {"latent", "temporal_latent"}) {
    for (const std::string decode : {"", "threshold"}) {
      SCOPED_TRACE(room + " " + decode);
      ModelConfig config = config_of(room, decode);
      config.hidden = 32;
      auto made = TrainableModel<float>::create(config, **ops, {});
      ASSERT_TRUE(made.ok()) << made.error().message;
      TrainableModel<float>& model = **made;
      model.initialise(1);
      std::vector<float> first(model.weights().size()), second(model.weights().size());
      RandomStream random(9, 9);
      double begin = 0, end = 0;
      constexpr int kSteps = 100;
      for (int step = 1; step <= kSteps; ++step) {
        std::vector<int32_t> tokens, targets;
        std::vector<int64_t> offsets{0};
        for (int sequence = 0; sequence < 16; ++sequence) {
          const auto token = static_cast<int32_t>(random.below(23));
          for (int i = 0; i < 6; ++i) {
            tokens.push_back(i < 2 ? token : static_cast<int32_t>(random.below(23)));
            targets.push_back(i == 5 ? token : -1);
          }
          offsets.push_back(static_cast<int64_t>(tokens.size()));
        }
        const std::vector<float> weights(tokens.size(), 1.0f / 16);
        model.zero_gradients();
        const auto loss = model.forward_backward({tokens, targets, weights, offsets}, {.router_loss = 0.01});
        ASSERT_TRUE(loss.ok());
        if (step == 1) begin = loss->mean();
        if (step > kSteps - 10) end += loss->mean() / 10;
        (*ops)->adamw(model.weights(), {model.gradients(), first, second}, {.rate = 1e-2, .step = step});
      }
      EXPECT_NEAR(begin, std::log(23.0), 0.2);
      EXPECT_LT(end, 0.7 * begin);
    }
  }
}

}  // namespace
}  // namespace quipu
