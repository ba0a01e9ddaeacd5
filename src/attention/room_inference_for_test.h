// Test support: the inference form of a room on the weights of a TrainingBench.
#pragma once

#include <gtest/gtest.h>

#include <string_view>
#include <vector>

#include "attention/random_weights.h"
#include "attention/room_gradient_for_test.h"

namespace quipu {

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

// The room's outputs on every sequence of the bench, each a sequence of its own, are those of the trainable form.
inline void expect_same_forward(TrainingBench<double>& bench, const Attention& inference, Backend& backend,
                                const ConformanceCase& c) {
  bench.forward();
  const StateLayout layout = inference.state_layout({.cache_dtype = DType::kF32, .max_chunk = c.max_chunk});
  const int64_t hidden = c.shape.hidden;
  Arena scratch;
  for (size_t sequence = 0; sequence + 1 < bench.offsets.size(); ++sequence) {
    const int64_t begin = bench.offsets[sequence], rows = bench.offsets[sequence + 1] - begin;
    ASSERT_TRUE(scratch.reserve(static_cast<size_t>(inference.scratch_bytes(rows))).ok());
    PagePool pool;
    auto state = LayerState::create(layout, std::max<int64_t>(rows, 1), pool);
    ASSERT_TRUE(state.ok() && state->prepare_append(rows).ok());
    std::vector<float> x(bench.x.begin() + begin * hidden, bench.x.begin() + (begin + rows) * hidden);
    std::vector<float> out(x.size());
    const SequenceSlice slice{&*state, 0, rows};
    const std::span<const int64_t> positions(bench.positions.data() + begin, static_cast<size_t>(rows));
    scratch.reset();
    inference.forward(backend, {out.data(), rows, hidden}, {x.data(), rows, hidden}, {{&slice, 1}, positions}, scratch);
    for (size_t i = 0; i < out.size(); ++i) {
      // The inference room stores floats between its steps.
      ASSERT_NEAR(out[i], bench.out[static_cast<size_t>(begin * hidden) + i], 2e-5) << sequence << " " << i;
    }
  }
}

}  // namespace quipu
