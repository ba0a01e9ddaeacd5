#include <gtest/gtest.h>

#include "attention/grouped_query/grouped_query.h"
#include "attention/random_weights.h"
#include "attention/room_gradient_for_test.h"
#include "attention/room_inference_for_test.h"
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

TEST(GroupedQueryTraining, ForwardIsTheInferenceRoomsOnEverySequence) {
  const auto ops = make_reference_training_ops();
  const auto backend = make_reference_backend(1);
  for (const ConformanceCase& c : conformance_cases_grouped_query()) {
    SCOPED_TRACE(c.name);
    auto room = create_training_grouped_query<double>(c.shape, c.parameters, c.optional_roles);
    ASSERT_TRUE(room.ok()) << room.error().message;
    TrainingBench<double> bench(*ops, std::move(*room), c.shape.hidden, {0, 25, 55});
    BenchWeights weights(bench, *backend);
    auto inference = GroupedQuery::create(c.shape, c.parameters, weights);
    ASSERT_TRUE(inference.ok()) << inference.error().message;
    expect_same_forward(bench, **inference, *backend, c);
  }
}

}  // namespace
}  // namespace quipu
