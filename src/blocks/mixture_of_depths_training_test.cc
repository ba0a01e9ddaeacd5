// Mixture-of-Depths that learns: the worked example, central differences, and zeros where a gradient is promised to stop.
#include "blocks/mixture_of_depths_training.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "attention/layer_state.h"
#include "backend/reference/reference_backend.h"
#include "backend/reference/reference_training.h"
#include "blocks/token_selection.h"
#include "ops/gradient_check_for_test.h"

namespace quipu {
namespace {

using testing::ElementsAre;
using Values = std::vector<double>;

// A block with weights, a batch and room for everything.
struct BlockBench {
  BlockBench(TrainingOps<double>& ops_in, std::unique_ptr<TrainableBlock<double>> block_in, int64_t hidden_in,
             std::vector<int64_t> offsets_in)
      : ops(ops_in), block(std::move(block_in)), hidden(hidden_in), offsets(std::move(offsets_in)) {
    for (size_t i = 0; i + 1 < offsets.size(); ++i) {
      for (int64_t row = offsets[i]; row < offsets[i + 1]; ++row) positions.push_back(row - offsets[i]);
    }
    x = random_doubles(offsets.back() * hidden, 21);
    out.resize(x.size());
    dx.resize(x.size());
    uint64_t seed = 100;
    for (const ParameterSpec& spec : block->parameters()) {
      const double gain = spec.shape.size() == 2 ? 1.5 / std::sqrt(static_cast<double>(spec.shape.back())) : 0.3;
      weights.push_back(random_doubles(element_count(spec.shape), seed++, gain));
      if (spec.group == ParameterGroup::kNorm) {
        for (double& value : weights.back()) value += 1;
      }
      gradients.emplace_back(weights.back().size());
    }
    saved.resize(static_cast<size_t>(block->saved_bytes({offsets, positions})) / 64 + 1);
    scratch.resize(static_cast<size_t>(block->scratch_bytes({offsets, positions})) / 64 + 1);
  }

  double forward() {
    const PackedBatch batch{offsets, positions};
    const auto views = views_of<const double>(weights);
    const int64_t rows = offsets.back();
    return block->forward({out.data(), rows, hidden}, {x.data(), rows, hidden},
                          {ops, batch, options, views, {}, std::as_writable_bytes(std::span(saved)), std::as_writable_bytes(std::span(scratch))});
  }
  // dx and the gradients of cotangent . out + what forward returned.
  void backward(const Values& cotangent) {
    for (Values& g : gradients) std::ranges::fill(g, 0.0);
    std::memset(scratch.data(), 0x7f, scratch.size() * 64);
    const PackedBatch batch{offsets, positions};
    const auto views = views_of<const double>(weights);
    const auto gradient_views = views_of<double>(gradients);
    dx = cotangent;
    const int64_t rows = offsets.back();
    block->backward({dx.data(), rows, hidden}, {x.data(), rows, hidden},
                    {ops, batch, options, views, gradient_views, std::as_writable_bytes(std::span(saved)),
                     std::as_writable_bytes(std::span(scratch))});
  }
  size_t place(const std::string& name) const {
    for (size_t i = 0; i < weights.size(); ++i) {
      if (block->parameters()[i].role == "mixture_of_depths." + name) return i;
    }
    ADD_FAILURE() << name;
    return 0;
  }
  bool of_router(size_t i) const { return block->parameters()[i].group == ParameterGroup::kRouter; }

  TrainingOps<double>& ops;
  std::unique_ptr<TrainableBlock<double>> block;
  int64_t hidden;
  std::vector<int64_t> offsets, positions;
  LayerOptions<double> options;
  Values x, out, dx;
  std::vector<Values> weights, gradients;

 private:
  struct alignas(64) Aligned {
    std::byte bytes[64];
  };
  template <class T>
  std::vector<MatrixView<T>> views_of(std::vector<Values>& values) const {
    std::vector<MatrixView<T>> views;
    for (size_t i = 0; i < values.size(); ++i) {
      const Shape& shape = block->parameters()[i].shape;
      views.push_back({values[i].data(), shape.size() == 2 ? shape[0] : 1, shape.back()});
    }
    return views;
  }
  std::vector<Aligned> saved, scratch;
};

// ---- The worked example of the specification, 5.5 -----------------------------------------------------------------------

// Adds to the first component the running sum of the first components of the rows it is given.
class RunningSum final : public TrainableBlock<double> {
 public:
  std::span<const ParameterSpec> parameters() const override { return {}; }
  int64_t saved_bytes(const PackedBatch&) const override { return 0; }
  int64_t scratch_bytes(const PackedBatch&) const override { return 0; }
  double forward(MatrixView<double> out, MatrixView<const double> x, const TrainingCall<double>& call) const override {
    positions.assign(call.batch.positions.begin(), call.batch.positions.end());
    repeats.assign(call.options.write_repeats.begin(), call.options.write_repeats.end());
    for (int64_t i = 0; i < call.batch.sequences(); ++i) {
      double sum = 0;
      for (int64_t row = call.batch.offsets[static_cast<size_t>(i)]; row < call.batch.offsets[static_cast<size_t>(i) + 1]; ++row) {
        sum += x(row, 0);
        out(row, 0) = x(row, 0) + sum;
        for (int64_t c = 1; c < x.cols; ++c) out(row, c) = x(row, c);
      }
    }
    return 0;
  }
  void backward(MatrixView<double> gradient, MatrixView<const double>, const TrainingCall<double>& call) const override {
    for (int64_t i = 0; i < call.batch.sequences(); ++i) {
      double sum = 0;
      for (int64_t row = call.batch.offsets[static_cast<size_t>(i) + 1]; row-- > call.batch.offsets[static_cast<size_t>(i)];) {
        sum += gradient(row, 0);
        gradient(row, 0) += sum;
      }
    }
  }
  double forward_flops(const PackedBatch& batch) const override { return 1000.0 * static_cast<double>(batch.rows()); }
  static inline std::vector<int64_t> positions;   // of the last forward
  static inline std::vector<float> repeats;
};

// Tokens (i, r_i); the router (0, 1) gives the second component, so that dL/dr is what the second component of dx gets.
BlockBench worked_example(TrainingOps<double>& ops, DepthSettings settings) {
  settings.capacity = 0.25;
  BlockBench bench(ops, make_trainable_mixture_of_depths<double>(settings, 2, std::make_unique<RunningSum>(), {}), 2, {0, 8});
  const double scores[] = {0.3, -1.2, 2.0, 0.1, -0.4, 1.5, -0.7, 0.9};
  for (size_t i = 0; i < 8; ++i) {
    bench.x[2 * i] = static_cast<double>(i + 1);
    bench.x[2 * i + 1] = scores[i];
  }
  bench.weights[0] = {0, 1};
  return bench;
}
Values column(const Values& rows, size_t c) {
  Values values;
  for (size_t i = c; i < rows.size(); i += 2) values.push_back(rows[i]);
  return values;
}
Values sum_of_first_column() {
  Values cotangent(16, 0.0);
  for (size_t i = 0; i < 16; i += 2) cotangent[i] = 1;
  return cotangent;
}

TEST(MixtureOfDepthsTraining, IsTheWorkedExample) {
  const auto ops = make_reference_training_ops();
  BlockBench bench = worked_example(*ops, {});
  EXPECT_EQ(bench.forward(), 0.0);
  EXPECT_THAT(column(bench.out, 0), ElementsAre(1, 2, 9, 4, 5, 19.5, 7, 8));
  EXPECT_THAT(RunningSum::positions, ElementsAre(2, 5));
  bench.backward(sum_of_first_column());
  EXPECT_THAT(column(bench.dx, 1), ElementsAre(0, 0, 3, 0, 0, 9, 0, 0));
  // Rows that pass by get what came; 3 and 6 are in both sums and one, times their scores.
  EXPECT_THAT(column(bench.dx, 0), ElementsAre(1, 1, 1 + 2 + 1.5, 1, 1, 1 + 1.5, 1, 1));
  EXPECT_DOUBLE_EQ(bench.gradients[0][1], 3 * 2.0 + 9 * 1.5);

  BlockBench squashed = worked_example(*ops, {.sigmoid = true});
  squashed.forward();
  EXPECT_NEAR(squashed.out[4], 5.642391, 5e-7);
  EXPECT_NEAR(squashed.out[10], 13.358170, 5e-7);

  BlockBench whole = worked_example(*ops, {.whole_block = true});
  whole.forward();
  EXPECT_THAT(column(whole.out, 0), ElementsAre(1, 2, 15, 4, 5, 28.5, 7, 8));
}

TEST(MixtureOfDepthsTraining, TheAuxiliaryLossIsTheWorkedExamples) {
  const auto ops = make_reference_training_ops();
  BlockBench bench = worked_example(*ops, {});
  bench.options.router_loss = 1;
  EXPECT_NEAR(bench.forward(), 0.543466, 5e-7);
  bench.backward(Values(16, 0.0));
  const double wanted[] = {0.071805, 0.028934, -0.014900, 0.065622, 0.050164, -0.022803, 0.041477, 0.088869};
  for (size_t i = 0; i < 8; ++i) EXPECT_NEAR(bench.dx[2 * i + 1], wanted[i], 5e-7) << i;
  bench.options.router_loss = 0.25;
  EXPECT_NEAR(bench.forward(), 0.25 * 0.543466, 5e-7);
}

TEST(MixtureOfDepthsTraining, ServingLetsInByTheThresholdAsFarAsThereIsRoom) {
  const auto ops = make_reference_training_ops();
  BlockBench bench = worked_example(*ops, {.slack = 3.0});
  bench.options.serving = true;
  bench.options.router_loss = 1;
  EXPECT_EQ(bench.forward(), 0.0);
  EXPECT_THAT(RunningSum::positions, ElementsAre(0, 2, 3, 5, 7));
  const std::vector<int64_t> served{0, 2, 3, 5, 7}, trained{2, 5};
  EXPECT_EQ(selection_disagreement(served, trained, 8), 3.0 / 8);
  for (const bool serving : {true, false}) {
    RoutingCounts counts;
    bench.options.serving = serving;
    bench.options.routing = &counts;
    bench.forward();
    EXPECT_EQ(counts.rows, 8);
    EXPECT_EQ(counts.let_in, 2);
    EXPECT_EQ(counts.differing, 3);
    EXPECT_EQ(RunningSum::positions, serving ? served : trained);
  }
  BlockBench full = worked_example(*ops, {.slack = 0.5});
  full.options.serving = true;
  full.forward();
  EXPECT_THAT(RunningSum::positions, ElementsAre(0, 2, 3)) << "room for a quarter and half as much again";
}

TEST(MixtureOfDepthsTraining, TheMovingThresholdIsPulledHalfWayBetweenTheLastInAndTheFirstOut) {
  const auto ops = make_reference_training_ops();
  BlockBench bench = worked_example(*ops, {.rule = DepthRule::kMoving});
  bench.weights[bench.place("router_threshold")] = {0.2};
  bench.options.router_loss = 1;
  EXPECT_NEAR(bench.forward(), 0.5 * (0.2 - 1.2) * (0.2 - 1.2), 1e-12);   // between 1.5 and 0.9
  bench.backward(Values(16, 0.0));
  EXPECT_NEAR(bench.gradients[bench.place("router_threshold")][0], 0.2 - 1.2, 1e-12);
  for (const double d : bench.dx) EXPECT_EQ(d, 0.0);
  bench.options.serving = true;
  bench.forward();
  EXPECT_THAT(RunningSum::positions, ElementsAre(0, 2, 5)) << "0.9 is above 0.2 but there is no room";
}

TEST(MixtureOfDepthsTraining, GroupsOfPositionsFillEachOfThemAndRepeatsFollowTheirRows) {
  const auto ops = make_reference_training_ops();
  BlockBench bench = worked_example(*ops, {.slack = 0, .group_tokens = 3});
  const std::vector<float> repeats{1, 2, 3, 4, 5, 6, 7, 8};
  bench.options.write_repeats = repeats;
  bench.forward();
  EXPECT_THAT(RunningSum::positions, ElementsAre(2, 5, 7));
  EXPECT_THAT(RunningSum::repeats, ElementsAre(3, 6, 8));
  EXPECT_EQ(bench.block->forward_flops({bench.offsets, {}}), 2.0 * 8 * 2 + 3000);
}

// ---- Around a whole block -----------------------------------------------------------------------------------------------

constexpr int64_t kHidden = 12;

HyperParameters room_settings(const std::string& room) {
  HyperParameters p("test");
  p.set("heads", int64_t{2});
  p.set("rope_theta", 100.0);
  if (room == "grouped_query" || room == "infini") {
    p.set("kv_heads", int64_t{1});
    p.set("head_dim", int64_t{6});
  } else {
    p.set("latent_rank", int64_t{8});
    p.set("nope_dim", int64_t{5});
    p.set("rope_dim", int64_t{4});
    p.set("value_dim", int64_t{6});
    p.set("latent_norm", std::string("rms"));
    p.set("norm_epsilon", 1e-6);
  }
  if (room == "infini") {
    p.set("rule", std::string("delta"));
    p.set("segment_tokens", int64_t{7});
  }
  if (room == "temporal_latent") p.set("stride", int64_t{2});
  return p;
}

std::unique_ptr<TrainableBlock<double>> inner_block(const std::string& room = "grouped_query") {
  auto attention = create_training<double>(room, {.hidden = kHidden}, room_settings(room), {});
  CHECK(attention.ok()) << attention.error().message;
  static const auto ops = make_reference_training_ops();   // any of its kind says the same of a gated part's memory
  return make_trainable_pre_norm<double>({kHidden, 1e-5}, std::move(*attention),
                                         make_trainable_gated_mlp<double>({GateActivation::kSilu, kHidden, 7, false}, *ops));
}

BlockBench block_bench(TrainingOps<double>& ops, const DepthSettings& settings, const std::vector<std::string>& optional_roles) {
  return {ops, make_trainable_mixture_of_depths<double>(settings, kHidden, inner_block(), optional_roles), kHidden, {0, 9, 9, 10, 27}};
}

const std::vector<std::string> kAllBiases = {"mixture_of_depths.router_bias", "mixture_of_depths.predictor_up_bias",
                                             "mixture_of_depths.predictor_down_bias"};

struct NamedSettings {
  std::string name;
  DepthSettings settings;
};
std::vector<NamedSettings> all_settings() {
  return {{"plain", {.capacity = 0.4}},
          {"sigmoid_rms", {.capacity = 0.4, .sigmoid = true, .normalised_input = true}},
          {"block_sigmoid", {.capacity = 0.3, .whole_block = true, .sigmoid = true}},
          {"block_groups_rms", {.capacity = 0.5, .whole_block = true, .normalised_input = true, .group_tokens = 5}},
          {"everyone", {.capacity = 1.0}},
          {"predictor", {.capacity = 0.4, .rule = DepthRule::kPredictor, .predictor_dim = 5}},
          {"predictor_rms", {.capacity = 0.4, .rule = DepthRule::kPredictor, .normalised_input = true, .predictor_dim = 5}},
          {"moving", {.capacity = 0.4, .rule = DepthRule::kMoving, .group_tokens = 6}}};
}

// What the rule's own loss reaches: everything with a threshold, else only the weights of the rule.
TEST(MixtureOfDepthsTraining, BackwardIsTheGradientUnderEverySetting) {
  const auto ops = make_reference_training_ops();
  for (const NamedSettings& named : all_settings()) {
    for (const bool serving : {false, true}) {
      SCOPED_TRACE(named.name + (serving ? ", serving" : ""));
      DepthSettings settings = named.settings;
      BlockBench bench = block_bench(*ops, settings, kAllBiases);
      bench.options.router_loss = 0.7;
      bench.options.serving = serving;
      const Values cotangent = random_doubles(static_cast<int64_t>(bench.out.size()), 31);
      const auto main_loss = [&] {
        bench.forward();
        return dot_of(bench.out, cotangent);
      };
      const auto full_loss = [&] {
        const double extra = bench.forward();
        return dot_of(bench.out, cotangent) + extra;
      };
      const bool stopped = settings.rule != DepthRule::kThreshold;
      full_loss();
      bench.backward(cotangent);
      const Values dx = bench.dx;
      const std::vector<Values> gradients = bench.gradients;
      expect_gradient("x", stopped ? main_loss : std::function<double()>(full_loss), bench.x, dx);
      for (size_t i = 0; i < gradients.size(); ++i) {
        const std::string& role = bench.block->parameters()[i].role;
        const bool of_rule = role.find("predictor") != std::string::npos || role.find("threshold") != std::string::npos;
        expect_gradient(role, stopped && !of_rule ? main_loss : std::function<double()>(full_loss), bench.weights[i], gradients[i]);
      }
    }
  }
}

TEST(MixtureOfDepthsTraining, TheRulesOwnLossStopsWhereItIsPromisedTo) {
  const auto ops = make_reference_training_ops();
  for (const NamedSettings& named : all_settings()) {
    SCOPED_TRACE(named.name);
    BlockBench bench = block_bench(*ops, named.settings, kAllBiases);
    const Values cotangent = random_doubles(static_cast<int64_t>(bench.out.size()), 31);
    bench.forward();
    bench.backward(cotangent);
    const Values plain_dx = bench.dx, plain_out = bench.out;
    const std::vector<Values> plain = bench.gradients;
    bench.options.router_loss = 3;
    bench.forward();
    bench.backward(cotangent);
    EXPECT_EQ(bench.out, plain_out);
    const bool stopped = named.settings.rule != DepthRule::kThreshold;
    EXPECT_EQ(bench.dx == plain_dx, stopped);
    for (size_t i = 0; i < plain.size(); ++i) {
      const std::string& role = bench.block->parameters()[i].role;
      const bool of_rule = role.find("predictor") != std::string::npos || role.find("threshold") != std::string::npos;
      if (of_rule) {
        for (const double g : plain[i]) EXPECT_EQ(g, 0.0) << role;
        for (const double g : bench.gradients[i]) EXPECT_NE(g, 0.0) << role;
      } else {
        EXPECT_EQ(bench.gradients[i] == plain[i], stopped || !bench.of_router(i)) << role;
      }
    }
  }
}

TEST(MixtureOfDepthsTraining, RowsThatPassByKeepTheirBitsAndTheirGradients) {
  const auto ops = make_reference_training_ops();
  BlockBench bench = block_bench(*ops, {.capacity = 0.25}, {});
  bench.forward();
  const Values cotangent = random_doubles(static_cast<int64_t>(bench.out.size()), 31);
  bench.backward(cotangent);
  int64_t passed = 0;
  for (size_t row = 0; row < 27; ++row) {
    const auto same = [&](const Values& a, const Values& b) {
      return std::equal(a.begin() + static_cast<int64_t>(row) * kHidden, a.begin() + static_cast<int64_t>(row + 1) * kHidden,
                        b.begin() + static_cast<int64_t>(row) * kHidden);
    };
    EXPECT_EQ(same(bench.out, bench.x), same(bench.dx, cotangent));
    passed += same(bench.out, bench.x) ? 1 : 0;
  }
  EXPECT_EQ(passed, 27 - 3 - 0 - 1 - 5);
}

TEST(MixtureOfDepthsTraining, EveryoneLetInWithWeightOneIsTheDenseBlock) {
  const auto ops = make_reference_training_ops();
  BlockBench routed = block_bench(*ops, {.capacity = 1.0}, kAllBiases);
  BlockBench dense(*ops, inner_block(), kHidden, routed.offsets);
  std::ranges::fill(routed.weights[routed.place("router")], 0.0);
  routed.weights[routed.place("router_bias")] = {1.0};
  const Values cotangent = random_doubles(static_cast<int64_t>(dense.out.size()), 31);
  routed.forward();
  dense.forward();
  routed.backward(cotangent);
  dense.backward(cotangent);
  for (size_t i = 0; i < dense.out.size(); ++i) EXPECT_NEAR(routed.out[i], dense.out[i], 1e-12);
  for (size_t i = 0; i < dense.dx.size(); ++i) EXPECT_NEAR(routed.dx[i], dense.dx[i], 1e-11);
}

// ---- Around every room, and against the form that generates --------------------------------------------------------------

// The weights of a bench for the inference block.
class BenchWeights final : public WeightSource {
 public:
  BenchWeights(const BlockBench& bench, Backend& backend) : bench_(bench), backend_(backend) {}
  bool has(std::string_view role) const override { return find(role) != nullptr; }
  Result<std::unique_ptr<PackedMatrix>> matrix(std::string_view role, int64_t rows, int64_t cols, std::string_view meaning) override {
    ASSIGN_OR_RETURN(const std::vector<float> values, dense(role, rows, cols, meaning));
    return backend_.pack({DType::kF32, rows, cols, std::as_bytes(std::span(values))});
  }
  Result<std::vector<float>> vector(std::string_view role, int64_t length, std::string_view meaning) override {
    return dense(role, 1, length, meaning);
  }
  Result<std::vector<float>> dense(std::string_view role, int64_t rows, int64_t cols, std::string_view) override {
    const Values* values = find(role);
    if (values == nullptr || static_cast<int64_t>(values->size()) != rows * cols) return bad_input("no " + std::string(role));
    return std::vector<float>(values->begin(), values->end());
  }

 private:
  const Values* find(std::string_view role) const {
    for (size_t i = 0; i < bench_.weights.size(); ++i) {
      if (bench_.block->parameters()[i].role == role) return &bench_.weights[i];
    }
    return nullptr;
  }
  const BlockBench& bench_;
  Backend& backend_;
};

void expect_same_as_inference(BlockBench& bench, const std::string& room, const DepthSettings& settings, DepthRule rule) {
  const auto backend = make_reference_backend(1);
  BenchWeights weights(bench, *backend);
  auto attention = (*find_room(room))->create({.hidden = kHidden}, room_settings(room), weights, *backend);
  auto mlp = GatedMlp::create({.hidden = kHidden, .inner = 7}, weights);
  ASSERT_TRUE(attention.ok() && mlp.ok());
  auto block = PreNormBlock::create({.hidden = kHidden, .epsilon = 1e-5f}, std::move(*attention), std::move(*mlp), weights);
  auto depths = MixtureOfDepths::create(settings, kHidden, weights, *backend);
  ASSERT_TRUE(block.ok() && depths.ok());
  depths->set_rule(rule);
  bench.forward();
  Arena scratch;
  for (size_t i = 0; i + 1 < bench.offsets.size(); ++i) {
    const int64_t begin = bench.offsets[i], rows = bench.offsets[i + 1] - begin;
    if (rows == 0) continue;
    PagePool pool;
    const std::vector<StateLayout> layouts = {depths->state_layout(*block, {DType::kF32, rows})};
    auto state = SequenceState::create(layouts, rows, pool);
    ASSERT_TRUE(state.ok() && state->prepare_append(rows).ok());
    ASSERT_TRUE(scratch.reserve(static_cast<size_t>(depths->scratch_bytes(*block, rows))).ok());
    std::vector<float> x(bench.x.begin() + begin * kHidden, bench.x.begin() + (begin + rows) * kHidden);
    const SequenceSlice slice{&state->layer(0), 0, rows};
    const std::span<const int64_t> positions(bench.positions.data() + begin, static_cast<size_t>(rows));
    depths->forward(*backend, {x.data(), rows, kHidden}, *block, {{&slice, 1}, positions}, scratch);
    for (size_t c = 0; c < x.size(); ++c) ASSERT_NEAR(x[c], bench.out[static_cast<size_t>(begin * kHidden) + c], 3e-5) << i;
  }
}

TEST(MixtureOfDepthsTraining, AroundEveryRoomItIsWhatGeneratesUnderEveryRule) {
  const auto ops = make_reference_training_ops();
  for (const std::string room : {"grouped_query", "latent", "temporal_latent", "infini"}) {
    for (const NamedSettings& named : all_settings()) {
      SCOPED_TRACE(room + " " + named.name);
      DepthSettings settings = named.settings;
      settings.slack = 3;   // so that no rule runs out of room
      BlockBench bench(*ops, make_trainable_mixture_of_depths<double>(settings, kHidden, inner_block(room), kAllBiases), kHidden,
                       {0, 9, 9, 10, 49});
      expect_same_as_inference(bench, room, settings, DepthRule::kTopK);
      bench.options.serving = true;
      expect_same_as_inference(bench, room, settings, settings.rule);
    }
  }
}

// 25 rows of 300 lie in as many segments of 7 as the router likes: many more than 25 rows side by side would.
TEST(MixtureOfDepthsTraining, AMemoryOfSegmentsHasRoomForRowsOfAllOfThem) {
  const auto ops = make_reference_training_ops();
  DepthSettings settings{.capacity = 0.08};
  settings.slack = 0;
  BlockBench bench(*ops, make_trainable_mixture_of_depths<double>(settings, kHidden, inner_block("infini"), kAllBiases), kHidden, {0, 300, 301});
  expect_same_as_inference(bench, "infini", settings, DepthRule::kTopK);
  bench.backward(random_doubles(static_cast<int64_t>(bench.out.size()), 31));
  for (const double value : bench.dx) ASSERT_TRUE(std::isfinite(value));
}

TEST(MixtureOfDepthsTraining, AroundEveryRoomBackwardIsTheGradient) {
  const auto ops = make_reference_training_ops();
  for (const std::string room : {"latent", "temporal_latent", "infini"}) {
    SCOPED_TRACE(room);
    BlockBench bench(*ops, make_trainable_mixture_of_depths<double>({.capacity = 0.5}, kHidden, inner_block(room), {}), kHidden,
                     {0, 9, 9, 10, 33});
    bench.options.router_loss = 0.3;
    const Values cotangent = random_doubles(static_cast<int64_t>(bench.out.size()), 31);
    const auto loss = [&] {
      const double extra = bench.forward();
      return dot_of(bench.out, cotangent) + extra;
    };
    loss();
    bench.backward(cotangent);
    const Values dx = bench.dx;
    const std::vector<Values> gradients = bench.gradients;
    expect_gradient("x", loss, bench.x, dx);
    for (size_t i = 0; i < gradients.size(); ++i) {
      expect_gradient(bench.block->parameters()[i].role, loss, bench.weights[i], gradients[i]);
    }
  }
}

TEST(MixtureOfDepthsTraining, MemoryAndOperationsFollowTheCapacity) {
  const std::vector<int64_t> offsets{0, 2048};
  const auto dense = inner_block();
  const auto bytes = [&](double capacity, double slack) {
    const auto block = make_trainable_mixture_of_depths<double>({.capacity = capacity, .slack = slack}, kHidden, inner_block(), {});
    return static_cast<double>(block->saved_bytes({offsets, {}}));
  };
  const double all = static_cast<double>(dense->saved_bytes({offsets, {}}));
  EXPECT_LT(bytes(0.125, 0), 0.25 * all);
  EXPECT_LT(bytes(0.125, 0), bytes(0.125, 0.25));
  EXPECT_LT(bytes(0.125, 0.25), bytes(0.5, 0.25));
  const auto eighth = make_trainable_mixture_of_depths<double>({.capacity = 0.125}, kHidden, inner_block(), {});
  const std::vector<int64_t> routed{0, 256};
  EXPECT_EQ(eighth->forward_flops({offsets, {}}), dense->forward_flops({routed, {}}) + 2.0 * 2048 * kHidden);
}

}  // namespace
}  // namespace quipu
