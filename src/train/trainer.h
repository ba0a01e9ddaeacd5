// Trainer: the loop. Samples -> micro-batches -> gradients -> (sum over ranks) -> clip -> AdamW -> metrics ->
// checkpoint.
//
// What a step computes is a function of the weights, moments and step alone: samples are drawn by number, so a run that
// is stopped and resumed ends with the same bits as one that was not.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "model/training.h"
#include "train/checkpoint.h"
#include "train/metrics.h"
#include "train/optimizer.h"
#include "train/ranks.h"
#include "train/run_config.h"
#include "train/sample.h"

namespace quipu {

struct StepReport {
  int64_t step = 0, steps = 0;  // done, of
  int64_t tokens = 0;           // trained on so far, all ranks
  double loss = 0;              // mean over the tokens of this step
  double learning_rate = 0, gradient_norm = 0;
  double tokens_per_second = 0;  // since the last report
  double roof_share = 0;         // of the products' roof; 0: unknown
  double seconds = 0, seconds_left = 0;
};

struct Evaluation {
  double loss = 0;  // mean over tokens by weight
  int64_t tokens = 0;
  int64_t questions = 0;                  // of a task; 0: plain text
  double answer_accuracy = 0, exact = 0;  // shares of answer tokens and of whole answers
};

// Told what happens; every rank has one, only rank 0's shows anything.
class TrainObserver {
 public:
  virtual ~TrainObserver() = default;
  virtual void stepped(const StepReport&) {}
  virtual void evaluated(int64_t step, const Evaluation&) { static_cast<void>(step); }
  virtual void saved(const std::string& path) { static_cast<void>(path); }
  // Asked after every step: true ends the run behind a checkpoint.
  virtual bool should_stop() { return false; }
};

struct TrainerParts {
  const RunConfig* config = nullptr;
  TrainableModel<float>* model = nullptr;
  const SampleSource* training = nullptr;
  const SampleSource* held_out = nullptr;  // nullptr: no evaluation
  Ranks* ranks = nullptr;
  double roof_flops = 0;  // of products, per second and rank; 0: unknown
};

struct TrainSummary {
  int64_t step = 0, tokens = 0;
  double loss = 0;     // of the last step
  double seconds = 0;  // of this run
  double tokens_per_second = 0;
  bool stopped_early = false;            // by should_stop
  std::optional<Evaluation> evaluation;  // the last
  std::string checkpoint;                // the last written; empty: none
};

class Trainer {
 public:
  // What `parts` point to must outlive it. kUsage when batch and ranks do not fit.
  static Result<std::unique_ptr<Trainer>> create(const TrainerParts& parts);

  // Continues from a checkpoint instead of step 0. kBadInput when it is of another model, data or seed.
  Result<void> resume(const std::string& path);
  int64_t step() const { return state_.step; }

  Result<TrainSummary> run(TrainObserver& observer);

  Result<Evaluation> evaluate();

 private:
  struct Batch;  // samples of one micro-batch, packed
  struct StepOutcome {
    double loss = 0, gradient_norm = 0;
    int64_t tokens = 0;
    double flops = 0;
  };
  Trainer(const TrainerParts& parts, Optimizer optimizer)
      : parts_(parts), config_(*parts.config), optimizer_(std::move(optimizer)) {}
  Result<std::vector<Batch>> draw_step();
  Result<StepOutcome> train_step();
  Result<void> save_bad_batch(const std::vector<Batch>& batches, double loss, double norm) const;
  Result<void> checkpoint(TrainObserver& observer, TrainSummary& summary);
  Result<void> log_step(const StepReport& report);
  Result<void> log_evaluation(TrainObserver& observer, TrainSummary& summary);
  Result<void> write_report() const;
  Result<void> open_logs();
  std::string data_fingerprint() const;
  double progress() const { return static_cast<double>(state_.step) / static_cast<double>(config_.train.steps); }

  TrainerParts parts_;
  const RunConfig& config_;
  Optimizer optimizer_;
  CheckpointState state_;
  std::optional<MetricsLog> metrics_;
  std::optional<TensorBoardLog> tensorboard_;
};

}  // namespace quipu
