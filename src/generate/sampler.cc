#include "generate/sampler.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/random.h"

namespace quipu {
namespace {

bool better(const Sampler::Candidate& a, const Sampler::Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

Error out_of_range(const char* option, double value, const char* expected) {
  std::string text = std::to_string(value);
  return usage_error(std::string(option) + " is " + text + ", expected " + expected);
}

}  // namespace

Result<void> check_sampling(const SamplingOptions& o) {
  if (!(std::isfinite(o.temperature) && o.temperature >= 0)) return out_of_range("temperature", o.temperature, "0 or more");
  if (o.top_k < 0) return out_of_range("top-k", static_cast<double>(o.top_k), "0 (off) or more");
  if (!(o.top_p > 0 && o.top_p <= 1)) return out_of_range("top-p", o.top_p, "above 0, at most 1");
  if (!(o.min_p >= 0 && o.min_p <= 1)) return out_of_range("min-p", o.min_p, "0 to 1");
  if (!(std::isfinite(o.repeat_penalty) && o.repeat_penalty > 0)) {
    return out_of_range("repeat-penalty", o.repeat_penalty, "above 0");
  }
  if (o.repeat_last < 0) return out_of_range("repeat-last", static_cast<double>(o.repeat_last), "0 or more");
  return {};
}

Sampler::Sampler(const SamplingOptions& options, int64_t vocabulary)
    : options_(options), seen_(static_cast<size_t>(vocabulary), 0) {
  candidates_.reserve(static_cast<size_t>(vocabulary));
}

Result<void> Sampler::fill(std::span<const float> logits, int64_t position) {
  CHECK(logits.size() == seen_.size()) << logits.size() << " logits, vocabulary " << seen_.size();
  candidates_.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    const float logit = logits[i];
    if (std::isnan(logit) || logit == INFINITY) {
      return failed("logit of token " + std::to_string(i) + " at position " + std::to_string(position) + " is " +
                    (std::isnan(logit) ? "NaN" : "infinite") + ": the weights or the state are damaged");
    }
    candidates_[i] = {static_cast<int32_t>(i), logit, 0};
  }
  return {};
}

// Positive logits are divided and negative ones multiplied, once a token however often it occurs.      [CTRL, Keskar 2019]
void Sampler::penalise(std::span<const int32_t> recent) {
  if (options_.repeat_penalty == 1.0 || options_.repeat_last == 0) return;
  const size_t count = std::min(recent.size(), static_cast<size_t>(options_.repeat_last));
  const auto last = recent.last(count);
  const float penalty = static_cast<float>(options_.repeat_penalty);
  for (const int32_t id : last) {
    const size_t index = static_cast<size_t>(id);
    if (seen_[index] != 0) continue;
    seen_[index] = 1;
    float& logit = candidates_[index].logit;
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
  for (const int32_t id : last) seen_[static_cast<size_t>(id)] = 0;
}

int32_t Sampler::greedy() const { return std::min_element(candidates_.begin(), candidates_.end(), better)->id; }

// Keeps the best candidates whose probabilities sum to top_p, then those of at least min_p times the best one's.
void Sampler::cut_by_mass() {
  const auto best = std::min_element(candidates_.begin(), candidates_.end(), better);
  const double highest = best->logit;
  double total = 0;
  for (Candidate& c : candidates_) total += c.weight = std::exp(static_cast<double>(c.logit) - highest);
  size_t kept = candidates_.size();
  if (options_.top_p < 1) {
    // Few candidates usually hold the mass: sort the best ones only, eight times as many at each attempt.
    size_t sorted = 0;
    double mass = 0;
    kept = 0;
    for (size_t wanted = 128; mass < options_.top_p * total && kept < candidates_.size(); wanted *= 8) {
      const size_t end = std::min(wanted, candidates_.size());
      std::partial_sort(candidates_.begin() + static_cast<std::ptrdiff_t>(sorted),
                        candidates_.begin() + static_cast<std::ptrdiff_t>(end), candidates_.end(), better);
      for (sorted = end; kept < end && mass < options_.top_p * total; ++kept) mass += candidates_[kept].weight;
    }
    candidates_.resize(std::max<size_t>(kept, 1));
  }
  if (options_.min_p > 0) {
    std::erase_if(candidates_, [&](const Candidate& c) { return c.weight < options_.min_p; });   // the best weighs 1
  }
}

int32_t Sampler::draw(int64_t position) const {
  RandomStream random(options_.seed, static_cast<uint64_t>(position));
  double total = 0;
  for (const Candidate& c : candidates_) total += c.weight;
  double target = random.uniform() * total;
  const Candidate* last = &candidates_.front();
  for (const Candidate& c : candidates_) {
    if (c.weight <= 0) continue;
    last = &c;
    target -= c.weight;
    if (target < 0) break;
  }
  return last->id;
}

Result<int32_t> Sampler::sample(std::span<const float> logits, std::span<const int32_t> recent, int64_t position) {
  RETURN_IF_ERROR(fill(logits, position));
  penalise(recent);
  if (options_.temperature == 0) return greedy();
  if (options_.top_k > 0 && static_cast<size_t>(options_.top_k) < candidates_.size()) {
    const auto end = candidates_.begin() + static_cast<std::ptrdiff_t>(options_.top_k);
    std::nth_element(candidates_.begin(), end - 1, candidates_.end(), better);
    candidates_.erase(end, candidates_.end());
  }
  cut_by_mass();
  // A fixed order: the outcome must not depend on how the library partitions.
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  const double highest = std::min_element(candidates_.begin(), candidates_.end(), better)->logit;
  if (highest == -INFINITY) {
    return failed("no token can follow at position " + std::to_string(position) + ": every logit is minus infinity");
  }
  for (Candidate& c : candidates_) {
    c.weight = std::exp((static_cast<double>(c.logit) - highest) / options_.temperature);
  }
  return draw(position);
}

}  // namespace quipu
