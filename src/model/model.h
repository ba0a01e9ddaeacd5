// Model: embedding -> layers -> final norm -> logits, over a ragged batch of sequences. Prefill, chunk and decode are the
// same call; what a row computes depends on its own sequence only.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "blocks/mixture_of_depths.h"
#include "blocks/pre_norm.h"
#include "formats/state_file/hash128.h"
#include "formats/tensor_file.h"
#include "model/config.h"
#include "model/names.h"
#include "ops/backend.h"

namespace quipu {

// The next tokens of one sequence. state->prepare_append(rows) has been called.
struct BatchSlice {
  SequenceState* state = nullptr;
  int64_t rows = 0;
  bool prompt = false;   // see SequenceSlice
};

struct ModelBatch {
  std::span<const int32_t> tokens;        // [rows of all slices], each in [0, vocabulary)
  std::span<const BatchSlice> slices;     // in row order; distinct states
  std::span<const int64_t> wanted;        // rows whose logits are asked for, ascending; may be empty
};

// XXH3-128 over the configuration and every tensor's name, shape, type, and first and last 4 KiB: tells checkpoints apart
// in milliseconds. Not proof against someone who edits the middle of a tensor on purpose.
Hash128 model_hash(const ModelConfig& config, const TensorFile& file);

class Model {
 public:
  struct LoadOptions {
    std::function<void(uint64_t done, uint64_t total)> on_progress;   // bytes of the file's tensors; may be empty
    bool read_ahead = true;   // ask the system for a matrix's pages before it is packed; false with PlanBackend
  };
  // Takes the weights out of `file`, packing them for `backend`, which must outlive the model. The embedding table stays
  // where it is mapped. Errors name file, tensor, found and expected shape.
  static Result<std::unique_ptr<Model>> load(ModelConfig config, const TensorFile& file, NameStyle style, Backend& backend,
                                             const LoadOptions& options);

  const ModelConfig& config() const { return config_; }
  Backend& backend() const { return backend_; }
  const Hash128& hash() const { return hash_; }
  const std::vector<std::string>& warnings() const { return warnings_; }

  std::vector<StateLayout> state_layouts(const StateOptions& options) const;
  // Bytes of scratch one forward() of this shape takes.
  int64_t scratch_bytes(int64_t rows, int64_t slices, int64_t wanted) const;

  // Appends the batch to the states and writes logits [wanted, vocabulary]. scratch holds scratch_bytes() and is reset.
  void forward(MatrixView<float> logits, const ModelBatch& batch, Arena& scratch) const;

  int64_t packed_bytes() const;                   // weights held in memory, mapped embedding not counted
  // One more token at a depth of `tokens`: floating-point operations, and bytes of weights and state read. A layer that only
  // a share of the tokens enters counts with that share.
  double flops_per_token(int64_t tokens) const;
  double bytes_read_per_token(int64_t tokens, const StateOptions& options) const;
  double weight_bytes_read_per_token() const;
  double state_bytes_read_per_token(int64_t tokens, const StateOptions& options) const;

 private:
  Model(ModelConfig config, Backend& backend) : config_(std::move(config)), backend_(backend) {}
  Result<void> load_layers(class Weights& weights);
  double share(size_t layer) const { return routers_[layer] ? routers_[layer]->settings().capacity : 1.0; }
  void write_logits(MatrixView<float> logits, MatrixView<float> x, Arena& scratch) const;
  void give_back_embedding(int64_t rows) const;

  ModelConfig config_;
  Backend& backend_;
  Hash128 hash_;
  std::vector<std::string> warnings_;
  NamedTensor embedding_;                         // holds its file open
  mutable std::atomic<int64_t> rows_embedded_ = 0;
  std::vector<PreNormBlock> blocks_;
  std::vector<std::optional<MixtureOfDepths>> routers_;   // one for each block; none where every token goes through
  std::vector<float> final_norm_;
  std::unique_ptr<PackedMatrix> output_;
};

}  // namespace quipu
