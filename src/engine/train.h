// Training, as programs see it: a TOML file in, a model folder, curves and checkpoints out.
//
// With a configuration file given, train() reads everything it names before it changes anything: bad input is found
// first.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "train/trainer.h"

namespace quipu {

struct TrainRequest {
  std::string config;         // path of the TOML file
  ConfigOverrides overrides;  // "train.steps" = "200"
  bool resume = false;        // from the newest checkpoint in output.folder
  std::string checkpoint;     // from this one instead
  bool fresh = false;         // start over although output.folder holds checkpoints
};

// What is known before the first step.
struct TrainPlan {
  int64_t parameters = 0, layers = 0, hidden = 0;
  std::string data, held_out;  // in words; held_out empty: none
  std::string products;        // "cpu avx512 bf16"
  int threads = 0, ranks = 1, rank = 0;
  int64_t steps = 0, first_step = 0, tokens_per_step = 0;
  int64_t weight_bytes = 0, gradient_bytes = 0, moment_bytes = 0, activation_bytes = 0;
  int64_t peak_bytes = 0;    // estimate of the process's peak
  double roof_flops = 0;     // measured, per second
  std::string folder;        // output.folder
  std::string resumed_from;  // checkpoint; empty: from the start
};

class TrainProgramObserver : public TrainObserver {
 public:
  virtual void tokenising(uint64_t done, uint64_t total) { static_cast<void>(done), static_cast<void>(total); }
  virtual void planned(const TrainPlan& plan) { static_cast<void>(plan); }
};

struct TrainOutcome {
  TrainPlan plan;
  TrainSummary summary;
  std::string model_folder;  // loads in `quipu run`; written at the end and when stopped
  int64_t peak_bytes = 0;    // of this process, measured
};

Result<TrainOutcome> train(const TrainRequest& request, TrainProgramObserver& observer);

}  // namespace quipu
