// init_model: a model of any configuration with random weights, as a Hugging Face folder: to train from, to measure
// with.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "tensor/dtype.h"

namespace quipu {

struct InitOptions {
  uint64_t seed = 0;
  DType dtype = DType::kF32;  // of the matrices: f32, f16, bf16. Vectors (norms, biases, gates) are always f32
  bool replace = false;       // take the place of a model that is there already
  std::string tokenizer;      // a folder whose tokenizer files are copied; empty: the configuration's, if it has any
  int threads = 0;            // 0: one per core. The bytes do not depend on it
  uint64_t shard_bytes = 4'000'000'000;  // larger models are cut into files of at most about this size
  std::function<void(uint64_t done, uint64_t total)> on_progress = {};  // bytes
};

struct InitReport {
  std::string folder, architecture;
  int64_t tensors = 0, parameters = 0;
  uint64_t weight_bytes = 0;
  bool has_tokenizer = false;
  std::vector<std::string> files;  // names in the folder
};

// config: a config.json, or a folder that holds one, of any architecture that can be run.
// Weights: matrices normal with a spread of 1 / sqrt(columns), those that write into the residual stream (output, down)
// divided by sqrt(2 * layers); embedding and routers normal with 0.02; norms as if 1; biases 0; a few roles as their
// publications say. Each element is a function of seed, tensor name and place alone.
// `out` appears whole or not at all when there was nothing (or an empty folder). With `replace`, weights and
// config.json of the model that is there are exchanged once the new ones are complete; its other files stay. Errors:
// kUsage: out exists and is no empty folder (without replace), or is no folder; kBadInput: the configuration is
// refused; kFailed: no space, no permission.
Result<InitReport> init_model(const std::string& config, const std::string& out, const InitOptions& options);

}  // namespace quipu
