// Infini-attention that learns: math.md over whole sequences, full backpropagation through the memory over all segments.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "attention/infini/infini.h"
#include "attention/infini/memory_training.h"
#include "attention/training.h"

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

// Where each parameter stands in parameters(); -1: the model has none.
struct Order {
  int64_t query_bias = -1, key_bias = -1, value_bias = -1, output_bias = -1;
  int64_t gate_bias = -1, gate = -1, write_gate = -1, write_gate_bias = -1, strength = -1, strength_bias = -1, read_norm = -1;
};
enum Fixed : size_t { kQuery, kKey, kValue, kOutput };

template <class Real>
class TrainableInfini final : public TrainableAttention<Real> {
 public:
  using Matrix = MatrixView<Real>;
  using ConstMatrix = MatrixView<const Real>;
  using Call = TrainingCall<Real>;

  TrainableInfini(Infini::Settings settings, std::span<const std::string> optional_roles) : s_(std::move(settings)) {
    declare_projections(optional_roles);
    declare_gates();
  }

  std::span<const ParameterSpec> parameters() const override { return specs_; }
  // Without positions, every sequence is taken for 0, 1, 2, ...
  int64_t saved_bytes(const PackedBatch& batch) const override {
    Carver measure;
    Saved(measure, *this, batch);
    return measure.bytes();
  }
  int64_t scratch_bytes(const PackedBatch& batch) const override {
    Carver measure;
    Scratch(measure, *this, batch);
    return measure.bytes();
  }
  int64_t state_elements() const override { return s_.kv_heads * memory_state_elements(s_); }
  double forward(Matrix out, ConstMatrix x, const Call& call) const override;
  void backward(Matrix dx, ConstMatrix dout, ConstMatrix x, const Call& call) const override;
  double forward_flops(const PackedBatch& batch) const override;

 private:
  struct Saved;
  struct Scratch;

  void declare_projections(std::span<const std::string> optional_roles);
  void declare_gates();
  int64_t query_cols() const { return s_.heads * s_.head_dim; }
  int64_t key_cols() const { return s_.kv_heads * s_.head_dim; }
  int64_t value_cols() const { return s_.kv_heads * s_.value_dim; }
  int64_t out_cols() const { return s_.heads * s_.value_dim; }

  ConstMatrix weight(const Call& call, int64_t place) const { return call.weights[static_cast<size_t>(place)]; }
  Matrix gradient(const Call& call, int64_t place) const { return call.gradients[static_cast<size_t>(place)]; }
  const Real* bias(const Call& call, int64_t place) const { return place < 0 ? nullptr : weight(call, place).data; }
  Real* dbias(const Call& call, int64_t place) const { return place < 0 ? nullptr : gradient(call, place).data; }

  void fill_pattern(const Scratch& scratch, const PackedBatch& batch) const;
  AttentionPattern pattern(const Scratch& scratch) const;
  void rotate(Matrix heads, const Call& call, Direction direction) const;
  void copy(Matrix to, ConstMatrix from, const Call& call) const;
  // Small products in full precision: what gates decide is kept for ever.
  void logits(Matrix y, ConstMatrix x, const Call& call, int64_t place, int64_t bias_place) const;
  void logits_backward(Matrix dx, ConstMatrix dy, ConstMatrix x, const Call& call, int64_t place, int64_t bias_place) const;
  double write_weights(const Saved& saved, const Call& call) const;
  void write_weights_backward(const Saved& saved, const Scratch& scratch, const Call& call) const;
  MemoryTask<Real> memory_task(const Saved& saved, const Scratch& scratch, const Call& call, int64_t task) const;
  void begin_states(const Saved& saved, const Scratch& scratch, const Call& call) const;
  void end_states(const Saved& saved, const Scratch& scratch, const Call& call) const;
  Real mixing_gate(const Saved& saved, const Call& call, int64_t row, int64_t head) const;
  void mix(Matrix mixed, const Saved& saved, const Call& call) const;
  void mix_backward(const Saved& saved, const Scratch& scratch, const Call& call) const;

  Infini::Settings s_;
  std::vector<ParameterSpec> specs_;
  Order order_;
};

// What backward needs again.
template <class Real>
struct TrainableInfini<Real>::Saved {
  Saved(Carver& carver, const TrainableInfini& room, const PackedBatch& batch) {
    const Infini::Settings& s = room.s_;
    const int64_t rows = batch.rows();
    q = carver.matrix<Real>(rows, room.query_cols());
    k = carver.matrix<Real>(rows, room.key_cols());
    v = carver.matrix<Real>(rows, room.value_cols());
    attended = carver.matrix<Real>(rows, room.out_cols());
    log_sum_exp = carver.matrix<Real>(rows, s.heads);
    read = carver.matrix<Real>(rows, room.out_cols());
    weight = carver.matrix<Real>(rows, s.kv_heads);
    if (s.token_gate) gate = carver.matrix<Real>(rows, s.heads);
    if (s.write_gate != WriteGate::kNone) write = carver.matrix<Real>(rows, s.kv_heads);
    if (s.rule == MemoryRule::kDeltaTrue) {
      strength = carver.matrix<Real>(rows, s.kv_heads);
      written = carver.matrix<Real>(rows, room.value_cols());
    }
    int64_t runs = 0;
    for_runs(batch, s.segment_tokens, [&](int64_t, const SegmentRun&) { ++runs; });
    states = carver.take<Real>((runs + batch.sequences()) * s.kv_heads * memory_state_elements(s));
  }
  Matrix q, k, v;                  // not rotated
  Matrix attended, log_sum_exp;    // of the local attention
  Matrix read;                     // from the memory, normalised
  Matrix gate, write, strength;    // logits
  Matrix weight;                   // how much of a token is written
  Matrix written;
  Real* states = nullptr;          // sequence after sequence, in each head after head, in each runs + 1 states
};

template <class Real>
struct TrainableInfini<Real>::Scratch {
  Scratch(Carver& carver, const TrainableInfini& room, const PackedBatch& batch) {
    const Infini::Settings& s = room.s_;
    const int64_t rows = batch.rows(), tasks = batch.sequences() * s.kv_heads;
    int64_t count = 0, longest = 0;
    for_runs(batch, s.segment_tokens, [&](int64_t, const SegmentRun& run) {
      ++count;
      longest = std::max(longest, run.rows);
    });
    visible = carver.span<KeyRange>(rows);
    slices = carver.span<AttentionSlice>(batch.sequences());
    runs = carver.span<SegmentRun>(count);
    first_run = carver.span<int64_t>(batch.sequences() + 1);
    q = carver.matrix<Real>(rows, room.query_cols());
    k = carver.matrix<Real>(rows, room.key_cols());
    mixed = carver.matrix<Real>(rows, room.out_cols());
    task_elements = memory_task_scratch(s, longest);
    task_buffers = carver.take<Real>(tasks * task_elements);
    // Backward only.
    dmixed = carver.matrix<Real>(rows, room.out_cols());
    dread = carver.matrix<Real>(rows, room.out_cols());
    dq = carver.matrix<Real>(rows, room.query_cols());
    dk = carver.matrix<Real>(rows, room.key_cols());
    dv = carver.matrix<Real>(rows, room.value_cols());
    dgate = carver.matrix<Real>(rows, s.heads);
    dweight = carver.matrix<Real>(rows, s.kv_heads);
    dwrite = carver.matrix<Real>(rows, s.kv_heads);
    dstrength = carver.matrix<Real>(rows, s.kv_heads);
    dread_norm = carver.matrix<Real>(tasks, s.value_dim);
  }
  std::span<KeyRange> visible;
  std::span<AttentionSlice> slices;
  std::span<SegmentRun> runs;
  std::span<int64_t> first_run;    // [sequences + 1]
  Matrix q, k;                     // rotated
  Matrix mixed;
  int64_t task_elements = 0;
  Real* task_buffers = nullptr;
  Matrix dmixed, dread, dq, dk, dv, dgate, dweight, dwrite, dstrength, dread_norm;
};

template <class Real>
void TrainableInfini<Real>::declare_projections(std::span<const std::string> optional_roles) {
  const auto matrix = [&](const char* role, int64_t rows, int64_t cols, Initialisation initial) {
    specs_.push_back({role, {rows, cols}, initial, ParameterGroup::kMatrix});
  };
  matrix("query", query_cols(), s_.hidden, Initialisation::normal(kInitialDeviation));
  matrix("key", key_cols(), s_.hidden, Initialisation::normal(kInitialDeviation));
  matrix("value", value_cols(), s_.hidden, Initialisation::normal(kInitialDeviation));
  matrix("output", s_.hidden, out_cols(), Initialisation::residual(kInitialDeviation));
  const auto bias = [&](int64_t& place, const char* role, int64_t length) {
    if (std::ranges::find(optional_roles, role) == optional_roles.end()) return;
    place = static_cast<int64_t>(specs_.size());
    specs_.push_back({role, {length}, {}, ParameterGroup::kBias});
  };
  bias(order_.query_bias, "query_bias", query_cols());
  bias(order_.key_bias, "key_bias", key_cols());
  bias(order_.value_bias, "value_bias", value_cols());
  bias(order_.output_bias, "output_bias", s_.hidden);
}

template <class Real>
void TrainableInfini<Real>::declare_gates() {
  const auto add = [&](int64_t& place, const char* role, Shape shape, Initialisation initial, ParameterGroup group) {
    place = static_cast<int64_t>(specs_.size());
    specs_.push_back({role, std::move(shape), initial, group});
  };
  const Initialisation normal = Initialisation::normal(kInitialDeviation);
  // Spread, so that some heads begin with their memory and symmetry is broken.
  add(order_.gate_bias, "memory_gate", {s_.heads}, Initialisation::spread(-2, 2), ParameterGroup::kGate);
  if (s_.token_gate) add(order_.gate, "memory_gate_proj", {s_.heads, s_.hidden}, normal, ParameterGroup::kGate);
  if (s_.write_gate != WriteGate::kNone) {
    add(order_.write_gate, "write_gate", {s_.kv_heads, s_.hidden}, normal, ParameterGroup::kGate);
    // Open enough that every token gets a gradient in the beginning.
    add(order_.write_gate_bias, "write_gate_bias", {s_.kv_heads}, Initialisation::constant(0.5), ParameterGroup::kGate);
  }
  if (s_.rule == MemoryRule::kDeltaTrue) {
    add(order_.strength, "write_strength", {s_.kv_heads, s_.hidden}, normal, ParameterGroup::kGate);
    add(order_.strength_bias, "write_strength_bias", {s_.kv_heads}, {}, ParameterGroup::kGate);
  }
  if (s_.norm == ReadNorm::kRms) add(order_.read_norm, "read_norm", {s_.value_dim}, Initialisation::constant(1), ParameterGroup::kNorm);
}

template <class Real>
double TrainableInfini<Real>::forward_flops(const PackedBatch& batch) const {
  const double rows = static_cast<double>(batch.rows());
  const double gates = static_cast<double>((order_.gate >= 0 ? s_.heads : 0) + (order_.write_gate >= 0 ? s_.kv_heads : 0) +
                                           (order_.strength >= 0 ? s_.kv_heads : 0));
  const double projections = static_cast<double>((s_.heads + s_.kv_heads) * (s_.head_dim + s_.value_dim)) + gates;
  const double passes = static_cast<double>(s_.heads + (s_.rule == MemoryRule::kLinear ? 1 : 2) * s_.kv_heads);
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
  return 2 * rows * (static_cast<double>(s_.hidden) * projections + passes * static_cast<double>(s_.map.count() * s_.value_dim)) +
         2 * pairs * static_cast<double>(s_.heads * (s_.head_dim + s_.value_dim));
}

// A row sees its own segment and, with a window, the one before.
template <class Real>
void TrainableInfini<Real>::fill_pattern(const Scratch& scratch, const PackedBatch& batch) const {
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
AttentionPattern TrainableInfini<Real>::pattern(const Scratch& scratch) const {
  return {.slices = scratch.slices, .visible = scratch.visible, .heads = s_.heads, .kv_heads = s_.kv_heads,
          .key_dim = s_.head_dim, .value_dim = s_.value_dim, .scale = s_.scale};
}

template <class Real>
void TrainableInfini<Real>::rotate(Matrix heads, const Call& call, Direction direction) const {
  if (s_.rope.rotary_dim == 0) return;
  call.ops.rope(heads, s_.head_dim, call.batch.positions, s_.rope.inverse_frequency,
                {.interleaved = s_.rope.interleaved, .rotary_dim = s_.rope.rotary_dim, .magnitude = s_.rope.magnitude}, direction);
}

template <class Real>
void TrainableInfini<Real>::copy(Matrix to, ConstMatrix from, const Call& call) const {
  const int64_t chunks = (from.rows + kChunkRows - 1) / kChunkRows;
  call.ops.pool().parallel_for(chunks, [&](int64_t chunk) {
    const int64_t begin = chunk * kChunkRows, end = std::min(from.rows, begin + kChunkRows);
    std::copy(from.row(begin), from.row(begin) + (end - begin) * from.cols, to.row(begin));
  });
}

template <class Real>
void TrainableInfini<Real>::logits(Matrix y, ConstMatrix x, const Call& call, int64_t place, int64_t bias_place) const {
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
void TrainableInfini<Real>::logits_backward(Matrix dx, ConstMatrix dy, ConstMatrix x, const Call& call, int64_t place,
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
double TrainableInfini<Real>::write_weights(const Saved& saved, const Call& call) const {
  const bool gated = s_.write_gate != WriteGate::kNone, ordered = s_.rule == MemoryRule::kDeltaTrue;
  double sum = 0;
  for (int64_t row = 0; row < saved.weight.rows; ++row) {
    for (int64_t m = 0; m < s_.kv_heads; ++m) {
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
  return gated && saved.weight.rows > 0 ? call.options.write_penalty * sum / static_cast<double>(saved.weight.rows * s_.kv_heads) : 0;
}

template <class Real>
void TrainableInfini<Real>::write_weights_backward(const Saved& saved, const Scratch& scratch, const Call& call) const {
  const bool gated = s_.write_gate != WriteGate::kNone, ordered = s_.rule == MemoryRule::kDeltaTrue;
  if (!gated && !ordered) return;
  const Real penalty = static_cast<Real>(call.options.write_penalty / static_cast<double>(saved.weight.rows * s_.kv_heads));
  for (int64_t row = 0; row < saved.weight.rows; ++row) {
    for (int64_t m = 0; m < s_.kv_heads; ++m) {
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

// Task: sequence * kv_heads + key head.
template <class Real>
MemoryTask<Real> TrainableInfini<Real>::memory_task(const Saved& saved, const Scratch& scratch, const Call& call, int64_t task) const {
  const int64_t sequence = task / s_.kv_heads, kv_head = task % s_.kv_heads;
  const int64_t first = scratch.first_run[static_cast<size_t>(sequence)];
  const int64_t count = scratch.first_run[static_cast<size_t>(sequence) + 1] - first;
  const int64_t states_before = (first + sequence) * s_.kv_heads + kv_head * (count + 1);
  std::span<const Real> norm;
  if (order_.read_norm >= 0) norm = {weight(call, order_.read_norm).data, static_cast<size_t>(s_.value_dim)};
  return {.settings = &s_, .runs = scratch.runs.subspan(static_cast<size_t>(first), static_cast<size_t>(count)),
          .kv_head = kv_head, .q = saved.q, .k = saved.k, .v = saved.v, .weight = saved.weight, .read_norm = norm,
          .states = saved.states + states_before * memory_state_elements(s_), .written = saved.written, .read = saved.read};
}

template <class Real>
void TrainableInfini<Real>::begin_states(const Saved& saved, const Scratch& scratch, const Call& call) const {
  const int64_t elements = memory_state_elements(s_);
  for (int64_t task = 0; task < call.batch.sequences() * s_.kv_heads; ++task) {
    Real* const state = memory_task(saved, scratch, call, task).states;
    if (call.options.initial_state.empty()) {
      std::fill(state, state + elements, Real{0});
    } else {
      const Real* from = call.options.initial_state.data() + task * elements;
      std::copy(from, from + elements, state);
    }
  }
}

template <class Real>
void TrainableInfini<Real>::end_states(const Saved& saved, const Scratch& scratch, const Call& call) const {
  if (call.options.final_state.empty()) return;
  const int64_t elements = memory_state_elements(s_);
  for (int64_t i = 0; i < call.batch.sequences() * s_.kv_heads; ++i) {
    const MemoryTask<Real> task = memory_task(saved, scratch, call, i);
    const Real* last = task.states + static_cast<int64_t>(task.runs.size()) * elements;
    std::copy(last, last + elements, call.options.final_state.data() + i * elements);
  }
}

// How much of the memory a head takes; 0 in a first segment that is not gated.
template <class Real>
Real TrainableInfini<Real>::mixing_gate(const Saved& saved, const Call& call, int64_t row, int64_t head) const {
  if (!s_.first_segment_gated && call.batch.positions[static_cast<size_t>(row)] < s_.segment_tokens) return 0;
  // saved.gate holds the bias already.
  return sigmoid(s_.token_gate ? saved.gate(row, head) : weight(call, order_.gate_bias).data[head]);
}

template <class Real>
void TrainableInfini<Real>::mix(Matrix mixed, const Saved& saved, const Call& call) const {
  const int64_t chunks = (mixed.rows + kChunkRows - 1) / kChunkRows;
  call.ops.pool().parallel_for(chunks, [&](int64_t chunk) {
    for (int64_t row = chunk * kChunkRows; row < std::min(mixed.rows, (chunk + 1) * kChunkRows); ++row) {
      for (int64_t head = 0; head < s_.heads; ++head) {
        const Real gate = mixing_gate(saved, call, row, head);
        for (int64_t c = head * s_.value_dim; c < (head + 1) * s_.value_dim; ++c) {
          mixed(row, c) = gate * saved.read(row, c) + (1 - gate) * saved.attended(row, c);
        }
      }
    }
  });
}

// dmixed becomes the gradient of the local attention's output; dread and dgate (of the logits) are written.
template <class Real>
void TrainableInfini<Real>::mix_backward(const Saved& saved, const Scratch& scratch, const Call& call) const {
  const int64_t rows = scratch.dmixed.rows, chunks = (rows + kChunkRows - 1) / kChunkRows;
  call.ops.pool().parallel_for(chunks, [&](int64_t chunk) {
    for (int64_t row = chunk * kChunkRows; row < std::min(rows, (chunk + 1) * kChunkRows); ++row) {
      for (int64_t head = 0; head < s_.heads; ++head) {
        const Real gate = mixing_gate(saved, call, row, head);
        Real dgate = 0;
        for (int64_t c = head * s_.value_dim; c < (head + 1) * s_.value_dim; ++c) {
          const Real d = scratch.dmixed(row, c);
          dgate += d * (saved.read(row, c) - saved.attended(row, c));
          scratch.dread(row, c) = gate * d;
          scratch.dmixed(row, c) = (1 - gate) * d;
        }
        scratch.dgate(row, head) = dgate * gate * (1 - gate);
      }
    }
  });
}

template <class Real>
double TrainableInfini<Real>::forward(Matrix out, ConstMatrix x, const Call& call) const {
  Carver saved_carver(call.saved), scratch_carver(call.scratch);
  const Saved saved(saved_carver, *this, call.batch);
  const Scratch scratch(scratch_carver, *this, call.batch);
  TrainingOps<Real>& ops = call.ops;
  fill_pattern(scratch, call.batch);
  const LinearForward<Real> projections[] = {{saved.q, weight(call, kQuery), bias(call, order_.query_bias)},
                                             {saved.k, weight(call, kKey), bias(call, order_.key_bias)},
                                             {saved.v, weight(call, kValue), bias(call, order_.value_bias)}};
  ops.matmul(projections, x);
  if (s_.token_gate) logits(saved.gate, x, call, order_.gate, order_.gate_bias);
  if (order_.write_gate >= 0) logits(saved.write, x, call, order_.write_gate, order_.write_gate_bias);
  if (order_.strength >= 0) logits(saved.strength, x, call, order_.strength, order_.strength_bias);
  const double penalty = write_weights(saved, call);

  copy(scratch.q, saved.q, call);
  copy(scratch.k, saved.k, call);
  rotate(scratch.q, call, Direction::kForward);
  rotate(scratch.k, call, Direction::kForward);
  ops.attention(saved.attended, saved.log_sum_exp, {scratch.q, scratch.k, saved.v}, pattern(scratch));

  begin_states(saved, scratch, call);
  ops.pool().parallel_for(call.batch.sequences() * s_.kv_heads, [&](int64_t task) {
    memory_forward(memory_task(saved, scratch, call, task),
                   std::span<Real>(scratch.task_buffers + task * scratch.task_elements, static_cast<size_t>(scratch.task_elements)));
  });
  end_states(saved, scratch, call);
  mix(scratch.mixed, saved, call);
  ops.matmul(out, scratch.mixed, weight(call, kOutput), bias(call, order_.output_bias));
  return penalty;
}

// Each line undoes one line of forward, last first.
template <class Real>
void TrainableInfini<Real>::backward(Matrix dx, ConstMatrix dout, ConstMatrix x, const Call& call) const {
  Carver saved_carver(call.saved), scratch_carver(call.scratch);
  const Saved saved(saved_carver, *this, call.batch);
  const Scratch scratch(scratch_carver, *this, call.batch);
  TrainingOps<Real>& ops = call.ops;
  fill_pattern(scratch, call.batch);
  mix(scratch.mixed, saved, call);
  const LinearBackward<Real> output{dout, weight(call, kOutput), gradient(call, kOutput), dbias(call, order_.output_bias)};
  ops.matmul_backward(scratch.dmixed, output, scratch.mixed);
  mix_backward(saved, scratch, call);

  copy(scratch.q, saved.q, call);
  copy(scratch.k, saved.k, call);
  rotate(scratch.q, call, Direction::kForward);
  rotate(scratch.k, call, Direction::kForward);
  ops.attention_backward({scratch.dq, scratch.dk, scratch.dv}, scratch.dmixed, {scratch.q, scratch.k, saved.v},
                         {saved.attended, saved.log_sum_exp}, pattern(scratch));
  rotate(scratch.dq, call, Direction::kBackward);
  rotate(scratch.dk, call, Direction::kBackward);

  const int64_t tasks = call.batch.sequences() * s_.kv_heads;
  const bool norm = order_.read_norm >= 0;
  std::fill(scratch.dread_norm.data, scratch.dread_norm.data + tasks * s_.value_dim, Real{0});
  ops.pool().parallel_for(tasks, [&](int64_t task) {
    std::span<Real> dread_norm;
    if (norm) dread_norm = {scratch.dread_norm.row(task), static_cast<size_t>(s_.value_dim)};
    memory_backward(memory_task(saved, scratch, call, task),
                    {scratch.dread, scratch.dq, scratch.dk, scratch.dv, scratch.dweight, dread_norm},
                    std::span<Real>(scratch.task_buffers + task * scratch.task_elements, static_cast<size_t>(scratch.task_elements)));
  });
  if (norm && gradient(call, order_.read_norm).data != nullptr) {
    for (int64_t task = 0; task < tasks; ++task) {
      for (int64_t c = 0; c < s_.value_dim; ++c) gradient(call, order_.read_norm).data[c] += scratch.dread_norm(task, c);
    }
  }
  write_weights_backward(saved, scratch, call);

  const LinearBackward<Real> projections[] = {
      {scratch.dq, weight(call, kQuery), gradient(call, kQuery), dbias(call, order_.query_bias)},
      {scratch.dk, weight(call, kKey), gradient(call, kKey), dbias(call, order_.key_bias)},
      {scratch.dv, weight(call, kValue), gradient(call, kValue), dbias(call, order_.value_bias)}};
  ops.matmul_backward(dx, projections, x);
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

}  // namespace

template <class Real>
Result<std::unique_ptr<TrainableAttention<Real>>> create_training_infini(const AttentionShape& shape, const HyperParameters& parameters,
                                                                         std::span<const std::string> optional_roles) {
  ASSIGN_OR_RETURN(Infini::Settings settings, Infini::read_settings(shape, parameters));
  return std::unique_ptr<TrainableAttention<Real>>(std::make_unique<TrainableInfini<Real>>(std::move(settings), optional_roles));
}

template Result<std::unique_ptr<TrainableAttention<float>>> create_training_infini(const AttentionShape&, const HyperParameters&,
                                                                                   std::span<const std::string>);
template Result<std::unique_ptr<TrainableAttention<double>>> create_training_infini(const AttentionShape&, const HyperParameters&,
                                                                                    std::span<const std::string>);

}  // namespace quipu
