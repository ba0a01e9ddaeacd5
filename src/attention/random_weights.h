// Test support: weights made from the role's name, and the small configurations that the conformance suite runs.
#pragma once

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "base/random.h"

namespace quipu {

// A tiny layer of some room. Each room lists its own in <room>/conformance_case.cc.
struct ConformanceCase {
  std::string name;                              // an identifier: "windowed_softcap"
  AttentionShape shape;
  HyperParameters parameters;
  std::vector<std::string> optional_roles = {};  // those WeightSource::has() answers yes to
  std::vector<DType> cache_dtypes = {DType::kF32, DType::kF16};
  int64_t max_chunk = 48;                        // StateOptions::max_chunk
};

// Normal weights, the same for the same role, shape and seed. Matrices have gain 2 / sqrt(cols), so that attention is
// peaked; norm weights are 1 + 0.2 n and biases 0.3 n, so that a skipped one shows.
class RandomWeights final : public WeightSource {
 public:
  RandomWeights(Backend& backend, std::vector<std::string> optional_roles, uint64_t seed = 1)
      : backend_(backend), optional_roles_(std::move(optional_roles)), seed_(seed) {}

  bool has(std::string_view role) const override {
    for (const std::string& known : optional_roles_) {
      if (known == role) return true;
    }
    return false;
  }
  Result<std::unique_ptr<PackedMatrix>> matrix(std::string_view role, int64_t rows, int64_t cols,
                                               std::string_view) override {
    const std::vector<float> values = matrix_values(role, rows, cols);
    return backend_.pack({DType::kF32, rows, cols, std::as_bytes(std::span(values))});
  }
  Result<std::vector<float>> vector(std::string_view role, int64_t length, std::string_view) override {
    return vector_values(role, length);
  }
  Result<std::vector<float>> dense(std::string_view role, int64_t rows, int64_t cols, std::string_view) override {
    return matrix_values(role, rows, cols);
  }

  std::vector<float> matrix_values(std::string_view role, int64_t rows, int64_t cols) const {
    return values(role, rows * cols, 0.0, 2.0 / std::sqrt(static_cast<double>(cols)));
  }
  std::vector<float> vector_values(std::string_view role, int64_t length) const {
    const bool is_bias = role.find("bias") != std::string_view::npos;
    const bool is_norm = !is_bias && role.find("norm") != std::string_view::npos;
    return values(role, length, is_norm ? 1.0 : 0.0, is_norm ? 0.2 : 0.3);
  }

 private:
  std::vector<float> values(std::string_view role, int64_t count, double mean, double spread) const {
    uint64_t stream = 0;
    for (const char c : role) stream = mix64(stream ^ static_cast<uint64_t>(c));
    RandomStream random(seed_, stream);
    std::vector<float> result(static_cast<size_t>(count));
    for (float& value : result) value = static_cast<float>(mean + spread * random.normal());
    return result;
  }

  Backend& backend_;
  std::vector<std::string> optional_roles_;
  uint64_t seed_;
};

}  // namespace quipu
