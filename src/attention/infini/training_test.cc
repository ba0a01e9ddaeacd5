// Infini-attention that learns: every rule, feature and gate against central differences and the inference room.
#include <gtest/gtest.h>

#include <cmath>

#include "attention/infini/infini.h"
#include "attention/room_inference_for_test.h"
#include "backend/reference/reference_backend.h"

namespace quipu {

std::vector<ConformanceCase> conformance_cases_infini();
template <class Real>
Result<std::unique_ptr<TrainableAttention<Real>>> create_training_infini(const AttentionShape& shape, const HyperParameters& parameters,
                                                                         std::span<const std::string> optional_roles);

namespace {

HyperParameters small_room(const std::string& rule, int64_t segment_tokens) {
  HyperParameters p("test");
  p.set("heads", int64_t{4});
  p.set("kv_heads", int64_t{2});
  p.set("head_dim", int64_t{6});
  p.set("value_dim", int64_t{5});
  p.set("rope_theta", 1e4);
  p.set("rule", rule);
  p.set("segment_tokens", segment_tokens);
  return p;
}

TrainingBench<double> bench_of(TrainingOps<double>& ops, const HyperParameters& parameters, std::vector<int64_t> offsets,
                               std::vector<int64_t> positions = {}) {
  auto room = create_training_infini<double>({.hidden = 10}, parameters, {});
  EXPECT_TRUE(room.ok()) << room.error().message;
  return TrainingBench<double>(ops, std::move(*room), 10, std::move(offsets), std::move(positions));
}

TEST(InfiniTraining, BackwardIsTheGradientInEveryConformanceCase) {
  const auto ops = make_reference_training_ops();
  for (const ConformanceCase& c : conformance_cases_infini()) {
    SCOPED_TRACE(c.name);
    auto room = create_training_infini<double>(c.shape, c.parameters, c.optional_roles);
    ASSERT_TRUE(room.ok()) << room.error().message;
    // More than one segment in the last sequence, an empty sequence, one shorter than a segment.
    TrainingBench<double> bench(*ops, std::move(*room), c.shape.hidden, {0, 3, 3, 83});
    expect_room_gradients(bench);
  }
}

TEST(InfiniTraining, GradientsReachTheFirstOfManySegmentsUnderEveryRule) {
  const auto ops = make_reference_training_ops();
  for (const char* rule : {"linear", "delta", "delta_true"}) {
    for (const char* gate : {"none", "soft", "hard"}) {
      SCOPED_TRACE(std::string(rule) + " " + gate);
      HyperParameters p = small_room(rule, 4);
      p.set("write_gate", std::string(gate));
      p.set("window", std::string(rule) == "delta" ? std::string("previous") : std::string("none"));
      TrainingBench<double> bench = bench_of(*ops, p, {0, 23, 31});
      bench.options.write_penalty = 0.7;
      expect_room_gradients(bench);
      // From an output in the last segment of the first sequence to an input in its first.
      std::vector<double> cotangent(bench.out.size());
      std::fill(cotangent.begin() + 22 * 10, cotangent.begin() + 23 * 10, 1.0);
      bench.options.write_penalty = 0;
      bench.forward();
      bench.backward(cotangent);
      double reached = 0, crossed = 0;
      for (size_t i = 0; i < 40; ++i) reached += std::abs(bench.dx[i]);
      for (size_t i = 230; i < bench.dx.size(); ++i) crossed += std::abs(bench.dx[i]);
      EXPECT_GT(reached, 1e-6);
      EXPECT_EQ(crossed, 0.0);
    }
  }
}

TEST(InfiniTraining, RepeatedWritesAndRoutedPositionsHaveTheRightGradients) {
  const auto ops = make_reference_training_ops();
  std::vector<float> repeats(20, 1.0f);
  for (size_t i = 4; i < 8; ++i) repeats[i] = 250.0f;
  for (const char* rule : {"linear", "delta"}) {
    SCOPED_TRACE(rule);
    // A router left out most tokens of the second sequence, and whole segments.
    TrainingBench<double> bench = bench_of(*ops, small_room(rule, 4), {0, 12, 20},
                                           {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1, 2, 9, 17, 18, 19, 40, 41});
    bench.options.write_repeats = repeats;
    expect_room_gradients(bench);
  }
}

// m repeats of a segment of the first layer are m times its sums.                                  [linear rule]
TEST(InfiniTraining, RepeatingASegmentIsWritingItThatOften) {
  const auto ops = make_reference_training_ops();
  HyperParameters p = small_room("linear", 4);
  p.set("rope_dim", int64_t{0});
  TrainingBench<double> once = bench_of(*ops, p, {0, 12}), often = bench_of(*ops, p, {0, 20});
  // The same tokens, segment 1 three times.
  for (int64_t row = 0; row < 20; ++row) {
    const int64_t from = row < 8 ? row : row < 16 ? 4 + row % 4 : row - 8;
    std::copy_n(once.x.begin() + from * 10, 10, often.x.begin() + row * 10);
  }
  std::vector<float> repeats(12, 1.0f);
  for (size_t i = 4; i < 8; ++i) repeats[i] = 3.0f;
  once.options.write_repeats = repeats;
  once.forward();
  often.forward();
  for (size_t i = 0; i < 40; ++i) EXPECT_NEAR(once.out[80 + i], often.out[160 + i], 1e-12) << i;
}

TEST(InfiniTraining, StatesPassFromOneStretchToTheNext) {
  const auto ops = make_reference_training_ops();
  for (const char* rule : {"linear", "delta", "delta_true"}) {
    SCOPED_TRACE(rule);
    HyperParameters p = small_room(rule, 4);
    TrainingBench<double> whole = bench_of(*ops, p, {0, 20}), head = bench_of(*ops, p, {0, 8}), tail = bench_of(*ops, p, {0, 12});
    std::copy_n(whole.x.begin(), 80, head.x.begin());
    std::copy_n(whole.x.begin() + 80, 120, tail.x.begin());
    std::vector<double> state(static_cast<size_t>(head.room->state_elements()));
    head.options.final_state = state;
    tail.options.initial_state = state;
    whole.forward();
    head.forward();
    tail.forward();
    for (size_t i = 0; i < 120; ++i) EXPECT_NEAR(whole.out[80 + i], tail.out[i], 1e-12) << i;
    expect_room_gradients(tail);   // detached: the state itself gets none
  }
}

TEST(InfiniTraining, ForwardIsTheInferenceRoomsOnEverySequence) {
  const auto ops = make_reference_training_ops();
  const auto backend = make_reference_backend(1);
  for (const ConformanceCase& c : conformance_cases_infini()) {
    SCOPED_TRACE(c.name);
    auto room = create_training_infini<double>(c.shape, c.parameters, c.optional_roles);
    ASSERT_TRUE(room.ok()) << room.error().message;
    TrainingBench<double> bench(*ops, std::move(*room), c.shape.hidden, {0, 25, 105});
    BenchWeights weights(bench, *backend);
    auto inference = Infini::create(c.shape, c.parameters, weights, *backend);
    ASSERT_TRUE(inference.ok()) << inference.error().message;
    expect_same_forward(bench, **inference, *backend, c);
  }
}

}  // namespace
}  // namespace quipu
