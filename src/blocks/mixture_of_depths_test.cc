#include "blocks/mixture_of_depths.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <optional>

#include "attention/allocation_count.h"
#include "attention/random_weights.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/reference/reference_backend.h"
#include "blocks/token_selection.h"

namespace quipu {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Rows = std::vector<float>;

bool same_bits(const Rows& a, const Rows& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

Rows part(const Rows& all, int64_t begin, int64_t end, int64_t cols) {
  return {all.begin() + begin * cols, all.begin() + end * cols};
}

// ---- The worked example of the specification, 5.5
// -----------------------------------------------------------------------

// Sums up the first component of what was let in; the running sum is the only state.
class RunningSum final : public Attention {
 public:
  StateLayout state_layout(const StateOptions&) const override {
    return {.regions = {{.name = "sum", .row_elements = 1, .growth = Growth::kFixed, .fixed_rows = 1}}};
  }
  int64_t scratch_bytes(int64_t) const override { return 0; }
  void forward(Backend&, MatrixView<float> out, MatrixView<const float> x, const RaggedBatch& batch,
               Arena&) const override {
    for (const SequenceSlice& slice : batch.slices) {
      float* sum = reinterpret_cast<float*>(slice.state->region(0).pages[0]);
      for (int64_t row = slice.row_begin; row < slice.row_begin + slice.rows; ++row) {
        *sum += x(row, 0);
        out(row, 0) = *sum;
        out(row, 1) = 0.0f;
      }
      slice.state->advance(slice.rows);
    }
  }
  int64_t weight_bytes() const override { return 0; }
  int64_t flops_per_token() const override { return 0; }
  int64_t context_flops(int64_t) const override { return 0; }
  int64_t context_bytes_read(int64_t, const StateOptions&) const override { return 0; }
};

class Nothing final : public FeedForward {
 public:
  int64_t scratch_bytes(int64_t) const override { return 0; }
  void forward(Backend&, MatrixView<float> out, MatrixView<const float>, Arena&) const override {
    for (int64_t row = 0; row < out.rows; ++row) std::fill_n(out.row(row), out.cols, 0.0f);
  }
  int64_t weight_bytes() const override { return 0; }
  int64_t bytes_read_per_token() const override { return 0; }
  int64_t flops_per_token() const override { return 0; }
};

class GivenWeights final : public WeightSource {
 public:
  explicit GivenWeights(std::map<std::string, Rows, std::less<>> values) : values_(std::move(values)) {}
  bool has(std::string_view role) const override { return values_.find(role) != values_.end(); }
  Result<std::unique_ptr<PackedMatrix>> matrix(std::string_view, int64_t, int64_t, std::string_view) override {
    return bad_input("not asked for here");
  }
  Result<Rows> vector(std::string_view role, int64_t length, std::string_view) override {
    const auto found = values_.find(role);
    if (found == values_.end() || static_cast<int64_t>(found->second.size()) != length) {
      return bad_input("tensor " + std::string(role) + " is absent or has the wrong length");
    }
    return found->second;
  }
  Result<Rows> dense(std::string_view role, int64_t rows, int64_t cols, std::string_view meaning) override {
    return vector(role, rows * cols, meaning);
  }

 private:
  std::map<std::string, Rows, std::less<>> values_;
};

// Tokens (i, r_i): what the layer works on, and the score the router is to give.
Rows worked_example(DepthRule rule, const DepthSettings& settings) {
  auto backend = make_reference_backend(1);
  // A norm that changes nothing: x / sqrt(mean(x^2) + 1e12) * 1e6.
  GivenWeights weights(
      {{"attention_norm", {1e6f, 1e6f}}, {"feed_forward_norm", {1e6f, 1e6f}}, {"mixture_of_depths.router", {0, 1}}});
  auto block = PreNormBlock::create({.hidden = 2, .epsilon = 1e12f}, std::make_unique<RunningSum>(),
                                    std::make_unique<Nothing>(), weights);
  auto depths = MixtureOfDepths::create(settings, 2, weights, *backend);
  CHECK(block.ok() && depths.ok());
  depths->set_rule(rule);
  PagePool pool;
  const std::vector<StateLayout> layouts = {depths->state_layout(*block, {})};
  SequenceState state = *SequenceState::create(layouts, 64, pool);
  CHECK(state.prepare_append(8).ok());
  const Rows scores = {0.3f, -1.2f, 2.0f, 0.1f, -0.4f, 1.5f, -0.7f, 0.9f};
  Rows x;
  std::vector<int64_t> positions;
  for (int64_t i = 0; i < 8; ++i) {
    x.insert(x.end(), {static_cast<float>(i + 1), scores[static_cast<size_t>(i)]});
    positions.push_back(i);
  }
  Arena arena;
  CHECK(arena.reserve(static_cast<size_t>(depths->scratch_bytes(*block, 8))).ok());
  const SequenceSlice slice{&state.layer(0), 0, 8};
  depths->forward(*backend, {x.data(), 8, 2}, *block, {{&slice, 1}, positions}, arena);
  Rows first;
  for (int64_t i = 0; i < 8; ++i) first.push_back(x[static_cast<size_t>(2 * i)]);
  return first;
}

TEST(MixtureOfDepths, IsTheWorkedExample) {
  EXPECT_THAT(worked_example(DepthRule::kTopK, {.capacity = 0.25}), ElementsAre(1, 2, 9, 4, 5, 19.5, 7, 8));
  const Rows squashed = worked_example(DepthRule::kTopK, {.capacity = 0.25, .sigmoid = true});
  EXPECT_NEAR(squashed[2], 5.642391, 1e-6);
  EXPECT_NEAR(squashed[5], 13.358170, 1e-6);
  EXPECT_THAT(part(squashed, 0, 2, 1), ElementsAre(1, 2));
  // The literal reading multiplies the layer's own residual stream, too: 3 + 2 (3 + 3), 6 + 1.5 (6 + 9).
  EXPECT_THAT(worked_example(DepthRule::kTopK, {.capacity = 0.25, .whole_block = true}),
              ElementsAre(1, 2, 15, 4, 5, 28.5, 7, 8));
}

TEST(MixtureOfDepths, TheThresholdLetsInWhatIsAboveZero) {
  // {0, 2, 3, 5, 7}, running sums 1, 4, 8, 14, 22.
  const Rows out = worked_example(DepthRule::kThreshold, {.capacity = 0.25});
  const Rows wanted = {1 + 0.3f * 1, 2, 3 + 2 * 4, 4 + 0.1f * 8, 5, 6 + 1.5f * 14, 7, 8 + 0.9f * 22};
  for (size_t i = 0; i < 8; ++i) EXPECT_FLOAT_EQ(out[i], wanted[i]) << i;
}

TEST(MixtureOfDepths, TopKOfSegmentsFillsEachOfThem) {
  // One of each four positions: 2 and 5.
  EXPECT_THAT(worked_example(DepthRule::kTopK, {.capacity = 0.25, .group_tokens = 4}),
              ElementsAre(1, 2, 9, 4, 5, 19.5, 7, 8));
  // One of each three, and of the two that are left: 2, 5, 7; running sums 3, 9, 17.
  const Rows thirds = worked_example(DepthRule::kTopK, {.capacity = 0.25, .group_tokens = 3});
  const Rows wanted = {1, 2, 9, 4, 5, 19.5f, 7, 8 + 0.9f * 17};
  for (size_t i = 0; i < 8; ++i) EXPECT_FLOAT_EQ(thirds[i], wanted[i]) << i;
}

// ---- Around every room
// --------------------------------------------------------------------------------------------------

struct RoomCase {
  std::string name, room;
  HyperParameters attention;
};

HyperParameters settings_of(const std::vector<std::pair<std::string, HyperParameters::Value>>& values) {
  HyperParameters p("test", "mixture_of_depths");
  for (const auto& [name, value] : values) p.set(name, value);
  return p;
}

std::vector<RoomCase> room_cases() {
  const std::string rms = "rms", delta = "delta", previous = "previous", layer = "layer";
  const auto latent = [&](const std::string& norm) {
    HyperParameters p = settings_of({{"heads", int64_t{3}},
                                     {"latent_rank", int64_t{12}},
                                     {"nope_dim", int64_t{6}},
                                     {"rope_dim", int64_t{4}},
                                     {"value_dim", int64_t{5}},
                                     {"latent_norm", norm},
                                     {"norm_epsilon", 1e-6},
                                     {"rope_theta", 1e4}});
    return p;
  };
  HyperParameters temporal = latent(layer);
  temporal.set("stride", int64_t{3});
  return {
      {"grouped_query", "grouped_query",
       settings_of({{"heads", int64_t{4}}, {"kv_heads", int64_t{2}}, {"head_dim", int64_t{6}}, {"rope_theta", 1e4}})},
      {"grouped_query_windowed", "grouped_query",
       settings_of({{"heads", int64_t{2}},
                    {"kv_heads", int64_t{1}},
                    {"head_dim", int64_t{8}},
                    {"rope_theta", 1e4},
                    {"window", int64_t{19}}})},
      {"latent", "latent", latent(rms)},
      {"temporal_latent", "temporal_latent", temporal},
      {"infini", "infini",
       settings_of({{"heads", int64_t{4}},
                    {"kv_heads", int64_t{2}},
                    {"head_dim", int64_t{6}},
                    {"rope_theta", 1e4},
                    {"rule", delta},
                    {"segment_tokens", int64_t{23}},
                    {"window", previous}})}};
}

struct RuleCase {
  std::string name;
  HyperParameters settings;
};

std::vector<RuleCase> rule_cases() {
  using Text = std::string;
  return {{"threshold", settings_of({{"capacity", 0.5}, {"slack", 1.0}})},
          {"predictor", settings_of({{"capacity", 0.5},
                                     {"slack", 1.0},
                                     {"decode", Text("predictor")},
                                     {"predictor_dim", int64_t{9}},
                                     {"weight", Text("sigmoid")}})},
          {"moving_rms", settings_of({{"capacity", 0.5},
                                      {"slack", 1.0},
                                      {"decode", Text("moving")},
                                      {"router_input", Text("rms")},
                                      {"output", Text("block")}})}};
}

constexpr int64_t kHidden = 20;
constexpr int64_t kTokens = 200;
constexpr int64_t kChunk = 40;

struct Parameter {
  RoomCase room;
  RuleCase rule;
  bool on_cpu = false;
};

void PrintTo(const Parameter& p, std::ostream* out) { *out << p.room.name << " " << p.rule.name; }

Rows random_rows(int64_t rows, uint64_t seed) {
  RandomStream random(seed, 77);
  Rows values(static_cast<size_t>(rows * kHidden));
  for (float& value : values) value = static_cast<float>(random.normal());
  return values;
}

std::unique_ptr<Backend> make_backend(bool on_cpu) {
  if (!on_cpu) return make_reference_backend(1);
  auto backend = make_cpu_backend({.threads = 1});
  CHECK(backend.ok()) << backend.error().message;
  return std::move(backend).value();
}

// A routed block, and the same block without its router.
class Layer {
 public:
  // score: what the router says to every token, in place of random weights.
  Layer(const Parameter& parameter, const HyperParameters& depth_settings, std::optional<float> score = {})
      : backend_(make_backend(parameter.on_cpu)) {
    RandomWeights weights(*backend_, {});
    auto room = find_room(parameter.room.room);
    CHECK(room.ok());
    auto attention = (*room)->create({.hidden = kHidden}, parameter.room.attention, weights, *backend_);
    CHECK(attention.ok()) << attention.error().message;
    auto mlp = GatedMlp::create({.hidden = kHidden, .inner = 28}, weights);
    CHECK(mlp.ok());
    block_.emplace(*PreNormBlock::create({.hidden = kHidden, .epsilon = 1e-5f}, std::move(attention).value(),
                                         std::move(mlp).value(), weights));
    auto settings = read_depth_settings(depth_settings);
    CHECK(settings.ok()) << settings.error().message;
    GivenWeights constant(
        {{"mixture_of_depths.router", Rows(kHidden, 0.0f)}, {"mixture_of_depths.router_bias", {score.value_or(0.0f)}}});
    WeightSource& router = score ? static_cast<WeightSource&>(constant) : weights;
    depths_.emplace(*MixtureOfDepths::create(*settings, kHidden, router, *backend_));
  }

  MixtureOfDepths& depths() { return *depths_; }
  PagePool& pool() { return pool_; }
  SequenceState new_state(int64_t context = kTokens) {
    const std::vector<StateLayout> layouts = {depths_->state_layout(*block_, {DType::kF32, kChunk})};
    return *SequenceState::create(layouts, context, pool_);
  }
  StateLayout dense_layout() const { return block_->attention().state_layout({DType::kF32, kTokens}); }

  struct Part {
    SequenceState* state;
    const float* rows;
    int64_t count;
  };
  Rows step(std::span<const Part> parts) {
    Rows x;
    std::vector<SequenceSlice> slices;
    std::vector<int64_t> positions;
    for (const Part& p : parts) {
      const Result<void> prepared = p.state->prepare_append(p.count);
      CHECK(prepared.ok()) << prepared.error().message;
      slices.push_back({&p.state->layer(0), static_cast<int64_t>(positions.size()), p.count});
      for (int64_t i = 0; i < p.count; ++i) positions.push_back(p.state->tokens() + i);
      x.insert(x.end(), p.rows, p.rows + p.count * kHidden);
    }
    run(x.data(), slices, positions);
    for (const Part& p : parts) p.state->advance(p.count);
    return x;
  }
  void run(float* x, std::span<const SequenceSlice> slices, std::span<const int64_t> positions) {
    const int64_t rows = static_cast<int64_t>(positions.size());
    CHECK(arena_.reserve(static_cast<size_t>(depths_->scratch_bytes(*block_, rows))).ok());
    depths_->forward(*backend_, {x, rows, kHidden}, *block_, {slices, positions}, arena_);
    CHECK(arena_.used() == 0);
  }
  Rows feed(SequenceState& state, const Rows& x, int64_t begin, int64_t end, int64_t chunk) {
    Rows out;
    for (int64_t row = begin; row < end; row += chunk) {
      const Part one{&state, x.data() + row * kHidden, std::min(chunk, end - row)};
      const Rows piece = step({&one, 1});
      out.insert(out.end(), piece.begin(), piece.end());
    }
    return out;
  }
  Rows alone(const Rows& x) {
    SequenceState state = new_state();
    return feed(state, x, 0, static_cast<int64_t>(x.size()) / kHidden, 1);
  }
  // The block without a router, on rows at the given positions.
  Rows dense(const Rows& x, std::vector<int64_t> positions) {
    const int64_t rows = static_cast<int64_t>(positions.size());
    LayerState state = *LayerState::create(dense_layout(), kTokens, pool_);
    CHECK(state.prepare_append(rows).ok());
    CHECK(arena_.reserve(static_cast<size_t>(block_->scratch_bytes(rows))).ok());
    Rows out = x;
    const SequenceSlice slice{&state, 0, rows};
    block_->attend(*backend_, {out.data(), rows, kHidden}, {{&slice, 1}, positions}, arena_);
    block_->feed(*backend_, {out.data(), rows, kHidden}, arena_);
    return out;
  }

 private:
  PagePool pool_;
  std::unique_ptr<Backend> backend_;
  std::optional<PreNormBlock> block_;
  std::optional<MixtureOfDepths> depths_;
  Arena arena_;
};

std::vector<int64_t> counted(int64_t count) {
  std::vector<int64_t> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(i);
  return values;
}

class AroundEveryRoom : public testing::TestWithParam<Parameter> {
 protected:
  Layer layer_{GetParam(), GetParam().rule.settings};
  Rows x_ = random_rows(kTokens, 1);
};

TEST_P(AroundEveryRoom, PromptChunksAndSingleStepsGiveTheSameBits) {
  const Rows single = layer_.alone(x_);
  SequenceState counted = layer_.new_state();
  (void)layer_.feed(counted, x_, 0, kTokens, 1);
  const int64_t taken = counted.layer(0).tokens();
  EXPECT_GT(taken, kTokens / 5) << "the case routes nearly nothing";
  EXPECT_LT(taken, kTokens * 4 / 5) << "the case routes nearly everything";
  for (const int64_t chunk : {int64_t{2}, int64_t{7}, kChunk}) {
    SequenceState state = layer_.new_state();
    EXPECT_TRUE(same_bits(layer_.feed(state, x_, 0, kTokens, chunk), single)) << "chunks of " << chunk;
    EXPECT_EQ(state.layer(0).tokens(), taken);
  }
}

TEST_P(AroundEveryRoom, TokensThatPassByKeepTheirBitsAndTheOthersDoNot) {
  SequenceState state = layer_.new_state();
  const Rows out = layer_.feed(state, x_, 0, kTokens, kChunk);
  for (int64_t t = 0; t < kTokens; ++t) {
    const bool taken = state.layer(0).tokens_before(t + 1) > state.layer(0).tokens_before(t);
    EXPECT_EQ(same_bits(part(out, t, t + 1, kHidden), part(x_, t, t + 1, kHidden)), !taken) << t;
  }
}

TEST_P(AroundEveryRoom, ATokenChangesItselfAndTheFutureOnly) {
  const Rows before = layer_.alone(x_);
  for (const int64_t token : {int64_t{0}, int64_t{22}, int64_t{23}, int64_t{100}, kTokens - 1}) {
    Rows changed = x_;
    for (int64_t c = 0; c < kHidden; ++c)
      changed[static_cast<size_t>(token * kHidden + c)] *= -1.5f;  // may turn the router
    SequenceState state = layer_.new_state();
    const Rows after = layer_.feed(state, changed, 0, kTokens, kChunk);
    EXPECT_TRUE(same_bits(part(after, 0, token, kHidden), part(before, 0, token, kHidden))) << token;
    EXPECT_FALSE(same_bits(part(after, token, token + 1, kHidden), part(before, token, token + 1, kHidden))) << token;
  }
}

TEST_P(AroundEveryRoom, ASequenceDoesNotSeeItsBatchNeighbours) {
  const std::vector<int64_t> lengths = {67, 5, 131};
  const std::vector<int64_t> most = {kChunk, 1, 3};
  std::vector<Rows> inputs, together(3);
  std::vector<SequenceState> states;
  for (size_t i = 0; i < 3; ++i) {
    inputs.push_back(random_rows(lengths[i], 10 + i));
    states.push_back(layer_.new_state());
  }
  for (bool more = true; more;) {
    more = false;
    std::vector<Layer::Part> parts;
    for (size_t i = 0; i < 3; ++i) {
      const int64_t done = states[i].tokens();
      parts.push_back({&states[i], inputs[i].data() + done * kHidden, std::min(most[i], lengths[i] - done)});
      more = more || parts.back().count > 0;
    }
    const Rows out = layer_.step(parts);
    int64_t row = 0;
    for (size_t i = 0; i < 3; ++i) {
      const Rows own = part(out, row, row + parts[i].count, kHidden);
      together[i].insert(together[i].end(), own.begin(), own.end());
      row += parts[i].count;
    }
  }
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(same_bits(together[i], layer_.alone(inputs[i]))) << "sequence " << i;
}

TEST_P(AroundEveryRoom, ASavedStateGoesOnWithTheSameBitsFromEveryPosition) {
  SequenceState state = layer_.new_state();
  SequenceState restored = layer_.new_state();
  std::vector<std::byte> saved;
  for (int64_t position = 0; position < kTokens; ++position) {
    saved.clear();
    state.layer(0).save(saved);
    ASSERT_TRUE(restored.layer(0).load(saved).ok()) << position;
    const Rows next = layer_.feed(state, x_, position, position + 1, 1);
    Rows again = part(x_, position, position + 1, kHidden);
    const SequenceSlice slice{&restored.layer(0), 0, 1};
    if (restored.layer(0).tokens() < restored.layer(0).context()) {
      ASSERT_TRUE(restored.layer(0).prepare_append(1).ok());
    }
    layer_.run(again.data(), {&slice, 1}, {&position, 1});
    ASSERT_TRUE(same_bits(again, next)) << position;
  }
}

TEST_P(AroundEveryRoom, ForksDivergeAndCutsForget) {
  const Rows straight = layer_.alone(x_);
  const Rows other = random_rows(kTokens, 8);
  for (const int64_t at : {0, 71, 130}) {
    SequenceState first = layer_.new_state();
    (void)layer_.feed(first, x_, 0, at, 7);
    SequenceState second = *first.fork();
    (void)layer_.feed(second, other, at, kTokens, 9);
    EXPECT_TRUE(same_bits(layer_.feed(first, x_, at, kTokens, 5), part(straight, at, kTokens, kHidden))) << at;
    const Result<void> cut = second.rewind(at);
    if (cut.ok()) {
      EXPECT_TRUE(same_bits(layer_.feed(second, x_, at, kTokens, 3), part(straight, at, kTokens, kHidden))) << at;
    } else {
      EXPECT_NE(at, 0);
      const Rewind promise = layer_.dense_layout().rewind;
      EXPECT_TRUE(promise != Rewind::kAnyToken || GetParam().room.name == "grouped_query_windowed")
          << cut.error().message;
    }
  }
  EXPECT_EQ(layer_.pool().live_bytes(), 0) << "pages leak";
}

TEST_P(AroundEveryRoom, TheStateHoldsTheRoutedTokensOnly) {
  SequenceState state = layer_.new_state();
  StateLayout exact = state.layer(0).layout();
  exact.routed.reset();
  for (int64_t done = 0; done < kTokens; done += 20) {
    (void)layer_.feed(state, x_, done, done + 20, 20);
    if (GetParam().room.name == "grouped_query_windowed") continue;  // its ring is prepared a chunk ahead
    EXPECT_EQ(state.bytes(), state_bytes_allocated(exact, state.layer(0).tokens()));
  }
  const RoutedTokens counts = state.routed_tokens().at(0);
  EXPECT_EQ(counts.seen, kTokens);
  EXPECT_EQ(counts.taken, state.layer(0).tokens());
  EXPECT_EQ(counts.passed_full, 0);
}

TEST_P(AroundEveryRoom, ADecodeStepAllocatesNothing) {
  SequenceState state = layer_.new_state();
  (void)layer_.feed(state, x_, 0, 40, 20);
  Rows row(static_cast<size_t>(kHidden));
  const auto decode = [&] {
    ASSERT_TRUE(state.prepare_append(1).ok());
    const int64_t position = state.tokens();
    std::memcpy(row.data(), x_.data() + position * kHidden, row.size() * sizeof(float));
    const SequenceSlice slice{&state.layer(0), 0, 1};
    layer_.run(row.data(), {&slice, 1}, {&position, 1});
    state.advance(1);
  };
  while (state.layer(0).tokens() < 30) decode();
  const int64_t before = allocations_so_far();
  while (state.tokens() < kTokens) decode();  // crosses pages
  EXPECT_EQ(allocations_so_far() - before, 0);
}

// The update reading, from outside: the dense block on what was let in, at its positions in the whole sequence.
TEST_P(AroundEveryRoom, WhatIsLetInIsTheDenseBlockOnThoseTokensAtTheirPositions) {
  HyperParameters settings = GetParam().rule.settings;
  settings.set("output", std::string("update"));
  settings.set("weight", std::string("linear"));
  Layer layer(GetParam(), settings);
  SequenceState state = layer.new_state();
  const Rows out = layer.feed(state, x_, 0, kTokens, kChunk);
  Rows let_in;
  std::vector<int64_t> positions;
  for (int64_t i = 0; i < state.layer(0).tokens(); ++i) {
    positions.push_back(state.layer(0).position_of(i));
    const Rows row = part(x_, positions.back(), positions.back() + 1, kHidden);
    let_in.insert(let_in.end(), row.begin(), row.end());
  }
  const Rows dense = layer.dense(let_in, positions);
  const Rows renumbered = layer.dense(let_in, counted(static_cast<int64_t>(positions.size())));
  double error = 0, size = 0, moved = 0;
  for (size_t i = 0; i < positions.size(); ++i) {
    // The weight from one component, the same for all others: (out - x) = g (dense - x).
    double dot = 0, square = 0;
    for (int64_t c = 0; c < kHidden; ++c) {
      const size_t in = static_cast<size_t>(positions[i] * kHidden + c), at = i * kHidden + static_cast<size_t>(c);
      const double update = double{dense[at]} - x_[in];
      dot += (double{out[in]} - x_[in]) * update;
      square += update * update;
    }
    for (int64_t c = 0; c < kHidden; ++c) {
      const size_t in = static_cast<size_t>(positions[i] * kHidden + c), at = i * kHidden + static_cast<size_t>(c);
      const double wanted = dot / square * (double{dense[at]} - x_[in]);
      error = std::max(error, std::abs(double{out[in]} - x_[in] - wanted));
      size = std::max(size, std::abs(wanted));
      moved = std::max(moved, std::abs(double{dense[at]} - renumbered[at]));
    }
  }
  EXPECT_LT(error, 2e-6 * size);
  EXPECT_GT(moved, 1e-2) << "positions must matter here, or the test shows nothing";
}

std::vector<Parameter> all_parameters() {
  std::vector<Parameter> parameters;
  for (const RoomCase& room : room_cases()) {
    for (const RuleCase& rule : rule_cases()) {
      for (const bool on_cpu : {false, true}) parameters.push_back({room, rule, on_cpu});
    }
  }
  return parameters;
}

std::string name_of(const testing::TestParamInfo<Parameter>& test) {
  return test.param.room.name + "_" + test.param.rule.name + (test.param.on_cpu ? "_cpu" : "_reference");
}

INSTANTIATE_TEST_SUITE_P(Routed, AroundEveryRoom, testing::ValuesIn(all_parameters()), name_of);

// ---- Limits
// ---------------------------------------------------------------------------------------------------------------

class WithAConstantRouter : public testing::TestWithParam<Parameter> {
 protected:
  Rows x_ = random_rows(kTokens, 1);
};

TEST_P(WithAConstantRouter, FullCapacityAndAWeightOfOneAreTheDenseBlockBitForBit) {
  for (const DepthRule rule : {DepthRule::kThreshold, DepthRule::kTopK}) {
    Layer layer(GetParam(), settings_of({{"capacity", 1.0}}), 1.0f);
    layer.depths().set_rule(rule);
    const Rows dense = layer.dense(x_, counted(kTokens));
    SequenceState state = layer.new_state();
    EXPECT_TRUE(same_bits(layer.feed(state, x_, 0, kTokens, kChunk), dense));
    EXPECT_FALSE(same_bits(dense, x_));
    EXPECT_EQ(state.layer(0).tokens(), kTokens);
  }
}

TEST_P(WithAConstantRouter, NobodyLetInIsTheIdentityAndLeavesNothingBehind) {
  for (const float score : {0.0f, -3.0f, std::nanf("")}) {  // the border itself is outside
    Layer layer(GetParam(), settings_of({{"capacity", 0.125}}), score);
    SequenceState state = layer.new_state();
    const int64_t before = state.bytes();
    EXPECT_TRUE(same_bits(layer.feed(state, x_, 0, kTokens, 33), x_));
    EXPECT_EQ(state.layer(0).tokens(), 0);
    if (GetParam().room.name != "grouped_query_windowed") {
      EXPECT_EQ(state.bytes(), before);
    }
  }
}

TEST_P(WithAConstantRouter, AFullLayerLetsEveryLaterTokenPass) {
  // An eighth of 200 tokens and a quarter more: 32, reserved as one page.
  const HyperParameters settings = settings_of({{"capacity", 0.125}});
  Layer layer(GetParam(), settings, 1.0f);
  const Rows dense = layer.dense(x_, counted(kTokens));
  for (const int64_t chunk : {int64_t{1}, int64_t{23}, kChunk}) {
    SequenceState state = layer.new_state();
    const Rows out = layer.feed(state, x_, 0, kTokens, chunk);
    EXPECT_TRUE(same_bits(part(out, 0, 64, kHidden), part(dense, 0, 64, kHidden))) << chunk;
    EXPECT_TRUE(same_bits(part(out, 64, kTokens, kHidden), part(x_, 64, kTokens, kHidden))) << chunk;
    const RoutedTokens counts = state.routed_tokens().at(0);
    EXPECT_EQ(counts.taken, 64);
    EXPECT_EQ(counts.reserved, 64);
    EXPECT_EQ(counts.passed_full, kTokens - 64);
  }
}

std::vector<Parameter> every_room() {
  std::vector<Parameter> parameters;
  for (const RoomCase& room : room_cases()) {
    for (const bool on_cpu : {false, true}) parameters.push_back({room, {"constant", HyperParameters()}, on_cpu});
  }
  return parameters;
}

INSTANTIATE_TEST_SUITE_P(Routed, WithAConstantRouter, testing::ValuesIn(every_room()), name_of);

TEST(MixtureOfDepths, ARouterIsTheWriteGateOfAnInfiniteMemory) {
  // Segments of 23 original positions: tokens the router sends past leave the memory without a trace.
  const Parameter parameter{room_cases().back(), rule_cases().front(), false};
  Layer layer(parameter, parameter.rule.settings);
  Rows x = random_rows(kTokens, 1);
  SequenceState state = layer.new_state(1 << 20);
  (void)layer.feed(state, x, 0, kTokens, kChunk);
  std::vector<std::byte> before, after;
  state.layer(0).save(before);
  const int64_t taken = state.layer(0).tokens();
  // A token the router refused, a few thousand times.
  int64_t refused = 0;
  while (state.layer(0).tokens_before(refused + 1) > state.layer(0).tokens_before(refused)) ++refused;
  Rows filler;
  for (int64_t i = 0; i < kChunk; ++i) {
    const Rows row = part(x, refused, refused + 1, kHidden);
    filler.insert(filler.end(), row.begin(), row.end());
  }
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(same_bits(layer.feed(state, filler, 0, kChunk, kChunk), filler));
  state.layer(0).save(after);
  EXPECT_EQ(state.tokens(), kTokens + 100 * kChunk);
  EXPECT_EQ(state.layer(0).tokens(), taken);
  EXPECT_TRUE(before == after);
}

TEST(MixtureOfDepths, TheServingRuleIsComparedWithTheRuleOfTraining) {
  const Parameter parameter{room_cases().front(), rule_cases().front(), false};
  const Rows x = random_rows(kTokens, 1);
  const auto taken = [&](DepthRule rule) {
    Layer layer(parameter, parameter.rule.settings);
    layer.depths().set_rule(rule);
    SequenceState state = layer.new_state();
    (void)layer.feed(state, x, 0, kTokens, kTokens);
    std::vector<int64_t> positions;
    for (int64_t i = 0; i < state.layer(0).tokens(); ++i) positions.push_back(state.layer(0).position_of(i));
    return positions;
  };
  const std::vector<int64_t> trained = taken(DepthRule::kTopK), served = taken(DepthRule::kThreshold);
  EXPECT_EQ(trained.size(), 100u);
  const double apart = selection_disagreement(trained, served, kTokens);
  // Random scores have their median near 0: the rules differ by how far from half of the tokens are above it.
  EXPECT_EQ(apart, std::abs(static_cast<double>(served.size()) - 100.0) / kTokens);
}

// ---- Settings
// -------------------------------------------------------------------------------------------------------------

TEST(DepthSettings, BadOnesAreRefusedByName) {
  using Text = std::string;
  const auto refused = [](const HyperParameters& p, const char* key, const char* found) {
    const auto settings = read_depth_settings(p);
    ASSERT_FALSE(settings.ok()) << key;
    EXPECT_EQ(settings.error().error_class, ErrorClass::kBadInput);
    EXPECT_THAT(settings.error().message, HasSubstr(key));
    EXPECT_THAT(settings.error().message, HasSubstr(found));
    EXPECT_THAT(settings.error().message, HasSubstr("mixture_of_depths"));
  };
  refused(settings_of({}), "capacity", "missing");
  refused(settings_of({{"capacity", 0.0}}), "capacity", "0");
  refused(settings_of({{"capacity", 1.5}}), "capacity", "1.5");
  refused(settings_of({{"capacity", -0.125}}), "capacity", "-0.125");
  refused(settings_of({{"capacity", std::nan("")}}), "capacity", "nan");
  refused(settings_of({{"capacity", 0.5}, {"decode", Text("top_k")}}), "decode", "top_k");
  refused(settings_of({{"capacity", 0.5}, {"decode", Text("predictor")}}), "predictor_dim", "missing");
  refused(settings_of({{"capacity", 0.5}, {"output", Text("residual")}}), "output", "residual");
  refused(settings_of({{"capacity", 0.5}, {"weight", Text("softmax")}}), "weight", "softmax");
  refused(settings_of({{"capacity", 0.5}, {"router_input", Text("layer")}}), "router_input", "layer");
  refused(settings_of({{"capacity", 0.5}, {"slack", -0.5}}), "slack", "-0.5");
  refused(settings_of({{"capacity", 0.5}, {"group_tokens", int64_t{-1}}}), "group_tokens", "-1");
}

TEST(DepthSettings, WeightsOfTheRuleMustBeThere) {
  auto backend = make_reference_backend(1);
  GivenWeights router({{"mixture_of_depths.router", Rows(kHidden, 0.1f)}});
  EXPECT_TRUE(MixtureOfDepths::create({.capacity = 0.5}, kHidden, router, *backend).ok());
  const auto moving = MixtureOfDepths::create({.capacity = 0.5, .rule = DepthRule::kMoving}, kHidden, router, *backend);
  ASSERT_FALSE(moving.ok());
  EXPECT_THAT(moving.error().message, HasSubstr("router_threshold"));
  const auto predictor = MixtureOfDepths::create({.capacity = 0.5, .rule = DepthRule::kPredictor, .predictor_dim = 3},
                                                 kHidden, router, *backend);
  ASSERT_FALSE(predictor.ok());
  EXPECT_THAT(predictor.error().message, HasSubstr("predictor_up"));
}

}  // namespace
}  // namespace quipu
