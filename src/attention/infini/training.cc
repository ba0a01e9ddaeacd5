// Infini-attention that learns: math.md over whole sequences, full backpropagation through the memory over all segments.
#include <algorithm>
#include <string>
#include <vector>

#include "attention/infini/infini.h"
#include "attention/shared/segment_memory_training.h"
#include "attention/training.h"

namespace quipu {
namespace {

constexpr int64_t kChunkRows = 64;   // rows of one task where rows are worked on one by one

// Where each optional parameter stands in parameters(); -1: the model has none.
struct Order {
  int64_t query_bias = -1, key_bias = -1, value_bias = -1, output_bias = -1;
};
enum Fixed : size_t { kQuery, kKey, kValue, kOutput };

template <class Real>
class TrainableInfini final : public TrainableAttention<Real> {
 public:
  using Matrix = MatrixView<Real>;
  using ConstMatrix = MatrixView<const Real>;
  using Call = TrainingCall<Real>;
  using Memory = SegmentMemoryTraining<Real>;

  TrainableInfini(Infini::Settings settings, std::span<const std::string> optional_roles)
      : s_(std::move(settings)), specs_(projections(optional_roles)), memory_(s_, s_.hidden, specs_) {}

  std::span<const ParameterSpec> parameters() const override { return specs_; }
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
  int64_t state_elements() const override { return memory_.state_elements(); }
  double forward(Matrix out, ConstMatrix x, const Call& call) const override;
  void backward(Matrix dx, ConstMatrix dout, ConstMatrix x, const Call& call) const override;
  double forward_flops(const PackedBatch& batch) const override;

 private:
  // What backward needs again.
  struct Saved {
    Saved(Carver& carver, const TrainableInfini& room, const PackedBatch& batch)
        : q(carver.matrix<Real>(batch.rows(), room.query_cols())),
          k(carver.matrix<Real>(batch.rows(), room.key_cols())),
          v(carver.matrix<Real>(batch.rows(), room.value_cols())),
          attended(carver.matrix<Real>(batch.rows(), room.out_cols())),
          log_sum_exp(carver.matrix<Real>(batch.rows(), room.s_.heads)),
          memory(carver, room.memory_, batch) {}
    Matrix q, k, v;                  // not rotated
    Matrix attended, log_sum_exp;    // of the local attention
    typename Memory::Saved memory;
  };
  struct Scratch {
    Scratch(Carver& carver, const TrainableInfini& room, const PackedBatch& batch)
        : q(carver.matrix<Real>(batch.rows(), room.query_cols())),
          k(carver.matrix<Real>(batch.rows(), room.key_cols())),
          mixed(carver.matrix<Real>(batch.rows(), room.out_cols())),
          dmixed(carver.matrix<Real>(batch.rows(), room.out_cols())),
          dq(carver.matrix<Real>(batch.rows(), room.query_cols())),
          dk(carver.matrix<Real>(batch.rows(), room.key_cols())),
          dv(carver.matrix<Real>(batch.rows(), room.value_cols())),
          memory(carver, room.memory_, batch) {}
    Matrix q, k;                     // rotated
    Matrix mixed;
    Matrix dmixed, dq, dk, dv;       // backward only
    typename Memory::Scratch memory;
  };

  std::vector<ParameterSpec> projections(std::span<const std::string> optional_roles);
  int64_t query_cols() const { return s_.heads * s_.head_dim; }
  int64_t key_cols() const { return s_.kv_heads * s_.head_dim; }
  int64_t value_cols() const { return s_.kv_heads * s_.value_dim; }
  int64_t out_cols() const { return s_.heads * s_.value_dim; }

  static ConstMatrix weight(const Call& call, int64_t place) { return call.weights[static_cast<size_t>(place)]; }
  static Matrix gradient(const Call& call, int64_t place) { return call.gradients[static_cast<size_t>(place)]; }
  static const Real* bias(const Call& call, int64_t place) { return place < 0 ? nullptr : weight(call, place).data; }
  static Real* dbias(const Call& call, int64_t place) { return place < 0 ? nullptr : gradient(call, place).data; }

  template <class Element>
  MemoryRows<Element> memory_rows(MatrixView<Element> q, MatrixView<Element> k, MatrixView<Element> v) const {
    return {.query = q, .key = k, .value = v,
            .query_stride = s_.head_dim, .key_stride = s_.head_dim, .value_stride = s_.value_dim};
  }
  AttentionPattern pattern(const Scratch& scratch) const {
    return {.slices = scratch.memory.slices, .visible = scratch.memory.visible, .heads = s_.heads, .kv_heads = s_.kv_heads,
            .key_dim = s_.head_dim, .value_dim = s_.value_dim, .scale = s_.scale};
  }
  void rotate(Matrix heads, const Call& call, Direction direction) const;
  void copy(Matrix to, ConstMatrix from, const Call& call) const;

  Infini::Settings s_;
  Order order_;
  std::vector<ParameterSpec> specs_;
  Memory memory_;
};

template <class Real>
std::vector<ParameterSpec> TrainableInfini<Real>::projections(std::span<const std::string> optional_roles) {
  std::vector<ParameterSpec> specs;
  const auto matrix = [&](const char* role, int64_t rows, int64_t cols, Initialisation initial) {
    specs.push_back({role, {rows, cols}, initial, ParameterGroup::kMatrix});
  };
  matrix("query", query_cols(), s_.hidden, Initialisation::normal(kInitialDeviation));
  matrix("key", key_cols(), s_.hidden, Initialisation::normal(kInitialDeviation));
  matrix("value", value_cols(), s_.hidden, Initialisation::normal(kInitialDeviation));
  matrix("output", s_.hidden, out_cols(), Initialisation::residual(kInitialDeviation));
  const auto bias = [&](int64_t& place, const char* role, int64_t length) {
    if (std::ranges::find(optional_roles, role) == optional_roles.end()) return;
    place = static_cast<int64_t>(specs.size());
    specs.push_back({role, {length}, {}, ParameterGroup::kBias});
  };
  bias(order_.query_bias, "query_bias", query_cols());
  bias(order_.key_bias, "key_bias", key_cols());
  bias(order_.value_bias, "value_bias", value_cols());
  bias(order_.output_bias, "output_bias", s_.hidden);
  return specs;
}

template <class Real>
double TrainableInfini<Real>::forward_flops(const PackedBatch& batch) const {
  const double projections = static_cast<double>(s_.hidden * (s_.heads + s_.kv_heads) * (s_.head_dim + s_.value_dim));
  return 2 * static_cast<double>(batch.rows()) * projections + memory_.flops(batch) +
         2 * memory_.local_pairs(batch) * static_cast<double>(s_.heads * (s_.head_dim + s_.value_dim));
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
double TrainableInfini<Real>::forward(Matrix out, ConstMatrix x, const Call& call) const {
  Carver saved_carver(call.saved), scratch_carver(call.scratch);
  const Saved saved(saved_carver, *this, call.batch);
  const Scratch scratch(scratch_carver, *this, call.batch);
  TrainingOps<Real>& ops = call.ops;
  const LinearForward<Real> projections[] = {{saved.q, weight(call, kQuery), bias(call, order_.query_bias)},
                                             {saved.k, weight(call, kKey), bias(call, order_.key_bias)},
                                             {saved.v, weight(call, kValue), bias(call, order_.value_bias)}};
  ops.matmul(projections, x);
  const double penalty = memory_.begin(saved.memory, scratch.memory, x, call);

  copy(scratch.q, saved.q, call);
  copy(scratch.k, saved.k, call);
  rotate(scratch.q, call, Direction::kForward);
  rotate(scratch.k, call, Direction::kForward);
  ops.attention(saved.attended, saved.log_sum_exp, {scratch.q, scratch.k, saved.v}, pattern(scratch));

  memory_.read_and_write(saved.memory, scratch.memory, memory_rows<const Real>(saved.q, saved.k, saved.v), call);
  memory_.mix(scratch.mixed, saved.attended, saved.memory.read, saved.memory, call);
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
  memory_.find_runs(scratch.memory, call.batch);
  memory_.mix(scratch.mixed, saved.attended, saved.memory.read, saved.memory, call);
  const LinearBackward<Real> output{dout, weight(call, kOutput), gradient(call, kOutput), dbias(call, order_.output_bias)};
  ops.matmul_backward(scratch.dmixed, output, scratch.mixed);
  memory_.mix_backward(scratch.dmixed, scratch.memory.dread, saved.attended, saved.memory.read, saved.memory, scratch.memory, call);

  copy(scratch.q, saved.q, call);
  copy(scratch.k, saved.k, call);
  rotate(scratch.q, call, Direction::kForward);
  rotate(scratch.k, call, Direction::kForward);
  ops.attention_backward({scratch.dq, scratch.dk, scratch.dv}, scratch.dmixed, {scratch.q, scratch.k, saved.v},
                         {saved.attended, saved.log_sum_exp}, pattern(scratch));
  rotate(scratch.dq, call, Direction::kBackward);
  rotate(scratch.dk, call, Direction::kBackward);
  memory_.read_and_write_backward(memory_rows<Real>(scratch.dq, scratch.dk, scratch.dv), saved.memory, scratch.memory,
                                  memory_rows<const Real>(saved.q, saved.k, saved.v), call);

  const LinearBackward<Real> projections[] = {
      {scratch.dq, weight(call, kQuery), gradient(call, kQuery), dbias(call, order_.query_bias)},
      {scratch.dk, weight(call, kKey), gradient(call, kKey), dbias(call, order_.key_bias)},
      {scratch.dv, weight(call, kValue), gradient(call, kValue), dbias(call, order_.value_bias)}};
  ops.matmul_backward(dx, projections, x);
  memory_.gates_backward(dx, scratch.memory, x, call);
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
