// Costs against the closed forms of the papers and worked numbers: none of them is computed by the code under test.
#include "engine/cost_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/cost_rooms.h"
#include "engine/room_bench.h"

namespace quipu {
namespace {

constexpr int64_t kMillion = int64_t{1} << 20;

struct Shape {
  int64_t hidden, layers, heads, kv_heads, head_dim, inner = 64, vocabulary = 100;
};

ModelConfig grouped_query_model(const Shape& shape) {
  ModelConfig config;
  config.origin = "test";
  config.architecture = "quipu";
  config.hidden = shape.hidden;
  config.vocabulary = shape.vocabulary;
  config.trained_context = kMillion;
  config.norm_epsilon = 1e-6;
  config.tied_output = true;
  LayerConfig layer;
  layer.room = "grouped_query";
  layer.attention.set("heads", shape.heads);
  layer.attention.set("kv_heads", shape.kv_heads);
  layer.attention.set("head_dim", shape.head_dim);
  layer.attention.set("rope_theta", 1e4);
  layer.feed_forward.inner = shape.inner;
  config.layers.assign(static_cast<size_t>(shape.layers), layer);
  return config;
}

// What a layer has in DeepSeek-V3.
ModelConfig deepseek_v3() {
  ModelConfig config = grouped_query_model({7168, 61, 128, 128, 128});
  for (LayerConfig& layer : config.layers) {
    layer.room = "latent";
    layer.attention = HyperParameters("test");
    layer.attention.set("heads", int64_t{128});
    layer.attention.set("query_rank", int64_t{1536});
    layer.attention.set("latent_rank", int64_t{512});
    layer.attention.set("nope_dim", int64_t{128});
    layer.attention.set("rope_dim", int64_t{64});
    layer.attention.set("value_dim", int64_t{128});
    layer.attention.set("latent_norm", std::string("rms"));
    layer.attention.set("norm_epsilon", 1e-6);
    layer.attention.set("rope_theta", 1e4);
  }
  return config;
}

CostPlan plan_of(const ModelConfig& config, DType cache = DType::kF16) {
  auto plan = CostPlan::create(config, {cache, 2});
  EXPECT_TRUE(plan.ok()) << (plan.ok() ? "" : plan.error().message);
  return std::move(*plan);
}

CostPlan plan_of(const ModelConfig& shape, std::string_view key, VariantOptions options = {}) {
  options.own = false;
  const auto variants = room_variants(shape, options);
  EXPECT_TRUE(variants.ok()) << (variants.ok() ? "" : variants.error().message);
  for (const RoomVariant& variant : *variants) {
    if (variant.key == key) return plan_of(variant.config);
  }
  ADD_FAILURE() << "no variant " << key;
  return plan_of(shape);
}

const ModelConfig& mtla_shape() {
  static const ModelConfig config = grouped_query_model({512, 9, 8, 8, 64, 2048, 8000});
  return config;
}

// Elements of `names` regions, or of all.
uint64_t elements(const CostPlan& plan, int64_t tokens, const std::vector<std::string>& names = {}) {
  uint64_t total = 0;
  for (const RegionBytes& region : plan.regions(tokens)) {
    if (names.empty() || std::find(names.begin(), names.end(), region.name) != names.end()) total += region.elements;
  }
  return total;
}

TEST(CostPlan, StatesHoldWhatTheMtlaPaperCounts) {
  const int64_t tokens = 3000;
  EXPECT_EQ(elements(plan_of(mtla_shape(), "mha"), tokens), 9 * 1024 * 3000);
  EXPECT_EQ(elements(plan_of(mtla_shape(), "gqa"), tokens), 9 * 256 * 3000);  // 2 of 8 heads
  EXPECT_EQ(elements(plan_of(mtla_shape(), "mqa"), tokens), 9 * 128 * 3000);
  EXPECT_EQ(elements(plan_of(mtla_shape(), "mla"), tokens), 9 * 288 * 3000);
  // 3000 and 3001 tokens: the open chunk counts as a row. Its copy in fp32 is ours, not the paper's.
  for (const auto& [key, rows, next] : {std::tuple{"mtla2", 1500, 1501}, {"mtla3", 1000, 1001}, {"mtla4", 750, 751}}) {
    const CostPlan plan = plan_of(mtla_shape(), key);
    EXPECT_EQ(elements(plan, tokens, {"latent"}), static_cast<uint64_t>(9 * 288 * rows)) << key;
    EXPECT_EQ(elements(plan, tokens + 1, {"latent"}), static_cast<uint64_t>(9 * 288 * next)) << key;
    EXPECT_EQ(elements(plan, tokens, {"open"}), 9u * 288) << key;
  }
}

TEST(CostPlan, DeepSeekV3Keeps70272BytesAToken) {
  EXPECT_EQ(plan_of(deepseek_v3(), DType::kBF16).state_bytes(1000), 1000u * 61 * 576 * 2);
  EXPECT_EQ(plan_of(deepseek_v3(), "mha").state_bytes(1), 61u * 2 * 128 * 128 * 2);
}

TEST(CostPlan, OperationsOnTheContextAreThoseOfTheSpec) {
  const int64_t tokens = 12'000;  // whole chunks of 2, 3 and 4
  const auto per_token = [&](const CostPlan& plan, int64_t layers) {
    return plan.context_flops(tokens) / static_cast<double>(tokens * layers);
  };
  EXPECT_EQ(per_token(plan_of(mtla_shape(), "mha"), 9), 2048);
  EXPECT_EQ(per_token(plan_of(mtla_shape(), "gqa"), 9), 2048);
  EXPECT_EQ(per_token(plan_of(mtla_shape(), "mla"), 9), 8704);
  EXPECT_EQ(per_token(plan_of(mtla_shape(), "mtla2"), 9), 4352);
  EXPECT_EQ(per_token(plan_of(mtla_shape(), "mtla4"), 9), 2176);
  EXPECT_EQ(per_token(plan_of(deepseek_v3()), 61), 278'528);
}

TEST(CostPlan, OneTokenCostsItsMatricesTwice) {
  // 8 heads of 64 on 512: four square projections, three matrices of the feed-forward part, the logits.
  const double dense = 9 * (4 * 512.0 * 512 + 3 * 512.0 * 2048) + 8000 * 512.0;
  const CostPlan mha = plan_of(mtla_shape(), "mha");
  EXPECT_EQ(mha.decode_flops(1000) - mha.context_flops(1000), 2 * dense);
  EXPECT_EQ(mha.parameters(), static_cast<int64_t>(dense) + 9 * 2 * 512 + 512);  // and the norms
  // MLA: query 8 * 96, down 288, up 8 * 128 per rank 256, output; one embedding row and the norms are read as well.
  const double latent = 9 * (512.0 * 768 + 512.0 * 288 + 256.0 * 1024 + 512.0 * 512 + 3 * 512.0 * 2048) + 8000 * 512.0;
  const CostPlan mla = plan_of(mtla_shape(), "mla");
  EXPECT_EQ(mla.decode_flops(1000) - mla.context_flops(1000), 2 * latent);
  const double norms = 9 * (2 * 512.0 + 256) + 2 * 512;
  EXPECT_EQ(mla.decode_bytes(1000), 2 * (latent + norms) + 9 * 288 * 2 * 1000.0);
}

// The cost table of the Infini dossier: 32 layers, 32 heads of 128, 8 key heads, rank 512, rope 64, segments of 2048.
TEST(CostPlan, BytesAtAMillionTokensAreThoseOfTheSpec) {
  const ModelConfig shape = grouped_query_model({4096, 32, 32, 8, 128});
  const auto gigabytes = [](const CostPlan& plan, int64_t tokens) {
    return static_cast<double>(plan.state_bytes(tokens)) / 1e9;
  };
  EXPECT_NEAR(gigabytes(plan_of(shape, "mha"), 32768), 17.2, 0.05);
  EXPECT_NEAR(gigabytes(plan_of(shape, "mha"), kMillion), 550, 0.5);
  EXPECT_NEAR(gigabytes(plan_of(shape, "gqa"), 32768), 4.29, 0.01);
  EXPECT_NEAR(gigabytes(plan_of(shape, "gqa"), kMillion), 137, 0.5);
  EXPECT_NEAR(gigabytes(plan_of(shape, "mla"), 32768), 1.21, 0.01);
  EXPECT_NEAR(gigabytes(plan_of(shape, "mla"), kMillion), 38.7, 0.05);
  EXPECT_NEAR(gigabytes(plan_of(shape, "mtla2"), 32768), 0.604, 0.001);
  EXPECT_NEAR(gigabytes(plan_of(shape, "mtla2"), kMillion), 19.3, 0.05);
  // Routed layers also note the position of each token they took in, 4 bytes: 16 layers, 131,072 tokens.
  const double positions = 16 * 131072 * 4 / 1e9;
  EXPECT_NEAR(gigabytes(plan_of(shape, "gqa+mod"), kMillion) - positions, 77.3, 0.05);
  EXPECT_NEAR(gigabytes(plan_of(shape, "mla+mod"), kMillion) - positions, 21.7, 0.05);
}

TEST(CostPlan, OperationsAtAMillionTokensAreThoseOfTheSpec) {
  const ModelConfig shape = grouped_query_model({4096, 32, 32, 8, 128});
  const auto decode = [&](const char* key) { return plan_of(shape, key).context_flops(kMillion); };
  EXPECT_NEAR(decode("mha"), 550e9, 0.5e9);
  EXPECT_NEAR(decode("gqa"), 550e9, 0.5e9);
  EXPECT_NEAR(decode("mla"), 2.34e12, 0.01e12);
  EXPECT_NEAR(decode("mtla2"), 1.17e12, 0.01e12);
  EXPECT_NEAR(decode("gqa+mod"), 279e9, 0.5e9);
  const auto prompt = [&](const char* key) { return plan_of(shape, key).prefill_context_flops(kMillion); };
  EXPECT_NEAR(prompt("mha"), 288e15, 0.5e15);
  EXPECT_NEAR(prompt("mla"), 360e15, 0.5e15);  // in the expanded form
  EXPECT_NEAR(prompt("mtla2"), 180e15, 0.5e15);
  EXPECT_NEAR(prompt("gqa+mod"), 146e15, 0.5e15);
}

TEST(CostPlan, InfiniKeepsThePapersElements) {
  const ModelConfig shape = grouped_query_model({1024, 12, 8, 8, 128, 4096});
  for (const char* key : {"infini-linear", "infini-delta", "infini-linear-window"}) {
    EXPECT_EQ(elements(plan_of(shape, key), kMillion, {"memory", "norm"}), 1'585'152u) << key;
  }
  // The unit features of the true delta rule need no normaliser.
  EXPECT_EQ(elements(plan_of(shape, "infini-delta-true"), kMillion, {"memory", "norm"}), 12u * 8 * 128 * 128);
  // Local keys and values of a segment of 2048, twice with the window.
  EXPECT_EQ(elements(plan_of(shape, "infini-linear"), kMillion, {"key", "value"}), 50'331'648u);
  EXPECT_EQ(elements(plan_of(shape, "infini-linear-window"), kMillion, {"key", "value"}), 2 * 50'331'648u);
  EXPECT_EQ(plan_of(shape, "infini-linear").state_bytes(4096), plan_of(shape, "infini-linear").state_bytes(kMillion));
}

TEST(CostPlan, InfiniPromptsAreLinear) {
  const int64_t d = 128, heads = 8, layers = 12, segment = 2048;
  const ModelConfig shape = grouped_query_model({1024, layers, heads, heads, d, 4096});
  const CostPlan plan = plan_of(shape, "infini-delta");
  for (const int64_t tokens : {segment, 16 * segment}) {
    // Every token of a segment sees on average (N + 1) / 2 tokens, at 4 H d each.
    EXPECT_EQ(plan.prefill_context_flops(tokens), static_cast<double>(layers * 2 * heads * d * (segment + 1) * tokens))
        << tokens;
  }
  // With the window over the segment before, all but the first see N more.
  const CostPlan window = plan_of(shape, "infini-delta-window");
  EXPECT_EQ(window.prefill_context_flops(16 * segment) - plan.prefill_context_flops(16 * segment),
            static_cast<double>(layers * 4 * heads * d * segment * 15 * segment));
  // Reading, writing and the delta rule's own reading: 6 H d^2 a token beside the projections, feed-forward and logits.
  const double memory = static_cast<double>(layers * 6 * heads * d * d);
  const CostPlan mha = plan_of(shape, "mha");
  EXPECT_EQ(plan.decode_flops(1) - plan.context_flops(1), mha.decode_flops(1) - mha.context_flops(1) + memory);
}

TEST(CostPlan, AlternateDepthsHaveThePapersRatios) {
  const ModelConfig shape = grouped_query_model({512, 8, 8, 8, 64, 2048, 100});
  const CostPlan dense = plan_of(shape, "mha"), routed = plan_of(shape, "mha+mod");
  const double positions = 4 * 512 * 4;
  EXPECT_EQ(static_cast<double>(routed.state_bytes(4096)) - positions,
            0.5625 * static_cast<double>(dense.state_bytes(4096)));
  EXPECT_NEAR(routed.prefill_context_flops(4096) / dense.prefill_context_flops(4096), (1 + 1 / 64.0) / 2, 1e-3);
  const double logits = 2 * 512 * 100;
  const double matrices = dense.decode_flops(1) - dense.context_flops(1) - logits;
  const double routed_matrices = routed.decode_flops(8) - routed.context_flops(8) - logits;
  EXPECT_NEAR(routed_matrices / matrices, 0.5625, 1e-3);  // and the routers
}

TEST(CostRooms, KeepTheOutwardShapeAndSayTheRule) {
  const auto variants = room_variants(mtla_shape(), {});
  ASSERT_TRUE(variants.ok());
  EXPECT_EQ(variants->front().name, "MHA");  // the model itself, and no second MHA
  EXPECT_TRUE(variants->front().own);
  EXPECT_EQ(variants->size(), 26u);
  for (const RoomVariant& variant : *variants) {
    EXPECT_EQ(variant.config.hidden, 512);
    EXPECT_EQ(variant.config.layers.size(), 9u);
    EXPECT_EQ(variant.config.layers[3].mixture_of_depths.has_value(), variant.depths) << variant.name;
    EXPECT_FALSE(variant.config.layers[4].mixture_of_depths.has_value()) << variant.name;
  }
  const auto rules = rule_texts(mtla_shape(), {});
  ASSERT_TRUE(rules.ok());
  EXPECT_THAT((*rules)[1], testing::HasSubstr("rank 4 d = 256, rope d/2 = 32"));
}

TEST(CostRooms, AGroupedQueryModelIsNotShownTwice) {
  const auto variants = room_variants(grouped_query_model({576, 4, 9, 3, 64}), {.depths = false});
  ASSERT_TRUE(variants.ok());
  std::vector<std::string> names;
  for (const RoomVariant& variant : *variants) names.push_back(variant.name);
  EXPECT_THAT(names, testing::ElementsAre("GQA 3", "MHA", "MQA", "MLA", "MTLA s=2", "MTLA s=3", "MTLA s=4",
                                          "Infini linear", "Infini delta", "Infini delta_true", "Infini linear +window",
                                          "Infini delta +window", "Infini delta_true +window"));
}

// A model with random weights in every memory: states have the bytes the plan says, however they were filled.
TEST(RoomRunner, StatesFilledByPromptOrByRandomRowsHaveTheDeclaredBytes) {
  const ModelConfig shape = grouped_query_model({64, 2, 4, 4, 16, 64, 50});
  const auto variants = room_variants(shape, {.segment_tokens = 64, .own = false, .depths = false});
  ASSERT_TRUE(variants.ok());
  for (const RoomVariant& variant : *variants) {
    SCOPED_TRACE(variant.name);
    const CostPlan plan = plan_of(variant.config);
    auto runner = RoomRunner::create(variant.config, {.threads = 2, .max_chunk = 48});
    ASSERT_TRUE(runner.ok()) << runner.error().message;
    EXPECT_EQ((*runner)->state_bytes(150), plan.state_bytes(150));
    ASSERT_TRUE((*runner)->begin(3, 200).ok());
    ASSERT_TRUE((*runner)->feed({.tokens = 100, .all_sequences = true}).ok());
    EXPECT_EQ((*runner)->tokens(), 100);
    const int64_t fed = (*runner)->held_bytes();
    if ((*runner)->grows()) {
      ASSERT_TRUE((*runner)->begin(3, 200).ok());
      ASSERT_TRUE((*runner)->fill(100).ok());
      EXPECT_EQ((*runner)->held_bytes(), fed);
    }
    for (int i = 0; i < 5; ++i) ASSERT_TRUE((*runner)->step().ok());
    EXPECT_TRUE((*runner)->logits_finite());
    EXPECT_EQ((*runner)->tokens(), 105);
  }
}

}  // namespace
}  // namespace quipu
