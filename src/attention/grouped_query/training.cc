// Grouped-query attention that learns: math.md over whole sequences, and its derivative beside it.
#include <algorithm>
#include <string>
#include <vector>

#include "attention/grouped_query/grouped_query.h"
#include "attention/training.h"

namespace quipu {
namespace {

// Where each parameter stands in parameters(); -1: the model has none.
struct Order {
  int64_t query = 0, key = 1, value = 2, output = 3;
  int64_t query_bias = -1, key_bias = -1, value_bias = -1, output_bias = -1, query_norm = -1, key_norm = -1;
};

template <class Real>
class TrainableGroupedQuery final : public TrainableAttention<Real> {
 public:
  using Matrix = MatrixView<Real>;
  using ConstMatrix = MatrixView<const Real>;
  using Call = TrainingCall<Real>;

  TrainableGroupedQuery(GroupedQuery::Settings settings, std::span<const std::string> optional_roles) : s_(std::move(settings)) {
    const auto matrix = [&](const char* role, int64_t rows, int64_t cols, Initialisation initial) {
      specs_.push_back({role, {rows, cols}, initial, ParameterGroup::kMatrix});
    };
    matrix("query", query_cols(), s_.hidden, Initialisation::normal(kInitialDeviation));
    matrix("key", key_cols(), s_.hidden, Initialisation::normal(kInitialDeviation));
    matrix("value", value_cols(), s_.hidden, Initialisation::normal(kInitialDeviation));
    matrix("output", s_.hidden, out_cols(), Initialisation::residual(kInitialDeviation));
    const auto vector = [&](int64_t& place, const char* role, int64_t length, Initialisation initial, ParameterGroup group) {
      place = static_cast<int64_t>(specs_.size());
      specs_.push_back({role, {length}, initial, group});
    };
    const auto bias = [&](int64_t& place, const char* role, int64_t length) {
      if (std::ranges::find(optional_roles, role) == optional_roles.end()) return;
      vector(place, role, length, {}, ParameterGroup::kBias);
    };
    bias(order_.query_bias, "query_bias", query_cols());
    bias(order_.key_bias, "key_bias", key_cols());
    bias(order_.value_bias, "value_bias", value_cols());
    bias(order_.output_bias, "output_bias", s_.hidden);
    if (s_.qk_norm) {
      vector(order_.query_norm, "query_norm", s_.head_dim, Initialisation::constant(1), ParameterGroup::kNorm);
      vector(order_.key_norm, "key_norm", s_.head_dim, Initialisation::constant(1), ParameterGroup::kNorm);
    }
  }

  std::span<const ParameterSpec> parameters() const override { return specs_; }
  void plan_for(const TrainingOps<Real>& ops) override {
    if (ops.fuses_self_attention(shape()) && s_.scale > 0) fused_ = &ops;
  }
  bool takes_norm() const override { return fused_ != nullptr; }
  int64_t saved_bytes(const PackedBatch& batch) const override {
    if (fused_ != nullptr) return fused_->self_attention_memory(shape(), batch.offsets).saved;
    Carver measure;
    Saved(measure, *this, batch.rows());
    return measure.bytes();
  }
  int64_t scratch_bytes(const PackedBatch& batch) const override {
    Carver measure;
    if (fused_ != nullptr) {
      FusedScratch(measure, *this, batch);
    } else {
      Scratch(measure, *this, batch);
    }
    return measure.bytes();
  }
  double forward(Matrix out, ConstMatrix x, const Call& call) const override;
  void backward(Matrix dx, ConstMatrix dout, ConstMatrix x, const Call& call) const override;

  double forward_flops(const PackedBatch& batch) const override {
    const double projections = 2.0 * static_cast<double>(s_.hidden * (s_.heads + s_.kv_heads) * (s_.head_dim + s_.value_dim)) *
                               static_cast<double>(batch.rows());
    double pairs = 0;
    for (int64_t i = 0; i < batch.sequences(); ++i) {
      const double rows = static_cast<double>(batch.offsets[static_cast<size_t>(i) + 1] - batch.offsets[static_cast<size_t>(i)]);
      const double window = s_.window > 0 ? std::min(rows, static_cast<double>(s_.window)) : rows;
      pairs += window * (window + 1) / 2 + (rows - window) * window;
    }
    return projections + 2.0 * static_cast<double>(s_.heads * (s_.head_dim + s_.value_dim)) * pairs;
  }

 private:
  // What backward needs again.
  struct Saved {
    Saved(Carver& carver, const TrainableGroupedQuery& room, int64_t rows) {
      const auto& s = room.s_;
      query = carver.matrix<Real>(rows, room.query_cols());
      key = carver.matrix<Real>(rows, room.key_cols());
      value = carver.matrix<Real>(rows, room.value_cols());
      attended = carver.matrix<Real>(rows, room.out_cols());
      log_sum_exp = carver.matrix<Real>(rows, s.heads);
      if (!s.qk_norm) return;
      plain_query = carver.matrix<Real>(rows, room.query_cols());
      plain_key = carver.matrix<Real>(rows, room.key_cols());
      query_scale = carver.span<Real>(rows * s.heads);
      key_scale = carver.span<Real>(rows * s.kv_heads);
    }
    Matrix query, key, value;        // as attention takes them: after norm and rotation
    Matrix attended, log_sum_exp;
    Matrix plain_query, plain_key;   // with qk_norm: before the norm
    std::span<Real> query_scale, key_scale;
  };
  struct Scratch {
    Scratch(Carver& carver, const TrainableGroupedQuery& room, const PackedBatch& batch) {
      const int64_t rows = batch.rows();
      visible = carver.span<KeyRange>(rows);
      slices = carver.span<AttentionSlice>(batch.sequences());
      dattended = carver.matrix<Real>(rows, room.out_cols());
      dquery = carver.matrix<Real>(rows, room.query_cols());
      dkey = carver.matrix<Real>(rows, room.key_cols());
      dvalue = carver.matrix<Real>(rows, room.value_cols());
    }
    std::span<KeyRange> visible;
    std::span<AttentionSlice> slices;
    Matrix dattended, dquery, dkey, dvalue;   // backward only
  };

  struct FusedScratch {
    FusedScratch(Carver& carver, const TrainableGroupedQuery& room, const PackedBatch& batch)
        : visible(carver.span<KeyRange>(batch.rows())),
          slices(carver.span<AttentionSlice>(batch.sequences())),
          part(carver.part(room.fused_->self_attention_memory(room.shape(), batch.offsets).scratch)) {}
    std::span<KeyRange> visible;
    std::span<AttentionSlice> slices;
    std::span<std::byte> part;
  };

  int64_t query_cols() const { return s_.heads * s_.head_dim; }
  int64_t key_cols() const { return s_.kv_heads * s_.head_dim; }
  int64_t value_cols() const { return s_.kv_heads * s_.value_dim; }
  int64_t out_cols() const { return s_.heads * s_.value_dim; }

  SelfAttentionShape shape() const {
    return {s_.hidden, s_.heads, s_.kv_heads, s_.head_dim, s_.value_dim,
            std::max({order_.query_bias, order_.key_bias, order_.value_bias, order_.output_bias, order_.query_norm}) < 0};
  }
  SelfAttentionCall<Real> fused_call(const FusedScratch& scratch, const Call& call) const {
    return {weight(call, order_.query), weight(call, order_.key), weight(call, order_.value), weight(call, order_.output),
            pattern(scratch, call.batch), call.batch.positions, s_.rope.inverse_frequency,
            {.interleaved = s_.rope.interleaved, .rotary_dim = s_.rope.rotary_dim, .magnitude = s_.rope.magnitude}, call.norm, call.saved, scratch.part};
  }
  template <class AnyScratch>
  AttentionPattern pattern(const AnyScratch& scratch, const PackedBatch& batch) const {
    causal_ranges(scratch.visible, batch, s_.window);
    sequence_slices(scratch.slices, batch);
    return {.slices = scratch.slices, .visible = scratch.visible, .heads = s_.heads, .kv_heads = s_.kv_heads,
            .key_dim = s_.head_dim, .value_dim = s_.value_dim, .scale = s_.scale, .softcap = s_.softcap};
  }
  // Every head of every row as a row of its own: what the norms of heads work on. The rows lie side by side.
  Matrix each_head(Matrix m) const { return {m.data, m.rows * (m.cols / s_.head_dim), s_.head_dim}; }
  void rotate(Matrix heads, const Call& call, Direction direction) const {
    if (s_.rope.rotary_dim == 0) return;
    call.ops.rope(heads, s_.head_dim, call.batch.positions, s_.rope.inverse_frequency,
                  {.interleaved = s_.rope.interleaved, .rotary_dim = s_.rope.rotary_dim, .magnitude = s_.rope.magnitude}, direction);
  }
  ConstMatrix weight(const Call& call, int64_t place) const { return call.weights[static_cast<size_t>(place)]; }
  Matrix gradient(const Call& call, int64_t place) const { return call.gradients[static_cast<size_t>(place)]; }
  const Real* bias(const Call& call, int64_t place) const { return place < 0 ? nullptr : weight(call, place).data; }
  Real* dbias(const Call& call, int64_t place) const { return place < 0 ? nullptr : gradient(call, place).data; }
  std::span<const Real> norm(const Call& call, int64_t place) const {
    return {weight(call, place).data, static_cast<size_t>(s_.head_dim)};
  }
  std::span<Real> dnorm(const Call& call, int64_t place) const {
    Real* data = gradient(call, place).data;
    return data == nullptr ? std::span<Real>() : std::span<Real>(data, static_cast<size_t>(s_.head_dim));
  }

  GroupedQuery::Settings s_;
  std::vector<ParameterSpec> specs_;
  Order order_;
  const TrainingOps<Real>* fused_ = nullptr;   // does it in one piece
};

template <class Real>
double TrainableGroupedQuery<Real>::forward(Matrix out, ConstMatrix x, const Call& call) const {
  Carver saved_carver(call.saved), scratch_carver(call.scratch);
  if (fused_ != nullptr) {
    const FusedScratch scratch(scratch_carver, *this, call.batch);
    call.ops.self_attention(out, x, fused_call(scratch, call));
    return 0;
  }
  const Saved saved(saved_carver, *this, x.rows);
  const Scratch scratch(scratch_carver, *this, call.batch);
  TrainingOps<Real>& ops = call.ops;
  const LinearForward<Real> projections[] = {
      {s_.qk_norm ? saved.plain_query : saved.query, weight(call, order_.query), bias(call, order_.query_bias)},
      {s_.qk_norm ? saved.plain_key : saved.key, weight(call, order_.key), bias(call, order_.key_bias)},
      {saved.value, weight(call, order_.value), bias(call, order_.value_bias)}};
  ops.matmul(projections, x);
  if (s_.qk_norm) {
    const Real epsilon = static_cast<Real>(s_.norm_epsilon);
    ops.rms_norm(each_head(saved.query), saved.query_scale, each_head(saved.plain_query), norm(call, order_.query_norm), epsilon);
    ops.rms_norm(each_head(saved.key), saved.key_scale, each_head(saved.plain_key), norm(call, order_.key_norm), epsilon);
  }
  rotate(saved.query, call, Direction::kForward);
  rotate(saved.key, call, Direction::kForward);
  ops.attention(saved.attended, saved.log_sum_exp, {saved.query, saved.key, saved.value}, pattern(scratch, call.batch));
  ops.matmul(out, saved.attended, weight(call, order_.output), bias(call, order_.output_bias));
  return 0;
}

// Each line undoes one line of forward, last first.
template <class Real>
void TrainableGroupedQuery<Real>::backward(Matrix dx, ConstMatrix dout, ConstMatrix x, const Call& call) const {
  Carver saved_carver(call.saved), scratch_carver(call.scratch);
  if (fused_ != nullptr) {
    const FusedScratch scratch(scratch_carver, *this, call.batch);
    return call.ops.self_attention_backward(dx, {gradient(call, order_.query), gradient(call, order_.key), gradient(call, order_.value),
                                                 gradient(call, order_.output), call.weight_gradients}, dout, x, fused_call(scratch, call));
  }
  const Saved saved(saved_carver, *this, x.rows);
  const Scratch scratch(scratch_carver, *this, call.batch);
  TrainingOps<Real>& ops = call.ops;
  const LinearBackward<Real> output{dout, weight(call, order_.output), gradient(call, order_.output), dbias(call, order_.output_bias)};
  ops.matmul_backward(scratch.dattended, output, saved.attended);
  ops.attention_backward({scratch.dquery, scratch.dkey, scratch.dvalue}, scratch.dattended, {saved.query, saved.key, saved.value},
                         {saved.attended, saved.log_sum_exp}, pattern(scratch, call.batch));
  rotate(scratch.dkey, call, Direction::kBackward);
  rotate(scratch.dquery, call, Direction::kBackward);
  if (s_.qk_norm) {
    ops.rms_norm_backward(each_head(scratch.dkey), dnorm(call, order_.key_norm), each_head(scratch.dkey),
                          {each_head(saved.plain_key), saved.key_scale, norm(call, order_.key_norm)});
    ops.rms_norm_backward(each_head(scratch.dquery), dnorm(call, order_.query_norm), each_head(scratch.dquery),
                          {each_head(saved.plain_query), saved.query_scale, norm(call, order_.query_norm)});
  }
  const LinearBackward<Real> projections[] = {
      {scratch.dquery, weight(call, order_.query), gradient(call, order_.query), dbias(call, order_.query_bias)},
      {scratch.dkey, weight(call, order_.key), gradient(call, order_.key), dbias(call, order_.key_bias)},
      {scratch.dvalue, weight(call, order_.value), gradient(call, order_.value), dbias(call, order_.value_bias)}};
  ops.matmul_backward(dx, projections, x);
}

}  // namespace

template <class Real>
Result<std::unique_ptr<TrainableAttention<Real>>> create_training_grouped_query(const AttentionShape& shape,
                                                                                const HyperParameters& parameters,
                                                                                std::span<const std::string> optional_roles) {
  ASSIGN_OR_RETURN(GroupedQuery::Settings settings, GroupedQuery::read_settings(shape, parameters));
  return std::unique_ptr<TrainableAttention<Real>>(
      std::make_unique<TrainableGroupedQuery<Real>>(std::move(settings), optional_roles));
}

template Result<std::unique_ptr<TrainableAttention<float>>> create_training_grouped_query(const AttentionShape&,
                                                                                          const HyperParameters&,
                                                                                          std::span<const std::string>);
template Result<std::unique_ptr<TrainableAttention<double>>> create_training_grouped_query(const AttentionShape&,
                                                                                           const HyperParameters&,
                                                                                           std::span<const std::string>);

}  // namespace quipu
