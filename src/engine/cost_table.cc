#include "engine/cost_table.h"

#include "engine/cost_plan.h"
#include "engine/cost_rooms.h"

namespace quipu {
namespace {

RoomCost cost_at(const CostPlan& plan, int64_t tokens) {
  RoomCost cost;
  cost.tokens = tokens;
  cost.state_bytes = plan.state_bytes(tokens);
  for (const RegionBytes& region : plan.regions(tokens)) {
    cost.regions.push_back({region.name, region.grows, region.bytes, region.elements});
  }
  cost.decode_flops = plan.decode_flops(tokens);
  cost.decode_context_flops = plan.context_flops(tokens);
  cost.decode_bytes = plan.decode_bytes(tokens);
  cost.prefill_flops = plan.prefill_flops(tokens);
  cost.prefill_context_flops = plan.prefill_context_flops(tokens);
  return cost;
}

std::string last_part(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  if (path.ends_with("/config.json")) path.resize(path.size() - std::string_view("/config.json").size());
  return path.substr(path.rfind('/') + 1);
}

}  // namespace

Result<CostTable> cost_table(const std::string& path, const CostTableOptions& options) {
  for (const int64_t tokens : options.contexts) {
    if (tokens < 1 || tokens > kMostCostedTokens) {
      return usage_error("context of " + std::to_string(tokens) + " tokens, expected 1 to " +
                         std::to_string(kMostCostedTokens));
    }
  }
  ASSIGN_OR_RETURN(const DescribedModel described, describe_model(path));
  const ModelConfig& config = described.config;
  CostTable table;
  table.path = path;
  table.name = config.name.empty() ? last_part(path) : config.name;
  table.architecture = config.architecture;
  table.layers = static_cast<int64_t>(config.layers.size());
  table.hidden = config.hidden;
  table.vocabulary = config.vocabulary;
  table.bits_per_weight = 8 * described.bytes_per_weight;
  table.weights_seen = described.weights_seen;
  const VariantOptions variant_options{.segment_tokens = options.segment_tokens, .capacity = options.capacity};
  ASSIGN_OR_RETURN(table.rules, rule_texts(config, variant_options));
  ASSIGN_OR_RETURN(const std::vector<RoomVariant> variants, room_variants(config, variant_options));
  for (const RoomVariant& variant : variants) {
    ASSIGN_OR_RETURN(const CostPlan plan,
                     CostPlan::create(variant.config, {options.cache_dtype, described.bytes_per_weight}));
    RoomCosts costs{variant.name, variant.key, variant.own, variant.depths, plan.parameters(), {}};
    for (const int64_t tokens : options.contexts) costs.at.push_back(cost_at(plan, tokens));
    table.rooms.push_back(std::move(costs));
  }
  return table;
}

}  // namespace quipu
