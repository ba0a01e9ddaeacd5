// SegmentMemory: what Infini-attention does beside the local attention. A sequence is cut into segments of N tokens;
// what a segment held is added, when it ends, to an associative memory of fixed size, which later tokens read. What
// keys, values and local attention are is the rooms' business. Mathematics: infini/math.md.
//
// Hyperparameters:
//   segment_tokens    >= 1; segments are counted in original positions
//   rule              "linear", "delta" (as published), "delta_true" (unit features, no normaliser)
//   feature           "elu1" (absent), "dpfp" with dpfp_nu, "silu_l2"
//   norm              of what is read: "z" (absent; not for delta_true), "rms", "none" (delta_true, absent)
//   gate              "head" (absent): a number per head; "token": a linear function of the token
//   write_gate        "none" (absent), "soft", "hard" (exact zeros leave the memory bit-identical)
//   window            "none" (absent), "previous": local attention sees the segment before, too
//   first_segment     "gated" (absent): an empty memory reads zero; "local": not gated there
//   accumulation      "fp32" (absent): of segment sums; "compensated" (not for delta_true)
// Weight roles (M: number of memories):
//   memory_gate [heads]: with gate "head"; with "token" a bias, used when the file has it
//   memory_gate_proj [heads, hidden]: with gate "token"
//   write_gate [M, hidden]; write_gate_bias [M] when the file has it: with write_gate
//   write_strength [M, hidden]; write_strength_bias [M] when the file has it: with delta_true
//   read_norm [value_dim]: with norm "rms", when the file has it; otherwise ones
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "attention/attention.h"
#include "attention/shared/memory_features.h"

namespace quipu {

enum class MemoryRule { kLinear, kDelta, kDeltaTrue };
enum class ReadNorm { kNone, kSum, kRms };  // kSum: divided by sigma(q) . z
enum class WriteGate { kNone, kSoft, kHard };

// What the room decides: how many memories there are, and what goes into them.
struct MemoryShape {
  int64_t heads = 0, memories = 0;     // heads a multiple of memories: neighbouring heads read the same one
  int64_t key_dim = 0, value_dim = 0;  // before the feature map
};

struct MemorySettings : MemoryShape {
  int64_t segment_tokens = 0;
  MemoryRule rule = MemoryRule::kLinear;
  FeatureMap map;
  ReadNorm norm = ReadNorm::kSum;
  bool token_gate = false;
  WriteGate write_gate = WriteGate::kNone;
  bool previous_window = false;
  bool first_segment_gated = true;
  bool compensated = false;

  int64_t group() const { return heads / memories; }
  bool has_sum() const { return rule == MemoryRule::kDelta || norm == ReadNorm::kSum; }
  int64_t memory_floats() const { return memories * map.count() * value_dim; }
  int64_t sum_floats() const { return memories * map.count(); }
  // Tokens whose writes reach the open memory together: until then their features and values wait beside it, an eighth of its
  // size at most, and a step reads the memory of closed segments alone instead of reading and writing the open one, too.
  // 1: none waits, as with delta_true, which reads what it wrote, and where memories stay in a core's caches anyway.
  int64_t write_group() const {
    constexpr int64_t kLeastFloats = 64 * 64, kMost = 16;
    const int64_t floats = map.count() * value_dim;
    if (rule == MemoryRule::kDeltaTrue || floats < kLeastFloats) return 1;
    return std::clamp<int64_t>(floats / (8 * (map.count() + value_dim)), 1, kMost);
  }
  // Most that local attention sees, and what the last of `tokens` tokens sees: its segment up to itself, and with a
  // window all of the one before.
  int64_t local_tokens() const { return segment_tokens * (previous_window ? 2 : 1); }
  int64_t tokens_seen(int64_t tokens) const {
    const int64_t open = tokens == 0 ? 0 : (tokens - 1) % segment_tokens + 1;
    return open + (previous_window && tokens > open ? segment_tokens : 0);
  }
  // What is kept for local attention, in whole pages of kPageRows rows.
  int64_t local_pages() const { return (local_tokens() + kPageRows - 1) / kPageRows; }
};
Result<MemorySettings> read_memory_settings(const MemoryShape& shape, const HyperParameters& parameters);

// An error for a setting that is not one of the words it may be.
Error refused_setting(const HyperParameters& parameters, std::string_view key, std::string_view value,
                      std::string_view expected);

// Rows of one sequence inside one segment, which the room stores and attends to locally.
struct MemoryRun {
  int64_t sequence = 0;             // number in MemoryStep::states
  int64_t row_begin = 0, rows = 0;  // of the batch
  int64_t first_key = 0;            // local row of the first one; they see local rows 0 .. their own
  // Before they are stored, local rows [move_from, move_from + move_rows) become rows 0 .. (move_from >= move_rows).
  int64_t move_from = 0, move_rows = 0;
};

// What goes to the memory, of all rows of the batch: before any rotation.
struct MemoryInput {
  MatrixView<const float> query;  // head h of a row begins at h * query_stride
  MatrixView<const float> key;    // memory m of a row begins at m * key_stride
  MatrixView<const float> value;
  int64_t query_stride = 0, key_stride = 0, value_stride = 0;
};

// Scratch and progress of one forward().
struct MemoryStep {
  struct Cursor;    // one sequence of the batch
  struct TileTask;  // one tile of one memory
  Backend& backend;
  const RaggedBatch& batch;
  std::span<LayerState*> states = {};  // of the sequences that have rows, in batch order
  std::span<MemoryRun> runs = {};      // of this round: at most one for each sequence
  MatrixView<float> query_features = {}, key_features = {};
  MatrixView<float> query_norm = {}, key_norm = {};  // sigma(q) . z per head, sigma(k) . z per memory
  MatrixView<float> gate = {};                       // logits per head; only with gate "token"
  MatrixView<float> write = {}, strength = {};       // logits, then in `write` the weight of what a token writes
  MatrixView<float> read = {};                       // what comes out of the memory, per head
  Cursor* cursors = nullptr;
};

class SegmentMemory {
 public:
  // first_region: number of the memory's first region among the layer's, after those of the local attention.
  static Result<SegmentMemory> create(const MemorySettings& settings, int64_t hidden, size_t first_region,
                                      WeightSource& weights, Backend& backend);

  const MemorySettings& settings() const { return s_; }
  // Appends the memory's regions, whose first must get the number first_region. fp32 but for the segment's record.
  void declare(StateLayout& layout) const;
  int64_t scratch_bytes(int64_t rows) const;

  // One forward pass: begin(); then, while next_runs() is true, local attention of step.runs and read_and_write(); then
  // end(), and of every row reads() and mix(). x [n, hidden] is what the layer got.
  MemoryStep begin(Backend& backend, MatrixView<const float> x, const RaggedBatch& batch, Arena& scratch) const;
  bool next_runs(MemoryStep& step) const;
  void read_and_write(MemoryStep& step, const MemoryInput& input) const;
  void end(MemoryStep& step) const;
  // What every head read, normalised: [n, heads * value_dim].
  MatrixView<float> reads(MemoryStep& step) const;
  // attended = gate * read + (1 - gate) * attended, [n, heads * any].
  void mix(MemoryStep& step, MatrixView<float> attended, MatrixView<const float> read) const;

  // The memory of closed segments, row-major: [memories, features, value_dim] and [memories, features] (empty where the
  // rule has none). What golden files call final_memory and final_norm.
  std::vector<float> memory(const LayerState& state) const;
  std::vector<float> memory_norm(const LayerState& state) const;
  std::vector<StateTensor> state_tensors(const LayerState& state) const;

  int64_t weight_bytes() const;
  int64_t flops_per_token() const;
  int64_t bytes_read_per_token() const;  // of the state

 private:
  struct Regions;  // the numbers of the regions a state has
  Result<void> bind(WeightSource& weights, Backend& backend);
  Regions regions() const;
  bool begin_run(MemoryStep& step, int64_t sequence) const;
  void map_and_normalise(MemoryStep& step, const MemoryInput& input, const MemoryRun& run, int64_t memory) const;
  void run_tile(MemoryStep& step, const MemoryInput& input, const MemoryRun& run, MemoryStep::TileTask& task) const;
  void read_tile(MemoryStep& step, const MemoryRun& run, const MemoryStep::TileTask& task) const;
  void write_tile(MemoryStep& step, const MemoryInput& input, const MemoryRun& run,
                  const MemoryStep::TileTask& task) const;
  struct Writes;  // which of a run's tokens write now, and which wait
  Writes writes_of(const MemoryStep& step, const MemoryRun& run, int64_t memory) const;
  void write_waiting(const MemoryStep& step, const MemoryRun& run, const MemoryStep::TileTask& task) const;
  void settle(MemoryStep& step, const MemoryRun& run, int64_t memory) const;

  MemorySettings s_;
  int64_t hidden_ = 0;
  size_t first_region_ = 0;
  // fp32 whatever the file has: the gates decide what is kept for ever.
  std::unique_ptr<PackedMatrix> gate_, write_gate_, write_strength_;
  std::vector<float> gate_bias_, write_gate_bias_, write_strength_bias_;  // empty: none
  std::vector<float> read_norm_;                                          // empty: ones
};

}  // namespace quipu
