// Trainable blocks and feed-forward parts, in the manner of attention/training.h: parameters declared as data, saved
// regions carved, gradients added to the caller's.
//
// A block maps the residual stream to the residual stream. TrainablePreNorm is the plain one; a router such as
// Mixture-of-Depths is another block that wraps one.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "attention/training.h"
#include "blocks/feed_forward.h"

namespace quipu {

template <class Real>
class TrainableFeedForward {
 public:
  virtual ~TrainableFeedForward() = default;
  virtual std::span<const ParameterSpec> parameters() const = 0;
  virtual int64_t saved_bytes(int64_t rows) const = 0;
  virtual int64_t scratch_bytes(int64_t rows) const = 0;
  // As TrainableAttention's.
  virtual bool takes_norm() const { return false; }
  virtual bool writes_gradient(size_t parameter) const { return (void)parameter, false; }
  virtual double forward(MatrixView<Real> out, MatrixView<const Real> x, const TrainingCall<Real>& call) const = 0;
  // Destroys what it saved.
  virtual void backward(MatrixView<Real> dx, MatrixView<const Real> dout, MatrixView<const Real> x,
                        const TrainingCall<Real>& call) const = 0;
  virtual double forward_flops(int64_t rows) const = 0;
};

// out = down(activation(gate x) * (up x)); options.bias: all three have biases.                       [Shazeer 2020]
// ops: what it will be called with, which says what is saved; must outlive it.
template <class Real>
std::unique_ptr<TrainableFeedForward<Real>> make_trainable_gated_mlp(const GatedMlp::Options& options, const TrainingOps<Real>& ops);

template <class Real>
class TrainableBlock {
 public:
  virtual ~TrainableBlock() = default;
  virtual std::span<const ParameterSpec> parameters() const = 0;
  virtual int64_t saved_bytes(const PackedBatch& batch) const = 0;
  virtual int64_t scratch_bytes(const PackedBatch& batch) const = 0;
  virtual int64_t state_elements() const { return 0; }
  // As TrainableAttention's.
  virtual bool writes_gradient(size_t parameter) const { return (void)parameter, false; }

  // out [rows, hidden] = block(x), the residual connection included; out must not overlap x. Returns what it adds to the
  // loss.
  virtual double forward(MatrixView<Real> out, MatrixView<const Real> x, const TrainingCall<Real>& call) const = 0;
  // gradient [rows, hidden]: holds that of out, becomes that of x. Called with forward's x, batch, options, weights, saved.
  virtual void backward(MatrixView<Real> gradient, MatrixView<const Real> x, const TrainingCall<Real>& call) const = 0;
  virtual double forward_flops(const PackedBatch& batch) const = 0;
};

struct TrainableNormOptions {
  int64_t hidden = 0;
  double epsilon = 0;
};

// x + attention(norm(x)), then + feed_forward(norm(.)). Parameters: attention_norm, the room's, feed_forward_norm, the
// feed-forward part's.
template <class Real>
std::unique_ptr<TrainableBlock<Real>> make_trainable_pre_norm(const TrainableNormOptions& options,
                                                              std::unique_ptr<TrainableAttention<Real>> attention,
                                                              std::unique_ptr<TrainableFeedForward<Real>> feed_forward);

}  // namespace quipu
