// One step: project, then run by run (a run: rows of one sequence inside one segment) attend locally, read the memory
// of closed segments, write the open one; fold it when the segment ends; mix; project back. Equations: math.md.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "attention/infini/infini.h"
#include "attention/infini/memory_tile.h"
#include "attention/infini/regions.h"

namespace quipu {
namespace {

constexpr float kLeastDenominator = 1e-6f;
constexpr float kRmsEpsilon = 1e-6f;

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

float dot(const float* a, const float* b, int64_t count) {
  float sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

const float* data_or_null(const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); }

// Copies local cache rows [from, from + count) to [0, count), from >= count or whole pages apart.
void move_rows(const KvCacheView& cache, int64_t from, int64_t count, float* buffer) {
  const int64_t key_bytes = kv_head_page_bytes(cache.dtype, cache.key_dim);
  const int64_t value_bytes = kv_head_page_bytes(cache.dtype, cache.value_dim);
  if (from % kPageRows == 0) {
    const int64_t pages = (count + kPageRows - 1) / kPageRows;
    for (int64_t page = 0; page < pages; ++page) {
      const int64_t source = page + from / kPageRows;
      std::memmove(cache.key_page(page), cache.key_page(source), static_cast<size_t>(key_bytes * cache.kv_heads));
      std::memmove(cache.value_page(page), cache.value_page(source), static_cast<size_t>(value_bytes * cache.kv_heads));
    }
    return;
  }
  for (int64_t row = 0; row < count; ++row) {
    const int64_t page = row / kPageRows, source = (from + row) / kPageRows;
    for (int64_t head = 0; head < cache.kv_heads; ++head) {
      load_key_row(buffer, cache.dtype, cache.key_page(source) + head * key_bytes, cache.key_dim,
                   (from + row) % kPageRows);
      save_key_row(cache.key_page(page) + head * key_bytes, cache.dtype, cache.key_dim, row % kPageRows, buffer);
      load_value_row(buffer, cache.dtype, cache.value_page(source) + head * value_bytes, cache.value_dim,
                     (from + row) % kPageRows);
      save_value_row(cache.value_page(page) + head * value_bytes, cache.dtype, cache.value_dim, row % kPageRows,
                     buffer);
    }
  }
}

}  // namespace

struct Infini::Cursor {
  LayerState* state = nullptr;
  int64_t next = 0, end = 0;  // rows of the batch still to do
  SegmentRecord record;
  KvCacheView cache;
  // fp32 regions; null where there is none.
  float *memory = nullptr, *open_memory = nullptr, *memory_carry = nullptr;
  float *sum = nullptr, *open_sum = nullptr, *sum_carry = nullptr;
  // The run at hand.
  int64_t row_begin = 0, rows = 0, first_key = 0;
  bool fold_before = false;  // the segment before ended without its last token being seen (routing)
  bool fold_after = false;
};

struct Infini::Step {
  Backend& backend;
  const RaggedBatch& batch;
  MatrixView<float> q = {}, k = {}, v = {};
  MatrixView<float> rotated_q = {}, rotated_k = {};  // q and k themselves when nothing rotates
  MatrixView<float> query_features = {}, key_features = {};
  MatrixView<float> query_norm = {}, key_norm = {};  // sigma(q) . z per head, sigma(k) . z per key head
  MatrixView<float> gate = {};                       // logits per head; only with gate "token"
  MatrixView<float> write = {}, strength = {};       // logits, then in `write` the weight of what a token writes
  MatrixView<float> read = {};                       // what comes out of the memory
  MatrixView<float> attended = {};                   // local attention, then the mixture
  AttendSlice* slices = nullptr;
  Cursor* cursors = nullptr;
  Cursor** active = nullptr;
  int64_t active_count = 0;
  std::byte** pages = nullptr;  // of all cursors, keys then values
  float* row_buffer = nullptr;

  static Step plan(Backend& backend, const RaggedBatch& batch, const Settings& s, int64_t rows, Arena& scratch);
};

int64_t Infini::scratch_bytes(int64_t rows) const {
  const auto floats = [rows](int64_t columns) { return Arena::planned<float>(rows * columns); };
  const int64_t q = s_.heads * s_.head_dim, k = s_.kv_heads * s_.head_dim, features = s_.map.count();
  return 2 * floats(q) + 2 * floats(k) + floats(s_.kv_heads * s_.value_dim) + floats(s_.heads * features) +
         floats(s_.kv_heads * features) + 2 * floats(s_.heads) + 3 * floats(s_.kv_heads) +
         2 * floats(s_.heads * s_.value_dim) + Arena::planned<AttendSlice>(rows) + Arena::planned<Cursor>(rows) +
         Arena::planned<Cursor*>(rows) + Arena::planned<std::byte*>(rows * 2 * s_.local_pages()) +
         Arena::planned<float>(std::max(s_.head_dim, s_.value_dim));
}

Infini::Step Infini::Step::plan(Backend& backend, const RaggedBatch& batch, const Settings& s, int64_t rows,
                                Arena& scratch) {
  Step step{.backend = backend, .batch = batch};
  step.q = scratch.matrix(rows, s.heads * s.head_dim);
  step.k = scratch.matrix(rows, s.kv_heads * s.head_dim);
  step.v = scratch.matrix(rows, s.kv_heads * s.value_dim);
  step.rotated_q = s.rope.rotary_dim > 0 ? scratch.matrix(rows, step.q.cols) : step.q;
  step.rotated_k = s.rope.rotary_dim > 0 ? scratch.matrix(rows, step.k.cols) : step.k;
  step.query_features = scratch.matrix(rows, s.heads * s.map.count());
  step.key_features = scratch.matrix(rows, s.kv_heads * s.map.count());
  step.query_norm = scratch.matrix(rows, s.heads);
  step.key_norm = scratch.matrix(rows, s.kv_heads);
  step.gate = scratch.matrix(rows, s.heads);
  step.write = scratch.matrix(rows, s.kv_heads);
  step.strength = scratch.matrix(rows, s.kv_heads);
  step.read = scratch.matrix(rows, s.heads * s.value_dim);
  step.attended = scratch.matrix(rows, s.heads * s.value_dim);
  step.slices = scratch.take<AttendSlice>(rows);
  step.cursors = scratch.take<Cursor>(rows);
  step.active = scratch.take<Cursor*>(rows);
  step.pages = scratch.take<std::byte*>(rows * 2 * s.local_pages());
  step.row_buffer = scratch.take<float>(std::max(s.head_dim, s.value_dim));
  return step;
}

void Infini::project(Step& step, MatrixView<const float> x) const {
  const MatmulOutput projections[] = {{step.q, query_.get(), data_or_null(query_bias_)},
                                      {step.k, key_.get(), data_or_null(key_bias_)},
                                      {step.v, value_.get(), data_or_null(value_bias_)}};
  step.backend.matmul(projections, x);
  if (gate_ != nullptr) step.backend.matmul(step.gate, *gate_, x, data_or_null(gate_bias_));
  if (write_gate_ != nullptr) step.backend.matmul(step.write, *write_gate_, x, data_or_null(write_gate_bias_));
  if (write_strength_ != nullptr) {
    step.backend.matmul(step.strength, *write_strength_, x, data_or_null(write_strength_bias_));
  }
  if (s_.rope.rotary_dim == 0) return;
  const RopeOptions options{
      .interleaved = s_.rope.interleaved, .rotary_dim = s_.rope.rotary_dim, .magnitude = s_.rope.magnitude};
  std::memcpy(step.rotated_q.data, step.q.data, static_cast<size_t>(step.q.rows * step.q.cols) * sizeof(float));
  std::memcpy(step.rotated_k.data, step.k.data, static_cast<size_t>(step.k.rows * step.k.cols) * sizeof(float));
  step.backend.rope(step.rotated_q, s_.head_dim, step.batch.positions, s_.rope.inverse_frequency, options);
  step.backend.rope(step.rotated_k, s_.head_dim, step.batch.positions, s_.rope.inverse_frequency, options);
}

// Makes a cursor of every slice that has rows; returns their number.
int64_t Infini::begin_cursors(Step& step) const {
  const Regions numbers = regions();
  const int64_t pages = s_.local_pages();
  int64_t count = 0;
  for (const SequenceSlice& slice : step.batch.slices) {
    if (slice.rows == 0) continue;  // so that scratch for one cursor a row is enough
    LayerState& state = *slice.state;
    Cursor& cursor = *std::construct_at(step.cursors + count);
    cursor.state = &state;
    cursor.next = slice.row_begin;
    cursor.end = slice.row_begin + slice.rows;

    SegmentRecord& record = cursor.record;
    std::memcpy(&record, state.region(Regions::kSegment).pages[0], sizeof(record));
    record.segment = std::max<int64_t>(record.segment, 0);
    record.open_rows = std::clamp<int64_t>(record.open_rows, 0, s_.segment_tokens);
    record.base_rows = std::clamp<int64_t>(record.base_rows, 0, s_.previous_window ? s_.segment_tokens : 0);

    const RegionState& keys = state.region(Regions::kKey);
    const RegionState& values = state.region(Regions::kValue);
    std::byte** key_pages = step.pages + count * 2 * pages;
    std::byte** value_pages = key_pages + pages;
    for (int64_t page = 0; page < pages; ++page) {
      key_pages[page] = keys.pages[0] + page * kPageRows * keys.spec.bytes_per_row();
      value_pages[page] = values.pages[0] + page * kPageRows * values.spec.bytes_per_row();
    }
    cursor.cache = {.dtype = keys.spec.dtype,
                    .kv_heads = s_.kv_heads,
                    .key_dim = s_.head_dim,
                    .value_dim = s_.value_dim,
                    .key_pages = {key_pages, static_cast<size_t>(pages)},
                    .value_pages = {value_pages, static_cast<size_t>(pages)}};
    const auto floats = [&](size_t number) {
      return number == Regions::kAbsent ? nullptr : reinterpret_cast<float*>(state.region(number).pages[0]);
    };
    cursor.memory = floats(Regions::kMemory);
    cursor.open_memory = floats(Regions::kOpenMemory);
    cursor.memory_carry = floats(numbers.memory_carry);
    cursor.sum = floats(numbers.sum);
    cursor.open_sum = floats(numbers.open_sum);
    cursor.sum_carry = floats(numbers.sum_carry);
    ++count;
  }
  return count;
}

void Infini::enter_segment(Cursor& cursor, int64_t segment) const {
  SegmentRecord& record = cursor.record;
  cursor.fold_before = record.folded == 0 && record.open_rows > 0;
  const bool keeps = s_.previous_window && segment == record.segment + 1;
  record = {.segment = segment, .base_rows = keeps ? record.open_rows : 0};
}

// Takes the next rows of the sequence that lie in one segment.
void Infini::begin_run(Step& step, Cursor& cursor) const {
  const auto segment_of = [&](int64_t row) {
    return step.batch.positions[static_cast<size_t>(row)] / s_.segment_tokens;
  };
  SegmentRecord& record = cursor.record;
  const int64_t segment = segment_of(cursor.next);
  cursor.fold_before = false;
  if (segment != record.segment || record.folded != 0 || record.open_rows == s_.segment_tokens) {
    const int64_t old_base = record.base_rows;
    enter_segment(cursor, segment);
    if (old_base > 0 && record.base_rows > 0) move_rows(cursor.cache, old_base, record.base_rows, step.row_buffer);
  }
  const int64_t most = std::min(cursor.end, cursor.next + s_.segment_tokens - record.open_rows);
  int64_t row = cursor.next;
  while (row < most && segment_of(row) == segment) ++row;
  cursor.row_begin = cursor.next;
  cursor.rows = row - cursor.next;
  cursor.first_key = record.base_rows + record.open_rows;
  cursor.next = row;
  record.open_rows += cursor.rows;
  cursor.fold_after = step.batch.positions[static_cast<size_t>(row - 1)] % s_.segment_tokens == s_.segment_tokens - 1;
  record.folded = cursor.fold_after ? 1 : 0;
}

void Infini::attend_locally(Step& step) const {
  for (int64_t i = 0; i < step.active_count; ++i) {
    const Cursor& cursor = *step.active[i];
    step.backend.store_kv(cursor.cache, cursor.first_key, step.rotated_k.rows_from(cursor.row_begin, cursor.rows),
                          step.v.rows_from(cursor.row_begin, cursor.rows));
    std::construct_at(step.slices + i, AttendSlice{cursor.row_begin, cursor.rows, cursor.first_key, cursor.cache});
  }
  step.backend.attend(step.attended, step.rotated_q, {step.slices, static_cast<size_t>(step.active_count)},
                      {.heads = s_.heads, .scale = s_.scale});
}

// Features of a run for one key head and its query heads, their normalisers, the write weights, and the sum z.
void Infini::map_and_normalise(Step& step, const Cursor& cursor, int64_t kv_head) const {
  const int64_t features = s_.map.count(), group = s_.group();
  const auto part = [&](float* sums) { return sums == nullptr ? nullptr : sums + kv_head * features; };
  float* const sum = part(cursor.sum);
  float* const open = part(cursor.open_sum);
  float* const carry = part(cursor.sum_carry);
  const auto fold = [&] {
    if (sum == nullptr) return;
    if (carry != nullptr) return fold_sums_compensated(sum, carry, open, features);
    fold_sums(sum, open, features);
  };
  if (cursor.fold_before) fold();
  for (int64_t row = cursor.row_begin; row < cursor.row_begin + cursor.rows; ++row) {
    float weight = 1.0f;
    if (s_.write_gate != WriteGate::kNone) weight = sigmoid(step.write(row, kv_head));
    if (s_.write_gate == WriteGate::kHard) weight = std::clamp(1.2f * weight - 0.1f, 0.0f, 1.0f);
    if (s_.rule == MemoryRule::kDeltaTrue) weight *= sigmoid(step.strength(row, kv_head));
    step.write(row, kv_head) = weight;

    float* key = step.key_features.row(row) + kv_head * features;
    s_.map.apply(key, step.k.row(row) + kv_head * s_.head_dim);
    if (s_.rule == MemoryRule::kDelta)
      step.key_norm(row, kv_head) = std::max(dot(key, sum, features), kLeastDenominator);
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      float* query = step.query_features.row(row) + head * features;
      s_.map.apply(query, step.q.row(row) + head * s_.head_dim);
      if (s_.norm == ReadNorm::kSum)
        step.query_norm(row, head) = std::max(dot(query, sum, features), kLeastDenominator);
    }
    if (sum != nullptr && weight != 0.0f) {
      for (int64_t i = 0; i < features; ++i) open[i] += weight * key[i];
    }
  }
  if (cursor.fold_after) fold();
}

// What is done to one tile of one head's memory in a run.
struct Infini::TileTask {
  int64_t kv_head = 0, tile = 0;
  int64_t features = 0, columns = 0;
  float *memory = nullptr, *open = nullptr, *carry = nullptr;  // of closed segments; of the open one; null without
  Isa isa = Isa::kPortable;
};

// All queries of the run read the closed segments, kTileBatch of them in a pass.
void Infini::read_tile(Step& step, const Cursor& cursor, const TileTask& task) const {
  const int64_t group = s_.group();
  TileRead reads[kTileBatch];
  size_t count = 0;
  for (int64_t row = cursor.row_begin; row < cursor.row_begin + cursor.rows; ++row) {
    for (int64_t head = task.kv_head * group; head < (task.kv_head + 1) * group; ++head) {
      reads[count++] = {step.query_features.row(row) + head * task.features,
                        step.read.row(row) + head * s_.value_dim + task.tile * kTileColumns};
      if (count < kTileBatch) continue;
      tile_read(reads, task.memory, task.features, task.columns, task.isa);
      count = 0;
    }
  }
  tile_read({reads, count}, task.memory, task.features, task.columns, task.isa);
}

// All tokens of the run write to the open segment, in order. delta_true reads its own writes, so it goes one by one.
void Infini::write_tile(Step& step, const Cursor& cursor, const TileTask& task) const {
  const size_t batch = s_.rule == MemoryRule::kDeltaTrue ? 1 : kTileBatch;
  const float* known_from = s_.rule == MemoryRule::kDeltaTrue ? task.open : task.memory;
  float known[kTileBatch][kTileColumns];
  float written[kTileBatch][kTileColumns];
  TileRead reads[kTileBatch];
  TileWrite writes[kTileBatch];
  int64_t rows[kTileBatch];
  size_t count = 0;
  const auto flush = [&] {
    if (s_.rule == MemoryRule::kLinear) {
      std::memset(known, 0, sizeof(known));
    } else {
      tile_read({reads, count}, known_from, task.features, task.columns, task.isa);
    }
    for (size_t i = 0; i < count; ++i) {
      const float* value = step.v.row(rows[i]) + task.kv_head * s_.value_dim + task.tile * kTileColumns;
      const float weight = step.write(rows[i], task.kv_head);
      const float norm = s_.rule == MemoryRule::kDelta ? step.key_norm(rows[i], task.kv_head) : 1.0f;
      for (int64_t c = 0; c < task.columns; ++c) written[i][c] = weight * (value[c] - known[i][c] / norm);
    }
    tile_write(task.open, {writes, count}, task.features, task.columns, task.isa);
    count = 0;
  };
  for (int64_t row = cursor.row_begin; row < cursor.row_begin + cursor.rows; ++row) {
    if (step.write(row, task.kv_head) == 0.0f) continue;  // a hard gate's zero leaves every bit as it is
    const float* key = step.key_features.row(row) + task.kv_head * task.features;
    rows[count] = row;
    reads[count] = {key, known[count]};
    writes[count] = {key, written[count]};
    if (++count == batch) flush();
  }
  flush();
}

// A run against one tile of one head's memory: all reads see closed segments only, writes go to the open one.
void Infini::read_and_write(Step& step, const Cursor& cursor, int64_t kv_head, int64_t tile) const {
  const TileGrid grid{s_.map.count(), s_.value_dim};
  const int64_t offset = kv_head * grid.features * s_.value_dim + grid.offset(tile);
  const TileTask task{.kv_head = kv_head,
                      .tile = tile,
                      .features = grid.features,
                      .columns = grid.columns(tile),
                      .memory = cursor.memory + offset,
                      .open = cursor.open_memory + offset,
                      .carry = cursor.memory_carry == nullptr ? nullptr : cursor.memory_carry + offset,
                      .isa = step.backend.isa()};
  const auto fold = [&] {
    // delta_true goes on from the memory itself, so the open one is already the next.
    if (s_.rule == MemoryRule::kDeltaTrue) {
      std::memcpy(task.memory, task.open, static_cast<size_t>(grid.floats(tile)) * sizeof(float));
    } else if (task.carry != nullptr) {
      fold_sums_compensated(task.memory, task.carry, task.open, grid.floats(tile));
    } else {
      fold_sums(task.memory, task.open, grid.floats(tile));
    }
  };
  if (cursor.fold_before) fold();
  read_tile(step, cursor, task);
  write_tile(step, cursor, task);
  if (cursor.fold_after) fold();
}

// Normalises what a row read, and lets the gate decide between it and the local attention.
void Infini::mix(Step& step, int64_t row) const {
  const bool first_segment = step.batch.positions[static_cast<size_t>(row)] < s_.segment_tokens;
  if (first_segment && !s_.first_segment_gated) return;  // attended is the result
  for (int64_t head = 0; head < s_.heads; ++head) {
    float* read = step.read.row(row) + head * s_.value_dim;
    float* attended = step.attended.row(row) + head * s_.value_dim;
    if (s_.norm == ReadNorm::kSum) {
      for (int64_t c = 0; c < s_.value_dim; ++c) read[c] /= step.query_norm(row, head);
    } else if (s_.norm == ReadNorm::kRms) {
      const float mean = dot(read, read, s_.value_dim) / static_cast<float>(s_.value_dim);
      const float factor = 1.0f / std::sqrt(mean + kRmsEpsilon);
      for (int64_t c = 0; c < s_.value_dim; ++c) {
        read[c] *= factor * (read_norm_.empty() ? 1.0f : read_norm_[static_cast<size_t>(c)]);
      }
    }
    const float gate = sigmoid(s_.token_gate ? step.gate(row, head) : gate_bias_[static_cast<size_t>(head)]);
    for (int64_t c = 0; c < s_.value_dim; ++c) attended[c] = gate * read[c] + (1.0f - gate) * attended[c];
  }
}

void Infini::forward(Backend& backend, MatrixView<float> out, MatrixView<const float> x, const RaggedBatch& batch,
                     Arena& scratch) const {
  const ArenaMark mark(scratch);
  Step step = Step::plan(backend, batch, s_, x.rows, scratch);
  project(step, x);

  ThreadPool& pool = backend.pool();
  const int64_t tiles = TileGrid{s_.map.count(), s_.value_dim}.tiles();
  const int64_t cursors = begin_cursors(step);
  for (;;) {
    step.active_count = 0;
    for (int64_t i = 0; i < cursors; ++i) {
      Cursor& cursor = step.cursors[i];
      if (cursor.next == cursor.end) continue;
      begin_run(step, cursor);
      step.active[step.active_count++] = &cursor;
    }
    if (step.active_count == 0) break;
    attend_locally(step);
    pool.parallel_for(step.active_count * s_.kv_heads, [&](int64_t task) {
      map_and_normalise(step, *step.active[task / s_.kv_heads], task % s_.kv_heads);
    });
    pool.parallel_for(step.active_count * s_.kv_heads * tiles, [&](int64_t task) {
      read_and_write(step, *step.active[task / (s_.kv_heads * tiles)], task / tiles % s_.kv_heads, task % tiles);
    });
  }
  for (int64_t i = 0; i < cursors; ++i) {
    Cursor& cursor = step.cursors[i];
    std::memcpy(cursor.state->region(Regions::kSegment).pages[0], &cursor.record, sizeof(cursor.record));
  }
  for (const SequenceSlice& slice : batch.slices) slice.state->advance(slice.rows);
  pool.parallel_for(x.rows, [&](int64_t row) { mix(step, row); });
  backend.matmul(out, *output_, step.attended, data_or_null(output_bias_));
}

}  // namespace quipu
