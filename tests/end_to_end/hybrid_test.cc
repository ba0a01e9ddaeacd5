// A model of every room at once, every other layer behind a depth router: what must not change a result, what a routed
// layer keeps, and what it says about itself.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "attention/allocation_count.h"
#include "base/random.h"
#include "end_to_end/tiny_model.h"
#include "formats/safetensors/safetensors_writer.h"
#include "model/tensor_list.h"

namespace quipu {
namespace {

const char* const kSizes =
    R"("model_type": "quipu", "architectures": ["QuipuForCausalLM"], "hidden_size": 24, "vocab_size": 120,
       "intermediate_size": 40, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,)";
const char* const kGrouped =
    R"({"room": "grouped_query", "heads": 4, "kv_heads": 2, "head_dim": 6, "rope_theta": 1e4})";
const char* const kLatent =
    R"({"room": "latent", "heads": 3, "latent_rank": 12, "nope_dim": 6, "rope_dim": 4, "value_dim": 5,
        "latent_norm": "rms", "norm_epsilon": 1e-6, "rope_theta": 1e4, "optional_weights": ["mixture_of_depths.router_bias"]})";

// Layers 1, 3 and 5, the last, are routed, each by a rule of its own.
std::string everything() {
  return std::string("{") + kSizes + R"("num_hidden_layers": 6, "attention": )" + kGrouped + R"(, "layers": [
    {"layers": [1], "attention": )" +
         kLatent + R"(, "mixture_of_depths": {"capacity": 0.5, "slack": 1.0}},
    {"layers": [2], "attention": {"room": "temporal_latent", "heads": 3, "latent_rank": 12, "nope_dim": 6, "rope_dim": 4,
       "value_dim": 5, "latent_norm": "layer", "norm_epsilon": 1e-6, "rope_theta": 1e4, "stride": 3}},
    {"layers": [3], "attention": {"room": "infini", "heads": 4, "kv_heads": 2, "head_dim": 6, "rope_theta": 1e4,
       "rule": "delta", "segment_tokens": 17, "window": "previous"},
     "mixture_of_depths": {"capacity": 0.5, "slack": 1.0, "decode": "predictor", "predictor_dim": 7, "weight": "sigmoid"}},
    {"layers": [4], "attention": {"room": "infini_latent", "memory": "latent", "heads": 3, "latent_rank": 12, "nope_dim": 6,
       "rope_dim": 4, "value_dim": 5, "latent_norm": "rms", "norm_epsilon": 1e-6, "rope_theta": 1e4, "rule": "delta_true",
       "feature": "silu_l2", "segment_tokens": 13}},
    {"layers": [5], "attention": {"room": "grouped_query", "heads": 2, "kv_heads": 1, "head_dim": 8, "rope_theta": 1e4,
       "window": 19},
     "mixture_of_depths": {"capacity": 0.5, "slack": 1.0, "decode": "moving", "router_input": "rms"}}]})";
}

// Two layers that can be cut back anywhere, the second with room for 64 of 256 tokens.
std::string small_room() {
  return std::string("{") + kSizes + R"("num_hidden_layers": 2, "attention": )" + kGrouped + R"(, "layers": [
    {"layers": [1], "attention": )" +
         kLatent + R"(, "mixture_of_depths": {"capacity": 0.125}}]})";
}

class Hybrid {
 public:
  explicit Hybrid(const std::string& config) : path_(folder_ / "model") {
    std::filesystem::create_directories(path_);
    std::ofstream(path_ + "/config.json") << config;
    auto read = read_hf_config("config.json", config);
    CHECK(read.ok()) << read.error().message;
    auto tensors = model_tensors(*read, NameStyle::kHuggingFace);
    CHECK(tensors.ok()) << tensors.error().message;
    std::vector<std::vector<float>> values;
    std::vector<SafetensorsTensor> list;
    for (const ModelTensor& tensor : *tensors) {
      uint64_t stream = 1;
      for (const char c : tensor.name) stream = mix64(stream ^ static_cast<uint64_t>(c));
      RandomStream random(3, stream);
      const bool norm = tensor.role.find("norm") != std::string::npos;
      const double spread = tensor.shape.size() < 2 ? 0.2 : 1.5 / std::sqrt(static_cast<double>(tensor.shape.back()));
      auto& of_tensor = values.emplace_back(static_cast<size_t>(element_count(tensor.shape)));
      for (float& value : of_tensor) value = static_cast<float>((norm ? 1.0 : 0.0) + spread * random.normal());
    }
    for (size_t i = 0; i < values.size(); ++i) {
      list.push_back({(*tensors)[i].name, {DType::kF32, (*tensors)[i].shape, std::as_bytes(std::span(values[i]))}});
    }
    CHECK(write_safetensors(path_ + "/model.safetensors", list).ok());
  }
  std::shared_ptr<Runtime> load(const NamedBackend& backend, int64_t max_chunk = 32) const {
    return load_runtime(path_, backend.make(1), {DType::kF32, max_chunk});
  }
  std::string operator/(const std::string& name) const { return folder_ / name; }

 private:
  TemporaryFolder folder_;
  std::string path_;
};

// The oracle, and the CPU back end at its best.
std::vector<NamedBackend> two_backends() {
  std::vector<NamedBackend> all = backends_under_test();
  return {all.front(), all.back()};
}

std::unique_ptr<ModelSession> session_of(std::shared_ptr<Runtime> runtime, int64_t context = 256) {
  auto session = ModelSession::create(std::move(runtime), context);
  CHECK(session.ok()) << session.error().message;
  return std::move(*session);
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

void feed(ModelSession& session, std::span<const int32_t> ids) {
  const auto fed = session.feed(ids, {}, nullptr);
  ASSERT_TRUE(fed.ok()) << fed.error().message;
}

TEST(Hybrid, PromptChunksSingleStepsAndBatchesGiveTheSameLogits) {
  const Hybrid model(everything());
  const std::vector<int32_t> ids = random_ids(150, 120, 5);
  for (const NamedBackend& backend : two_backends()) {
    SCOPED_TRACE(backend.name);
    const std::vector<float> whole = all_logits(model.load(backend), ids);
    EXPECT_TRUE(same_bits(all_logits(model.load(backend, 7), ids), whole));
    auto single = session_of(model.load(backend));
    for (size_t i = 0; i < ids.size(); ++i) {
      feed(*single, {&ids[i], 1});
      ASSERT_TRUE(same_bits(single->logits(), {whole.data() + i * 120, 120})) << i;
    }
    // Three sequences, a step of one token each, at different depths.
    auto runtime = model.load(backend);
    std::vector<std::unique_ptr<ModelSession>> sessions;
    std::vector<ModelSession*> together;
    const std::vector<size_t> begun = {0, 31, 77};
    for (const size_t at : begun) {
      sessions.push_back(session_of(runtime));
      feed(*sessions.back(), {ids.data(), at});
      together.push_back(sessions.back().get());
    }
    for (size_t step = 0; step < 60; ++step) {
      std::vector<int32_t> next;
      for (const size_t at : begun) next.push_back(ids[at + step]);
      ASSERT_TRUE(ModelSession::step(together, next).ok());
      for (size_t i = 0; i < begun.size(); ++i) {
        ASSERT_TRUE(same_bits(sessions[i]->logits(), {whole.data() + (begun[i] + step) * 120, 120}))
            << i << " " << step;
      }
    }
  }
}

TEST(Hybrid, ASavedSessionGoesOnWithTheSameBitsAtEveryPhase) {
  const Hybrid model(everything());
  const std::vector<int32_t> ids = random_ids(100, 120, 6);
  const NamedBackend backend = two_backends().back();
  auto session = session_of(model.load(backend));
  auto restored = session_of(model.load(backend));
  for (size_t i = 0; i + 1 < ids.size(); ++i) {
    feed(*session, {&ids[i], 1});
    if (i < 40 && i % 7 != 0) continue;  // past the first segments every phase of stride and segments
    ASSERT_TRUE(session->save_state(model / "state").ok());
    const auto loaded = restored->load_state(model / "state");
    ASSERT_TRUE(loaded.ok()) << loaded.error().message;
    feed(*restored, {&ids[i + 1], 1});
    auto fork = session->fork();
    ASSERT_TRUE(fork.ok());
    feed(static_cast<ModelSession&>(**fork), {&ids[i + 1], 1});
    ASSERT_TRUE(same_bits(restored->logits(), (*fork)->logits())) << i;
  }
}

TEST(Hybrid, RoutedLayersKeepTheirTokensOnlyAndSayHowMany) {
  const Hybrid model(everything());
  auto runtime = model.load(two_backends().back());
  auto session = session_of(runtime);
  const std::vector<StateLayout> layouts = runtime->model->state_layouts(runtime->state);
  const std::vector<int32_t> ids = random_ids(200, 120, 7);
  for (int64_t done = 0; done < 200; done += 25) {
    feed(*session, {ids.data() + done, 25});
    const std::vector<RoutedLayer> routed = session->routed_layers();
    ASSERT_EQ(routed.size(), 3u);
    int64_t expected = 0;
    for (size_t layer = 0; layer < layouts.size(); ++layer) {
      StateLayout exact = layouts[layer];
      exact.routed.reset();
      if (layer == 5) continue;  // the ring of the last layer is prepared a chunk ahead
      expected += state_bytes_allocated(exact, layer % 2 == 0 ? done + 25 : routed[layer / 2].taken);
    }
    const int64_t ring = static_cast<int64_t>(session->state_bytes()) - expected;
    StateLayout last = layouts[5];
    last.routed.reset();
    EXPECT_GT(ring, 0);
    EXPECT_LE(ring, state_bytes_allocated(last, 256));
  }
  for (const RoutedLayer& layer : session->routed_layers()) {
    EXPECT_EQ(layer.layer % 2, 1);
    EXPECT_EQ(layer.seen, 200);
    EXPECT_EQ(layer.reserved, 256) << "half of 256 tokens and as much again";
    EXPECT_GT(layer.taken, 20) << "layer " << layer.layer;
    EXPECT_LT(layer.taken, 180) << "layer " << layer.layer;
    EXPECT_EQ(layer.passed_full, 0);
  }
}

TEST(Hybrid, WhatAModelCostsCountsRoutedLayersByTheirShare) {
  const Hybrid model(small_room());
  auto runtime = model.load(two_backends().back());
  const std::vector<StateLayout> layouts = runtime->model->state_layouts(runtime->state);
  // 4096 tokens: keys and values of the first layer, and of an eighth of them rows of 16 floats and a position.
  EXPECT_EQ(state_bytes(layouts[0], 4096), 4096 * 2 * 2 * 6 * 4);
  EXPECT_EQ(state_bytes(layouts[1], 4096), 512 * (16 * 4 + 4));
  EXPECT_EQ(state_bytes(layouts[1], 1), 16 * 4 + 4);
}

TEST(Hybrid, AFullLayerIsPassedByAndTheSessionGoesOn) {
  const Hybrid model(small_room());
  const std::vector<int32_t> ids = random_ids(256, 120, 8);
  auto session = session_of(model.load(two_backends().back()));
  feed(*session, ids);
  const RoutedLayer layer = session->routed_layers().at(0);
  EXPECT_EQ(layer.reserved, 64);
  EXPECT_EQ(layer.taken, 64) << "the router of random weights lets in about half";
  EXPECT_GT(layer.passed_full, 20);
  auto single = session_of(model.load(two_backends().back()));
  for (const int32_t id : ids) feed(*single, {&id, 1});
  EXPECT_TRUE(same_bits(single->logits(), session->logits()));
  // A state of more routed tokens than a smaller context has room for is refused, not cut.
  auto roomy = session_of(model.load(two_backends().back()), 1024);
  feed(*roomy, std::span<const int32_t>(ids).first(200));
  ASSERT_GT(roomy->routed_layers().at(0).taken, 64);
  ASSERT_TRUE(roomy->save_state(model / "state").ok());
  const uint64_t before = session->logits_hash();
  const auto loaded = session->load_state(model / "state");
  ASSERT_FALSE(loaded.ok());
  EXPECT_NE(loaded.error().message.find("layer.1"), std::string::npos) << loaded.error().message;
  EXPECT_EQ(session->logits_hash(), before);
}

TEST(Hybrid, AContextIsCutBackToAnyTokenWhereTheRoomsAllowIt) {
  const Hybrid model(small_room());
  const std::vector<int32_t> ids = random_ids(90, 120, 9);
  const NamedBackend backend = two_backends().back();
  const std::vector<float> whole = all_logits(model.load(backend), ids);
  for (const int64_t to : {1, 2, 50, 63, 64, 65, 88, 89}) {
    auto session = session_of(model.load(backend));
    feed(*session, ids);
    const auto cut = session->rewind(to);
    ASSERT_TRUE(cut.ok()) << to << ": " << cut.error().message;
    EXPECT_TRUE(same_bits(session->logits(), {whole.data() + (to - 1) * 120, 120})) << to;
    EXPECT_EQ(session->routed_layers().at(0).seen, to);
    feed(*session, std::span<const int32_t>(ids).subspan(static_cast<size_t>(to)));
    EXPECT_TRUE(same_bits(session->logits(), {whole.data() + 89 * 120, 120})) << to;
  }
}

TEST(Hybrid, ADecodeStepAllocatesNothing) {
  const Hybrid model(everything());
  auto session = session_of(model.load(two_backends().back()));
  const std::vector<int32_t> ids = random_ids(200, 120, 10);
  feed(*session, {ids.data(), 100});
  ModelSession* const one[] = {session.get()};
  for (size_t i = 100; i < 110; ++i) ASSERT_TRUE(ModelSession::step(one, {&ids[i], 1}).ok());
  const int64_t before = allocations_so_far();
  bool good = true;
  for (size_t i = 110; i < 125; ++i) good = ModelSession::step(one, {&ids[i], 1}).ok() && good;
  EXPECT_EQ(allocations_so_far() - before, 0);
  EXPECT_TRUE(good);
}

}  // namespace
}  // namespace quipu
