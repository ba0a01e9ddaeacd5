// Which tokens a router lets into a layer, when it may look at all of them: expert choice, as models are trained.
//                                                                   [Raposo et al. 2024, Mixture-of-Depths,
//                                                                   section 3.3]
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace quipu {

// The tokens of a group of `tokens` that a capacity of `share` in (0, 1] lets in: the next whole number, so never none.
int64_t capacity_tokens(double share, int64_t tokens);

// The indices, ascending, of the `capacity` highest scores; of equal scores those with the lower index. Exactly
// min(capacity, scores.size()) of them: comparing with the value of the last one in would lose it or let in its equals.
// A score that is not a number counts as minus infinity.
std::vector<int64_t> select_top_k(std::span<const float> scores, int64_t capacity);

// The share of `tokens` tokens that exactly one of two selections (indices ascending) holds: how far a rule that may
// not see the future is from the one the model was trained with.
double selection_disagreement(std::span<const int64_t> a, std::span<const int64_t> b, int64_t tokens);

// The auxiliary loss of a router that is to be used with a threshold of 0: the mean over all scores of the binary cross
// entropy between sigmoid(score) and 1 for the selected (indices ascending), 0 for the others. gradient [scores.size()]
// is what it pulls each score by.                                                            [section 3.5 of the paper]
double auxiliary_router_loss(std::span<float> gradient, std::span<const float> scores,
                             std::span<const int64_t> selected);

}  // namespace quipu
