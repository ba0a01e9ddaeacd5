// FeedForward: the part of a layer that works on each token alone. The gated MLP is one kind; mixtures of experts will be
// another behind the same calls.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "attention/attention.h"
#include "base/result.h"
#include "ops/backend.h"

namespace quipu {

class FeedForward {
 public:
  virtual ~FeedForward() = default;
  // Bytes that forward() takes from the arena for `rows` rows.
  virtual int64_t scratch_bytes(int64_t rows) const = 0;
  // out [rows, hidden] = f(x [rows, hidden]), each row by itself; out must not overlap x.
  virtual void forward(Backend& backend, MatrixView<float> out, MatrixView<const float> x, Arena& scratch) const = 0;
  // Bytes of weights held, bytes one token reads, and floating-point operations per token.
  virtual int64_t weight_bytes() const = 0;
  virtual int64_t bytes_read_per_token() const = 0;
  virtual int64_t flops_per_token() const = 0;
};

// out = down(activation(gate x) * (up x)).                                                          [Shazeer 2020]
class GatedMlp final : public FeedForward {
 public:
  struct Options {
    GateActivation activation = GateActivation::kSilu;
    int64_t hidden = 0, inner = 0;
    bool bias = false;   // biases must be there
  };
  // Roles: gate [inner, hidden], up [inner, hidden], down [hidden, inner]; gate_bias, up_bias, down_bias where the file
  // has them.
  static Result<std::unique_ptr<FeedForward>> create(const Options& options, WeightSource& weights);

  int64_t scratch_bytes(int64_t rows) const override;
  void forward(Backend& backend, MatrixView<float> out, MatrixView<const float> x, Arena& scratch) const override;
  int64_t weight_bytes() const override { return gate_->bytes() + up_->bytes() + down_->bytes(); }
  int64_t bytes_read_per_token() const override { return gate_->bytes_read() + up_->bytes_read() + down_->bytes_read(); }
  int64_t flops_per_token() const override { return 6 * options_.hidden * options_.inner; }

 private:
  explicit GatedMlp(const Options& options) : options_(options) {}
  Options options_;
  std::unique_ptr<PackedMatrix> gate_, up_, down_;
  std::vector<float> gate_bias_, up_bias_, down_bias_;
};

}  // namespace quipu
