#include "engine/cost_plan.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "blocks/mixture_of_depths.h"
#include "model/layer.h"
#include "model/plan_backend.h"

namespace quipu {
namespace {

// Weights without values: answers every shape a layer asks for, and counts.
class CountingWeights final : public WeightSource {
 public:
  explicit CountingWeights(const std::vector<std::string>& required_roles) : required_roles_(required_roles) {}

  bool has(std::string_view role) const override {
    return std::find(required_roles_.begin(), required_roles_.end(), role) != required_roles_.end();
  }
  Result<std::unique_ptr<PackedMatrix>> matrix(std::string_view, int64_t rows, int64_t cols,
                                               std::string_view) override {
    elements_ += rows * cols;
    return std::unique_ptr<PackedMatrix>(std::make_unique<CountedMatrix>(rows, cols));
  }
  Result<std::vector<float>> vector(std::string_view, int64_t length, std::string_view) override {
    elements_ += length;
    return std::vector<float>(static_cast<size_t>(length));
  }
  Result<std::vector<float>> dense(std::string_view, int64_t rows, int64_t cols, std::string_view) override {
    elements_ += rows * cols;
    return std::vector<float>(static_cast<size_t>(rows * cols));
  }
  int64_t elements() const { return elements_; }

 private:
  // One byte an element, so that a layer's own sum of bytes is a number of elements.
  class CountedMatrix final : public PackedMatrix {
   public:
    CountedMatrix(int64_t rows, int64_t cols) : PackedMatrix(DType::kF32, rows, cols) {}
    int64_t bytes() const override { return rows() * cols(); }
  };
  const std::vector<std::string>& required_roles_;
  int64_t elements_ = 0;
};

// Equal exactly when two layers of one model cost the same.
std::string kind_key(const LayerConfig& layer) {
  return layer.room + " " + layer.summary + (layer.mixture_of_depths ? " routed " : " ") +
         (layer.feed_forward.experts ? "experts" : std::to_string(layer.feed_forward.inner));
}

// A model of this one layer, every token let in.
ModelConfig alone(const ModelConfig& config, size_t layer) {
  ModelConfig one = config;
  one.layers = {config.layers[layer]};
  one.layers.front().mixture_of_depths.reset();
  return one;
}

}  // namespace

Result<CostPlan::Kind> CostPlan::make_kind(const ModelConfig& config, size_t layer, const StateOptions& state) {
  PlanBackend nothing;
  ModelConfig one = alone(config, layer);
  const LayerConfig& described = config.layers[layer];
  CountingWeights weights(described.required_roles);
  ASSIGN_OR_RETURN(PreNormBlock made, make_layer(one, 0, weights, nothing));
  Kind kind(std::move(made));
  kind.layout = kind.block.attention().state_layout(state);
  kind.elements = weights.elements();
  // Experts read only some of their weights for a token; everything else of the layer is read whole.
  const FeedForward& feed_forward = kind.block.feed_forward();
  kind.weights_read =
      static_cast<double>(weights.elements() - feed_forward.weight_bytes() + feed_forward.bytes_read_per_token());
  kind.token_flops = static_cast<double>(kind.block.attention().flops_per_token() + feed_forward.flops_per_token());
  // A latent's other form has the same state and weights. Rooms that know only one refuse the setting.
  if (described.attention.has("latent_rank")) {
    one.layers.front().attention.set("form", std::string("expanded"));
    CountingWeights again(described.required_roles);
    auto expanded = make_layer(one, 0, again, nothing);
    if (expanded.ok()) kind.expanded = std::make_unique<PreNormBlock>(std::move(*expanded));
  }
  if (!described.mixture_of_depths.has_value()) return kind;
  ASSIGN_OR_RETURN(const DepthSettings depths, read_depth_settings(described.mixture_of_depths->settings));
  CountingWeights router_weights(described.required_roles);
  ASSIGN_OR_RETURN(const MixtureOfDepths router,
                   MixtureOfDepths::create(depths, config.hidden, router_weights, nothing));
  kind.layout = router.state_layout(kind.block, state);
  kind.capacity = depths.capacity;
  kind.elements += router_weights.elements();
  kind.weights_read = kind.weights_read * depths.capacity + static_cast<double>(router_weights.elements());
  kind.token_flops = kind.token_flops * depths.capacity + static_cast<double>(router.flops_per_token());
  const auto fixed = [](const RegionSpec& region) {
    return region.growth == Growth::kFixed || region.name == position_region().name;
  };
  kind.bounded_by_time = std::all_of(kind.layout.regions.begin(), kind.layout.regions.end(), fixed);
  return kind;
}

Result<CostPlan> CostPlan::create(const ModelConfig& config, const Options& options) {
  CostPlan plan;
  plan.state_.cache_dtype = options.cache_dtype;
  plan.bytes_per_weight_ = options.bytes_per_weight;
  std::map<std::string, size_t> seen;
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const auto [at, added] = seen.try_emplace(kind_key(config.layers[i]), plan.kinds_.size());
    if (added) {
      ASSIGN_OR_RETURN(Kind kind, make_kind(config, i, plan.state_));
      plan.kinds_.push_back(std::move(kind));
    }
    ++plan.kinds_[at->second].layers;
  }
  const double table = static_cast<double>(config.vocabulary) * static_cast<double>(config.hidden);
  plan.logits_flops_ = 2 * table;
  plan.token_flops_ = plan.logits_flops_;
  plan.weights_read_ = table + static_cast<double>(2 * config.hidden);  // output matrix, final norm, one embedding row
  plan.parameters_ = config.vocabulary * config.hidden * (config.tied_output ? 1 : 2) + config.hidden;
  for (const Kind& kind : plan.kinds_) {
    plan.parameters_ += kind.elements * kind.layers;
    plan.token_flops_ += kind.token_flops * static_cast<double>(kind.layers);
    plan.weights_read_ += kind.weights_read * static_cast<double>(kind.layers);
  }
  return plan;
}

uint64_t CostPlan::state_bytes(int64_t tokens) const {
  int64_t total = 0;
  for (const Kind& kind : kinds_) total += kind.layers * quipu::state_bytes(kind.layout, tokens);
  return static_cast<uint64_t>(total);
}

std::vector<RegionBytes> CostPlan::regions(int64_t tokens) const {
  std::vector<RegionBytes> regions;
  for (const Kind& kind : kinds_) {
    for (const RegionSpec& spec : kind.layout.regions) {
      const auto same = [&](const RegionBytes& known) { return known.name == spec.name; };
      auto at = std::find_if(regions.begin(), regions.end(), same);
      if (at == regions.end()) at = regions.insert(regions.end(), {spec.name, spec.growth != Growth::kFixed, 0, 0});
      StateLayout only = kind.layout;
      only.regions = {spec};
      const int64_t bytes = kind.layers * quipu::state_bytes(only, tokens);
      at->bytes += static_cast<uint64_t>(bytes);
      at->elements += static_cast<uint64_t>(bytes / spec.bytes_per_row() * spec.row_elements);
    }
  }
  return regions;
}

// A routed layer sees the share `capacity` of the context. Rows, windows and strides count the tokens it took in, so
// that share goes into the room's formula; a state of fixed size is bounded in the sequence's own positions, so it
// comes out of it.
double CostPlan::context_share(const Kind& kind, const Attention& attention, int64_t tokens) {
  if (kind.bounded_by_time) return kind.capacity * static_cast<double>(attention.context_flops(tokens));
  return static_cast<double>(attention.context_flops(kind.layout.tokens_expected(tokens)));
}

double CostPlan::context_flops(int64_t tokens) const {
  double total = 0;
  for (const Kind& kind : kinds_) {
    total += static_cast<double>(kind.layers) * kind.capacity * context_share(kind, kind.block.attention(), tokens);
  }
  return total;
}

double CostPlan::decode_bytes(int64_t tokens) const {
  double state = 0;
  for (const Kind& kind : kinds_) {
    // Of a state bounded in the sequence's positions a routed layer may read less of its window: this is the most.
    const int64_t seen = kind.bounded_by_time ? tokens : kind.layout.tokens_expected(tokens);
    state += static_cast<double>(kind.layers) * kind.capacity *
             static_cast<double>(kind.block.attention().context_bytes_read(seen, state_));
  }
  return state + weights_read_ * bytes_per_weight_;
}

// Over the tokens that enter the layer.
double CostPlan::context_sum(const Kind& kind, const Attention& attention, int64_t tokens) {
  const int64_t count = kind.bounded_by_time ? tokens : kind.layout.tokens_expected(tokens);
  double total = 0;
  for (int64_t i = 1; i <= count; ++i) total += static_cast<double>(attention.context_flops(i));
  return kind.bounded_by_time ? kind.capacity * kind.capacity * total : total;
}

double CostPlan::prefill_context_flops(int64_t tokens) const {
  double total = 0;
  for (const Kind& kind : kinds_) {
    double sum = context_sum(kind, kind.block.attention(), tokens);
    if (kind.expanded != nullptr) sum = std::min(sum, context_sum(kind, kind.expanded->attention(), tokens));
    total += static_cast<double>(kind.layers) * sum;
  }
  return total;
}

double CostPlan::prefill_flops(int64_t tokens) const {
  return prefill_context_flops(tokens) + (token_flops_ - logits_flops_) * static_cast<double>(tokens) + logits_flops_;
}

}  // namespace quipu
