#include "blocks/experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

namespace quipu {
namespace {

constexpr int64_t kMostExperts = 1 << 14;
constexpr float kOut = -std::numeric_limits<float>::infinity();
constexpr float kKept = std::numeric_limits<float>::infinity();

void softmax(std::span<float> values) {
  const float top = *std::max_element(values.begin(), values.end());
  double sum = 0;
  for (float& value : values) sum += value = std::exp(value - top);
  for (float& value : values) value = static_cast<float>(value / sum);
}

// Index of the largest; of equals the first. values must not be empty.
size_t best(std::span<const float> values) {
  return static_cast<size_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

float group_score(std::span<const float> choice, bool top_two) {
  const size_t first = best(choice);
  if (!top_two) return choice[first];
  float second = kOut;
  for (size_t i = 0; i < choice.size(); ++i) {
    if (i != first) second = std::max(second, choice[i]);
  }
  return choice[first] + (choice.size() > 1 ? second : 0.0f);
}

// Takes the experts of all but the best groups out of the choice. scores: [groups], overwritten.
void limit_groups(std::span<float> choice, std::span<float> scores, const ExpertsSettings& s) {
  const size_t size = choice.size() / scores.size();
  for (size_t g = 0; g < scores.size(); ++g) scores[g] = group_score(choice.subspan(g * size, size), s.group_top_two);
  for (int64_t i = 0; i < s.groups_kept; ++i) {
    size_t g = 0;  // the best one that is not kept yet
    while (scores[g] == kKept) ++g;
    for (size_t other = g + 1; other < scores.size(); ++other) {
      if (scores[other] != kKept && scores[other] > scores[g]) g = other;
    }
    scores[g] = kKept;
  }
  for (size_t g = 0; g < scores.size(); ++g) {
    if (scores[g] != kKept) std::fill_n(choice.begin() + static_cast<std::ptrdiff_t>(g * size), size, kOut);
  }
}

}  // namespace

Result<void> check_experts(const ExpertsSettings& s) {
  const auto wrong = [](const char* what, int64_t value, const std::string& expected) {
    return bad_input(std::string(what) + " is " + std::to_string(value) + ", expected " + expected);
  };
  if (s.experts < 1 || s.experts > kMostExperts)
    return wrong("number of experts", s.experts, "1 to " + std::to_string(kMostExperts));
  if (s.groups < 1 || s.experts % s.groups != 0) {
    return wrong("number of expert groups", s.groups,
                 "a divisor of the number of experts " + std::to_string(s.experts));
  }
  if (s.groups_kept < 1 || s.groups_kept > s.groups) {
    return wrong("number of expert groups kept", s.groups_kept,
                 "1 to the number of groups " + std::to_string(s.groups));
  }
  const int64_t reachable = s.experts / s.groups * s.groups_kept;
  if (s.per_token < 1 || s.per_token > reachable) {
    return wrong("number of experts per token", s.per_token,
                 "1 to " + std::to_string(reachable) + " (the experts of the groups kept)");
  }
  if (s.inner < 1) return wrong("width of an expert", s.inner, "at least 1");
  if (s.shared_inner < 0) return wrong("width of the shared expert", s.shared_inner, "at least 0");
  if (!(std::isfinite(s.scaling) && s.scaling > 0)) {
    return bad_input("scaling of the experts is " + std::to_string(s.scaling) + ", expected a number above 0");
  }
  return {};
}

void choose_experts(std::span<int32_t> chosen, std::span<float> weight, std::span<float> scores, std::span<float> room,
                    std::span<const float> correction, const ExpertsSettings& s) {
  if (s.sigmoid) {
    for (float& score : scores) score = 1.0f / (1.0f + std::exp(-score));
  } else {
    softmax(scores);
  }
  const std::span<float> choice = room.first(scores.size());
  std::copy(scores.begin(), scores.end(), choice.begin());
  for (size_t e = 0; e < correction.size(); ++e) choice[e] += correction[e];
  if (s.groups_kept < s.groups) limit_groups(choice, room.subspan(scores.size(), static_cast<size_t>(s.groups)), s);
  for (int32_t& one : chosen) {
    const size_t e = best(choice);
    one = static_cast<int32_t>(e);
    choice[e] = kOut;
  }
  std::sort(chosen.begin(), chosen.end());
  double sum = 0;
  for (const int32_t e : chosen) sum += scores[static_cast<size_t>(e)];
  const double factor = s.normalise ? s.scaling / (sum + 1e-20) : s.scaling;
  for (size_t i = 0; i < chosen.size(); ++i) {
    weight[i] = static_cast<float>(scores[static_cast<size_t>(chosen[i])] * factor);
  }
}

Result<Experts::Mlp> Experts::bind_mlp(WeightSource& weights, const std::string& role, int64_t inner, int64_t hidden) {
  const std::string wide = "expert width " + std::to_string(inner) + ", hidden " + std::to_string(hidden);
  const std::string narrow = "hidden " + std::to_string(hidden) + ", expert width " + std::to_string(inner);
  Mlp mlp;
  ASSIGN_OR_RETURN(mlp.gate, weights.matrix(role + ".gate", inner, hidden, wide));
  ASSIGN_OR_RETURN(mlp.up, weights.matrix(role + ".up", inner, hidden, wide));
  ASSIGN_OR_RETURN(mlp.down, weights.matrix(role + ".down", hidden, inner, narrow));
  return mlp;
}

Result<std::unique_ptr<FeedForward>> Experts::create(const ExpertsSettings& settings, int64_t hidden,
                                                     GateActivation activation, WeightSource& weights,
                                                     Backend& backend) {
  RETURN_IF_ERROR(check_experts(settings));
  std::unique_ptr<Experts> made(new Experts(settings, hidden, activation));
  const std::string meaning = "experts " + std::to_string(settings.experts);
  ASSIGN_OR_RETURN(const std::vector<float> router, weights.dense("experts.router", settings.experts, hidden, meaning));
  ASSIGN_OR_RETURN(made->router_,
                   backend.pack({DType::kF32, settings.experts, hidden, std::as_bytes(std::span(router))}));
  if (settings.correction) {
    ASSIGN_OR_RETURN(made->correction_, weights.vector("experts.correction", settings.experts, meaning));
  }
  for (int64_t e = 0; e < settings.experts; ++e) {
    ASSIGN_OR_RETURN(Mlp mlp, bind_mlp(weights, "experts." + std::to_string(e), settings.inner, hidden));
    made->experts_.push_back(std::move(mlp));
  }
  if (weights.has("experts." + std::to_string(settings.experts) + ".gate")) {
    return bad_input("the weights hold more than the " + std::to_string(settings.experts) + " experts of the configuration");
  }
  if (settings.shared_inner > 0) {
    ASSIGN_OR_RETURN(made->shared_, bind_mlp(weights, "shared_experts", settings.shared_inner, hidden));
  }
  return std::unique_ptr<FeedForward>(std::move(made));
}

int64_t Experts::scratch_bytes(int64_t rows) const {
  const int64_t widest = std::max(s_.inner, s_.shared_inner);
  return Arena::planned<float>(rows * s_.experts) + Arena::planned<int32_t>(rows * s_.per_token) +
         Arena::planned<float>(rows * s_.per_token) + Arena::planned<int64_t>(rows) + Arena::planned<float>(rows) +
         Arena::planned<float>(s_.experts + s_.groups) + 2 * Arena::planned<float>(rows * hidden_) +
         2 * Arena::planned<float>(rows * widest);
}

void Experts::apply(Backend& backend, const Mlp& mlp, MatrixView<float> out, MatrixView<const float> x,
                    Arena& scratch) const {
  const ArenaMark mark(scratch);
  const MatrixView<float> gate = scratch.matrix(x.rows, mlp.gate->rows());
  const MatrixView<float> up = scratch.matrix(x.rows, mlp.gate->rows());
  const MatmulOutput outputs[] = {{gate, mlp.gate.get(), nullptr}, {up, mlp.up.get(), nullptr}};
  backend.matmul(outputs, x);
  backend.gated_activation(gate, gate, up, activation_);
  backend.matmul(out, *mlp.down, gate);
}

void Experts::forward(Backend& backend, MatrixView<float> out, MatrixView<const float> x, Arena& scratch) const {
  const ArenaMark mark(scratch);
  const MatrixView<float> scores = scratch.matrix(x.rows, s_.experts);
  const auto some = static_cast<size_t>(s_.per_token);
  int32_t* chosen = scratch.take<int32_t>(x.rows * s_.per_token);
  float* weight = scratch.take<float>(x.rows * s_.per_token);
  int64_t* row_of = scratch.take<int64_t>(x.rows);  // of the rows gathered for one expert
  float* weight_of = scratch.take<float>(x.rows);
  const auto room = static_cast<size_t>(s_.experts + s_.groups);
  const std::span<float> choice(scratch.take<float>(s_.experts + s_.groups), room);
  const MatrixView<float> gathered = scratch.matrix(x.rows, hidden_);
  const MatrixView<float> result = scratch.matrix(x.rows, hidden_);

  backend.matmul(scores, *router_, x);
  for (int64_t row = 0; row < x.rows; ++row) {
    choose_experts({chosen + row * s_.per_token, some}, {weight + row * s_.per_token, some},
                   {scores.row(row), static_cast<size_t>(s_.experts)}, choice, correction_, s_);
    std::fill_n(out.row(row), hidden_, 0.0f);
  }
  for (int64_t e = 0; e < s_.experts; ++e) {
    int64_t count = 0;
    for (int64_t row = 0; row < x.rows; ++row) {
      const int32_t* begin = chosen + row * s_.per_token;
      const int32_t* found = std::find(begin, begin + some, static_cast<int32_t>(e));
      if (found == begin + some) continue;
      std::memcpy(gathered.row(count), x.row(row), static_cast<size_t>(hidden_) * sizeof(float));
      row_of[count] = row;
      weight_of[count++] = weight[row * s_.per_token + (found - begin)];
    }
    if (count == 0) continue;
    apply(backend, experts_[static_cast<size_t>(e)], result.rows_from(0, count), gathered.rows_from(0, count), scratch);
    for (int64_t i = 0; i < count; ++i) {
      float* sum = out.row(row_of[i]);
      const float* term = result.row(i);
      for (int64_t c = 0; c < hidden_; ++c) sum[c] += weight_of[i] * term[c];
    }
  }
  if (s_.shared_inner > 0) {
    apply(backend, shared_, result, x, scratch);
    backend.add(out, result);
  }
}

int64_t Experts::weight_bytes() const {
  int64_t bytes = router_->bytes() + static_cast<int64_t>(correction_.size() * sizeof(float));
  for (const Mlp& mlp : experts_) bytes += mlp.bytes();
  return bytes + (s_.shared_inner > 0 ? shared_.bytes() : 0);
}

int64_t Experts::bytes_read_per_token() const {
  return router_->bytes_read() + s_.per_token * experts_.front().bytes_read() +
         (s_.shared_inner > 0 ? shared_.bytes_read() : 0);
}

int64_t Experts::flops_per_token() const {
  return 2 * hidden_ * s_.experts + 6 * hidden_ * (s_.per_token * s_.inner + s_.shared_inner);
}

}  // namespace quipu
