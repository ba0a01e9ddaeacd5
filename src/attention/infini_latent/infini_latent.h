// Infini-attention over latents: the local attention is latent attention (MLA) inside a segment, and what old segments
// held is read from an associative memory. Mathematics, state and the two layouts of the memory: math.md.
//
// Hyperparameters: those of attention/shared/latent_attention.h (form absorbed only), of
// attention/shared/segment_memory.h, and
//   memory            "per_head": every head has a memory of its own keys and values, made from the latents;
//                     "latent": one memory for all heads, of latents under latents, read by absorbed queries
//   memory_key_dim    with "latent": latents and absorbed queries are projected to so many numbers before the
//                     feature map; absent: they are taken as they are, latent_rank numbers
// Weight roles: those of the two headers (value_dim of the memory: value_dim, or latent_rank with "latent") and
//   memory_key_proj [memory_key_dim, latent_rank]: with memory_key_dim
//
// State: region "latent", rows of latent_rank + rope_dim of the open segment (and the one before), in the cache dtype;
// then the regions of the memory in fp32.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "attention/attention.h"
#include "attention/shared/latent_attention.h"
#include "attention/shared/segment_memory.h"

namespace quipu {

class InfiniLatent final : public Attention {
 public:
  struct Settings {
    LatentSettings latent;
    MemorySettings memory;
    bool shared_memory = false;  // memory "latent"
    int64_t key_dim = 0;         // > 0: memory_key_dim
  };
  // The hyperparameters, checked: what inference and training build on.
  static Result<Settings> read_settings(const AttentionShape& shape, const HyperParameters& parameters);
  static Result<std::unique_ptr<Attention>> create(const AttentionShape& shape, const HyperParameters& parameters,
                                                   WeightSource& weights, Backend& backend);

  StateLayout state_layout(const StateOptions& options) const override;
  int64_t scratch_bytes(int64_t rows) const override;
  void forward(Backend& backend, MatrixView<float> out, MatrixView<const float> x, const RaggedBatch& batch,
               Arena& scratch) const override;
  int64_t weight_bytes() const override;
  int64_t flops_per_token() const override;
  int64_t context_flops(int64_t tokens) const override;
  int64_t context_bytes_read(int64_t tokens, const StateOptions& options) const override;
  std::vector<StateTensor> state_tensors(const LayerState& state) const override {
    return memory_->state_tensors(state);
  }

 private:
  static constexpr size_t kLatent = 0, kMemoryRegions = 1;
  struct Step;  // scratch and views of one forward()
  explicit InfiniLatent(Settings settings) : s_(std::move(settings)) {}
  MemoryInput memory_input(Step& step, Arena& scratch) const;
  void open_pages(Step& step, const MemoryStep& memory) const;
  void attend_locally(Step& step, const MemoryStep& memory, Arena& scratch) const;

  Settings s_;
  std::optional<LatentAttention> core_;
  std::optional<SegmentMemory> memory_;
  std::unique_ptr<PackedMatrix> key_;  // memory_key_proj, fp32; null without
};

}  // namespace quipu
