#include "blocks/mixture_of_depths_training.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "blocks/token_selection.h"

namespace quipu {
namespace {

constexpr double kInputEpsilon = 1e-6;
constexpr int64_t kTaskRows = 64;

size_t at(int64_t i) { return static_cast<size_t>(i); }

template <class Real>
Real sigmoid(Real x) { return Real{1} / (Real{1} + std::exp(-x)); }

// Sixteen sums side by side, folded in order: fast, and the same for every caller.
template <class Real>
Real dot(const Real* a, const Real* b, int64_t length) {
  Real part[16] = {};
  int64_t i = 0;
  for (; i + 16 <= length; i += 16) {
    for (int64_t lane = 0; lane < 16; ++lane) part[lane] += a[i + lane] * b[i + lane];
  }
  Real sum = 0;
  for (; i < length; ++i) sum += a[i] * b[i];
  for (const Real p : part) sum += p;
  return sum;
}

template <class Task>
void for_rows(ThreadPool& pool, int64_t rows, const Task& task) {
  pool.parallel_for((rows + kTaskRows - 1) / kTaskRows, [&](int64_t block) {
    for (int64_t row = block * kTaskRows; row < std::min(rows, (block + 1) * kTaskRows); ++row) task(row);
  });
}

template <class Real>
class TrainableDepths final : public TrainableBlock<Real> {
 public:
  using Matrix = MatrixView<Real>;
  using ConstMatrix = MatrixView<const Real>;
  using Call = TrainingCall<Real>;

  TrainableDepths(const DepthSettings& settings, int64_t hidden, std::unique_ptr<TrainableBlock<Real>> block,
                  std::span<const std::string> optional_roles)
      : s_(settings), hidden_(hidden), block_(std::move(block)) {
    specs_.assign(block_->parameters().begin(), block_->parameters().end());
    const auto add = [&](const char* name, Shape shape, Initialisation initial, bool optional) {
      const std::string role = std::string("mixture_of_depths.") + name;
      if (optional && std::ranges::find(optional_roles, role) == optional_roles.end()) return int64_t{-1};
      specs_.push_back({role, std::move(shape), initial, ParameterGroup::kRouter});
      return static_cast<int64_t>(specs_.size()) - 1;
    };
    const auto normal = Initialisation::normal(kInitialDeviation);
    router_ = add("router", {1, hidden_}, normal, false);
    router_bias_ = add("router_bias", {1}, {}, true);
    if (s_.rule == DepthRule::kMoving) threshold_ = add("router_threshold", {1}, {}, false);
    if (s_.rule != DepthRule::kPredictor) return;
    up_ = add("predictor_up", {s_.predictor_dim, hidden_}, normal, false);
    up_bias_ = add("predictor_up_bias", {s_.predictor_dim}, {}, true);
    down_ = add("predictor_down", {1, s_.predictor_dim}, normal, false);
    down_bias_ = add("predictor_down_bias", {1}, {}, true);
  }

  std::span<const ParameterSpec> parameters() const override { return specs_; }
  int64_t state_elements() const override { return block_->state_elements(); }
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
  double forward(Matrix out, ConstMatrix x, const Call& call) const override;
  void backward(Matrix gradient, ConstMatrix x, const Call& call) const override;
  double forward_flops(const PackedBatch& batch) const override {
    const std::vector<int64_t> routed = routed_offsets(batch, false);
    return 2.0 * static_cast<double>(batch.rows() * (hidden_ + s_.predictor_dim * (hidden_ + 1))) + block_->forward_flops({routed, {}});
  }

 private:
  struct Saved {
    Saved(Carver& carver, const TrainableDepths& depths, const PackedBatch& batch) {
      const std::vector<int64_t> most = depths.routed_offsets(batch, true);
      score = carver.span<Real>(batch.rows());
      inverse = carver.span<Real>(depths.s_.normalised_input ? batch.rows() : 0);
      inner = carver.matrix<Real>(batch.rows(), depths.s_.predictor_dim);
      predicted = carver.span<Real>(depths.s_.predictor_dim > 0 ? batch.rows() : 0);
      border = carver.span<double>(2);
      offsets = carver.span<int64_t>(batch.sequences() + 1);
      positions = carver.span<int64_t>(most.back());
      index = carver.span<int32_t>(most.back());
      update = carver.matrix<Real>(most.back(), depths.hidden_);
      block = carver.part(depths.block_->saved_bytes({most, depths.spread_positions(batch, most)}));
    }
    std::span<Real> score;           // [n] r
    std::span<Real> inverse;         // [n] 1 / rms(x), with router_input rms
    Matrix inner;                    // [n, predictor_dim] U n(x) + c
    std::span<Real> predicted;       // [n]
    std::span<double> border;        // sum of the groups' borders, their number
    std::span<int64_t> offsets;      // of the rows let in, by sequence
    std::span<int64_t> positions;
    std::span<int32_t> index;        // their rows in the batch, ascending
    Matrix update;                   // u
    std::span<std::byte> block;
    int64_t count() const { return offsets.back(); }
  };
  struct Scratch {
    Scratch(Carver& carver, const TrainableDepths& depths, const PackedBatch& batch) {
      const std::vector<int64_t> most = depths.routed_offsets(batch, true);
      input = carver.matrix<Real>(most.back(), depths.hidden_);
      gradient = carver.matrix<Real>(most.back(), depths.hidden_);
      weight = carver.span<Real>(most.back());
      repeats = carver.span<float>(most.back());
      compared = carver.span<float>(batch.rows());
      dscore = carver.span<Real>(batch.rows());
      dpredicted = carver.span<Real>(batch.rows());
      dinner = carver.matrix<Real>(batch.rows(), depths.s_.predictor_dim);
      block = carver.part(depths.block_->scratch_bytes({most, depths.spread_positions(batch, most)}));
    }
    Matrix input, gradient;          // of the rows let in: X, and what comes back
    std::span<Real> weight;          // g
    std::span<float> repeats, compared;
    std::span<Real> dscore, dpredicted;
    Matrix dinner;
    std::span<std::byte> block;
  };

  // Rows let in of every sequence, summed up: by top k, or (most) as many as any rule may let in.
  std::vector<int64_t> routed_offsets(const PackedBatch& batch, bool most) const {
    std::vector<int64_t> offsets{0};
    for (int64_t i = 0; i < batch.sequences(); ++i) {
      const int64_t rows = batch.offsets[at(i) + 1] - batch.offsets[at(i)];
      const int64_t group = s_.group_tokens == 0 ? std::max<int64_t>(rows, 1) : s_.group_tokens;
      const int64_t chosen = rows / group * capacity_tokens(s_.capacity, group) + capacity_tokens(s_.capacity, rows % group);
      offsets.push_back(offsets.back() + (most ? std::max(chosen, serving_limit(rows)) : chosen));
    }
    return offsets;
  }
  // Positions of rows let in, spread evenly over their sequences, ends included: no other choice meets more segments.
  static std::vector<int64_t> spread_positions(const PackedBatch& batch, std::span<const int64_t> routed) {
    std::vector<int64_t> positions;
    for (int64_t i = 0; i < batch.sequences(); ++i) {
      const int64_t rows = batch.offsets[at(i) + 1] - batch.offsets[at(i)], count = routed[at(i) + 1] - routed[at(i)];
      for (int64_t j = 0; j < count; ++j) positions.push_back(count == 1 ? 0 : j * (rows - 1) / (count - 1));
    }
    return positions;
  }
  int64_t serving_limit(int64_t rows) const { return capacity_tokens(std::min(1.0, s_.capacity * (1.0 + s_.slack)), rows); }

  void score(const Saved& saved, ConstMatrix x, const Call& call) const;
  void predict(const Saved& saved, ConstMatrix x, const Call& call) const;
  void choose(const Saved& saved, const Scratch& scratch, const Call& call) const;
  void choose_top_k(const Saved& saved, const Scratch& scratch, const Call& call, int64_t sequence) const;
  void choose_by_rule(const Saved& saved, const Call& call, int64_t sequence) const;
  void count_differing(RoutingCounts& counts, const Saved& saved, const Call& call) const;
  double rule_loss(const Saved& saved, const Call& call) const;
  double cross_entropy(std::span<const Real> scores, const Saved& saved) const;
  // gradient [n] of weight * cross_entropy(scores).
  void cross_entropy_gradient(std::span<Real> gradient, std::span<const Real> scores, const Saved& saved, double weight) const;
  void router_backward(Matrix gradient, const Saved& saved, const Scratch& scratch, ConstMatrix x, const Call& call) const;
  void predictor_backward(const Saved& saved, const Scratch& scratch, ConstMatrix x, const Call& call) const;
  double multiplier(Real r) const { return s_.sigmoid ? sigmoid(static_cast<double>(r)) : static_cast<double>(r); }
  void let_in(const Saved& saved, const Scratch& scratch, ConstMatrix x, const Call& call, LayerOptions<Real>& options) const;
  Call block_call(const Call& call, const PackedBatch& batch, const LayerOptions<Real>& options, const Saved& saved,
                  const Scratch& scratch) const {
    const size_t count = block_->parameters().size();
    return {call.ops, batch, options, call.weights.first(count), call.gradients.empty() ? call.gradients : call.gradients.first(count),
            saved.block, scratch.block};
  }
  PackedBatch routed(const Saved& saved) const { return {saved.offsets, saved.positions.first(at(saved.count()))}; }
  // One number of a parameter, 0 where there is none; and where its gradient goes, null where nowhere.
  static Real number(const Call& call, int64_t place) { return place < 0 ? Real{0} : call.weights[at(place)].data[0]; }
  static Real* gradient_of(const Call& call, int64_t place) { return place < 0 ? nullptr : call.gradients[at(place)].data; }

  DepthSettings s_;
  int64_t hidden_;
  std::unique_ptr<TrainableBlock<Real>> block_;
  std::vector<ParameterSpec> specs_;
  int64_t router_ = -1, router_bias_ = -1, threshold_ = -1, up_ = -1, up_bias_ = -1, down_ = -1, down_bias_ = -1;
};

// r = w . n(x) + b, in Real whatever the precision of the products: a rounded score lets other tokens in.
template <class Real>
void TrainableDepths<Real>::score(const Saved& saved, ConstMatrix x, const Call& call) const {
  const Real* w = call.weights[at(router_)].data;
  const Real bias = number(call, router_bias_);
  for_rows(call.ops.pool(), x.rows, [&](int64_t row) {
    const Real* in = x.row(row);
    Real r = dot(in, w, hidden_);
    if (s_.normalised_input) {
      const Real inverse = Real{1} / std::sqrt(dot(in, in, hidden_) / static_cast<Real>(hidden_) + static_cast<Real>(kInputEpsilon));
      saved.inverse[at(row)] = inverse;
      r *= inverse;
    }
    saved.score[at(row)] = r + bias;
  });
  if (s_.rule == DepthRule::kPredictor) predict(saved, x, call);
}

template <class Real>
void TrainableDepths<Real>::predict(const Saved& saved, ConstMatrix x, const Call& call) const {
  const ConstMatrix up = call.weights[at(up_)];
  const Real* up_bias = up_bias_ < 0 ? nullptr : call.weights[at(up_bias_)].data;
  const Real* down = call.weights[at(down_)].data;
  const Real down_bias = number(call, down_bias_);
  const auto product = [&](int64_t first, int64_t rows, int64_t batch) {
    if (batch == 0) return;
    call.ops.batched_gemm({.kind = GemmKind::kNT, .m = rows, .n = s_.predictor_dim, .k = hidden_, .c = saved.inner.row(first),
                           .a = x.row(first), .b = up.data, .c_ld = saved.inner.stride, .a_ld = x.stride, .b_ld = up.stride,
                           .c_step = rows * saved.inner.stride, .a_step = rows * x.stride, .b_step = 0, .batch = batch});
  };
  const int64_t whole = x.rows / kTaskRows;
  product(0, kTaskRows, whole);
  product(whole * kTaskRows, x.rows % kTaskRows, x.rows % kTaskRows > 0 ? 1 : 0);
  for_rows(call.ops.pool(), x.rows, [&](int64_t row) {
    Real* inner = saved.inner.row(row);
    Real sum = down_bias;
    for (int64_t c = 0; c < s_.predictor_dim; ++c) {
      if (s_.normalised_input) inner[c] *= saved.inverse[at(row)];   // U n(x) = (U x) / rms(x)
      if (up_bias != nullptr) inner[c] += up_bias[c];
      sum += down[c] * inner[c] * sigmoid(inner[c]);
    }
    saved.predicted[at(row)] = sum;
  });
}

template <class Real>
void TrainableDepths<Real>::choose(const Saved& saved, const Scratch& scratch, const Call& call) const {
  const auto choose_rows = [&](bool by_rule) {
    saved.offsets[0] = 0;
    saved.border[0] = saved.border[1] = 0;
    for (int64_t sequence = 0; sequence < call.batch.sequences(); ++sequence) {
      saved.offsets[at(sequence) + 1] = saved.offsets[at(sequence)];
      if (by_rule) {
        choose_by_rule(saved, call, sequence);
      } else {
        choose_top_k(saved, scratch, call, sequence);
      }
    }
  };
  if (call.options.routing != nullptr) {
    choose_rows(false);
    count_differing(*call.options.routing, saved, call);
  }
  choose_rows(call.options.serving);
  for (int64_t i = 0; i < saved.count(); ++i) saved.positions[at(i)] = call.batch.positions[at(saved.index[at(i)])];
}

template <class Real>
void TrainableDepths<Real>::choose_top_k(const Saved& saved, const Scratch& scratch, const Call& call, int64_t sequence) const {
  const int64_t end = call.batch.offsets[at(sequence) + 1];
  int64_t& count = saved.offsets[at(sequence) + 1];
  const auto group_of = [&](int64_t row) { return s_.group_tokens == 0 ? 0 : call.batch.positions[at(row)] / s_.group_tokens; };
  for (int64_t begin = call.batch.offsets[at(sequence)]; begin < end;) {
    int64_t next = begin + 1;
    while (next < end && group_of(next) == group_of(begin)) ++next;
    const std::span<float> scores = scratch.compared.subspan(at(begin), at(next - begin));
    for (size_t i = 0; i < scores.size(); ++i) scores[i] = static_cast<float>(saved.score[at(begin) + i]);
    const std::vector<int64_t> chosen = select_top_k(scores, capacity_tokens(s_.capacity, next - begin));
    double lowest = std::numeric_limits<double>::infinity(), highest = -lowest;
    for (size_t i = 0, in = 0; i < scores.size(); ++i) {
      const double r = static_cast<double>(saved.score[at(begin) + i]);
      if (in == chosen.size() || chosen[in] != static_cast<int64_t>(i)) {
        highest = std::max(highest, r);
        continue;
      }
      lowest = std::min(lowest, r);
      CHECK(at(count) < saved.index.size()) << "groups by position let in more than the " << saved.index.size() << " rows planned";
      saved.index[at(count++)] = static_cast<int32_t>(begin + chosen[in++]);
    }
    if (std::isfinite(lowest) && std::isfinite(highest)) {
      saved.border[0] += 0.5 * (lowest + highest);
      saved.border[1] += 1;
    }
    begin = next;
  }
}

template <class Real>
void TrainableDepths<Real>::choose_by_rule(const Saved& saved, const Call& call, int64_t sequence) const {
  const int64_t begin = call.batch.offsets[at(sequence)], end = call.batch.offsets[at(sequence) + 1];
  int64_t& count = saved.offsets[at(sequence) + 1];
  const int64_t full = count + serving_limit(end - begin);
  const std::span<const Real> compared = s_.rule == DepthRule::kPredictor ? saved.predicted : saved.score;
  const Real border = number(call, threshold_);
  for (int64_t row = begin; row < end && count < full; ++row) {
    if (compared[at(row)] > border) saved.index[at(count++)] = static_cast<int32_t>(row);
  }
}

// After choose_top_k: the rows that the rule, which never runs out of room here, decides otherwise.
template <class Real>
void TrainableDepths<Real>::count_differing(RoutingCounts& counts, const Saved& saved, const Call& call) const {
  const std::span<const Real> compared = s_.rule == DepthRule::kPredictor ? saved.predicted : saved.score;
  const Real border = number(call, threshold_);
  size_t next = 0;
  for (size_t row = 0; row < compared.size(); ++row) {
    const bool chosen = next < at(saved.count()) && at(saved.index[next]) == row;
    if (chosen) ++next;
    counts.differing += chosen != (compared[row] > border) ? 1 : 0;
  }
  counts.rows += static_cast<int64_t>(compared.size());
  counts.let_in += saved.count();
}

// Of sigmoid(score) against 1 for the rows let in and 0 for the others, without overflow.
template <class Real>
double TrainableDepths<Real>::cross_entropy(std::span<const Real> scores, const Saved& saved) const {
  double sum = 0;
  size_t next = 0;
  for (size_t row = 0; row < scores.size(); ++row) {
    const bool wanted = next < at(saved.count()) && at(saved.index[next]) == row;
    if (wanted) ++next;
    const double z = wanted ? static_cast<double>(scores[row]) : -static_cast<double>(scores[row]);
    sum += std::max(-z, 0.0) + std::log1p(std::exp(-std::abs(z)));
  }
  return sum / static_cast<double>(scores.size());
}

template <class Real>
void TrainableDepths<Real>::cross_entropy_gradient(std::span<Real> gradient, std::span<const Real> scores, const Saved& saved,
                                                   double weight) const {
  const double each = weight / static_cast<double>(scores.size());
  size_t next = 0;
  for (size_t row = 0; row < scores.size(); ++row) {
    const bool wanted = next < at(saved.count()) && at(saved.index[next]) == row;
    if (wanted) ++next;
    gradient[row] = static_cast<Real>(each * (sigmoid(static_cast<double>(scores[row])) - (wanted ? 1.0 : 0.0)));
  }
}

template <class Real>
double TrainableDepths<Real>::rule_loss(const Saved& saved, const Call& call) const {
  if (call.options.router_loss == 0 || call.options.serving || saved.score.empty()) return 0;
  if (s_.rule == DepthRule::kMoving) {
    if (saved.border[1] == 0) return 0;
    const double off = static_cast<double>(number(call, threshold_)) - saved.border[0] / saved.border[1];
    return call.options.router_loss * 0.5 * off * off;
  }
  return call.options.router_loss * cross_entropy(s_.rule == DepthRule::kPredictor ? saved.predicted : saved.score, saved);
}

// The rows let in, the weights of their updates, and the block's options.
template <class Real>
void TrainableDepths<Real>::let_in(const Saved& saved, const Scratch& scratch, ConstMatrix x, const Call& call,
                                   LayerOptions<Real>& options) const {
  const int64_t count = saved.count();
  call.ops.gather_rows(scratch.input.rows_from(0, count), x, saved.index.first(at(count)));
  for (int64_t i = 0; i < count; ++i) {
    const size_t row = at(saved.index[at(i)]);
    scratch.weight[at(i)] = static_cast<Real>(multiplier(saved.score[row]));
    if (!options.write_repeats.empty()) scratch.repeats[at(i)] = call.options.write_repeats[row];
  }
  if (!options.write_repeats.empty()) options.write_repeats = scratch.repeats.first(at(count));
}

template <class Real>
double TrainableDepths<Real>::forward(Matrix out, ConstMatrix x, const Call& call) const {
  Carver saved_carver(call.saved), scratch_carver(call.scratch);
  const Saved saved(saved_carver, *this, call.batch);
  const Scratch scratch(scratch_carver, *this, call.batch);
  score(saved, x, call);
  choose(saved, scratch, call);
  LayerOptions<Real> options = call.options;
  let_in(saved, scratch, x, call, options);
  const int64_t count = saved.count();
  const Matrix input = scratch.input.rows_from(0, count), update = saved.update.rows_from(0, count);
  const PackedBatch batch = routed(saved);
  const double extra = block_->forward(update, input, block_call(call, batch, options, saved, scratch));
  if (!s_.whole_block) call.ops.add(update, input, Real{-1});
  for_rows(call.ops.pool(), x.rows, [&](int64_t row) { std::copy_n(x.row(row), hidden_, out.row(row)); });
  call.ops.scatter_add_rows(out, update, saved.index.first(at(count)), scratch.weight.first(at(count)));
  return extra + rule_loss(saved, call);
}

template <class Real>
void TrainableDepths<Real>::backward(Matrix gradient, ConstMatrix x, const Call& call) const {
  Carver saved_carver(call.saved), scratch_carver(call.scratch);
  const Saved saved(saved_carver, *this, call.batch);
  const Scratch scratch(scratch_carver, *this, call.batch);
  LayerOptions<Real> options = call.options;
  let_in(saved, scratch, x, call, options);
  const int64_t count = saved.count();
  const Matrix inner = scratch.gradient.rows_from(0, count);
  const bool learns = call.options.router_loss != 0 && !call.options.serving;
  if (learns && s_.rule == DepthRule::kThreshold) {
    cross_entropy_gradient(scratch.dscore, saved.score, saved, call.options.router_loss);
  } else {
    std::ranges::fill(scratch.dscore, Real{0});
  }
  for_rows(call.ops.pool(), count, [&](int64_t i) {
    const int64_t row = saved.index[at(i)];
    const Real* d = gradient.row(row);
    const Real g = scratch.weight[at(i)];
    scratch.dscore[at(row)] += dot(d, saved.update.row(i), hidden_) * (s_.sigmoid ? g * (1 - g) : Real{1});
    for (int64_t c = 0; c < hidden_; ++c) inner(i, c) = g * d[c];
  });
  const PackedBatch batch = routed(saved);
  block_->backward(inner, scratch.input.rows_from(0, count), block_call(call, batch, options, saved, scratch));
  for_rows(call.ops.pool(), count, [&](int64_t i) {
    Real* d = gradient.row(saved.index[at(i)]);
    const Real kept = s_.whole_block ? Real{1} : 1 - scratch.weight[at(i)];   // block(X) - X: the second X
    for (int64_t c = 0; c < hidden_; ++c) d[c] = kept * d[c] + inner(i, c);
  });
  router_backward(gradient, saved, scratch, x, call);
  if (!learns) return;
  if (s_.rule == DepthRule::kPredictor) predictor_backward(saved, scratch, x, call);
  Real* dthreshold = gradient_of(call, threshold_);
  if (dthreshold != nullptr && saved.border[1] > 0) {
    const double off = static_cast<double>(number(call, threshold_)) - saved.border[0] / saved.border[1];
    *dthreshold += static_cast<Real>(call.options.router_loss * off);
  }
}

// From dL/dr of every row: into its x, the router and its bias. With q = n(x), d r / d x = (w - q (w . q) / hidden) / rms(x).
template <class Real>
void TrainableDepths<Real>::router_backward(Matrix gradient, const Saved& saved, const Scratch& scratch, ConstMatrix x,
                                            const Call& call) const {
  const Real* w = call.weights[at(router_)].data;
  const Real bias = number(call, router_bias_);
  for_rows(call.ops.pool(), x.rows, [&](int64_t row) {
    const Real d = scratch.dscore[at(row)];
    if (d == 0) return;
    Real* to = gradient.row(row);
    if (!s_.normalised_input) {
      for (int64_t c = 0; c < hidden_; ++c) to[c] += d * w[c];
      return;
    }
    const Real inverse = saved.inverse[at(row)];
    const Real mean = (saved.score[at(row)] - bias) / static_cast<Real>(hidden_);
    for (int64_t c = 0; c < hidden_; ++c) to[c] += d * inverse * (w[c] - x(row, c) * inverse * mean);
  });
  if (Real* dbias = gradient_of(call, router_bias_); dbias != nullptr) {
    for (const Real d : scratch.dscore) *dbias += d;
  }
  Real* dw = gradient_of(call, router_);
  if (dw == nullptr) return;
  // By columns: every element of dw is one sum in the order of the rows.
  call.ops.pool().parallel_for((hidden_ + kTaskRows - 1) / kTaskRows, [&](int64_t block) {
    const int64_t begin = block * kTaskRows, end = std::min(hidden_, begin + kTaskRows);
    for (int64_t row = 0; row < x.rows; ++row) {
      Real d = scratch.dscore[at(row)];
      if (d == 0) continue;
      if (s_.normalised_input) d *= saved.inverse[at(row)];
      for (int64_t c = begin; c < end; ++c) dw[c] += d * x(row, c);
    }
  });
}

// Into the predictor's weights and no further.
template <class Real>
void TrainableDepths<Real>::predictor_backward(const Saved& saved, const Scratch& scratch, ConstMatrix x, const Call& call) const {
  cross_entropy_gradient(scratch.dpredicted, saved.predicted, saved, call.options.router_loss);
  const Real* down = call.weights[at(down_)].data;
  Real *ddown = gradient_of(call, down_), *ddown_bias = gradient_of(call, down_bias_), *dup_bias = gradient_of(call, up_bias_);
  for (int64_t row = 0; row < x.rows; ++row) {
    const Real d = scratch.dpredicted[at(row)];
    if (ddown_bias != nullptr) *ddown_bias += d;
    for (int64_t c = 0; c < s_.predictor_dim; ++c) {
      const Real a = saved.inner(row, c), s = sigmoid(a);
      if (ddown != nullptr) ddown[c] += d * a * s;
      Real da = d * down[c] * s * (1 + a * (1 - s));
      if (dup_bias != nullptr) dup_bias[c] += da;
      if (s_.normalised_input) da *= saved.inverse[at(row)];
      scratch.dinner(row, c) = da;
    }
  }
  const LinearBackward<Real> up{scratch.dinner, call.weights[at(up_)], call.gradients[at(up_)]};
  call.ops.matmul_backward(Matrix(), up, x);
}

}  // namespace

template <class Real>
std::unique_ptr<TrainableBlock<Real>> make_trainable_mixture_of_depths(const DepthSettings& settings, int64_t hidden,
                                                                       std::unique_ptr<TrainableBlock<Real>> block,
                                                                       std::span<const std::string> optional_roles) {
  return std::make_unique<TrainableDepths<Real>>(settings, hidden, std::move(block), optional_roles);
}

template std::unique_ptr<TrainableBlock<float>> make_trainable_mixture_of_depths(const DepthSettings&, int64_t,
                                                                                 std::unique_ptr<TrainableBlock<float>>,
                                                                                 std::span<const std::string>);
template std::unique_ptr<TrainableBlock<double>> make_trainable_mixture_of_depths(const DepthSettings&, int64_t,
                                                                                  std::unique_ptr<TrainableBlock<double>>,
                                                                                  std::span<const std::string>);

}  // namespace quipu
