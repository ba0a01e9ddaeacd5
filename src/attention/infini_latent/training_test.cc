// Infini-attention over latents that learns: both layouts of the memory against central differences and the inference room.
#include <gtest/gtest.h>

#include <cmath>

#include "attention/infini_latent/infini_latent.h"
#include "attention/room_inference_for_test.h"
#include "backend/reference/reference_backend.h"

namespace quipu {

std::vector<ConformanceCase> conformance_cases_infini_latent();
template <class Real>
Result<std::unique_ptr<TrainableAttention<Real>>> create_training_infini_latent(const AttentionShape& shape,
                                                                                const HyperParameters& parameters,
                                                                                std::span<const std::string> optional_roles);

namespace {

// The conformance cases; and each with the up-projection in two pieces, as some files have it.
std::vector<ConformanceCase> cases_in_both_layouts_of_weights() {
  std::vector<ConformanceCase> cases = conformance_cases_infini_latent();
  const size_t joint = cases.size();
  for (size_t i = 0; i < joint; ++i) {
    ConformanceCase split = cases[i];
    split.name += "_split";
    split.optional_roles.push_back("key_up");
    cases.push_back(split);
  }
  return cases;
}

TrainingBench<double> bench_of(TrainingOps<double>& ops, const ConformanceCase& c, std::vector<int64_t> offsets) {
  auto room = create_training_infini_latent<double>(c.shape, c.parameters, c.optional_roles);
  EXPECT_TRUE(room.ok()) << room.error().message;
  return TrainingBench<double>(ops, std::move(*room), c.shape.hidden, std::move(offsets));
}

TEST(InfiniLatentTraining, BackwardIsTheGradientInEveryConformanceCase) {
  const auto ops = make_reference_training_ops();
  for (const ConformanceCase& c : cases_in_both_layouts_of_weights()) {
    SCOPED_TRACE(c.name);
    // More than one segment in the last sequence, an empty sequence, one shorter than a segment.
    TrainingBench<double> bench = bench_of(*ops, c, {0, 3, 3, 83});
    bench.options.write_penalty = 0.7;
    expect_room_gradients(bench);
  }
}

// From an output in the last segment of a sequence to its first segment, which only the memory reaches; not to its neighbour.
TEST(InfiniLatentTraining, GradientsReachTheFirstOfManySegments) {
  const auto ops = make_reference_training_ops();
  for (const ConformanceCase& c : conformance_cases_infini_latent()) {
    SCOPED_TRACE(c.name);
    auto p = c.parameters;
    p.set("segment_tokens", int64_t{4});
    ConformanceCase small = c;
    small.parameters = p;
    TrainingBench<double> bench = bench_of(*ops, small, {0, 23, 31});
    const int64_t hidden = c.shape.hidden;
    std::vector<double> cotangent(bench.out.size());
    std::fill(cotangent.begin() + 22 * hidden, cotangent.begin() + 23 * hidden, 1.0);
    bench.forward();
    bench.backward(cotangent);
    double reached = 0, crossed = 0;
    for (int64_t i = 0; i < 4 * hidden; ++i) reached += std::abs(bench.dx[static_cast<size_t>(i)]);
    for (int64_t i = 23 * hidden; i < 31 * hidden; ++i) crossed += std::abs(bench.dx[static_cast<size_t>(i)]);
    EXPECT_GT(reached, 1e-6);
    EXPECT_EQ(crossed, 0.0);
  }
}

TEST(InfiniLatentTraining, StatesPassFromOneStretchToTheNext) {
  const auto ops = make_reference_training_ops();
  for (ConformanceCase c : conformance_cases_infini_latent()) {
    SCOPED_TRACE(c.name);
    c.parameters.set("segment_tokens", int64_t{4});
    c.parameters.set("window", std::string("none"));   // a window does not pass
    TrainingBench<double> whole = bench_of(*ops, c, {0, 20}), head = bench_of(*ops, c, {0, 8}), tail = bench_of(*ops, c, {0, 12});
    const size_t cut = static_cast<size_t>(8 * c.shape.hidden);
    std::copy_n(whole.x.begin(), cut, head.x.begin());
    std::copy(whole.x.begin() + static_cast<std::ptrdiff_t>(cut), whole.x.end(), tail.x.begin());
    for (size_t i = 0; i < tail.positions.size(); ++i) tail.positions[i] += 8;
    std::vector<double> state(static_cast<size_t>(head.room->state_elements()));
    head.options.final_state = state;
    tail.options.initial_state = state;
    whole.forward();
    head.forward();
    tail.forward();
    for (size_t i = 0; i < tail.out.size(); ++i) EXPECT_NEAR(whole.out[cut + i], tail.out[i], 1e-12) << i;
  }
}

TEST(InfiniLatentTraining, ForwardIsTheInferenceRoomsOnEverySequence) {
  const auto ops = make_reference_training_ops();
  const auto backend = make_reference_backend(1);
  for (const ConformanceCase& c : cases_in_both_layouts_of_weights()) {
    SCOPED_TRACE(c.name);
    TrainingBench<double> bench = bench_of(*ops, c, {0, 25, 105});
    BenchWeights weights(bench, *backend);
    auto inference = InfiniLatent::create(c.shape, c.parameters, weights, *backend);
    ASSERT_TRUE(inference.ok()) << inference.error().message;
    expect_same_forward(bench, **inference, *backend, c);
  }
}

}  // namespace
}  // namespace quipu
