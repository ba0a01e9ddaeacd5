// Temporal latent attention that learns: central differences, the inference room, the worked example, the chunk grid.
#include <gtest/gtest.h>

#include "attention/room_inference_for_test.h"
#include "attention/shared/latent_equations.h"
#include "attention/temporal_latent/temporal_latent.h"
#include "backend/reference/reference_backend.h"

namespace quipu {

std::vector<ConformanceCase> conformance_cases_temporal_latent();
template <class Real>
Result<std::unique_ptr<TrainableAttention<Real>>> create_training_latent(const AttentionShape& shape, const HyperParameters& parameters,
                                                                         std::span<const std::string> optional_roles);
template <class Real>
Result<std::unique_ptr<TrainableAttention<Real>>> create_training_temporal_latent(const AttentionShape& shape,
                                                                                  const HyperParameters& parameters,
                                                                                  std::span<const std::string> optional_roles);

namespace {

TrainingBench<double> bench_of(TrainingOps<double>& ops, const ConformanceCase& c, std::vector<int64_t> offsets,
                               std::vector<int64_t> positions = {}) {
  auto room = create_training_temporal_latent<double>(c.shape, c.parameters, c.optional_roles);
  CHECK(room.ok()) << room.error().message;
  return TrainingBench<double>(ops, std::move(*room), c.shape.hidden, std::move(offsets), std::move(positions));
}

ConformanceCase small_case(int64_t stride, const std::string& norm = "layer") {
  LatentEquations e{10, 2, 0, 8, 5, 4, 3, norm, 1e-5, true, 1e4, stride, false};
  ConformanceCase c{.name = "stride_" + std::to_string(stride), .shape = {.hidden = 10}, .parameters = e.parameters("absorbed")};
  c.parameters.set("stride", stride);
  c.optional_roles = {"latent_norm_bias"};
  return c;
}

std::vector<ConformanceCase> all_cases() {
  std::vector<ConformanceCase> cases = conformance_cases_temporal_latent();
  for (const int64_t stride : {1, 2, 3, 4, 50}) cases.push_back(small_case(stride));
  ConformanceCase bare = small_case(2, "none");
  bare.name = "no_norm";
  cases.push_back(bare);
  return cases;
}

TEST(TemporalLatentTraining, BackwardIsTheGradientOfEveryParameterAtEveryStride) {
  const auto ops = make_reference_training_ops();
  for (const ConformanceCase& c : all_cases()) {
    SCOPED_TRACE(c.name);
    // Sequences that end inside a chunk, after one and before the first is full; an empty one.
    TrainingBench<double> bench = bench_of(*ops, c, {0, 7, 7, 8, 32});
    expect_room_gradients(bench);
  }
}

TEST(TemporalLatentTraining, ForwardIsTheInferenceRoomsOnEverySequence) {
  const auto ops = make_reference_training_ops();
  const auto backend = make_reference_backend(1);
  for (const ConformanceCase& c : all_cases()) {
    SCOPED_TRACE(c.name);
    TrainingBench<double> bench = bench_of(*ops, c, {0, 25, 26, 55});
    BenchWeights weights(bench, *backend);
    auto inference = TemporalLatent::create(c.shape, c.parameters, weights, *backend);
    ASSERT_TRUE(inference.ok()) << inference.error().message;
    expect_same_forward(bench, **inference, *backend, c);
  }
}

TEST(TemporalLatentTraining, RowsOfARouterKeepTheirPositionsWhileChunksCountRows) {
  const auto ops = make_reference_training_ops();
  const auto backend = make_reference_backend(1);
  const std::vector<int64_t> positions{0, 2, 3, 9, 40, 1, 5, 6, 7};
  const ConformanceCase c = small_case(2);
  TrainingBench<double> bench = bench_of(*ops, c, {0, 5, 9}, positions);
  expect_room_gradients(bench);
  BenchWeights weights(bench, *backend);
  auto inference = TemporalLatent::create(c.shape, c.parameters, weights, *backend);
  ASSERT_TRUE(inference.ok());
  expect_same_forward(bench, **inference, *backend, c);
}

TEST(TemporalLatentTraining, TheChunkGridRestartsWithEverySequence) {
  const auto ops = make_reference_training_ops();
  const ConformanceCase c = small_case(3);
  TrainingBench<double> packed = bench_of(*ops, c, {0, 4, 11});
  TrainingBench<double> alone = bench_of(*ops, c, {0, 7});
  alone.weights = packed.weights;
  std::copy(packed.x.begin() + 40, packed.x.end(), alone.x.begin());
  packed.forward();
  alone.forward();
  EXPECT_EQ(std::vector<double>(packed.out.begin() + 40, packed.out.end()), alone.out);
  std::vector<double> cotangent(packed.out.size());
  std::fill(cotangent.begin() + 40, cotangent.end(), 1.0);
  packed.backward(cotangent);
  std::vector<double> same(cotangent.begin() + 40, cotangent.end());
  alone.backward(same);
  for (size_t i = 0; i < 40; ++i) EXPECT_EQ(packed.dx[i], 0.0);
  EXPECT_EQ(std::vector<double>(packed.dx.begin() + 40, packed.dx.end()), alone.dx);
}

TEST(TemporalLatentTraining, StrideOneWithUnitWeightsLearnsAsLatentAttention) {
  const auto ops = make_reference_training_ops();
  ConformanceCase c = small_case(1);
  c.parameters.set("merge", std::string("unit"));
  TrainingBench<double> merged = bench_of(*ops, c, {0, 9, 14});
  auto room = create_training_latent<double>(c.shape, c.parameters, c.optional_roles);
  ASSERT_TRUE(room.ok());
  TrainingBench<double> latent(*ops, std::move(*room), 10, {0, 9, 14});
  std::vector<double> cotangent = random_doubles(140, 3);
  merged.forward();
  latent.forward();
  merged.backward(cotangent);
  latent.backward(cotangent);
  ASSERT_EQ(merged.gradients.size(), latent.gradients.size());
  const auto expect_close = [](const std::vector<double>& a, const std::vector<double>& b) {
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-12);
  };
  expect_close(merged.out, latent.out);
  expect_close(merged.dx, latent.dx);
  for (size_t i = 0; i < merged.gradients.size(); ++i) expect_close(merged.gradients[i], latent.gradients[i]);
}

// Numbers of the official module, printed to six digits.
TEST(TemporalLatentTraining, TheWorkedExampleComesOutPackedBehindAnotherSequence) {
  const auto ops = make_reference_training_ops();
  ConformanceCase c{.name = "worked", .shape = {.hidden = 4},
                    .parameters = LatentEquations{4, 2, 0, 4, 2, 2, 2, "layer", 1e-5, true, 1e4, 2, false}.parameters("absorbed"),
                    .optional_roles = {"latent_norm_bias"}};
  c.parameters.set("stride", int64_t{2});
  TrainingBench<double> bench = bench_of(*ops, c, {0, 3, 8});
  const std::map<std::string, std::vector<float>> weights = {
      {"query", worked_matrix(1, 8, 4)},  {"latent_down", worked_matrix(2, 6, 4)}, {"latent_norm", {1, 1, 1, 1}},
      {"latent_norm_bias", {0, 0, 0, 0}}, {"latent_up", worked_matrix(3, 8, 4)},   {"output", worked_matrix(4, 4, 4)},
      {"hypernet_fc_c", {0, 1.5f, -2.5f, -1.0f}}, {"hypernet_fc_c_bias", {.3f}},
      {"hypernet_fc_p", {.5f, 2.0f, -2.0f, -.5f}}, {"hypernet_fc_p_bias", {-.4f}}};
  for (size_t i = 0; i < bench.weights.size(); ++i) {
    const auto& values = weights.at(bench.room->parameters()[i].role);
    bench.weights[i].assign(values.begin(), values.end());
  }
  const std::vector<float> x = worked_input();
  std::copy(x.begin(), x.end(), bench.x.begin() + 12);
  bench.forward();
  const double wanted[] = {-.013660, .029125,  -.005524, -.013389, -.526477, -.012386, -.295122, -.518766, -.070976, -.151543,
                           -.155249, -.067520, -.190293, -.219584, -.088827, -.168488, -.164320, .097593,  .056253,  -.190632};
  for (size_t i = 0; i < 20; ++i) EXPECT_NEAR(bench.out[12 + i], wanted[i], 6e-7) << i;
}

TEST(TemporalLatentTraining, OperationsShrinkWithTheStride) {
  const std::vector<int64_t> offsets{0, 1000};
  double last = 0;
  for (const int64_t stride : {4, 2, 1}) {
    const ConformanceCase c = small_case(stride);
    auto room = create_training_temporal_latent<double>(c.shape, c.parameters, {});
    ASSERT_TRUE(room.ok());
    const double flops = (*room)->forward_flops({offsets, {}});
    EXPECT_GT(flops, 1.5 * last);
    last = flops;
  }
}

}  // namespace
}  // namespace quipu
