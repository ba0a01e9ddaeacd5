// CostPlan: what a model of some configuration costs, without its weights: bytes of state, operations and bytes moved
// per token, operations of a prompt. Every number comes from the layers themselves: the state they declare
// (state_layout) and their own counts of operations; nothing here knows a kind of attention.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "blocks/pre_norm.h"
#include "model/config.h"

namespace quipu {

// One region of the state, over all layers.
struct RegionBytes {
  std::string name;
  bool grows = false;  // with the context; otherwise of one size
  uint64_t bytes = 0;
  uint64_t elements = 0;
};

class CostPlan {
 public:
  struct Options {
    DType cache_dtype = DType::kF16;
    double bytes_per_weight = 2;  // of every matrix read
  };
  // Errors are those of the layers: settings out of range.
  static Result<CostPlan> create(const ModelConfig& config, const Options& options);

  int64_t parameters() const { return parameters_; }
  // What `tokens` tokens of one sequence take, to the row; of routed layers the tokens they expect.
  uint64_t state_bytes(int64_t tokens) const;
  // The same by region name, in the order layers declare them.
  std::vector<RegionBytes> regions(int64_t tokens) const;
  // One more token, the last of `tokens`.
  double decode_flops(int64_t tokens) const { return token_flops_ + context_flops(tokens); }
  double context_flops(int64_t tokens) const;  // of it: what attention spends on the context
  double decode_bytes(int64_t tokens) const;   // weights and state read
  // A prompt of `tokens` tokens in one piece with the logits of its last: summed over its tokens. Rooms that have an
  // expanded form take it when it needs fewer operations.
  double prefill_flops(int64_t tokens) const;
  double prefill_context_flops(int64_t tokens) const;  // of it: attention over the context

 private:
  // Layers of one kind.
  struct Kind {
    Kind(PreNormBlock layer) : block(std::move(layer)) {}
    PreNormBlock block;
    std::unique_ptr<PreNormBlock> expanded;  // of rooms that have two forms; null otherwise
    StateLayout layout;
    double capacity = 1;           // share of tokens that enter the layer
    bool bounded_by_time = false;  // see context_share()
    int64_t layers = 0;
    int64_t elements = 0;     // weights of one layer
    double weights_read = 0;  // elements one token reads of them, on average
    double token_flops = 0;   // of one token, without context
  };
  static Result<Kind> make_kind(const ModelConfig& config, size_t layer, const StateOptions& state);
  static double context_share(const Kind& kind, const Attention& attention, int64_t tokens);
  static double context_sum(const Kind& kind, const Attention& attention, int64_t tokens);

  CostPlan() = default;
  StateOptions state_;
  double bytes_per_weight_ = 2;
  std::vector<Kind> kinds_;
  int64_t parameters_ = 0;
  double token_flops_ = 0;  // of one token, without context, all layers and logits
  double logits_flops_ = 0;
  double weights_read_ = 0;  // elements one token reads, all layers and logits
};

}  // namespace quipu
