// Infini-attention: exact attention inside a segment, an associative memory of fixed size for all segments before it,
// and a gate between the two. Mathematics, state and where papers and code differ: math.md.
//
// Hyperparameters:
//   heads, kv_heads, head_dim        heads a multiple of kv_heads; one memory per key head, read by all its query heads
//   value_dim                        absent: head_dim
//   rope_...                         attention/shared/rope_frequencies.h; local attention only, the memory sees no
//   position scale                            multiplies q . k of the local attention; absent: 1 / sqrt(head_dim)
//   segment_tokens                   >= 1; segments are counted in original positions
//   rule                             "linear", "delta" (as published), "delta_true" (unit features, no normaliser)
//   feature                          "elu1" (absent), "dpfp" with dpfp_nu, "silu_l2"
//   norm                             of what is read: "z" (absent; not for delta_true), "rms", "none" (delta_true,
//   absent) gate                             "head" (absent): a number per head; "token": a linear function of the
//   token write_gate                       "none" (absent), "soft", "hard" (exact zeros leave the memory bit-identical)
//   window                           "none" (absent), "previous": local attention sees the segment before, too
//   first_segment                    "gated" (absent): an empty memory reads zero; "local": not gated there
//   accumulation                     "fp32" (absent): of segment sums; "compensated" (not for delta_true)
// Weight roles:
//   query [heads * head_dim, hidden]  key [kv_heads * head_dim, hidden]  value [kv_heads * value_dim, hidden]
//   output [hidden, heads * value_dim]
//   query_bias, key_bias, value_bias, output_bias: used when the file has them
//   memory_gate [heads]: with gate "head"; with "token" a bias, used when the file has it
//   memory_gate_proj [heads, hidden]: with gate "token"
//   write_gate [kv_heads, hidden]; write_gate_bias [kv_heads] when the file has it: with write_gate
//   write_strength [kv_heads, hidden]; write_strength_bias [kv_heads] when the file has it: with delta_true
//   read_norm [value_dim]: with norm "rms", when the file has it; otherwise ones
#pragma once

#include <memory>
#include <vector>

#include "attention/attention.h"
#include "attention/infini/features.h"
#include "attention/shared/rope_frequencies.h"

namespace quipu {

enum class MemoryRule { kLinear, kDelta, kDeltaTrue };
enum class ReadNorm { kNone, kSum, kRms };  // kSum: divided by sigma(q) . z
enum class WriteGate { kNone, kSoft, kHard };

class Infini final : public Attention {
 public:
  struct Settings {
    int64_t hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, value_dim = 0;
    float scale = 1.0f;
    int64_t segment_tokens = 0;
    MemoryRule rule = MemoryRule::kLinear;
    FeatureMap map;
    ReadNorm norm = ReadNorm::kSum;
    bool token_gate = false;
    WriteGate write_gate = WriteGate::kNone;
    bool previous_window = false;
    bool first_segment_gated = true;
    bool compensated = false;
    RopeSettings rope;

    int64_t group() const { return heads / kv_heads; }
    bool has_sum() const { return rule == MemoryRule::kDelta || norm == ReadNorm::kSum; }
    int64_t memory_floats() const { return kv_heads * map.count() * value_dim; }
    int64_t sum_floats() const { return kv_heads * map.count(); }
    // Keys and values kept for local attention, in whole pages of kPageRows rows.
    int64_t local_pages() const;
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

  // The memory of closed segments, row-major: [kv_heads, features, value_dim] and [kv_heads, features] (empty where the
  // rule has none). What golden files call final_memory and final_norm.
  std::vector<float> memory(const LayerState& state) const;
  std::vector<float> memory_norm(const LayerState& state) const;
  std::vector<StateTensor> state_tensors(const LayerState& state) const override;
  int64_t features() const { return s_.map.count(); }

 private:
  struct Regions;   // the numbers of the regions a state has
  struct Cursor;    // one sequence of a batch: its state, and how far it is
  struct Step;      // scratch and views of one forward()
  struct TileTask;  // one tile of one head's memory
  static Result<void> read_memory_settings(Settings& s, const HyperParameters& parameters);
  Result<void> bind(WeightSource& weights, Backend& backend);
  Regions regions() const;

  void project(Step& step, MatrixView<const float> x) const;
  int64_t begin_cursors(Step& step) const;
  void begin_run(Step& step, Cursor& cursor) const;
  void enter_segment(Cursor& cursor, int64_t segment) const;
  void attend_locally(Step& step) const;
  void map_and_normalise(Step& step, const Cursor& cursor, int64_t kv_head) const;
  void read_and_write(Step& step, const Cursor& cursor, int64_t kv_head, int64_t tile) const;
  void read_tile(Step& step, const Cursor& cursor, const TileTask& task) const;
  void write_tile(Step& step, const Cursor& cursor, const TileTask& task) const;
  void mix(Step& step, int64_t row) const;

  Settings s_;
  std::unique_ptr<PackedMatrix> query_, key_, value_, output_;
  // fp32 whatever the file has: the gates decide what is kept for ever.
  std::unique_ptr<PackedMatrix> gate_, write_gate_, write_strength_;
  std::vector<float> query_bias_, key_bias_, value_bias_, output_bias_;   // empty: none
  std::vector<float> gate_bias_, write_gate_bias_, write_strength_bias_;  // empty: none
  std::vector<float> read_norm_;                                          // empty: ones
};

}  // namespace quipu
