#include <gtest/gtest.h>

#include "attention/grouped_query/grouped_query.h"
#include "attention/random_weights.h"
#include "attention/room_gradient_for_test.h"
#include "backend/reference/reference_backend.h"

namespace quipu {

std::vector<ConformanceCase> conformance_cases_grouped_query();
template <class Real>
Result<std::unique_ptr<TrainableAttention<Real>>> create_training_grouped_query(const AttentionShape& shape,
                                                                                const HyperParameters& parameters,
                                                                                std::span<const std::string> optional_roles);

namespace {

TEST(GroupedQueryTraining, BackwardIsTheGradientOfEveryParameterInEveryConformanceCase) {
  const auto ops = make_reference_training_ops();
  for (const ConformanceCase& c : conformance_cases_grouped_query()) {
    SCOPED_TRACE(c.name);
    auto room = create_training_grouped_query<double>(c.shape, c.parameters, c.optional_roles);
    ASSERT_TRUE(room.ok()) << room.error().message;
    // The third window begins inside the second sequence.
    TrainingBench<double> bench(*ops, std::move(*room), c.shape.hidden, {0, 3, 3, 46});
    expect_room_gradients(bench);
  }
}

// Weights of a bench as a WeightSource: the inference room with the same numbers.
class BenchWeights final : public WeightSource {
 public:
  BenchWeights(const TrainingBench<double>& bench, Backend& backend) : bench_(bench), backend_(backend) {}
  bool has(std::string_view role) const override { return find(role) >= 0; }
  Result<std::unique_ptr<PackedMatrix>> matrix(std::string_view role, int64_t rows, int64_t cols, std::string_view meaning) override {
    ASSIGN_OR_RETURN(const std::vector<float> values, dense(role, rows, cols, meaning));
    return backend_.pack({DType::kF32, rows, cols, std::as_bytes(std::span(values))});
  }
  Result<std::vector<float>> vector(std::string_view role, int64_t length, std::string_view meaning) override {
    return dense(role, 1, length, meaning);
  }
  Result<std::vector<float>> dense(std::string_view role, int64_t, int64_t, std::string_view) override {
    const auto& values = bench_.weights[static_cast<size_t>(find(role))];
    return std::vector<float>(values.begin(), values.end());
  }

 private:
  int64_t find(std::string_view role) const {
    const auto specs = bench_.room->parameters();
    for (size_t i = 0; i < specs.size(); ++i) {
      if (specs[i].role == role) return static_cast<int64_t>(i);
    }
    return -1;
  }
  const TrainingBench<double>& bench_;
  Backend& backend_;
};

TEST(GroupedQueryTraining, ForwardIsTheInferenceRoomsOnEverySequence) {
  const auto ops = make_reference_training_ops();
  const auto backend = make_reference_backend(1);
  for (const ConformanceCase& c : conformance_cases_grouped_query()) {
    SCOPED_TRACE(c.name);
    auto room = create_training_grouped_query<double>(c.shape, c.parameters, c.optional_roles);
    ASSERT_TRUE(room.ok()) << room.error().message;
    const std::vector<int64_t> offsets{0, 25, 55};
    TrainingBench<double> bench(*ops, std::move(*room), c.shape.hidden, offsets);
    bench.forward();
    BenchWeights weights(bench, *backend);
    auto inference = GroupedQuery::create(c.shape, c.parameters, weights);
    ASSERT_TRUE(inference.ok()) << inference.error().message;
    const StateLayout layout = (*inference)->state_layout({.cache_dtype = DType::kF32, .max_chunk = c.max_chunk});
    Arena scratch;
    for (size_t sequence = 0; sequence + 1 < offsets.size(); ++sequence) {
      const int64_t rows = offsets[sequence + 1] - offsets[sequence];
      ASSERT_TRUE(scratch.reserve(static_cast<size_t>((*inference)->scratch_bytes(rows))).ok());
      PagePool pool;
      auto state = LayerState::create(layout, 64, pool);
      ASSERT_TRUE(state.ok() && state->prepare_append(rows).ok());
      std::vector<float> x(bench.x.begin() + offsets[sequence] * c.shape.hidden, bench.x.begin() + offsets[sequence + 1] * c.shape.hidden);
      std::vector<float> out(x.size());
      const SequenceSlice slice{&*state, 0, rows};
      const std::span<const int64_t> positions(bench.positions.data() + offsets[sequence], static_cast<size_t>(rows));
      (*inference)->forward(*backend, {out.data(), rows, c.shape.hidden}, {x.data(), rows, c.shape.hidden}, {{&slice, 1}, positions}, scratch);
      for (size_t i = 0; i < out.size(); ++i) {
        // The inference room stores floats between its steps.
        ASSERT_NEAR(out[i], bench.out[static_cast<size_t>(offsets[sequence] * c.shape.hidden) + i], 2e-5) << sequence << " " << i;
      }
    }
  }
}

}  // namespace
}  // namespace quipu
