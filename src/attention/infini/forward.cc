// One step: project, then run by run (a run: rows of one sequence inside one segment) attend locally and let the memory
// read and write; mix; project back. Equations: math.md.
#include <algorithm>
#include <cstring>
#include <memory>

#include "attention/infini/infini.h"

namespace quipu {
namespace {

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

struct Infini::Step {
  Backend& backend;
  const RaggedBatch& batch;
  MatrixView<float> q = {}, k = {}, v = {};
  MatrixView<float> rotated_q = {}, rotated_k = {};  // q and k themselves when nothing rotates
  MatrixView<float> attended = {};                   // local attention, then the mixture
  AttendSlice* slices = nullptr;
  KvCacheView* caches = nullptr;  // of every sequence
  std::byte** pages = nullptr;    // theirs, keys then values
  float* row_buffer = nullptr;
};

int64_t Infini::scratch_bytes(int64_t rows) const {
  const auto floats = [rows](int64_t columns) { return Arena::planned<float>(rows * columns); };
  return 2 * floats(s_.heads * s_.head_dim) + 2 * floats(s_.kv_heads * s_.head_dim) +
         floats(s_.kv_heads * s_.value_dim) + floats(s_.heads * s_.value_dim) + Arena::planned<AttendSlice>(rows) +
         Arena::planned<KvCacheView>(rows) + Arena::planned<std::byte*>(rows * 2 * s_.local_pages()) +
         Arena::planned<float>(std::max(s_.head_dim, s_.value_dim)) + memory_->scratch_bytes(rows);
}

void Infini::project(Step& step, MatrixView<const float> x) const {
  const MatmulOutput projections[] = {{step.q, query_.get(), data_or_null(query_bias_)},
                                      {step.k, key_.get(), data_or_null(key_bias_)},
                                      {step.v, value_.get(), data_or_null(value_bias_)}};
  step.backend.matmul(projections, x);
  if (s_.rope.rotary_dim == 0) return;
  const RopeOptions options{
      .interleaved = s_.rope.interleaved, .rotary_dim = s_.rope.rotary_dim, .magnitude = s_.rope.magnitude};
  std::memcpy(step.rotated_q.data, step.q.data, static_cast<size_t>(step.q.rows * step.q.cols) * sizeof(float));
  std::memcpy(step.rotated_k.data, step.k.data, static_cast<size_t>(step.k.rows * step.k.cols) * sizeof(float));
  step.backend.rope(step.rotated_q, s_.head_dim, step.batch.positions, s_.rope.inverse_frequency, options);
  step.backend.rope(step.rotated_k, s_.head_dim, step.batch.positions, s_.rope.inverse_frequency, options);
}

void Infini::open_caches(Step& step, const MemoryStep& memory) const {
  const int64_t pages = s_.local_pages();
  for (size_t i = 0; i < memory.states.size(); ++i) {
    const RegionState& keys = memory.states[i]->region(kKey);
    const RegionState& values = memory.states[i]->region(kValue);
    std::byte** key_pages = step.pages + static_cast<int64_t>(i) * 2 * pages;
    std::byte** value_pages = key_pages + pages;
    for (int64_t page = 0; page < pages; ++page) {
      key_pages[page] = keys.pages[0] + page * kPageRows * keys.spec.bytes_per_row();
      value_pages[page] = values.pages[0] + page * kPageRows * values.spec.bytes_per_row();
    }
    std::construct_at(step.caches + i, KvCacheView{.dtype = keys.spec.dtype,
                                                   .kv_heads = s_.kv_heads,
                                                   .key_dim = s_.head_dim,
                                                   .value_dim = s_.value_dim,
                                                   .key_pages = {key_pages, static_cast<size_t>(pages)},
                                                   .value_pages = {value_pages, static_cast<size_t>(pages)}});
  }
}

void Infini::attend_locally(Step& step, const MemoryStep& memory) const {
  for (size_t i = 0; i < memory.runs.size(); ++i) {
    const MemoryRun& run = memory.runs[i];
    const KvCacheView& cache = step.caches[run.sequence];
    if (run.move_rows > 0) move_rows(cache, run.move_from, run.move_rows, step.row_buffer);
    std::construct_at(step.slices + i, AttendSlice{run.row_begin, run.rows, run.first_key, cache});
  }
  step.backend.store_kv({step.slices, memory.runs.size()}, step.rotated_k, step.v);
  step.backend.attend(step.attended, step.rotated_q, {step.slices, memory.runs.size()},
                      {.heads = s_.heads, .scale = s_.scale});
}

void Infini::forward(Backend& backend, MatrixView<float> out, MatrixView<const float> x, const RaggedBatch& batch,
                     Arena& scratch) const {
  const ArenaMark mark(scratch);
  const int64_t rows = x.rows;
  Step step{.backend = backend, .batch = batch};
  step.q = scratch.matrix(rows, s_.heads * s_.head_dim);
  step.k = scratch.matrix(rows, s_.kv_heads * s_.head_dim);
  step.v = scratch.matrix(rows, s_.kv_heads * s_.value_dim);
  step.rotated_q = s_.rope.rotary_dim > 0 ? scratch.matrix(rows, step.q.cols) : step.q;
  step.rotated_k = s_.rope.rotary_dim > 0 ? scratch.matrix(rows, step.k.cols) : step.k;
  step.attended = scratch.matrix(rows, s_.heads * s_.value_dim);
  step.slices = scratch.take<AttendSlice>(rows);
  step.caches = scratch.take<KvCacheView>(rows);
  step.pages = scratch.take<std::byte*>(rows * 2 * s_.local_pages());
  step.row_buffer = scratch.take<float>(std::max(s_.head_dim, s_.value_dim));
  project(step, x);

  MemoryStep memory = memory_->begin(backend, x, batch, scratch);
  open_caches(step, memory);
  const MemoryInput input{.query = step.q,
                          .key = step.k,
                          .value = step.v,
                          .query_stride = s_.head_dim,
                          .key_stride = s_.head_dim,
                          .value_stride = s_.value_dim};
  while (memory_->next_runs(memory)) {
    attend_locally(step, memory);
    memory_->read_and_write(memory, input);
  }
  memory_->end(memory);
  for (const SequenceSlice& slice : batch.slices) slice.state->advance(slice.rows);
  memory_->mix(memory, step.attended, memory_->reads(memory));
  backend.matmul(out, *output_, step.attended, data_or_null(output_bias_));
}

}  // namespace quipu
