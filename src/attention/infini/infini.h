// Infini-attention: exact attention inside a segment, an associative memory of fixed size for all segments before it,
// and a gate between the two. Mathematics, state and where papers and code differ: math.md.
//
// Hyperparameters:
//   heads, kv_heads, head_dim        heads a multiple of kv_heads; one memory per key head, read by all its query heads
//   value_dim                        absent: head_dim
//   rope_...                         attention/shared/rope_frequencies.h; local attention only, the memory sees no
//                                    position
//   scale                            multiplies q . k of the local attention; absent: 1 / sqrt(head_dim)
//   segment_tokens, rule, feature, norm, gate, write_gate, window, first_segment, accumulation
//                                    attention/shared/segment_memory.h
// Weight roles:
//   query [heads * head_dim, hidden]  key [kv_heads * head_dim, hidden]  value [kv_heads * value_dim, hidden]
//   output [hidden, heads * value_dim]
//   query_bias, key_bias, value_bias, output_bias: used when the file has them
//   memory_gate ... read_norm        attention/shared/segment_memory.h, one memory per key head
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "attention/attention.h"
#include "attention/shared/rope_frequencies.h"
#include "attention/shared/segment_memory.h"

namespace quipu {

class Infini final : public Attention {
 public:
  struct Settings : MemorySettings {
    int64_t hidden = 0, kv_heads = 0, head_dim = 0;  // memories and key_dim of the memory
    float scale = 1.0f;
    RopeSettings rope;
  };
  // The hyperparameters, checked: what inference and training build on.
  static Result<Settings> read_settings(const AttentionShape& shape, const HyperParameters& parameters);

  static Result<std::unique_ptr<Attention>> create(const AttentionShape& shape, const HyperParameters& parameters,
                                                   WeightSource& weights, Backend& backend);

  // Keys and values of the segment in the cache dtype asked for, except that q8_0 needs head_dim and value_dim in whole
  // blocks of 32; otherwise f16. Memories are fp32.
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
  const SegmentMemory& memory() const { return *memory_; }

 private:
  static constexpr size_t kKey = 0, kValue = 1, kMemoryRegions = 2;
  struct Step;  // scratch and views of one forward()
  Result<void> bind(WeightSource& weights, Backend& backend);
  void project(Step& step, MatrixView<const float> x) const;
  void open_caches(Step& step, const MemoryStep& memory) const;
  void attend_locally(Step& step, const MemoryStep& memory) const;

  Settings s_;
  std::optional<SegmentMemory> memory_;
  std::unique_ptr<PackedMatrix> query_, key_, value_, output_;
  std::vector<float> query_bias_, key_bias_, value_bias_, output_bias_;  // empty: none
};

}  // namespace quipu
