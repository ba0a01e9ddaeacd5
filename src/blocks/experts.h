// Experts: a feed-forward part of many small gated MLPs of which each token uses a few, chosen by a router, beside one
// that all tokens use.                                                       [DeepSeek-V2 (2405.04434), -V3
// (2412.19437)]
//
//   s_e  = softmax(W x)_e  or  sigmoid(W x)_e            of every expert e
//   c_e  = s_e + correction_e                            for choosing only; without a correction c = s
//   of `groups` equal ranges of experts the `groups_kept` with the best score stay: the largest c, or the sum of the
//   two largest; of the experts in them the `per_token` with the largest c are chosen g_e  = s_e [ / (sum over the
//   chosen + 1e-20) ] * scaling y    = sum over the chosen of g_e mlp_e(x), by ascending e, + shared(x)
//
// Between equals the lower index wins. Every row is computed by itself: the rows of a prompt are grouped by expert, so
// that each expert's weights are read once, but no product mixes rows.
//
// Weight roles: experts.router [experts, hidden]; experts.correction [experts] with correction; for each expert N
// experts.N.gate, experts.N.up [inner, hidden] and experts.N.down [hidden, inner]; shared_experts.gate, .up
// [shared_inner, hidden] and .down with shared_inner.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "blocks/feed_forward.h"

namespace quipu {

struct ExpertsSettings {
  int64_t experts = 0;       // >= 1
  int64_t per_token = 0;     // 1 .. experts_per_group * groups_kept
  int64_t inner = 0;         // width of one expert
  int64_t shared_inner = 0;  // width of the shared one; 0: none
  bool sigmoid = false;      // scores; otherwise softmax
  bool correction = false;
  int64_t groups = 1;          // divides experts
  int64_t groups_kept = 1;     // 1 .. groups
  bool group_top_two = false;  // a group's score is the sum of its two best; otherwise its best
  bool normalise = false;
  double scaling = 1;

  bool operator==(const ExpertsSettings&) const = default;
};

class Experts final : public FeedForward {
 public:
  // settings have been checked: check_experts().
  static Result<std::unique_ptr<FeedForward>> create(const ExpertsSettings& settings, int64_t hidden,
                                                     GateActivation activation, WeightSource& weights,
                                                     Backend& backend);

  int64_t scratch_bytes(int64_t rows) const override;
  void forward(Backend& backend, MatrixView<float> out, MatrixView<const float> x, Arena& scratch) const override;
  int64_t weight_bytes() const override;
  // Of the experts one token uses: the router, per_token of them and the shared one.
  int64_t bytes_read_per_token() const override;
  int64_t flops_per_token() const override;

 private:
  struct Mlp {
    std::unique_ptr<PackedMatrix> gate, up, down;
    int64_t bytes() const { return gate->bytes() + up->bytes() + down->bytes(); }
    int64_t bytes_read() const { return gate->bytes_read() + up->bytes_read() + down->bytes_read(); }
  };
  Experts(const ExpertsSettings& settings, int64_t hidden, GateActivation activation)
      : s_(settings), hidden_(hidden), activation_(activation) {}
  static Result<Mlp> bind_mlp(WeightSource& weights, const std::string& role, int64_t inner, int64_t hidden);
  void apply(Backend& backend, const Mlp& mlp, MatrixView<float> out, MatrixView<const float> x, Arena& scratch) const;

  ExpertsSettings s_;
  int64_t hidden_;
  GateActivation activation_;
  std::unique_ptr<PackedMatrix> router_;  // fp32 whatever the file has: a near tie decides which weights are used
  std::vector<float> correction_;         // empty: none
  std::vector<Mlp> experts_;
  Mlp shared_;  // with shared_inner
};

// The experts one row uses and what each counts.
// chosen, weight: [per_token], by ascending expert. scores [experts]: the router's products, overwritten; room
// [experts + groups]: scratch.
// correction: [experts] or empty.
void choose_experts(std::span<int32_t> chosen, std::span<float> weight, std::span<float> scores, std::span<float> room,
                    std::span<const float> correction, const ExpertsSettings& settings);

// Whether the numbers fit together; the error says which does not, without a file's name.
Result<void> check_experts(const ExpertsSettings& settings);

}  // namespace quipu
