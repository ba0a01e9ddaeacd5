// MixtureOfDepths: only some tokens go through a layer; the others pass it by unchanged. It wraps any pre-norm block,
// whatever its attention: this is routing, not attention.                      [Raposo et al. 2024, arXiv 2404.02258]
//
//   r_i  = w . n(x_i) + b                     the router's score; n: identity, or x / rms(x)
//   g_i  = r_i or sigmoid(r_i)
//   h_i  = x_i + attention(norm(x))_i         of the tokens let in, attending to each other only
//   x'_i = (x_i + g_i attention_i) + g_i feed_forward(norm(h))_i                            output "update"
//   x'_i = x_i + g_i (h_i + feed_forward(norm(h))_i)                                        output "block"
//   x'_i = x_i                                for every other token
//
// With output "update" a layer that lets every token in with g = 1 is the dense layer, bit for bit: the sums are in its
// order. "block" multiplies the layer's own residual stream as well, as some published code does.
//
// Which tokens are let in:
//   top-k       as in training: of each group of S tokens the capacity_tokens(capacity, S) with the highest scores.
//               A group is a sequence, or `group_tokens` neighbouring positions of it. It looks into the group's
//               future, so no configuration can ask for it to generate with.
//   threshold   r_i > 0: for routers trained with the auxiliary loss that moves the border of the top k to 0
//   predictor   a small network on n(x_i), v . silu(U n(x_i) + c) + d > 0, trained to foresee the top k
//   moving      r_i > t, t a number in the file: the moving average of that border in training            [2603.11535]
// The last three look at one token alone, so that prompt, chunk and single step route alike, bit for bit.
//
// State. The layer's memory of the context holds only the tokens let in; everything in it counts those alone:
//   windows and strides   a window of 512 sees the last 512 tokens that were let in; a stride merges neighbours among
//                         them, and its positional code counts their chunks. Rows, not time, are what these settings
//                         bound.
//   rotary positions      are those of the whole sequence.
//   segments (infini)     are those of the whole sequence, so the router is a write gate: what it sends past the
//                         layer is neither read there nor written.
// Room is reserved for capacity * context * (1 + slack) tokens, in whole pages. When it is used up every later token
// passes the layer by; SequenceState::routed_tokens() tells. Cutting a context back works as far as the attention
// allows.
//
// Settings (section "mixture_of_depths"):
//   capacity       in (0, 1]: share of the tokens let in
//   decode         "threshold" (absent), "predictor", "moving"
//   output         "update" (absent), "block"
//   weight         "linear" (absent): g = r; "sigmoid"
//   router_input   "plain" (absent): n(x) = x; "rms": n(x) = x / sqrt(mean(x^2) + 1e-6)
//   slack          >= 0, absent 0.25
//   predictor_dim  rows of U: with decode "predictor"
//   group_tokens   top-k of every so many positions; absent or 0: of the whole sequence. Training only.
// Weight roles, each after "mixture_of_depths.":
//   router [1, hidden], router_bias [1] when the file has it
//   router_threshold [1]: with "moving"
//   predictor_up [predictor_dim, hidden], predictor_down [1, predictor_dim]: with "predictor"; predictor_up_bias,
//   predictor_down_bias when the file has them
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "blocks/pre_norm.h"

namespace quipu {

enum class DepthRule { kThreshold, kPredictor, kMoving, kTopK };

struct DepthSettings {
  double capacity = 1.0;
  DepthRule rule = DepthRule::kThreshold;
  bool whole_block = false;  // output "block"
  bool sigmoid = false;
  bool normalised_input = false;
  double slack = 0.25;
  int64_t predictor_dim = 0;
  int64_t group_tokens = 0;  // kTopK; 0: the whole sequence
};

// Errors name the first wrong key.
Result<DepthSettings> read_depth_settings(const HyperParameters& parameters);

class MixtureOfDepths {
 public:
  static Result<MixtureOfDepths> create(const DepthSettings& settings, int64_t hidden, WeightSource& weights,
                                        Backend& backend);

  const DepthSettings& settings() const { return s_; }
  // For comparisons: lets tokens in by another rule whose weights there are. kTopK takes a step's rows of a sequence
  // for the whole of it, or of its groups.
  void set_rule(DepthRule rule) { s_.rule = rule; }

  // The layout of the block's attention as a routed layer has it.
  StateLayout state_layout(const PreNormBlock& block, const StateOptions& options) const;
  int64_t scratch_bytes(const PreNormBlock& block, int64_t rows) const;
  // The whole layer, in place on the residual stream x [rows, hidden]. The states are prepared for as many tokens as
  // there are rows, or as they have room for. Rows that pass the layer by keep their bits.
  void forward(Backend& backend, MatrixView<float> x, const PreNormBlock& block, const RaggedBatch& batch,
               Arena& scratch) const;

  // Of the router itself; the block's own costs are paid by the share `capacity` of the tokens.
  int64_t weight_bytes() const;
  int64_t flops_per_token() const;

 private:
  struct Step;  // scratch of one forward()
  explicit MixtureOfDepths(const DepthSettings& settings) : s_(settings) {}
  Result<void> bind(int64_t hidden, WeightSource& weights, Backend& backend);
  void score(Step& step, MatrixView<const float> x, Backend& backend, Arena& scratch) const;
  void choose_top_k(Step& step, const SequenceSlice& slice, std::span<const int64_t> positions) const;
  void gather(Step& step, const RaggedBatch& batch) const;
  void scatter(const Step& step, MatrixView<float> x) const;

  DepthSettings s_;
  int64_t hidden_ = 0;
  // fp32 whatever the file has: a rounded score lets other tokens in.
  std::unique_ptr<PackedMatrix> router_, predictor_up_, predictor_down_;
  std::vector<float> router_bias_, predictor_up_bias_, predictor_down_bias_;  // empty: none
  std::vector<float> ones_;                                                   // [hidden], for the norm of the input
  float threshold_ = 0.0f;
};

}  // namespace quipu
