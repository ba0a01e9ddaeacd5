#include "attention/shared/segment_memory_training.h"

#include <algorithm>
#include <cmath>

namespace quipu {
namespace {

constexpr int64_t kChunkRows = 64;   // rows of one task where rows are worked on one by one

template <class Real>
Real sigmoid(Real x) {
  return 1 / (1 + std::exp(-x));
}

// The write gate of a logit, and its derivative.                                                       [math.md]
template <class Real>
Real gate_value(WriteGate kind, Real logit) {
  if (kind == WriteGate::kNone) return 1;
  const Real soft = sigmoid(logit);
  if (kind == WriteGate::kSoft) return soft;
  return std::clamp(static_cast<Real>(1.2) * soft - static_cast<Real>(0.1), Real{0}, Real{1});
}
template <class Real>
Real gate_slope(WriteGate kind, Real logit) {
  if (kind == WriteGate::kNone) return 0;
  const Real soft = sigmoid(logit), slope = soft * (1 - soft);
  if (kind == WriteGate::kSoft) return slope;
  const Real value = static_cast<Real>(1.2) * soft - static_cast<Real>(0.1);
  return value > 0 && value < 1 ? static_cast<Real>(1.2) * slope : Real{0};
}

int64_t segment_of(const PackedBatch& batch, int64_t sequence, int64_t row, int64_t segment_tokens) {
  const int64_t position = batch.positions.empty() ? row - batch.offsets[static_cast<size_t>(sequence)]
                                                   : batch.positions[static_cast<size_t>(row)];
  return position / segment_tokens;
}

// Calls visit(sequence, run) for every run of every sequence, in order.
template <class Visit>
void for_runs(const PackedBatch& batch, int64_t segment_tokens, const Visit& visit) {
  for (int64_t i = 0; i < batch.sequences(); ++i) {
    const int64_t end = batch.offsets[static_cast<size_t>(i) + 1];
    for (int64_t row = batch.offsets[static_cast<size_t>(i)]; row < end;) {
      SegmentRun run{.row_begin = row, .rows = 0, .segment = segment_of(batch, i, row, segment_tokens)};
      while (row < end && segment_of(batch, i, row, segment_tokens) == run.segment) ++row;
      run.rows = row - run.row_begin;
      visit(i, run);
    }
  }
}

}  // namespace

template <class Real>
SegmentMemoryTraining<Real>::SegmentMemoryTraining(const MemorySettings& settings, int64_t hidden, std::vector<ParameterSpec>& specs)
    : s_(settings), hidden_(hidden) {
  const auto add = [&](int64_t& place, const char* role, Shape shape, Initialisation initial, ParameterGroup group) {
    place = static_cast<int64_t>(specs.size());
    specs.push_back({role, std::move(shape), initial, group});
  };
  const Initialisation normal = Initialisation::normal(kInitialDeviation);
  // Spread, so that some heads begin with their memory and symmetry is broken.
  add(order_.gate_bias, "memory_gate", {s_.heads}, Initialisation::spread(-2, 2), ParameterGroup::kGate);
  if (s_.token_gate) add(order_.gate, "memory_gate_proj", {s_.heads, hidden}, normal, ParameterGroup::kGate);
  if (s_.write_gate != WriteGate::kNone) {
    add(order_.write_gate, "write_gate", {s_.memories, hidden}, normal, ParameterGroup::kGate);
    // Open enough that every token gets a gradient in the beginning.
    add(order_.write_gate_bias, "write_gate_bias", {s_.memories}, Initialisation::constant(0.5), ParameterGroup::kGate);
  }
  if (s_.rule == MemoryRule::kDeltaTrue) {
    add(order_.strength, "write_strength", {s_.memories, hidden}, normal, ParameterGroup::kGate);
    add(order_.strength_bias, "write_strength_bias", {s_.memories}, {}, ParameterGroup::kGate);
  }
  if (s_.norm == ReadNorm::kRms) add(order_.read_norm, "read_norm", {s_.value_dim}, Initialisation::constant(1), ParameterGroup::kNorm);
}

template <class Real>
double SegmentMemoryTraining<Real>::flops(const PackedBatch& batch) const {
  const int64_t gates = (order_.gate >= 0 ? s_.heads : 0) + (order_.write_gate >= 0 ? s_.memories : 0) +
                        (order_.strength >= 0 ? s_.memories : 0);
  const int64_t passes = s_.heads + (s_.rule == MemoryRule::kLinear ? 1 : 2) * s_.memories;
  return 2.0 * static_cast<double>(batch.rows()) * static_cast<double>(hidden_ * gates + passes * s_.map.count() * s_.value_dim);
}

template <class Real>
double SegmentMemoryTraining<Real>::local_pairs(const PackedBatch& batch) const {
  double pairs = 0;
  int64_t sequence = -1;
  SegmentRun last;
  for_runs(batch, s_.segment_tokens, [&](int64_t i, const SegmentRun& run) {
    const double n = static_cast<double>(run.rows);
    const bool window = s_.previous_window && i == sequence && run.segment == last.segment + 1;
    pairs += n * (n + 1) / 2 + (window ? n * static_cast<double>(last.rows) : 0);
    sequence = i;
    last = run;
  });
  return pairs;
}

template <class Real>
SegmentMemoryTraining<Real>::Saved::Saved(Carver& carver, const SegmentMemoryTraining& memory, const PackedBatch& batch) {
  const MemorySettings& s = memory.s_;
  const int64_t rows = batch.rows();
  read = carver.matrix<Real>(rows, memory.read_cols());
  weight = carver.matrix<Real>(rows, s.memories);
  if (s.token_gate) gate = carver.matrix<Real>(rows, s.heads);
  if (s.write_gate != WriteGate::kNone) write = carver.matrix<Real>(rows, s.memories);
  if (s.rule == MemoryRule::kDeltaTrue) {
    strength = carver.matrix<Real>(rows, s.memories);
    written = carver.matrix<Real>(rows, s.memories * s.value_dim);
  }
  int64_t runs = 0;
  for_runs(batch, s.segment_tokens, [&](int64_t, const SegmentRun&) { ++runs; });
  states = carver.take<Real>((runs + batch.sequences()) * memory.state_elements());
}

template <class Real>
SegmentMemoryTraining<Real>::Scratch::Scratch(Carver& carver, const SegmentMemoryTraining& memory, const PackedBatch& batch) {
  const MemorySettings& s = memory.s_;
  const int64_t rows = batch.rows(), tasks = batch.sequences() * s.memories;
  int64_t count = 0, longest = 0;
  for_runs(batch, s.segment_tokens, [&](int64_t, const SegmentRun&) { ++count; });
  // Wherever the rows of a routed layer lie, no run is longer.
  for (int64_t i = 0; i < batch.sequences(); ++i) {
    longest = std::max(longest, std::min(s.segment_tokens, batch.offsets[static_cast<size_t>(i) + 1] - batch.offsets[static_cast<size_t>(i)]));
  }
  visible = carver.span<KeyRange>(rows);
  slices = carver.span<AttentionSlice>(batch.sequences());
  runs = carver.span<SegmentRun>(count);
  first_run = carver.span<int64_t>(batch.sequences() + 1);
  task_elements = memory_task_scratch(s, longest);
  task_buffers = carver.take<Real>(tasks * task_elements);
  dread = carver.matrix<Real>(rows, memory.read_cols());
  dgate = carver.matrix<Real>(rows, s.heads);
  dweight = carver.matrix<Real>(rows, s.memories);
  dwrite = carver.matrix<Real>(rows, s.memories);
  dstrength = carver.matrix<Real>(rows, s.memories);
  dread_norm = carver.matrix<Real>(tasks, s.value_dim);
}

template <class Real>
void SegmentMemoryTraining<Real>::find_runs(const Scratch& scratch, const PackedBatch& batch) const {
  sequence_slices(scratch.slices, batch);
  size_t next = 0;
  int64_t sequence = -1;
  std::ranges::fill(scratch.first_run, 0);
  for_runs(batch, s_.segment_tokens, [&](int64_t i, const SegmentRun& run) {
    const bool window = s_.previous_window && i == sequence && scratch.runs[next - 1].segment == run.segment - 1;
    const int64_t first = window ? scratch.runs[next - 1].row_begin : run.row_begin;
    const int64_t begin = batch.offsets[static_cast<size_t>(i)];
    for (int64_t row = run.row_begin; row < run.row_begin + run.rows; ++row) {
      scratch.visible[static_cast<size_t>(row)] = {static_cast<int32_t>(first - begin), static_cast<int32_t>(row - begin + 1)};
    }
    scratch.runs[next++] = run;
    sequence = i;
    scratch.first_run[static_cast<size_t>(i) + 1] = static_cast<int64_t>(next);
  });
  for (size_t i = 1; i < scratch.first_run.size(); ++i) {   // empty sequences have no run
    scratch.first_run[i] = std::max(scratch.first_run[i], scratch.first_run[i - 1]);
  }
}

template <class Real>
void SegmentMemoryTraining<Real>::logits(Matrix y, ConstMatrix x, const Call& call, int64_t place, int64_t bias_place) const {
  const ConstMatrix w = weight(call, place);
  const Real* b = bias(call, bias_place);
  for (int64_t row = 0; row < y.rows; ++row) {
    for (int64_t c = 0; c < y.cols; ++c) y(row, c) = b == nullptr ? Real{0} : b[c];
  }
  const int64_t chunks = y.rows / kChunkRows, rest = y.rows % kChunkRows, done = chunks * kChunkRows;
  BatchedGemm<Real> g{.kind = GemmKind::kNT, .m = kChunkRows, .n = y.cols, .k = x.cols, .c = y.data, .a = x.data, .b = w.data,
                      .c_ld = y.cols, .a_ld = x.cols, .b_ld = w.cols, .c_step = kChunkRows * y.cols,
                      .a_step = kChunkRows * x.cols, .batch = chunks, .beta = 1};
  if (chunks > 0) call.ops.batched_gemm(g);
  if (rest == 0) return;
  g.m = rest;
  g.batch = 1;
  g.c += done * y.cols;
  g.a += done * x.cols;
  call.ops.batched_gemm(g);
}

// dx += dy W;  dW += dy^T x;  dbias += sum of the rows of dy.
template <class Real>
void SegmentMemoryTraining<Real>::logits_backward(Matrix dx, ConstMatrix dy, ConstMatrix x, const Call& call, int64_t place,
                                            int64_t bias_place) const {
  const ConstMatrix w = weight(call, place);
  const int64_t chunks = dy.rows / kChunkRows, rest = dy.rows % kChunkRows, done = chunks * kChunkRows;
  BatchedGemm<Real> g{.kind = GemmKind::kNN, .m = kChunkRows, .n = x.cols, .k = dy.cols, .c = dx.data, .a = dy.data, .b = w.data,
                      .c_ld = dx.cols, .a_ld = dy.cols, .b_ld = w.cols, .c_step = kChunkRows * dx.cols,
                      .a_step = kChunkRows * dy.cols, .batch = chunks, .beta = 1};
  if (chunks > 0) call.ops.batched_gemm(g);
  if (rest > 0) {
    g.m = rest;
    g.batch = 1;
    g.c += done * dx.cols;
    g.a += done * dy.cols;
    call.ops.batched_gemm(g);
  }
  const Matrix dw = gradient(call, place);
  if (dw.data != nullptr) {
    call.ops.batched_gemm({.kind = GemmKind::kTN, .m = dy.cols, .n = x.cols, .k = dy.rows, .c = dw.data, .a = dy.data,
                           .b = x.data, .c_ld = dw.cols, .a_ld = dy.cols, .b_ld = x.cols, .beta = 1});
  }
  Real* db = dbias(call, bias_place);
  for (int64_t row = 0; db != nullptr && row < dy.rows; ++row) {
    for (int64_t c = 0; c < dy.cols; ++c) db[c] += dy(row, c);
  }
}

// Fills saved.weight; the penalty on what is written.
template <class Real>
double SegmentMemoryTraining<Real>::write_weights(const Saved& saved, const Call& call) const {
  const bool gated = s_.write_gate != WriteGate::kNone, ordered = s_.rule == MemoryRule::kDeltaTrue;
  double sum = 0;
  for (int64_t row = 0; row < saved.weight.rows; ++row) {
    for (int64_t m = 0; m < s_.memories; ++m) {
      const Real gate = gated ? gate_value(s_.write_gate, saved.write(row, m)) : Real{1};
      sum += static_cast<double>(gate);
      Real weight = gate;
      if (ordered) {
        weight *= sigmoid(saved.strength(row, m));
      } else if (!call.options.write_repeats.empty()) {
        weight *= static_cast<Real>(call.options.write_repeats[static_cast<size_t>(row)]);
      }
      saved.weight(row, m) = weight;
    }
  }
  return gated && saved.weight.rows > 0 ? call.options.write_penalty * sum / static_cast<double>(saved.weight.rows * s_.memories) : 0;
}

template <class Real>
void SegmentMemoryTraining<Real>::write_weights_backward(const Saved& saved, const Scratch& scratch, const Call& call) const {
  const bool gated = s_.write_gate != WriteGate::kNone, ordered = s_.rule == MemoryRule::kDeltaTrue;
  if (!gated && !ordered) return;
  const Real penalty = static_cast<Real>(call.options.write_penalty / static_cast<double>(saved.weight.rows * s_.memories));
  for (int64_t row = 0; row < saved.weight.rows; ++row) {
    for (int64_t m = 0; m < s_.memories; ++m) {
      const Real dweight = scratch.dweight(row, m);
      const Real gate = gated ? gate_value(s_.write_gate, saved.write(row, m)) : Real{1};
      Real factor = 1;
      if (ordered) {
        factor = sigmoid(saved.strength(row, m));
        scratch.dstrength(row, m) = dweight * gate * factor * (1 - factor);
      } else if (!call.options.write_repeats.empty()) {
        factor = static_cast<Real>(call.options.write_repeats[static_cast<size_t>(row)]);
      }
      if (gated) scratch.dwrite(row, m) = (dweight * factor + penalty) * gate_slope(s_.write_gate, saved.write(row, m));
    }
  }
}

template <class Real>
double SegmentMemoryTraining<Real>::begin(const Saved& saved, const Scratch& scratch, ConstMatrix x, const Call& call) const {
  find_runs(scratch, call.batch);
  if (s_.token_gate) logits(saved.gate, x, call, order_.gate, order_.gate_bias);
  if (order_.write_gate >= 0) logits(saved.write, x, call, order_.write_gate, order_.write_gate_bias);
  if (order_.strength >= 0) logits(saved.strength, x, call, order_.strength, order_.strength_bias);
  return write_weights(saved, call);
}

// Task: sequence * memories + memory.
template <class Real>
MemoryTask<Real> SegmentMemoryTraining<Real>::task_of(const Saved& saved, const Scratch& scratch, const MemoryRows<const Real>& rows,
                                                      const Call& call, int64_t task) const {
  const int64_t sequence = task / s_.memories, memory = task % s_.memories;
  const int64_t first = scratch.first_run[static_cast<size_t>(sequence)];
  const int64_t count = scratch.first_run[static_cast<size_t>(sequence) + 1] - first;
  const int64_t states_before = (first + sequence) * s_.memories + memory * (count + 1);
  std::span<const Real> norm;
  if (order_.read_norm >= 0) norm = {weight(call, order_.read_norm).data, static_cast<size_t>(s_.value_dim)};
  return {.settings = &s_, .runs = scratch.runs.subspan(static_cast<size_t>(first), static_cast<size_t>(count)),
          .memory = memory, .rows = rows, .weight = saved.weight, .read_norm = norm,
          .states = saved.states + states_before * memory_state_elements(s_), .written = saved.written, .read = saved.read};
}

template <class Real>
void SegmentMemoryTraining<Real>::read_and_write(const Saved& saved, const Scratch& scratch, const MemoryRows<const Real>& rows,
                                                 const Call& call) const {
  const int64_t elements = memory_state_elements(s_);
  call.ops.pool().parallel_for(call.batch.sequences() * s_.memories, [&](int64_t i) {
    const MemoryTask<Real> task = task_of(saved, scratch, rows, call, i);
    if (call.options.initial_state.empty()) {
      std::fill(task.states, task.states + elements, Real{0});
    } else {
      const Real* from = call.options.initial_state.data() + i * elements;
      std::copy(from, from + elements, task.states);
    }
    memory_forward(task, buffer_of(scratch, i));
    if (call.options.final_state.empty()) return;
    const Real* last = task.states + static_cast<int64_t>(task.runs.size()) * elements;
    std::copy(last, last + elements, call.options.final_state.data() + i * elements);
  });
}

template <class Real>
void SegmentMemoryTraining<Real>::read_and_write_backward(const MemoryRows<Real>& drows, const Saved& saved, const Scratch& scratch,
                                                          const MemoryRows<const Real>& rows, const Call& call) const {
  const int64_t tasks = call.batch.sequences() * s_.memories;
  const bool norm = order_.read_norm >= 0;
  std::fill(scratch.dread_norm.data, scratch.dread_norm.data + tasks * s_.value_dim, Real{0});
  call.ops.pool().parallel_for(tasks, [&](int64_t task) {
    std::span<Real> dread_norm;
    if (norm) dread_norm = {scratch.dread_norm.row(task), static_cast<size_t>(s_.value_dim)};
    memory_backward(task_of(saved, scratch, rows, call, task), {scratch.dread, drows, scratch.dweight, dread_norm},
                    buffer_of(scratch, task));
  });
  if (norm && gradient(call, order_.read_norm).data != nullptr) {
    for (int64_t task = 0; task < tasks; ++task) {
      for (int64_t c = 0; c < s_.value_dim; ++c) gradient(call, order_.read_norm).data[c] += scratch.dread_norm(task, c);
    }
  }
  write_weights_backward(saved, scratch, call);
}

template <class Real>
void SegmentMemoryTraining<Real>::gates_backward(Matrix dx, const Scratch& scratch, ConstMatrix x, const Call& call) const {
  if (order_.strength >= 0) logits_backward(dx, scratch.dstrength, x, call, order_.strength, order_.strength_bias);
  if (order_.write_gate >= 0) logits_backward(dx, scratch.dwrite, x, call, order_.write_gate, order_.write_gate_bias);
  if (s_.token_gate) {
    logits_backward(dx, scratch.dgate, x, call, order_.gate, order_.gate_bias);
  } else if (Real* dgate = dbias(call, order_.gate_bias); dgate != nullptr) {
    for (int64_t row = 0; row < scratch.dgate.rows; ++row) {
      for (int64_t head = 0; head < s_.heads; ++head) dgate[head] += scratch.dgate(row, head);
    }
  }
}

// How much of the memory a head takes; 0 in a first segment that is not gated.
template <class Real>
Real SegmentMemoryTraining<Real>::mixing_gate(const Saved& saved, const Call& call, int64_t row, int64_t head) const {
  if (!s_.first_segment_gated && call.batch.positions[static_cast<size_t>(row)] < s_.segment_tokens) return 0;
  // saved.gate holds the bias already.
  return sigmoid(s_.token_gate ? saved.gate(row, head) : weight(call, order_.gate_bias).data[head]);
}

template <class Real>
void SegmentMemoryTraining<Real>::mix(Matrix mixed, ConstMatrix attended, ConstMatrix read, const Saved& saved, const Call& call) const {
  const int64_t chunks = (mixed.rows + kChunkRows - 1) / kChunkRows, dim = mixed.cols / s_.heads;
  call.ops.pool().parallel_for(chunks, [&](int64_t chunk) {
    for (int64_t row = chunk * kChunkRows; row < std::min(mixed.rows, (chunk + 1) * kChunkRows); ++row) {
      for (int64_t head = 0; head < s_.heads; ++head) {
        const Real gate = mixing_gate(saved, call, row, head);
        for (int64_t c = head * dim; c < (head + 1) * dim; ++c) mixed(row, c) = gate * read(row, c) + (1 - gate) * attended(row, c);
      }
    }
  });
}

template <class Real>
void SegmentMemoryTraining<Real>::mix_backward(Matrix dmixed, Matrix dread, ConstMatrix attended, ConstMatrix read, const Saved& saved,
                                               const Scratch& scratch, const Call& call) const {
  const int64_t rows = dmixed.rows, chunks = (rows + kChunkRows - 1) / kChunkRows, dim = dmixed.cols / s_.heads;
  call.ops.pool().parallel_for(chunks, [&](int64_t chunk) {
    for (int64_t row = chunk * kChunkRows; row < std::min(rows, (chunk + 1) * kChunkRows); ++row) {
      for (int64_t head = 0; head < s_.heads; ++head) {
        const Real gate = mixing_gate(saved, call, row, head);
        Real dgate = 0;
        for (int64_t c = head * dim; c < (head + 1) * dim; ++c) {
          const Real d = dmixed(row, c);
          dgate += d * (read(row, c) - attended(row, c));
          dread(row, c) = gate * d;
          dmixed(row, c) = (1 - gate) * d;
        }
        scratch.dgate(row, head) = dgate * gate * (1 - gate);
      }
    }
  });
}

template class SegmentMemoryTraining<float>;
template class SegmentMemoryTraining<double>;

}  // namespace quipu
