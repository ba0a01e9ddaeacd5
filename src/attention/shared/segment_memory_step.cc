// One step: run by run (a run: rows of one sequence inside one segment) read the memory of closed segments, write the
// open one; fold it when the segment ends; normalise and mix. Equations: infini/math.md.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "attention/shared/feature_rows.h"
#include "attention/shared/memory_tile.h"
#include "attention/shared/segment_memory.h"
#include "attention/shared/segment_memory_regions.h"

namespace quipu {
namespace {

constexpr float kLeastDenominator = 1e-6f;
constexpr float kRmsEpsilon = 1e-6f;

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

const float* data_or_null(const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); }

}  // namespace

struct MemoryStep::Cursor {
  int64_t next = 0, end = 0;  // rows of the batch still to do
  SegmentRecord record;
  // fp32 regions; null where there is none.
  float *memory = nullptr, *open_memory = nullptr, *memory_carry = nullptr;
  float *sum = nullptr, *open_sum = nullptr, *sum_carry = nullptr;
  int32_t* waiting = nullptr;
  float *waiting_key = nullptr, *waiting_value = nullptr;
  bool fold_before = false;  // the segment before ended without its last token being seen (routing)
  bool fold_after = false;
};

// What is done to one tile of one memory in a run.
struct MemoryStep::TileTask {
  int64_t memory_index = 0, tile = 0;
  int64_t features = 0, columns = 0;
  float *memory = nullptr, *open = nullptr, *carry = nullptr;  // of closed segments; of the open one; null without
  Isa isa = Isa::kPortable;
};

// Which of a run's rows write to the open memory now, [row_begin, now_end), after those that waited; the others wait. When a
// token writes depends on its place in the segment alone, so that a state does not depend on how a prompt was cut.
struct SegmentMemory::Writes {
  int64_t waited = 0;     // rows that wait since earlier runs
  int64_t now_end = 0;    // a row of the batch
  bool any_now = false;   // then those that waited are written first
};

int64_t SegmentMemory::scratch_bytes(int64_t rows) const {
  const auto floats = [rows](int64_t columns) { return Arena::planned<float>(rows * columns); };
  const int64_t heads = s_.heads, memories = s_.memories, features = s_.map.count();
  return floats(heads * features) + floats(memories * features) + 2 * floats(heads) + 3 * floats(memories) +
         floats(heads * s_.value_dim) + Arena::planned<MemoryStep::Cursor>(rows) +
         Arena::planned<MemoryRun>(rows) + Arena::planned<LayerState*>(rows);
}

MemoryStep SegmentMemory::begin(Backend& backend, MatrixView<const float> x, const RaggedBatch& batch,
                                Arena& scratch) const {
  const int64_t rows = x.rows, heads = s_.heads, memories = s_.memories;
  MemoryStep step{.backend = backend, .batch = batch};
  step.query_features = scratch.matrix(rows, heads * s_.map.count());
  step.key_features = scratch.matrix(rows, memories * s_.map.count());
  step.query_norm = scratch.matrix(rows, heads);
  step.key_norm = scratch.matrix(rows, memories);
  step.gate = scratch.matrix(rows, heads);
  step.write = scratch.matrix(rows, memories);
  step.strength = scratch.matrix(rows, memories);
  step.read = scratch.matrix(rows, heads * s_.value_dim);
  step.cursors = scratch.take<MemoryStep::Cursor>(rows);
  step.runs = {scratch.take<MemoryRun>(rows), 0};
  LayerState** states = scratch.take<LayerState*>(rows);
  if (gate_ != nullptr) backend.matmul(step.gate, *gate_, x, data_or_null(gate_bias_));
  if (write_gate_ != nullptr) backend.matmul(step.write, *write_gate_, x, data_or_null(write_gate_bias_));
  if (write_strength_ != nullptr)
    backend.matmul(step.strength, *write_strength_, x, data_or_null(write_strength_bias_));

  const Regions numbers = regions();
  size_t count = 0;
  for (const SequenceSlice& slice : batch.slices) {
    if (slice.rows == 0) continue;  // so that scratch for one cursor a row is enough
    LayerState& state = *slice.state;
    MemoryStep::Cursor& cursor = *std::construct_at(step.cursors + count);
    cursor.next = slice.row_begin;
    cursor.end = slice.row_begin + slice.rows;
    SegmentRecord& record = cursor.record;
    std::memcpy(&record, state.region(numbers.segment).pages[0], sizeof(record));
    record.segment = std::clamp<int64_t>(record.segment, 0, std::numeric_limits<int64_t>::max() - 1);   // there is one after it
    record.open_rows = std::clamp<int64_t>(record.open_rows, 0, s_.segment_tokens);
    record.base_rows = std::clamp<int64_t>(record.base_rows, 0, s_.previous_window ? s_.segment_tokens : 0);
    const auto floats = [&](size_t number) {
      return number == Regions::kAbsent ? nullptr : reinterpret_cast<float*>(state.region(number).pages[0]);
    };
    cursor.memory = floats(numbers.memory);
    cursor.open_memory = floats(numbers.open_memory);
    cursor.memory_carry = floats(numbers.memory_carry);
    cursor.sum = floats(numbers.sum);
    cursor.open_sum = floats(numbers.open_sum);
    cursor.sum_carry = floats(numbers.sum_carry);
    cursor.waiting = reinterpret_cast<int32_t*>(floats(numbers.waiting));
    cursor.waiting_key = floats(numbers.waiting_key);
    cursor.waiting_value = floats(numbers.waiting_value);
    states[count++] = &state;
  }
  step.states = {states, count};
  return step;
}

// Takes the next rows of the sequence that lie in one segment; false when it has none left.
bool SegmentMemory::begin_run(MemoryStep& step, int64_t sequence) const {
  const auto segment_of = [&](int64_t row) {
    return step.batch.positions[static_cast<size_t>(row)] / s_.segment_tokens;
  };
  MemoryStep::Cursor& cursor = step.cursors[sequence];
  if (cursor.next == cursor.end) return false;
  MemoryRun& run = *std::construct_at(step.runs.data() + step.runs.size(), MemoryRun{.sequence = sequence});
  step.runs = {step.runs.data(), step.runs.size() + 1};
  SegmentRecord& record = cursor.record;
  const int64_t segment = segment_of(cursor.next);
  cursor.fold_before = false;
  if (segment != record.segment || record.folded != 0 || record.open_rows == s_.segment_tokens) {
    cursor.fold_before = record.folded == 0 && record.open_rows > 0;
    const bool keeps = s_.previous_window && segment == record.segment + 1;
    if (keeps && record.base_rows > 0) {
      run.move_from = record.base_rows;
      run.move_rows = record.open_rows;
    }
    record = {.segment = segment, .base_rows = keeps ? record.open_rows : 0};
  }
  const int64_t most = std::min(cursor.end, cursor.next + s_.segment_tokens - record.open_rows);
  int64_t row = cursor.next;
  while (row < most && segment_of(row) == segment) ++row;
  run.row_begin = cursor.next;
  run.rows = row - cursor.next;
  run.first_key = record.base_rows + record.open_rows;
  cursor.next = row;
  record.open_rows += run.rows;
  cursor.fold_after = step.batch.positions[static_cast<size_t>(row - 1)] % s_.segment_tokens == s_.segment_tokens - 1;
  record.folded = cursor.fold_after ? 1 : 0;
  return true;
}

bool SegmentMemory::next_runs(MemoryStep& step) const {
  step.runs = {step.runs.data(), 0};
  bool any = false;
  for (size_t i = 0; i < step.states.size(); ++i) any = begin_run(step, static_cast<int64_t>(i)) || any;
  return any;
}

// Features of a run for one memory and the heads that read it, their normalisers, the write weights, and the sum z.
void SegmentMemory::map_and_normalise(MemoryStep& step, const MemoryInput& input, const MemoryRun& run,
                                      int64_t memory) const {
  const MemoryStep::Cursor& cursor = step.cursors[run.sequence];
  const int64_t features = s_.map.count(), group = s_.group();
  const auto part = [&](float* sums) { return sums == nullptr ? nullptr : sums + memory * features; };
  float* const sum = part(cursor.sum);
  float* const open = part(cursor.open_sum);
  float* const carry = part(cursor.sum_carry);
  const auto fold = [&] {
    if (sum == nullptr) return;
    if (carry != nullptr) return fold_sums_compensated(sum, carry, open, features);
    fold_sums(sum, open, features);
  };
  if (cursor.fold_before) fold();
  for (int64_t row = run.row_begin; row < run.row_begin + run.rows; ++row) {
    float weight = 1.0f;
    if (s_.write_gate != WriteGate::kNone) weight = sigmoid(step.write(row, memory));
    if (s_.write_gate == WriteGate::kHard) weight = std::clamp(1.2f * weight - 0.1f, 0.0f, 1.0f);
    if (s_.rule == MemoryRule::kDeltaTrue) weight *= sigmoid(step.strength(row, memory));
    step.write(row, memory) = weight;

    float* key = step.key_features.row(row) + memory * features;
    apply_features(s_.map, key, input.key.row(row) + memory * input.key_stride);
    if (s_.rule == MemoryRule::kDelta)
      step.key_norm(row, memory) = std::max(dot_rows(key, sum, features), kLeastDenominator);
    for (int64_t head = memory * group; head < (memory + 1) * group; ++head) {
      float* query = step.query_features.row(row) + head * features;
      apply_features(s_.map, query, input.query.row(row) + head * input.query_stride);
      if (s_.norm == ReadNorm::kSum)
        step.query_norm(row, head) = std::max(dot_rows(query, sum, features), kLeastDenominator);
    }
    if (sum != nullptr && weight != 0.0f) {
      for (int64_t i = 0; i < features; ++i) open[i] += weight * key[i];
    }
  }
  if (cursor.fold_after) fold();
}

// All queries of the run read the closed segments, kTileBatch of them in a pass; divided by sigma(q) . z where the norm is that.
void SegmentMemory::read_tile(MemoryStep& step, const MemoryRun& run, const MemoryStep::TileTask& task) const {
  const int64_t group = s_.group();
  TileRead reads[kTileBatch];
  size_t count = 0;
  for (int64_t row = run.row_begin; row < run.row_begin + run.rows; ++row) {
    for (int64_t head = task.memory_index * group; head < (task.memory_index + 1) * group; ++head) {
      reads[count++] = {step.query_features.row(row) + head * task.features,
                        step.read.row(row) + head * s_.value_dim + task.tile * kTileColumns};
      if (count < kTileBatch) continue;
      tile_read(reads, task.memory, task.features, task.columns, task.isa);
      count = 0;
    }
  }
  tile_read({reads, count}, task.memory, task.features, task.columns, task.isa);
  if (s_.norm != ReadNorm::kSum) return;
  for (int64_t row = run.row_begin; row < run.row_begin + run.rows; ++row) {
    for (int64_t head = task.memory_index * group; head < (task.memory_index + 1) * group; ++head) {
      float* read = step.read.row(row) + head * s_.value_dim + task.tile * kTileColumns;
      const float inverse = 1.0f / step.query_norm(row, head);
      for (int64_t c = 0; c < task.columns; ++c) read[c] *= inverse;
    }
  }
}

SegmentMemory::Writes SegmentMemory::writes_of(const MemoryStep& step, const MemoryRun& run, int64_t memory) const {
  const MemoryStep::Cursor& cursor = step.cursors[run.sequence];
  const int64_t group = s_.write_group(), end = run.row_begin + run.rows;
  if (group == 1) return {.now_end = end, .any_now = true};
  Writes writes;
  writes.waited = cursor.fold_before ? 0 : std::clamp<int64_t>(cursor.waiting[memory], 0, group);
  const int64_t first = run.first_key - cursor.record.base_rows;   // in the segment
  const int64_t whole = cursor.fold_after ? run.rows : (first + run.rows) / group * group - first;
  writes.now_end = run.row_begin + std::max<int64_t>(whole, 0);
  writes.any_now = whole > 0;
  return writes;
}

// The tokens that waited write to the open segment, in order.
void SegmentMemory::write_waiting(const MemoryStep& step, const MemoryRun& run, const MemoryStep::TileTask& task) const {
  const MemoryStep::Cursor& cursor = step.cursors[run.sequence];
  const int64_t group = s_.write_group(), first = task.memory_index * group;
  const int64_t waited = std::clamp<int64_t>(cursor.waiting[task.memory_index], 0, group);
  TileWrite writes[kTileBatch];
  size_t count = 0;
  for (int64_t i = 0; i < waited; ++i) {
    writes[count++] = {cursor.waiting_key + (first + i) * task.features,
                       cursor.waiting_value + (first + i) * s_.value_dim + task.tile * kTileColumns};
    if (count < kTileBatch) continue;
    tile_write(task.open, {writes, count}, task.features, task.columns, task.isa);
    count = 0;
  }
  tile_write(task.open, {writes, count}, task.features, task.columns, task.isa);
}

// All tokens of the run write to the open segment, in order, or wait. delta_true reads its own writes, so it goes one by one.
void SegmentMemory::write_tile(MemoryStep& step, const MemoryInput& input, const MemoryRun& run,
                               const MemoryStep::TileTask& task) const {
  const MemoryStep::Cursor& cursor = step.cursors[run.sequence];
  const Writes plan = writes_of(step, run, task.memory_index);
  const size_t batch = s_.rule == MemoryRule::kDeltaTrue ? 1 : kTileBatch;
  const float* known_from = s_.rule == MemoryRule::kDeltaTrue ? task.open : task.memory;
  float known[kTileBatch][kTileColumns];
  float written[kTileBatch][kTileColumns];
  TileRead reads[kTileBatch];
  TileWrite writes[kTileBatch];
  int64_t rows[kTileBatch];
  size_t count = 0;
  // What the rows of a batch write: `written`.
  const auto make = [&] {
    if (s_.rule == MemoryRule::kLinear) {
      std::memset(known, 0, sizeof(known));
    } else {
      tile_read({reads, count}, known_from, task.features, task.columns, task.isa);
    }
    for (size_t i = 0; i < count; ++i) {
      const float* value = input.value.row(rows[i]) + task.memory_index * input.value_stride + task.tile * kTileColumns;
      const float weight = step.write(rows[i], task.memory_index);
      const float norm = s_.rule == MemoryRule::kDelta ? step.key_norm(rows[i], task.memory_index) : 1.0f;
      for (int64_t c = 0; c < task.columns; ++c) written[i][c] = weight * (value[c] - known[i][c] / norm);
    }
  };
  // Calls finish() for the rows of [begin, end) that write at all, in batches.
  const auto in_batches = [&](int64_t begin, int64_t end, const auto& finish) {
    count = 0;
    for (int64_t row = begin; row < end; ++row) {
      if (step.write(row, task.memory_index) == 0.0f) continue;  // a hard gate's zero leaves every bit as it is
      const float* key = step.key_features.row(row) + task.memory_index * task.features;
      rows[count] = row;
      reads[count] = {key, known[count]};
      writes[count] = {key, written[count]};
      if (++count < batch) continue;
      make();
      finish();
      count = 0;
    }
    if (count == 0) return;
    make();
    finish();
  };
  if (plan.any_now && plan.waited > 0) write_waiting(step, run, task);
  in_batches(run.row_begin, plan.now_end,
             [&] { tile_write(task.open, {writes, count}, task.features, task.columns, task.isa); });
  int64_t slot = task.memory_index * s_.write_group() + (plan.any_now ? 0 : plan.waited);
  in_batches(plan.now_end, run.row_begin + run.rows, [&] {
    for (size_t i = 0; i < count; ++i, ++slot) {
      std::memcpy(cursor.waiting_value + slot * s_.value_dim + task.tile * kTileColumns, written[i],
                  static_cast<size_t>(task.columns) * sizeof(float));
    }
  });
}

// After all tiles: the features of the rows that wait now, and nothing where rows waited before.
void SegmentMemory::settle(MemoryStep& step, const MemoryRun& run, int64_t memory) const {
  const MemoryStep::Cursor& cursor = step.cursors[run.sequence];
  const Writes plan = writes_of(step, run, memory);
  const int64_t group = s_.write_group(), features = s_.map.count();
  float* keys = cursor.waiting_key + memory * group * features;
  // A count from a forged state leaves room for this run's.
  int64_t slot = plan.any_now ? 0 : std::min(plan.waited, group - (run.row_begin + run.rows - plan.now_end));
  for (int64_t row = plan.now_end; row < run.row_begin + run.rows; ++row) {
    if (step.write(row, memory) == 0.0f) continue;
    std::memcpy(keys + slot++ * features, step.key_features.row(row) + memory * features, static_cast<size_t>(features) * sizeof(float));
  }
  const int64_t before = std::clamp<int64_t>(cursor.waiting[memory], 0, group);
  for (int64_t i = slot; i < before; ++i) {
    std::fill_n(keys + i * features, features, 0.0f);
    std::fill_n(cursor.waiting_value + (memory * group + i) * s_.value_dim, s_.value_dim, 0.0f);
  }
  cursor.waiting[memory] = static_cast<int32_t>(slot);
}

// A run against one tile of one memory: all reads see closed segments only, writes go to the open one.
void SegmentMemory::run_tile(MemoryStep& step, const MemoryInput& input, const MemoryRun& run,
                             MemoryStep::TileTask& task) const {
  const MemoryStep::Cursor& cursor = step.cursors[run.sequence];
  const TileGrid grid{s_.map.count(), s_.value_dim};
  const int64_t offset = task.memory_index * grid.features * grid.dim + grid.offset(task.tile);
  task.features = grid.features;
  task.columns = grid.columns(task.tile);
  task.memory = cursor.memory + offset;
  task.open = cursor.open_memory + offset;
  task.carry = cursor.memory_carry == nullptr ? nullptr : cursor.memory_carry + offset;
  task.isa = step.backend.isa();
  const auto fold = [&] {
    // delta_true goes on from the memory itself, so the open one is already the next.
    if (s_.rule == MemoryRule::kDeltaTrue) {
      std::memcpy(task.memory, task.open, static_cast<size_t>(grid.floats(task.tile)) * sizeof(float));
    } else if (task.carry != nullptr) {
      fold_sums_compensated(task.memory, task.carry, task.open, grid.floats(task.tile));
    } else {
      fold_sums(task.memory, task.open, grid.floats(task.tile));
    }
  };
  if (cursor.fold_before) {
    if (s_.write_group() > 1) write_waiting(step, run, task);
    fold();
  }
  read_tile(step, run, task);
  write_tile(step, input, run, task);
  if (cursor.fold_after) fold();
}

void SegmentMemory::read_and_write(MemoryStep& step, const MemoryInput& input) const {
  const int64_t tiles = TileGrid{s_.map.count(), s_.value_dim}.tiles();
  const int64_t runs = static_cast<int64_t>(step.runs.size()), memories = s_.memories;
  step.backend.pool().parallel_for(runs * memories, [&](int64_t task) {
    map_and_normalise(step, input, step.runs[static_cast<size_t>(task / memories)], task % memories);
  });
  step.backend.pool().parallel_for(runs * memories * tiles, [&](int64_t number) {
    MemoryStep::TileTask task{.memory_index = number / tiles % memories, .tile = number % tiles};
    run_tile(step, input, step.runs[static_cast<size_t>(number / (memories * tiles))], task);
  });
  if (s_.write_group() == 1) return;
  step.backend.pool().parallel_for(runs * memories, [&](int64_t task) {
    settle(step, step.runs[static_cast<size_t>(task / memories)], task % memories);
  });
}

void SegmentMemory::end(MemoryStep& step) const {
  const size_t segment = regions().segment;
  for (size_t i = 0; i < step.states.size(); ++i) {
    std::memcpy(step.states[i]->region(segment).pages[0], &step.cursors[i].record, sizeof(SegmentRecord));
  }
}

MatrixView<float> SegmentMemory::reads(MemoryStep& step) const {
  const int64_t dim = s_.value_dim;
  if (s_.norm != ReadNorm::kRms) return step.read;
  step.backend.pool().parallel_for(step.read.rows, [&](int64_t row) {
    for (int64_t head = 0; head < s_.heads; ++head) {
      float* read = step.read.row(row) + head * dim;
      const float mean = dot_rows(read, read, dim) / static_cast<float>(dim);
      const float factor = 1.0f / std::sqrt(mean + kRmsEpsilon);
      for (int64_t c = 0; c < dim; ++c) {
        read[c] *= factor * (read_norm_.empty() ? 1.0f : read_norm_[static_cast<size_t>(c)]);
      }
    }
  });
  return step.read;
}

void SegmentMemory::mix(MemoryStep& step, MatrixView<float> attended, MatrixView<const float> read) const {
  const int64_t dim = attended.cols / s_.heads;
  step.backend.pool().parallel_for(attended.rows, [&](int64_t row) {
    const bool first_segment = step.batch.positions[static_cast<size_t>(row)] < s_.segment_tokens;
    if (first_segment && !s_.first_segment_gated) return;  // attended is the result
    for (int64_t head = 0; head < s_.heads; ++head) {
      const float* from = read.row(row) + head * dim;
      float* to = attended.row(row) + head * dim;
      const float gate = sigmoid(s_.token_gate ? step.gate(row, head) : gate_bias_[static_cast<size_t>(head)]);
      for (int64_t c = 0; c < dim; ++c) to[c] = gate * from[c] + (1.0f - gate) * to[c];
    }
  });
}

}  // namespace quipu
