#include "blocks/token_selection.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/check.h"

namespace quipu {

int64_t capacity_tokens(double share, int64_t tokens) {
  CHECK(share > 0.0 && share <= 1.0 && tokens >= 0) << "capacity " << share << " of " << tokens << " tokens";
  // 0.07 * 100 is a little over 7 in binary; that is not an eighth token.
  constexpr double kRounding = 1e-9;
  const double exact = share * static_cast<double>(tokens);
  return std::min(tokens, static_cast<int64_t>(std::ceil(exact * (1.0 - kRounding))));
}

std::vector<int64_t> select_top_k(std::span<const float> scores, int64_t capacity) {
  CHECK(capacity >= 0) << capacity;
  const int64_t taken = std::min(capacity, static_cast<int64_t>(scores.size()));
  std::vector<int64_t> indices(scores.size());
  std::iota(indices.begin(), indices.end(), 0);
  const auto score = [&](int64_t index) {
    const float value = scores[static_cast<size_t>(index)];
    return std::isnan(value) ? -std::numeric_limits<float>::infinity() : value;
  };
  const auto earlier = [&](int64_t a, int64_t b) { return score(a) != score(b) ? score(a) > score(b) : a < b; };
  if (taken < static_cast<int64_t>(indices.size())) {
    std::nth_element(indices.begin(), indices.begin() + taken, indices.end(), earlier);
    indices.resize(static_cast<size_t>(taken));
  }
  std::sort(indices.begin(), indices.end());
  return indices;
}

double selection_disagreement(std::span<const int64_t> a, std::span<const int64_t> b, int64_t tokens) {
  CHECK(tokens > 0) << tokens;
  std::vector<int64_t> differing;
  std::set_symmetric_difference(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(differing));
  return static_cast<double>(differing.size()) / static_cast<double>(tokens);
}

double auxiliary_router_loss(std::span<float> gradient, std::span<const float> scores,
                             std::span<const int64_t> selected) {
  CHECK(gradient.size() == scores.size() && !scores.empty()) << gradient.size() << " for " << scores.size();
  const double count = static_cast<double>(scores.size());
  double sum = 0.0;
  size_t next = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    const bool wanted = next < selected.size() && selected[next] == static_cast<int64_t>(i);
    if (wanted) ++next;
    // -ln sigmoid(z), z the score towards its target: ln(1 + e^-z) without overflow.
    const double z = wanted ? double{scores[i]} : -double{scores[i]};
    sum += std::max(-z, 0.0) + std::log1p(std::exp(-std::abs(z)));
    gradient[i] = static_cast<float>((1.0 / (1.0 + std::exp(-double{scores[i]})) - (wanted ? 1.0 : 0.0)) / count);
  }
  CHECK(next == selected.size()) << "selected indices must ascend and lie in the scores";
  return sum / count;
}

}  // namespace quipu
