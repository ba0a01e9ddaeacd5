// Checkpoints: everything a run needs to go on bit for bit, in one safetensors file that appears whole or not at all.
//
// <folder>/checkpoint-00001200.safetensors holds the weights under their names, the moments as "optimizer.first.<name>"
// and "optimizer.second.<name>", and as metadata the step, the position in the data and a hash over all tensors.
// Samples and initial weights are drawn by counters, so seed and position are the whole random state.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "model/training.h"
#include "train/optimizer.h"

namespace quipu {

struct CheckpointState {
  int64_t step = 0;     // steps done
  int64_t samples = 0;  // samples drawn from the data
  int64_t tokens = 0;   // trained on
  double seconds = 0;   // of training
  int64_t seed = 0;
  std::string model, data;  // fingerprints of what must not change between stop and resume
};

// Writes after `step` steps, then removes all but the newest `keep` checkpoints. On an error those that were there
// remain.
Result<std::string> write_checkpoint(const std::string& folder, const TrainableModel<float>& model,
                                     const Optimizer& optimizer, const CheckpointState& state, int64_t keep);

// Paths of the checkpoints in `folder`, oldest first. No folder: none.
std::vector<std::string> find_checkpoints(const std::string& folder);

// Removes temporary files that a killed run left in `folder`. Not while another run writes there.
void remove_unfinished(const std::string& folder);

// Reads `path` into model and optimizer. A file that is cut short, altered, or of another model is refused before
// anything is changed; the error names file, tensor, found and expected.
Result<CheckpointState> read_checkpoint(const std::string& path, TrainableModel<float>& model, Optimizer& optimizer);

// The weights alone, as model.safetensors in `folder` (made when needed).
Result<void> write_weights(const std::string& folder, const TrainableModel<float>& model);

}  // namespace quipu
