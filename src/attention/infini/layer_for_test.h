// Test support: an Infini layer with the weights a test writes down, on the reference back end.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "attention/infini/infini.h"
#include "backend/reference/reference_backend.h"

namespace quipu {

// Row-major matrices and vectors by role. What is not in the map is not there.
class GivenWeights final : public WeightSource {
 public:
  using Map = std::map<std::string, std::vector<float>, std::less<>>;
  GivenWeights(Backend& backend, Map values) : backend_(backend), values_(std::move(values)) {}

  bool has(std::string_view role) const override { return values_.find(role) != values_.end(); }
  Result<std::unique_ptr<PackedMatrix>> matrix(std::string_view role, int64_t rows, int64_t cols,
                                               std::string_view meaning) override {
    ASSIGN_OR_RETURN(const std::vector<float> values, dense(role, rows, cols, meaning));
    return backend_.pack({DType::kF32, rows, cols, std::as_bytes(std::span(values))});
  }
  Result<std::vector<float>> vector(std::string_view role, int64_t length, std::string_view meaning) override {
    return dense(role, length, 1, meaning);
  }
  Result<std::vector<float>> dense(std::string_view role, int64_t rows, int64_t cols, std::string_view) override {
    const auto found = values_.find(role);
    if (found == values_.end() || static_cast<int64_t>(found->second.size()) != rows * cols) {
      return bad_input("test: role " + std::string(role) + " is absent or has the wrong size");
    }
    return found->second;
  }

 private:
  Backend& backend_;
  Map values_;
};

// One layer and one sequence on it.
class InfiniLayer {
 public:
  InfiniLayer(int64_t hidden, const HyperParameters& parameters, GivenWeights::Map values,
              std::unique_ptr<Backend> backend = make_reference_backend(1))
      : hidden_(hidden), backend_(std::move(backend)) {
    GivenWeights weights(*backend_, std::move(values));
    auto created = Infini::create({.hidden = hidden}, parameters, weights, *backend_);
    CHECK(created.ok()) << created.error().message;
    room_.reset(static_cast<Infini*>(std::move(created).value().release()));
    begin_again();
  }

  void begin_again() {
    const StateLayout layout = room_->state_layout({.cache_dtype = DType::kF32, .max_chunk = 1 << 20});
    state_ = std::make_unique<LayerState>(std::move(LayerState::create(layout, 1 << 20, *pool_)).value());
  }
  // Appends rows of x [n, hidden] at the positions that follow, or those given.
  std::vector<float> feed(const std::vector<float>& x, std::vector<int64_t> positions = {}) {
    const int64_t rows = static_cast<int64_t>(x.size()) / hidden_;
    CHECK(state_->prepare_append(rows).ok());
    if (positions.empty()) {
      for (int64_t i = 0; i < rows; ++i) positions.push_back(state_->tokens() + i);
    }
    CHECK(arena_.reserve(static_cast<size_t>(room_->scratch_bytes(rows))).ok());
    std::vector<float> out(x.size());
    const SequenceSlice slice{state_.get(), 0, rows};
    room_->forward(*backend_, {out.data(), rows, hidden_}, {x.data(), rows, hidden_}, {{&slice, 1}, positions}, arena_);
    return out;
  }
  const Infini& room() const { return *room_; }
  LayerState& state() { return *state_; }
  std::vector<float> memory() const { return room_->memory().memory(*state_); }
  std::vector<float> norm() const { return room_->memory().memory_norm(*state_); }

 private:
  int64_t hidden_;
  std::unique_ptr<PagePool> pool_ = std::make_unique<PagePool>();
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Infini> room_;
  std::unique_ptr<LayerState> state_;
  Arena arena_;
};

// Largest |got - wanted| / largest |wanted|; huge when the sizes differ, wanted is zero or something is not a number.
inline double relative_error(const std::vector<float>& got, const std::vector<double>& wanted) {
  if (got.size() != wanted.size()) return 1e30;
  double error = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = std::abs(double{got[i]} - wanted[i]);
    if (!(difference <= 1e30)) return 1e30;
    error = std::max(error, difference);
    size = std::max(size, std::abs(wanted[i]));
  }
  return size > 0 ? error / size : 1e30;
}

}  // namespace quipu
