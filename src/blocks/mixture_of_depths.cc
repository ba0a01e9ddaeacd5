#include "blocks/mixture_of_depths.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "blocks/token_selection.h"

namespace quipu {
namespace {

constexpr float kInputEpsilon = 1e-6f;
constexpr int64_t kMostPredictorDim = 1 << 20;
constexpr int64_t kMostGroupTokens = int64_t{1} << 31;

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

const float* data_or_null(const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); }

// The text under `key`, which must be `first` or `second`: whether it is `second`. Absent: `first`.
Result<bool> is_second(const HyperParameters& p, std::string_view key, std::string_view first,
                       std::string_view second) {
  ASSIGN_OR_RETURN(const std::string text, p.text_or(key, std::string(first)));
  if (text == first || text == second) return text == second;
  return bad_input(p.origin() + ": mixture_of_depths setting " + std::string(key) + " is \"" + text + "\", expected " +
                   std::string(first) + " or " + std::string(second));
}

Result<std::unique_ptr<PackedMatrix>> float_matrix(WeightSource& weights, Backend& backend, std::string_view role,
                                                   int64_t rows, int64_t cols) {
  ASSIGN_OR_RETURN(const std::vector<float> values, weights.dense(role, rows, cols, "hidden " + std::to_string(cols)));
  return backend.pack({DType::kF32, rows, cols, std::as_bytes(std::span(values))});
}

Result<std::vector<float>> optional_vector(WeightSource& weights, std::string_view role, int64_t length) {
  if (!weights.has(role)) return std::vector<float>();
  return weights.vector(role, length, "mixture_of_depths");
}

}  // namespace

Result<DepthSettings> read_depth_settings(const HyperParameters& p) {
  DepthSettings s;
  // A capacity so small that a million tokens keep none is a slip of the pen.
  ASSIGN_OR_RETURN(s.capacity, p.number("capacity", 1e-6, 1.0));
  ASSIGN_OR_RETURN(const std::string rule, p.text_or("decode", "threshold"));
  if (rule == "predictor") {
    s.rule = DepthRule::kPredictor;
    ASSIGN_OR_RETURN(s.predictor_dim, p.integer("predictor_dim", 1, kMostPredictorDim));
  } else if (rule == "moving") {
    s.rule = DepthRule::kMoving;
  } else if (rule != "threshold") {
    return bad_input(p.origin() + ": mixture_of_depths setting decode is \"" + rule +
                     "\", expected threshold, predictor or moving");
  }
  ASSIGN_OR_RETURN(s.whole_block, is_second(p, "output", "update", "block"));
  ASSIGN_OR_RETURN(s.sigmoid, is_second(p, "weight", "linear", "sigmoid"));
  ASSIGN_OR_RETURN(s.normalised_input, is_second(p, "router_input", "plain", "rms"));
  ASSIGN_OR_RETURN(s.slack, p.number_or("slack", 0.0, 1e6, s.slack));
  ASSIGN_OR_RETURN(s.group_tokens, p.integer_or("group_tokens", 0, kMostGroupTokens, 0));
  return s;
}

Result<void> MixtureOfDepths::bind(int64_t hidden, WeightSource& weights, Backend& backend) {
  hidden_ = hidden;
  ASSIGN_OR_RETURN(router_, float_matrix(weights, backend, "mixture_of_depths.router", 1, hidden));
  ASSIGN_OR_RETURN(router_bias_, optional_vector(weights, "mixture_of_depths.router_bias", 1));
  if (s_.normalised_input) ones_.assign(static_cast<size_t>(hidden), 1.0f);
  if (s_.rule == DepthRule::kMoving) {
    ASSIGN_OR_RETURN(const std::vector<float> threshold,
                     weights.vector("mixture_of_depths.router_threshold", 1, "one number"));
    threshold_ = threshold[0];
  }
  if (s_.rule == DepthRule::kPredictor) {
    ASSIGN_OR_RETURN(predictor_up_,
                     float_matrix(weights, backend, "mixture_of_depths.predictor_up", s_.predictor_dim, hidden));
    ASSIGN_OR_RETURN(predictor_up_bias_,
                     optional_vector(weights, "mixture_of_depths.predictor_up_bias", s_.predictor_dim));
    ASSIGN_OR_RETURN(predictor_down_,
                     float_matrix(weights, backend, "mixture_of_depths.predictor_down", 1, s_.predictor_dim));
    ASSIGN_OR_RETURN(predictor_down_bias_, optional_vector(weights, "mixture_of_depths.predictor_down_bias", 1));
  }
  return {};
}

Result<MixtureOfDepths> MixtureOfDepths::create(const DepthSettings& settings, int64_t hidden, WeightSource& weights,
                                                Backend& backend) {
  MixtureOfDepths depths(settings);
  RETURN_IF_ERROR(depths.bind(hidden, weights, backend));
  return depths;
}

StateLayout MixtureOfDepths::state_layout(const PreNormBlock& block, const StateOptions& options) const {
  StateLayout layout = block.attention().state_layout(options);
  layout.routed = RoutedShare{.expected = s_.capacity, .most = s_.capacity * (1.0 + s_.slack)};
  layout.regions.push_back(position_region());
  return layout;
}

struct MixtureOfDepths::Step {
  float* score = nullptr;      // [rows] r, then the weight g
  float* predicted = nullptr;  // [rows] what the rule compares with zero
  uint8_t* chosen = nullptr;   // [rows]
  // Of the rows let in, `count` of them:
  int64_t* index = nullptr;  // their rows in the batch
  int64_t* positions = nullptr;
  SequenceSlice* slices = nullptr;
  int64_t count = 0, slice_count = 0;
  MatrixView<float> h = {}, attention = {}, feed_forward = {};
};

int64_t MixtureOfDepths::scratch_bytes(const PreNormBlock& block, int64_t rows) const {
  const int64_t stream = Arena::planned<float>(rows * hidden_);
  const int64_t scoring = stream + Arena::planned<float>(rows * s_.predictor_dim);
  return 2 * Arena::planned<float>(rows) + Arena::planned<uint8_t>(rows) + 2 * Arena::planned<int64_t>(rows) +
         Arena::planned<SequenceSlice>(rows) + std::max(scoring, 3 * stream + block.scratch_bytes(rows));
}

// Fills step.score with r and step.chosen with what the rule says of each row by itself.
void MixtureOfDepths::score(Step& step, MatrixView<const float> x, Backend& backend, Arena& scratch) const {
  const ArenaMark mark(scratch);
  MatrixView<const float> input = x;
  if (s_.normalised_input) {
    const MatrixView<float> normed = scratch.matrix(x.rows, x.cols);
    backend.rms_norm(normed, x, ones_, kInputEpsilon);
    input = normed;
  }
  backend.matmul({step.score, x.rows, 1}, *router_, input, data_or_null(router_bias_));
  if (s_.rule == DepthRule::kPredictor) {
    const MatrixView<float> inner = scratch.matrix(x.rows, s_.predictor_dim);
    backend.matmul(inner, *predictor_up_, input, data_or_null(predictor_up_bias_));
    for (int64_t row = 0; row < inner.rows; ++row) {
      for (int64_t c = 0; c < inner.cols; ++c) inner(row, c) *= sigmoid(inner(row, c));
    }
    backend.matmul({step.predicted, x.rows, 1}, *predictor_down_, inner, data_or_null(predictor_down_bias_));
  }
  const float* compared = s_.rule == DepthRule::kPredictor ? step.predicted : step.score;
  const float border = s_.rule == DepthRule::kMoving ? threshold_ : 0.0f;
  for (int64_t row = 0; row < x.rows; ++row) step.chosen[row] = compared[row] > border ? 1 : 0;
}

// Overrides what score() chose for a sequence's rows.
void MixtureOfDepths::choose_top_k(Step& step, const SequenceSlice& slice, std::span<const int64_t> positions) const {
  const auto group_of = [&](int64_t row) {
    return s_.group_tokens == 0 ? 0 : positions[static_cast<size_t>(row)] / s_.group_tokens;
  };
  const int64_t end = slice.row_begin + slice.rows;
  for (int64_t begin = slice.row_begin; begin < end;) {
    int64_t next = begin + 1;
    while (next < end && group_of(next) == group_of(begin)) ++next;
    const std::span<const float> scores(step.score + begin, static_cast<size_t>(next - begin));
    std::fill(step.chosen + begin, step.chosen + next, uint8_t{0});
    for (const int64_t i : select_top_k(scores, capacity_tokens(s_.capacity, next - begin))) step.chosen[begin + i] = 1;
    begin = next;
  }
}

// Compacts the rows let in, sequence by sequence, as far as their states have room.
void MixtureOfDepths::gather(Step& step, const RaggedBatch& batch) const {
  for (const SequenceSlice& slice : batch.slices) {
    LayerState& state = *slice.state;
    const int64_t room = state.context() - state.tokens();
    const int64_t begin = step.count;
    for (int64_t row = slice.row_begin; row < slice.row_begin + slice.rows && step.count - begin < room; ++row) {
      if (step.chosen[row] == 0) continue;
      const int64_t position = batch.positions[static_cast<size_t>(row)];
      state.note_position(position);
      step.index[step.count] = row;
      step.positions[step.count] = position;
      ++step.count;
    }
    if (step.count > begin) step.slices[step.slice_count++] = {&state, begin, step.count - begin, slice.prompt};
  }
}

void MixtureOfDepths::scatter(const Step& step, MatrixView<float> x) const {
  for (int64_t i = 0; i < step.count; ++i) {
    float* to = x.row(step.index[i]);
    const float score = step.score[step.index[i]];
    const float weight = s_.sigmoid ? sigmoid(score) : score;
    const float* h = step.h.row(i);
    const float* attention = step.attention.row(i);
    const float* feed_forward = step.feed_forward.row(i);
    if (s_.whole_block) {
      for (int64_t c = 0; c < hidden_; ++c) to[c] += weight * (h[c] + feed_forward[c]);
    } else {
      for (int64_t c = 0; c < hidden_; ++c) to[c] = (to[c] + weight * attention[c]) + weight * feed_forward[c];
    }
  }
}

void MixtureOfDepths::forward(Backend& backend, MatrixView<float> x, const PreNormBlock& block,
                              const RaggedBatch& batch, Arena& scratch) const {
  CHECK(x.cols == hidden_) << "rows of " << x.cols << ", router of " << hidden_;
  const ArenaMark mark(scratch);
  Step step;
  step.score = scratch.take<float>(x.rows);
  step.predicted = scratch.take<float>(x.rows);
  step.chosen = scratch.take<uint8_t>(x.rows);
  step.index = scratch.take<int64_t>(x.rows);
  step.positions = scratch.take<int64_t>(x.rows);
  step.slices = scratch.take<SequenceSlice>(x.rows);
  score(step, x, backend, scratch);
  if (s_.rule == DepthRule::kTopK) {
    for (const SequenceSlice& slice : batch.slices) choose_top_k(step, slice, batch.positions);
  }
  gather(step, batch);
  if (step.count == 0) return;
  step.h = scratch.matrix(step.count, hidden_);
  step.attention = scratch.matrix(step.count, hidden_);
  step.feed_forward = scratch.matrix(step.count, hidden_);
  for (int64_t i = 0; i < step.count; ++i) {
    std::memcpy(step.h.row(i), x.row(step.index[i]), static_cast<size_t>(hidden_) * sizeof(float));
  }
  const RaggedBatch routed{{step.slices, static_cast<size_t>(step.slice_count)},
                           {step.positions, static_cast<size_t>(step.count)}};
  block.attention_update(backend, step.attention, step.h, routed, scratch);
  backend.add(step.h, step.attention);
  block.feed_forward_update(backend, step.feed_forward, step.h, scratch);
  scatter(step, x);
}

int64_t MixtureOfDepths::weight_bytes() const {
  int64_t bytes = router_->bytes();
  for (const auto* matrix : {&predictor_up_, &predictor_down_}) bytes += *matrix == nullptr ? 0 : (*matrix)->bytes();
  for (const auto* vector : {&router_bias_, &predictor_up_bias_, &predictor_down_bias_, &ones_}) {
    bytes += static_cast<int64_t>(vector->size() * sizeof(float));
  }
  return bytes;
}

int64_t MixtureOfDepths::flops_per_token() const { return 2 * hidden_ + 2 * s_.predictor_dim * (hidden_ + 1); }

}  // namespace quipu
