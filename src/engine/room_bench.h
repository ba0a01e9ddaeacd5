// RoomRunner: a model with random weights and some kind of memory, filled to any depth and stepped, with the time each
// step took: what bench-rooms and reproduce measure with.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "generate/runtime.h"
#include "model/config.h"

namespace quipu {

// Shapes that bench-rooms knows by name, with grouped-query attention: "mtla" (the MTLA paper's decoder), "smollm2",
// "gqa-1b" (Llama 3.2's 1B), "infini" (the Infini paper's). kUsage with the list otherwise.
Result<ModelConfig> bench_shape(std::string_view name);
std::string bench_shape_names();

// A model whose weights are drawn at random, in memory. Tensors and model live and die together.
class RandomModel {
 public:
  // Matrices in bf16. Routers of layers with mixture of depths are set so that they let about `capacity` of the tokens
  // in.
  static Result<std::unique_ptr<RandomModel>> create(const ModelConfig& config, Backend& backend, uint64_t seed);
  ~RandomModel();
  std::unique_ptr<Model> take_model() { return std::move(model_); }

 private:
  RandomModel() = default;
  std::vector<Buffer> tensors_;
  std::unique_ptr<Model> model_;
};

struct RunnerOptions {
  DType cache_dtype = DType::kF16;
  int threads = 0;  // 0: one per available core
  int64_t max_chunk = 512;
  uint64_t seed = 1;
};

class RoomRunner {
 public:
  static Result<std::unique_ptr<RoomRunner>> create(const ModelConfig& config, const RunnerOptions& options);
  ~RoomRunner();

  // Bytes that `batch` sequences of `context` tokens will take beside the weights.
  uint64_t state_bytes_needed(int64_t batch, int64_t context) const;
  uint64_t weight_bytes() const;
  // Exact bytes of one sequence of so many tokens.
  uint64_t state_bytes(int64_t tokens) const;
  // False when no region of the state grows with the context: then depth is a matter of time, not of memory.
  bool grows() const;

  // Forgets all sequences and begins `batch` of them, empty, with room for `context` tokens.
  Result<void> begin(int64_t batch, int64_t context);
  // Feeds `tokens` random tokens to the first sequence, or to all; returns seconds. `interrupted` is looked at between
  // chunks (kFailed).
  struct Feed {
    int64_t tokens = 0;
    bool all_sequences = false;
    const volatile bool* interrupted = nullptr;
  };
  Result<double> feed(const Feed& feed);
  // Every sequence becomes a copy of the first.
  Result<void> copy_first();
  // Makes every sequence `tokens` tokens long by writing random rows into its state, without computing them. Regions of
  // fixed size stay as they are.
  Result<void> fill(int64_t tokens);
  // One random token more in every sequence, logits of all: seconds.
  Result<double> step();

  int64_t tokens() const;      // of the first sequence
  int64_t held_bytes() const;  // pages of all states
  // Share of the tokens seen that routed layers have let in; 1 when there are none.
  double routed_share() const;
  // Of the last step: no logit was infinite or no number.
  bool logits_finite() const;
  std::string backend_name() const;
  int threads() const;

 private:
  RoomRunner() = default;
  std::vector<int32_t> random_tokens(int64_t count);
  Result<void> append(std::span<const int32_t> ids, std::span<const BatchSlice> slices,
                      std::span<const int64_t> wanted);
  Result<void> fill_layer(LayerState& layer, int64_t first, int64_t tokens);

  std::unique_ptr<RandomModel> weights_;
  Runtime runtime_;
  std::unique_ptr<PagePool> pages_;   // of the states; new with every begin(), so that peaks are of one case
  std::vector<SequenceState> states_;
  std::vector<std::byte> noise_;  // rows to copy into states
  uint64_t random_state_ = 1;
  int64_t last_rows_ = 0;
};

// The most memory this process has held since the last call to reset_peak_memory(), in bytes.
uint64_t peak_memory();
// False when the system does not allow it: peak_memory() then counts from the start of the process.
bool reset_peak_memory();

}  // namespace quipu
