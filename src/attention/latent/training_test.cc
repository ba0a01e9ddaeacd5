// Latent attention that learns: central differences, the inference room, and its own identities.
#include <gtest/gtest.h>

#include "attention/latent/latent.h"
#include "attention/room_inference_for_test.h"
#include "backend/reference/reference_backend.h"

namespace quipu {

std::vector<ConformanceCase> conformance_cases_latent();
template <class Real>
Result<std::unique_ptr<TrainableAttention<Real>>> create_training_latent(const AttentionShape& shape, const HyperParameters& parameters,
                                                                         std::span<const std::string> optional_roles);

namespace {

TrainingBench<double> bench_of(TrainingOps<double>& ops, const ConformanceCase& c, std::vector<int64_t> offsets,
                               std::vector<int64_t> positions = {}) {
  auto room = create_training_latent<double>(c.shape, c.parameters, c.optional_roles);
  CHECK(room.ok()) << room.error().message;
  return TrainingBench<double>(ops, std::move(*room), c.shape.hidden, std::move(offsets), std::move(positions));
}

// What the conformance cases leave out: a full-rank query with a bias and a layer norm without one, half-split rotation.
ConformanceCase half_split_layer_norm() {
  HyperParameters p("test");
  p.set("heads", int64_t{2});
  p.set("latent_rank", int64_t{9});
  p.set("nope_dim", int64_t{3});
  p.set("rope_dim", int64_t{4});
  p.set("value_dim", int64_t{6});
  p.set("latent_norm", std::string("layer"));
  p.set("norm_epsilon", 1e-3);
  p.set("rope_theta", 50.0);
  return {.name = "half_split_layer_norm", .shape = {.hidden = 11}, .parameters = p, .optional_roles = {"query_bias"}};
}

// A query rank without norms; YaRN whose magnitude multiplies the rotation.
ConformanceCase low_rank_no_norm() {
  ConformanceCase c = half_split_layer_norm();
  c.name = "low_rank_no_norm";
  c.parameters.set("query_rank", int64_t{5});
  c.parameters.set("latent_norm", std::string("none"));
  c.parameters.set("rope_interleaved", true);
  c.parameters.set("rope_scaling", std::string("yarn"));
  c.parameters.set("rope_scaling_factor", 8.0);
  c.parameters.set("rope_original_context", 16.0);
  c.parameters.set("rope_mscale", 1.0);
  c.parameters.set("rope_mscale_all_dim", 0.5);
  c.optional_roles = {"query_down_bias", "latent_down_bias", "output_bias"};
  return c;
}

std::vector<ConformanceCase> all_cases() {
  std::vector<ConformanceCase> cases = conformance_cases_latent();
  cases.push_back(half_split_layer_norm());
  cases.push_back(low_rank_no_norm());
  return cases;
}

TEST(LatentTraining, BackwardIsTheGradientOfEveryParameterInEveryCase) {
  const auto ops = make_reference_training_ops();
  for (const ConformanceCase& c : all_cases()) {
    SCOPED_TRACE(c.name);
    TrainingBench<double> bench = bench_of(*ops, c, {0, 3, 3, 40});
    expect_room_gradients(bench);
  }
}

TEST(LatentTraining, RowsOfARouterKeepTheirPositions) {
  const auto ops = make_reference_training_ops();
  const std::vector<int64_t> positions{0, 2, 3, 9, 40, 1, 5, 6};
  TrainingBench<double> bench = bench_of(*ops, half_split_layer_norm(), {0, 5, 8}, positions);
  expect_room_gradients(bench);
  bench.forward();
  const std::vector<double> out = bench.out;
  std::vector<int64_t> dense{0, 1, 2, 3, 4, 0, 1, 2};
  bench.positions = dense;
  bench.forward();
  EXPECT_NE(out, bench.out);
}

TEST(LatentTraining, ForwardIsTheInferenceRoomsOnEverySequence) {
  const auto ops = make_reference_training_ops();
  const auto backend = make_reference_backend(1);
  for (const ConformanceCase& c : all_cases()) {
    SCOPED_TRACE(c.name);
    TrainingBench<double> bench = bench_of(*ops, c, {0, 25, 55});
    BenchWeights weights(bench, *backend);
    auto inference = Latent::create(c.shape, c.parameters, weights, *backend);
    ASSERT_TRUE(inference.ok()) << inference.error().message;
    expect_same_forward(bench, **inference, *backend, c);
  }
}

TEST(LatentTraining, NoSequenceReachesAnother) {
  const auto ops = make_reference_training_ops();
  TrainingBench<double> bench = bench_of(*ops, half_split_layer_norm(), {0, 4, 9});
  std::vector<double> cotangent(bench.out.size());
  std::fill(cotangent.begin() + 4 * 11, cotangent.end(), 1.0);
  bench.forward();
  bench.backward(cotangent);
  for (size_t i = 0; i < bench.dx.size(); ++i) {
    EXPECT_EQ(bench.dx[i] == 0.0, i < 4 * 11) << i;
  }
}

TEST(LatentTraining, ASplitUpProjectionLearnsWhatTheJointOneLearns) {
  const auto ops = make_reference_training_ops();
  const ConformanceCase joint_case = half_split_layer_norm();
  ConformanceCase split_case = joint_case;
  split_case.optional_roles.push_back("key_up");
  TrainingBench<double> joint = bench_of(*ops, joint_case, {0, 12}), split = bench_of(*ops, split_case, {0, 12});
  const auto place = [](const TrainingBench<double>& bench, const std::string& role) {
    const auto specs = bench.room->parameters();
    for (size_t i = 0; i < specs.size(); ++i) {
      if (specs[i].role == role) return i;
    }
    ADD_FAILURE() << role;
    return size_t{0};
  };
  for (const ParameterSpec& spec : joint.room->parameters()) {
    if (spec.role != "latent_up") split.weights[place(split, spec.role)] = joint.weights[place(joint, spec.role)];
  }
  // heads 2, rank 9, nope 3, value 6.
  const auto spread = [](const std::vector<double>& up, std::vector<double>& key, std::vector<double>& value) {
    for (size_t head = 0; head < 2; ++head) {
      for (size_t r = 0; r < 9; ++r) {
        for (size_t c = 0; c < 3; ++c) key[(head * 9 + r) * 3 + c] = up[(head * 9 + c) * 9 + r];
        for (size_t c = 0; c < 6; ++c) value[(head * 6 + c) * 9 + r] = up[(head * 9 + 3 + c) * 9 + r];
      }
    }
  };
  spread(joint.weights[place(joint, "latent_up")], split.weights[place(split, "key_up")], split.weights[place(split, "value_up")]);
  joint.forward();
  split.forward();
  EXPECT_EQ(joint.out, split.out);
  std::vector<double> cotangent = random_doubles(static_cast<int64_t>(joint.out.size()), 5);
  joint.backward(cotangent);
  split.backward(cotangent);
  EXPECT_EQ(joint.dx, split.dx);
  std::vector<double> dkey(2 * 9 * 3), dvalue(2 * 6 * 9);
  spread(joint.gradients[place(joint, "latent_up")], dkey, dvalue);
  EXPECT_EQ(split.gradients[place(split, "key_up")], dkey);
  EXPECT_EQ(split.gradients[place(split, "value_up")], dvalue);
}

TEST(LatentTraining, OperationsFollowTheExpandedForm) {
  const ConformanceCase c = half_split_layer_norm();
  auto room = create_training_latent<double>(c.shape, c.parameters, {});
  ASSERT_TRUE(room.ok());
  const std::vector<int64_t> offsets{0, 2, 5};
  // Projections 11 x 14, 11 x 13, 18 x 9, 12 x 11 a row; pairs 3 + 6 of 2 heads of 7 + 6.
  EXPECT_EQ((*room)->forward_flops({offsets, {}}), 2.0 * 5 * (154 + 143 + 162 + 132) + 2.0 * 9 * 26);
}

}  // namespace
}  // namespace quipu
