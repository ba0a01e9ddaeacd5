// Mixture-of-Depths that learns: routing around any trainable block. Mathematics, settings and weight roles:
// mixture_of_depths.h.
//
// Training lets in the top k of every sequence, or of every group_tokens positions of it. The choice is not differentiated;
// the router learns because its score multiplies what the block adds:
//   x'_i = x_i + g_i u_i,  u = block(X) - X (output "block": block(X)), X the rows let in
//   dL/dg_i = dL/dx'_i . u_i;  through r_i to the router and to x_i. No such path from rows that pass the layer by.
// The rule that serves learns at its side, weighted by LayerOptions::router_loss:
//   threshold   binary cross entropy of sigmoid(r) against the choice, mean over the rows of the batch; its gradient goes
//               to the router and into x
//   predictor   the same of the predictor's score; nothing of it reaches the router or x
//   moving      (t - b)^2 / 2, b the mean over the groups of what lies half-way between the lowest score let in and the
//               highest left out: gradient descent on it is an exponential average of b. Nothing of it reaches the router
//               or x
// LayerOptions::serving: rows are let in as when generating, by that rule; as there, no more than
// capacity * (1 + slack) of a sequence's rows, the first ones. Then no loss of the rule is computed.
//
// Positions are those of the whole sequence; the block's memory sees the rows let in and nothing else.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "blocks/mixture_of_depths.h"
#include "blocks/training.h"

namespace quipu {

// Parameters: the block's, then mixture_of_depths.router and, as the settings and optional_roles say, ..router_bias,
// ..router_threshold, ..predictor_up, ..predictor_up_bias, ..predictor_down, ..predictor_down_bias. Memory is that of the
// rows let in: what a dense layer keeps, times the capacity (the slack included).
template <class Real>
std::unique_ptr<TrainableBlock<Real>> make_trainable_mixture_of_depths(const DepthSettings& settings, int64_t hidden,
                                                                       std::unique_ptr<TrainableBlock<Real>> block,
                                                                       std::span<const std::string> optional_roles);

}  // namespace quipu
