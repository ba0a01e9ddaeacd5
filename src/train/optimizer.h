// Optimizer: AdamW over a model's flat fp32 weights, which are the master weights; products round them on the fly.
//
// Parameter groups: norms, biases and gates are not decayed; gates (Infini's, and its write gates) have a learning rate
// of their own, because a gate that starts at 0.5 must travel far within a short run.
#pragma once

#include <memory>
#include <span>

#include "base/result.h"
#include "model/training.h"
#include "train/run_config.h"

namespace quipu {

class Optimizer {
 public:
  // model must outlive it. kFailed without memory.
  static Result<Optimizer> create(TrainableModel<float>& model, const OptimizerSection& settings);

  // The global norm of the model's gradients. Not finite: nothing should be applied.
  double gradient_norm() const;
  // One update with the gradients as they are, scaled to `clip` when their norm is above it. step from 0.
  // factor: of the schedule.
  void apply(int64_t step, double factor, double gradient_norm);

  // Moments, flat like the model's weights.
  std::span<float> first() const { return {first_.as<float>(), first_.size() / sizeof(float)}; }
  std::span<float> second() const { return {second_.as<float>(), second_.size() / sizeof(float)}; }
  static int64_t bytes(const TrainableModel<float>& model) {
    return static_cast<int64_t>(2 * Buffer::footprint(model.weights().size_bytes()));
  }

 private:
  struct Stretch {  // neighbouring parameters that are treated alike
    int64_t begin = 0, end = 0;
    bool decayed = false, gate = false;
  };
  Optimizer(TrainableModel<float>& model, const OptimizerSection& settings) : model_(model), settings_(settings) {}
  TrainableModel<float>& model_;
  OptimizerSection settings_;
  Buffer first_, second_;
  std::vector<Stretch> stretches_;
};

}  // namespace quipu
