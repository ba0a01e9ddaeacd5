// Attention: what every variant (room) implements. Rooms are reached by name through the registry.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attention/hyperparameters.h"
#include "attention/layer_state.h"
#include "attention/state_layout.h"
#include "base/result.h"
#include "ops/backend.h"

namespace quipu {

// Where a room gets its weights while it is built. Roles are the room's own names ("query", "key_norm"); the model's
// name tables turn them into the names of the file. Errors name file, tensor, expected and found shape.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual bool has(std::string_view role) const = 0;
  // A matrix [rows, cols] packed for the back end. `meaning` explains the shape in the message, e.g.
  // "latent_rank 512 + rope_dim 64".
  virtual Result<std::unique_ptr<PackedMatrix>> matrix(std::string_view role, int64_t rows, int64_t cols,
                                                       std::string_view meaning) = 0;
  // A vector of `length` floats, converted.
  virtual Result<std::vector<float>> vector(std::string_view role, int64_t length, std::string_view meaning) = 0;
  // A matrix [rows, cols] as plain floats, for rooms that split or transpose it before packing it themselves.
  virtual Result<std::vector<float>> dense(std::string_view role, int64_t rows, int64_t cols,
                                           std::string_view meaning) = 0;
};

// One sequence's part of a ragged batch, for one layer.
struct SequenceSlice {
  LayerState* state = nullptr;   // prepared for `rows` more tokens
  int64_t row_begin = 0;         // rows [row_begin, row_begin + rows) of the batch belong to it
  int64_t rows = 0;
  // The rows were given, not generated: a room may then compute them another way, for this reason but never for their number,
  // so that how a prompt is cut changes no bit.
  bool prompt = false;
};

struct RaggedBatch {
  std::span<const SequenceSlice> slices;      // in row order, covering all rows
  std::span<const int64_t> positions;         // [rows of the batch] tokens since the start of the row's sequence
};

// What cache dtype a person asked for; rooms that keep fp32 memories ignore it for those.
struct StateOptions {
  DType cache_dtype = DType::kF16;
  int64_t max_chunk = 512;                    // most rows one sequence appends in one step
};

// A part of a state under the name that published equations or their golden files give it, row-major.
struct StateTensor {
  std::string name;                           // "final_memory"
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// One layer's attention with its weights. Prefill, chunk and decode are the same call.
class Attention {
 public:
  virtual ~Attention() = default;

  virtual StateLayout state_layout(const StateOptions& options) const = 0;
  // Bytes of scratch that forward() takes from the arena for a batch of `rows` rows.
  virtual int64_t scratch_bytes(int64_t rows) const = 0;
  // Appends the batch's tokens to the states and writes out [rows, hidden] = attention(x [rows, hidden]).
  // out must not overlap x. Each row's result depends on its own sequence only. Advances the regions' rows and
  // state->advance(rows).
  virtual void forward(Backend& backend, MatrixView<float> out, MatrixView<const float> x, const RaggedBatch& batch,
                       Arena& scratch) const = 0;
  // Bytes of weights held, and floating-point operations per token without the part that grows with the context.
  virtual int64_t weight_bytes() const = 0;
  virtual int64_t weight_bytes_read() const { return weight_bytes(); }   // of them, what a generated token reads
  virtual int64_t flops_per_token() const = 0;
  // Operations one new token spends on a context of `tokens` tokens, and the bytes of state it reads.
  virtual int64_t context_flops(int64_t tokens) const = 0;
  virtual int64_t context_bytes_read(int64_t tokens, const StateOptions& options) const = 0;
  // What of the state others would show: compared with golden files. None where it is only a cache of rows.
  virtual std::vector<StateTensor> state_tensors(const LayerState&) const { return {}; }
};

// Shape facts every room shares; everything else is in the room's own hyperparameters.
struct AttentionShape {
  int64_t hidden = 0;
  int64_t layer = 0;
};

// A room's entry in the registry.
struct RoomEntry {
  std::string_view name;           // "grouped_query"
  // Checks the hyperparameters and binds the weights. Errors name the first key or tensor that is wrong.
  Result<std::unique_ptr<Attention>> (*create)(const AttentionShape& shape, const HyperParameters& parameters,
                                               WeightSource& weights, Backend& backend);
};

// The room of that name, or an error listing the names there are.
Result<const RoomEntry*> find_room(std::string_view name);
std::span<const RoomEntry> all_rooms();

}  // namespace quipu
