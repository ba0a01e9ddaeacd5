// The whole trainable model: its gradient in double, its equality with the model that generates, its bookkeeping.
#include "model/training.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_training.h"
#include "backend/reference/reference_backend.h"
#include "backend/reference/reference_training.h"
#include "formats/safetensors/safetensors_file.h"
#include "model/model.h"
#include "ops/gradient_check_for_test.h"

namespace quipu {
namespace {

using testing::HasSubstr;

// Three layers: grouped, with every option, windowed.
ModelConfig tiny_config(bool tied) {
  ModelConfig c;
  c.origin = "tiny";
  c.architecture = "llama";
  c.hidden = 16;
  c.vocabulary = 29;
  c.trained_context = 64;
  c.norm_epsilon = 1e-5;
  c.embedding_scale = 1.5;
  c.logit_scale = 0.8;
  c.logit_softcap = 20;
  c.tied_output = tied;
  for (int i = 0; i < 3; ++i) {
    LayerConfig layer;
    layer.room = "grouped_query";
    HyperParameters& p = layer.attention;
    p.set("heads", int64_t{4});
    p.set("kv_heads", int64_t{i == 2 ? 1 : 2});
    p.set("head_dim", int64_t{6});
    p.set("rope_theta", 1e4);
    if (i == 1) {
      p.set("qk_norm", std::string("rms"));
      p.set("norm_epsilon", 1e-6);
      layer.required_roles = {"query_bias", "output_bias"};
      layer.feed_forward.bias = true;
    }
    if (i == 2) p.set("window", int64_t{5});
    layer.feed_forward.inner = 20;
    c.layers.push_back(layer);
  }
  return c;
}

struct Batch {
  std::vector<int32_t> tokens, targets;
  std::vector<float> weights;
  std::vector<int64_t> offsets{0, 9, 10, 22};
  Batch() {
    RandomStream random(5, 5);
    for (int i = 0; i < 22; ++i) {
      tokens.push_back(static_cast<int32_t>(random.below(29)));
      targets.push_back(i % 5 == 3 ? -1 : static_cast<int32_t>(random.below(29)));
      weights.push_back(static_cast<float>(0.1 + random.uniform()));
    }
  }
  TrainBatch view() const { return {tokens, targets, weights, offsets}; }
};

template <class Real>
std::unique_ptr<TrainableModel<Real>> make(const ModelConfig& config, TrainingOps<Real>& ops,
                                           const typename TrainableModel<Real>::Options& options = {}) {
  auto model = TrainableModel<Real>::create(config, ops, options);
  CHECK(model.ok()) << model.error().message;
  (*model)->initialise(3);
  // Wider than an initial model, so that attention is peaked and biases and norm weights show.
  RandomStream random(4, 4);
  for (const NamedParameter& p : (*model)->parameters()) {
    const auto w = (*model)->weights().subspan(static_cast<size_t>(p.offset), static_cast<size_t>(p.elements));
    for (Real& value : w) value = static_cast<Real>((p.group == ParameterGroup::kNorm ? 1.0 : 0.0) + 0.3 * random.normal());
  }
  return std::move(*model);
}

TEST(ModelTraining, GradientOfTheWholeModelIsThatOfCentralDifferences) {
  const auto ops = make_reference_training_ops();
  const Batch batch;
  for (const bool tied : {true, false}) {
    const auto model = make<double>(tiny_config(tied), *ops, {.loss_rows = 7});
    const TrainOptions options{.z_loss = 0.01};
    model->zero_gradients();
    const auto step = model->forward_backward(batch.view(), options);
    ASSERT_TRUE(step.ok()) << step.error().message;
    const std::vector<double> gradients(model->gradients().begin(), model->gradients().end());
    const auto loss = [&] { return model->evaluate(batch.view(), {}, options)->total(); };
    EXPECT_NEAR(loss(), step->total(), 1e-12);
    for (const NamedParameter& p : model->parameters()) {
      const auto at = static_cast<size_t>(p.offset), n = static_cast<size_t>(p.elements);
      expect_gradient(p.name, loss, model->weights().subspan(at, n), std::span(gradients).subspan(at, n), 6);
    }
  }
}

// The numbers a golden file holds under a name.
std::vector<float> golden(const TensorFile& file, const std::string& name) {
  const NamedTensor* tensor = file.find(name);
  CHECK(tensor != nullptr && tensor->view.dtype == DType::kF32) << name;
  std::vector<float> values(tensor->view.bytes.size() / sizeof(float));
  std::memcpy(values.data(), tensor->view.bytes.data(), tensor->view.bytes.size());
  return values;
}

// Loss and every gradient of transformers' Llama by torch's autograd in float64 (tools/make_training_goldens.py).
template <class Real>
void expect_gradients_of_torch(TrainingOps<Real>& ops, double tolerance) {
  const std::string path = std::string(QUIPU_SOURCE_DIR) + "/src/model/testdata/tiny_llama_gradients.safetensors";
  auto file = read_safetensors(path);
  ASSERT_TRUE(file.ok()) << file.error().message;
  auto config = read_hf_config("config.json", R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 24,
      "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
      "vocab_size": 31, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
      "max_position_embeddings": 64, "hidden_act": "silu"})");
  ASSERT_TRUE(config.ok()) << config.error().message;
  auto model = TrainableModel<Real>::create(*config, ops, {.loss_rows = 9});
  ASSERT_TRUE(model.ok()) << model.error().message;
  ASSERT_TRUE((*model)->load(*file).ok());
  std::vector<int32_t> tokens, targets;
  for (const float token : golden(*file, "tokens")) tokens.push_back(static_cast<int32_t>(token));
  for (const float target : golden(*file, "targets")) targets.push_back(static_cast<int32_t>(target));
  const std::vector<int64_t> offsets{0, 13, 26};
  const std::vector<float> mean(26, 1.0f / 23);   // three targets are ignored
  const auto step = (*model)->forward_backward({tokens, targets, mean, offsets});
  ASSERT_TRUE(step.ok()) << step.error().message;
  EXPECT_EQ(step->sums.rows, 23);
  EXPECT_NEAR(step->sums.weighted, static_cast<double>(golden(*file, "loss")[0]), 1e-6 + tolerance);
  for (const NamedParameter& p : (*model)->parameters()) {
    const std::vector<float> expected = golden(*file, "gradient." + p.name);
    ASSERT_EQ(static_cast<int64_t>(expected.size()), p.elements) << p.name;
    double scale = 0;
    for (const float value : expected) scale = std::max(scale, std::abs(static_cast<double>(value)));
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(static_cast<double>((*model)->gradients()[static_cast<size_t>(p.offset) + i]), static_cast<double>(expected[i]),
                  tolerance * scale) << p.name << " " << i;
    }
  }
}

TEST(ModelTraining, GradientsAreThoseOfTorchOnATinyLlama) {
  const auto reference = make_reference_training_ops();
  // transformers computes norms and rotations in float32 even in a float64 model.
  expect_gradients_of_torch(*reference, 2e-6);
  auto cpu = make_cpu_training_ops({.threads = 2, .isa = best_isa()});
  ASSERT_TRUE(cpu.ok()) << cpu.error().message;
  expect_gradients_of_torch(**cpu, 5e-6);
}

TEST(ModelTraining, RecomputingActivationsChangesNoBit) {
  auto ops = make_cpu_training_ops({.threads = 2, .isa = best_isa()});
  ASSERT_TRUE(ops.ok()) << ops.error().message;
  const Batch batch;
  const auto kept = make<float>(tiny_config(true), **ops);
  const auto again = make<float>(tiny_config(true), **ops, {.recompute = true});
  ASSERT_TRUE(kept->forward_backward(batch.view()).ok() && again->forward_backward(batch.view()).ok());
  EXPECT_TRUE(std::ranges::equal(kept->gradients(), again->gradients()));
  EXPECT_LT(again->memory(batch.offsets).saved, kept->memory(batch.offsets).saved);
}

TEST(ModelTraining, MicrobatchesAddUpToTheWholeBatch) {
  const auto ops = make_reference_training_ops();
  const Batch batch;
  const auto whole = make<double>(tiny_config(true), *ops), parts = make<double>(tiny_config(true), *ops);
  ASSERT_TRUE(whole->forward_backward(batch.view()).ok());
  const std::vector<int64_t> first{0, 9, 10}, second{0, 12};
  const std::span tokens(batch.tokens), targets(batch.targets);
  const std::span weights(batch.weights);
  ASSERT_TRUE(parts->forward_backward({tokens.first(10), targets.first(10), weights.first(10), first}).ok());
  ASSERT_TRUE(parts->forward_backward({tokens.subspan(10), targets.subspan(10), weights.subspan(10), second}).ok());
  for (size_t i = 0; i < whole->gradients().size(); ++i) ASSERT_NEAR(whole->gradients()[i], parts->gradients()[i], 1e-12) << i;
}

TEST(ModelTraining, TheResultDoesNotDependOnTheNumberOfThreads) {
  const Batch batch;
  std::vector<float> expected;
  for (const int threads : {1, 2, 3}) {
    auto ops = make_cpu_training_ops({.threads = threads, .isa = best_isa(), .precision = MatmulPrecision::kBfloat16});
    ASSERT_TRUE(ops.ok()) << ops.error().message;
    const auto model = make<float>(tiny_config(false), **ops);
    ASSERT_TRUE(model->forward_backward(batch.view()).ok());
    if (expected.empty()) expected.assign(model->gradients().begin(), model->gradients().end());
    EXPECT_TRUE(std::ranges::equal(expected, model->gradients())) << threads;
  }
}

// Weights of a trainable model as a file in memory.
TensorFile file_of(const TrainableModel<float>& model) {
  std::vector<NamedTensor> tensors;
  for (const NamedParameter& p : model.parameters()) {
    NamedTensor tensor;
    tensor.name = p.name;
    tensor.view = {DType::kF32, p.shape,
                   std::as_bytes(model.weights().subspan(static_cast<size_t>(p.offset), static_cast<size_t>(p.elements)))};
    tensors.push_back(std::move(tensor));
  }
  return TensorFile("memory", std::move(tensors));
}

TEST(ModelTraining, LogitsAreThoseOfTheModelThatGenerates) {
  auto ops = make_cpu_training_ops({.threads = 2, .isa = best_isa()});
  ASSERT_TRUE(ops.ok()) << ops.error().message;
  auto backend = make_cpu_backend({.threads = 2, .isa = best_isa(), .activations = Activations::kExact});
  ASSERT_TRUE(backend.ok());
  for (const bool tied : {true, false}) {
    const ModelConfig config = tiny_config(tied);
    const auto trainable = make<float>(config, **ops);
    const TensorFile file = file_of(*trainable);
    auto model = Model::load(config, file, NameStyle::kHuggingFace, **backend, {});
    ASSERT_TRUE(model.ok()) << model.error().message;
    constexpr int64_t kRows = 22;
    const Batch batch;
    const std::vector<int64_t> offsets{0, kRows};
    std::vector<int64_t> wanted;
    for (int64_t i = 0; i < kRows; ++i) wanted.push_back(i);
    std::vector<float> ours(kRows * 29), theirs(kRows * 29);
    ASSERT_TRUE(trainable->logits({ours.data(), kRows, 29}, {batch.tokens, batch.targets, {}, offsets}, wanted).ok());
    PagePool pool;
    auto state = SequenceState::create((*model)->state_layouts({.cache_dtype = DType::kF32, .max_chunk = kRows}), 64, pool);
    ASSERT_TRUE(state.ok() && state->prepare_append(kRows).ok());
    Arena scratch;
    ASSERT_TRUE(scratch.reserve(static_cast<size_t>((*model)->scratch_bytes(kRows, 1, kRows))).ok());
    const BatchSlice slice{&*state, kRows};
    (*model)->forward({theirs.data(), kRows, 29}, {batch.tokens, {&slice, 1}, wanted}, scratch);
    double largest = 0;
    for (const float value : theirs) largest = std::max(largest, std::abs(static_cast<double>(value)));
    for (size_t i = 0; i < ours.size(); ++i) ASSERT_NEAR(ours[i], theirs[i], 1e-5 * largest) << tied << " " << i;
  }
}

TEST(ModelTraining, LoadTakesBackWhatItGaveByName) {
  auto ops = make_cpu_training_ops({.threads = 1});
  const auto source = make<float>(tiny_config(false), **ops);
  auto target = TrainableModel<float>::create(tiny_config(false), **ops, {});
  ASSERT_TRUE(target.ok());
  const TensorFile file = file_of(*source);
  ASSERT_TRUE((*target)->load(file).ok());
  EXPECT_TRUE(std::ranges::equal(source->weights(), (*target)->weights()));
  EXPECT_NE((*target)->find("model.layers.1.self_attn.q_proj.bias"), nullptr);
  EXPECT_EQ((*target)->find("model.layers.0.self_attn.q_proj.bias"), nullptr);

  auto tied = TrainableModel<float>::create(tiny_config(true), **ops, {});
  ASSERT_TRUE(tied.ok());
  ModelConfig wider = tiny_config(false);
  wider.layers[0].feed_forward.inner = 24;
  auto wide = TrainableModel<float>::create(wider, **ops, {});
  ASSERT_TRUE(wide.ok());
  const auto refused = (*wide)->load(file);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("tensor model.layers.0.mlp.gate_proj.weight is [20, 16], expected [24, 16]"));
  const auto missing = (*target)->load(file_of(**tied));
  ASSERT_FALSE(missing.ok());
  EXPECT_THAT(missing.error().message, HasSubstr("tensor lm_head.weight is missing, expected [29, 16]"));
}

TEST(ModelTraining, InitialWeightsDependOnSeedAndNameAlone) {
  const auto ops = make_reference_training_ops();
  auto model = TrainableModel<double>::create(tiny_config(true), *ops, {});
  ASSERT_TRUE(model.ok());
  (*model)->initialise(1);
  const std::vector<double> first((*model)->weights().begin(), (*model)->weights().end());
  (*model)->initialise(2);
  EXPECT_FALSE(std::ranges::equal(first, (*model)->weights()));
  (*model)->initialise(1);
  EXPECT_TRUE(std::ranges::equal(first, (*model)->weights()));
  const auto deviation = [&](const char* name) {
    const NamedParameter* p = (*model)->find(name);
    double squares = 0;
    for (int64_t i = 0; i < p->elements; ++i) squares += std::pow((*model)->weights()[static_cast<size_t>(p->offset + i)], 2);
    return std::sqrt(squares / static_cast<double>(p->elements));
  };
  EXPECT_NEAR(deviation("model.layers.0.mlp.gate_proj.weight"), 0.02, 0.004);
  EXPECT_NEAR(deviation("model.layers.0.mlp.down_proj.weight"), 0.02 / std::sqrt(6.0), 0.002);   // 3 layers
  EXPECT_EQ(deviation("model.norm.weight"), 1.0);
  EXPECT_EQ(deviation("model.layers.1.self_attn.q_proj.bias"), 0.0);
  (*model)->initialise(1, 0.1);
  EXPECT_NEAR(deviation("model.layers.0.mlp.gate_proj.weight"), 0.1, 0.02);
  EXPECT_NEAR(deviation("model.layers.0.mlp.down_proj.weight"), 0.1 / std::sqrt(6.0), 0.01);
  EXPECT_EQ(deviation("model.norm.weight"), 1.0);
}

TEST(ModelTraining, BatchesThatCannotBeAreRefused) {
  const auto ops = make_reference_training_ops();
  const auto model = make<double>(tiny_config(true), *ops);
  const auto refused = [&](Batch batch, const std::string& message) {
    const auto step = model->forward_backward(batch.view());
    ASSERT_FALSE(step.ok());
    EXPECT_EQ(step.error().error_class, ErrorClass::kUsage);
    EXPECT_THAT(step.error().message, HasSubstr(message));
  };
  Batch token, target, offsets, lengths;
  token.tokens[3] = 29;
  refused(token, "batch row 3: token 29 is outside the vocabulary of 29");
  target.targets[4] = -2;
  refused(target, "batch row 4: target -2 is outside the vocabulary of 29");
  offsets.offsets = {0, 9, 8, 22};
  refused(offsets, "the offsets of its sequences must rise from 0 to 22");
  lengths.weights.pop_back();
  refused(lengths, "batch of 22 tokens has 22 targets, 21 weights");
}

TEST(ModelTraining, WhatCannotBeTrainedSaysSo) {
  const auto ops = make_reference_training_ops();
  ModelConfig config = tiny_config(true);
  config.post_norms = true;
  const auto post = TrainableModel<double>::create(config, *ops, {});
  ASSERT_FALSE(post.ok());
  EXPECT_THAT(post.error().message, HasSubstr("tiny: a model with norms after attention and feed-forward cannot be trained yet"));
  config = tiny_config(true);
  config.layers[1].room = "no_such_room";
  const auto room = TrainableModel<double>::create(config, *ops, {});
  ASSERT_FALSE(room.ok());
  EXPECT_THAT(room.error().message, HasSubstr("attention room \"no_such_room\" cannot be trained; those that can: grouped_query"));
}

TEST(ModelTraining, EvaluateGivesLossesAndPredictionsOfTheRowsThatCount) {
  const auto ops = make_reference_training_ops();
  const auto model = make<double>(tiny_config(true), *ops, {.loss_rows = 4});
  const Batch batch;
  std::vector<double> losses(22);
  std::vector<int32_t> predictions(22);
  const auto step = model->evaluate(batch.view(), {losses, predictions});
  ASSERT_TRUE(step.ok());
  std::vector<double> logits(22 * 29);
  std::vector<int64_t> wanted;
  for (int64_t i = 0; i < 22; ++i) wanted.push_back(i);
  ASSERT_TRUE(model->logits({logits.data(), 22, 29}, batch.view(), wanted).ok());
  double total = 0;
  for (size_t row = 0; row < 22; ++row) {
    const double* z = logits.data() + row * 29;
    double sum = 0;
    for (int c = 0; c < 29; ++c) sum += std::exp(z[c]);
    const bool counts = batch.targets[row] >= 0;
    const double loss = counts ? std::log(sum) - z[batch.targets[row]] : 0.0;
    EXPECT_NEAR(losses[row], loss, 1e-10) << row;
    EXPECT_EQ(predictions[row], counts ? static_cast<int32_t>(std::max_element(z, z + 29) - z) : -1) << row;
    total += static_cast<double>(batch.weights[row]) * loss;
  }
  EXPECT_NEAR(step->sums.weighted, total, 1e-10);
}

}  // namespace
}  // namespace quipu
