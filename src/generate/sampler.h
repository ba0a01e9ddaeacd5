// Sampler: one token out of a row of logits.
//
// The order is llama.cpp's: repeat penalty, top-k, top-p, min-p (both on the softmax of the unheated logits), temperature,
// draw. The draw is keyed by seed and position, so what a session says at a position does not depend on what was drawn
// before, on other sessions or on threads.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "generate/session.h"

namespace quipu {

// kUsage for a value outside its range, naming the option.
Result<void> check_sampling(const SamplingOptions& options);

class Sampler {
 public:
  // Memory for `vocabulary` candidates is taken here; sample() allocates nothing. options must pass check_sampling.
  Sampler(const SamplingOptions& options, int64_t vocabulary);

  // logits [vocabulary]. recent: the last tokens of the context (at most repeat_last are looked at). position: of the token
  // to be drawn. Greedy: the lowest id of equal logits wins. Minus infinity means never; NaN or plus infinity is an error
  // (kFailed) that names token and position.
  Result<int32_t> sample(std::span<const float> logits, std::span<const int32_t> recent, int64_t position);

  struct Candidate {
    int32_t id;
    float logit;
    double weight;   // exp(logit - highest)
  };

 private:
  Result<void> fill(std::span<const float> logits, int64_t position);
  void penalise(std::span<const int32_t> recent);
  int32_t greedy() const;
  void cut_by_mass();
  int32_t draw(int64_t position) const;

  SamplingOptions options_;
  std::vector<Candidate> candidates_;   // after fill(): in order of id
  std::vector<uint8_t> seen_;           // [vocabulary], zero between calls
};

}  // namespace quipu
