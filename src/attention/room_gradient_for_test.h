// Test support: the trainable form of any room against central differences, in double on the reference back end.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "attention/training.h"
#include "backend/reference/reference_training.h"
#include "ops/gradient_check_for_test.h"

namespace quipu {

// One trainable layer with random weights, a batch and room for everything. Real: double for gradients; float to compare.
template <class Real>
struct TrainingBench {
  TrainingBench(TrainingOps<Real>& ops_in, std::unique_ptr<TrainableAttention<Real>> room_in, int64_t hidden,
                std::vector<int64_t> offsets_in, std::vector<int64_t> positions_in = {})
      : ops(ops_in), room(std::move(room_in)), offsets(std::move(offsets_in)), positions(std::move(positions_in)) {
    const int64_t rows = offsets.back();
    if (positions.empty()) {
      for (size_t i = 0; i + 1 < offsets.size(); ++i) {
        for (int64_t row = offsets[i]; row < offsets[i + 1]; ++row) positions.push_back(row - offsets[i]);
      }
    }
    x = random_values(rows * hidden, 21, 1.0);
    out.resize(x.size());
    dx.resize(x.size());
    uint64_t seed = 100;
    for (const ParameterSpec& spec : room->parameters()) {
      const int64_t n = element_count(spec.shape);
      const int64_t cols = spec.shape.back();
      // Peaked attention, norm weights and biases that show.
      const bool matrix = spec.shape.size() == 2;
      std::vector<Real> w = random_values(n, seed++, matrix ? 1.5 / std::sqrt(static_cast<double>(cols)) : 0.3);
      if (spec.group == ParameterGroup::kNorm && spec.role.find("bias") == std::string::npos) {
        for (Real& value : w) value += 1;
      }
      weights.push_back(std::move(w));
      gradients.emplace_back(static_cast<size_t>(n));
    }
    saved.resize(static_cast<size_t>(room->saved_bytes(batch())) / sizeof(Aligned) + 1);
    scratch.resize(static_cast<size_t>(room->scratch_bytes(batch())) / sizeof(Aligned) + 1);
  }

  PackedBatch batch() const { return {offsets, positions}; }
  double forward() {
    const PackedBatch b = batch();
    const auto views = weight_views();
    return room->forward(view(out), view(x), {ops, b, options, views, {}, bytes_of(saved), bytes_of(scratch)});
  }
  // dx and gradients of dout . out (+ what forward returns), from zero.
  void backward(std::vector<Real>& dout) {
    std::vector<MatrixView<Real>> gradient_views;
    for (size_t i = 0; i < gradients.size(); ++i) {
      std::fill(gradients[i].begin(), gradients[i].end(), Real{0});
      gradient_views.push_back(parameter_view(gradients[i], i));
    }
    // Anything may be in the scratch between the two.
    std::memset(scratch.data(), 0x7f, scratch.size() * sizeof(Aligned));
    const PackedBatch b = batch();
    const auto views = weight_views();
    room->backward(view(dx), view(dout), view(x), {ops, b, options, views, gradient_views, bytes_of(saved), bytes_of(scratch)});
  }
  MatrixView<Real> view(std::vector<Real>& values) const {
    return {values.data(), offsets.back(), static_cast<int64_t>(values.size()) / offsets.back()};
  }
  static std::vector<Real> random_values(int64_t count, uint64_t seed, double deviation) {
    const std::vector<double> values = random_doubles(count, seed, deviation);
    return {values.begin(), values.end()};
  }

  TrainingOps<Real>& ops;
  std::unique_ptr<TrainableAttention<Real>> room;
  std::vector<int64_t> offsets, positions;
  LayerOptions<Real> options;
  std::vector<Real> x, out, dx;
  std::vector<std::vector<Real>> weights, gradients;

 private:
  struct alignas(64) Aligned {
    std::byte bytes[64];
  };
  static std::span<std::byte> bytes_of(std::vector<Aligned>& memory) { return std::as_writable_bytes(std::span(memory)); }
  MatrixView<Real> parameter_view(std::vector<Real>& values, size_t i) const {
    const Shape& shape = room->parameters()[i].shape;
    return {values.data(), shape.size() == 2 ? shape[0] : 1, shape.back()};
  }
  std::vector<MatrixView<const Real>> weight_views() {
    std::vector<MatrixView<const Real>> views;
    for (size_t i = 0; i < weights.size(); ++i) views.push_back(parameter_view(weights[i], i));
    return views;
  }
  std::vector<Aligned> saved, scratch;
};

// Every parameter and the input, with a random cotangent.
inline void expect_room_gradients(TrainingBench<double>& bench) {
  std::vector<double> cotangent = random_doubles(static_cast<int64_t>(bench.out.size()), 31);
  const auto loss = [&] {
    const double extra = bench.forward();
    return dot_of(bench.out, cotangent) + extra;
  };
  loss();
  bench.backward(cotangent);
  const std::vector<double> dx = bench.dx;
  const std::vector<std::vector<double>> gradients = bench.gradients;
  expect_gradient("x", loss, bench.x, dx);
  for (size_t i = 0; i < gradients.size(); ++i) {
    expect_gradient(bench.room->parameters()[i].role, loss, bench.weights[i], gradients[i]);
  }
}

}  // namespace quipu
