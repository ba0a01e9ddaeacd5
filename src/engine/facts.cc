#include "engine/facts.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <map>

#include "base/byte_reader.h"

namespace quipu {
namespace {

std::string upper(std::string_view text) {
  std::string result(text);
  std::transform(result.begin(), result.end(), result.begin(), [](unsigned char c) { return std::toupper(c); });
  return result;
}

// The types of the matrices, those with more elements first; types below one element in two hundred are left out.
std::string quantisation_of(const TensorFile& file) {
  std::map<DType, int64_t> elements;
  int64_t total = 0;
  for (const NamedTensor& tensor : file.tensors()) {
    if (tensor.view.shape.size() < 2) continue;
    const int64_t count = element_count(tensor.view.shape);
    elements[tensor.view.dtype] += count;
    total += count;
  }
  std::vector<std::pair<int64_t, DType>> order;
  for (const auto& [dtype, count] : elements) order.emplace_back(count, dtype);
  std::sort(order.rbegin(), order.rend());
  std::string text;
  for (const auto& [count, dtype] : order) {
    if (!text.empty() && count * 200 < total) continue;
    text += (text.empty() ? "" : " + ") + upper(dtype_name(dtype));
  }
  return text;
}

std::string last_part(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path.substr(path.rfind('/') + 1);
}

// Rooms are free to have a setting of this name or not; 0: they do not.
int64_t whole_setting(const HyperParameters& parameters, std::string_view name) {
  const auto found = parameters.values().find(name);
  if (found == parameters.values().end()) return 0;
  const int64_t* value = std::get_if<int64_t>(&found->second);
  return value == nullptr ? 0 : *value;
}

std::string brief_text(const HyperParameters& parameters) {
  std::string text;
  for (const auto& [name, value] : parameters.values()) {
    std::string shown;
    if (const auto* whole = std::get_if<int64_t>(&value)) shown = std::to_string(*whole);
    if (const auto* words = std::get_if<std::string>(&value)) shown = *words;
    if (shown.empty()) continue;   // numbers and lists of them are for the file itself
    text += (text.empty() ? "" : ", ") + name + " " + printable(shown);
  }
  return text;
}

// "heads 8, latent_rank 256, stride 2"
std::string settings_text(const LayerConfig& layer) {
  std::string text = brief_text(layer.attention);
  if (layer.mixture_of_depths.has_value()) {
    char capacity[32];
    std::snprintf(capacity, sizeof capacity, "%g", layer.mixture_of_depths->capacity);
    text += std::string("; mixture of depths: capacity ") + capacity + ", decode " + layer.mixture_of_depths->decode;
  }
  if (const auto& experts = layer.feed_forward.experts; experts.has_value()) {
    text += "; experts " + std::to_string(experts->experts) + ", " + std::to_string(experts->per_token) + " per token";
    if (experts->shared_inner > 0) text += " and one for all";
  }
  return text;
}

uint64_t exact_state_bytes(const Model& model, const StateOptions& options, int64_t tokens) {
  uint64_t total = 0;
  for (const StateLayout& layout : model.state_layouts(options)) total += static_cast<uint64_t>(state_bytes(layout, tokens));
  return total;
}

}  // namespace

uint64_t allocated_state_bytes(const Model& model, const StateOptions& options, int64_t tokens) {
  uint64_t total = 0;
  for (const StateLayout& layout : model.state_layouts(options)) {
    total += static_cast<uint64_t>(state_bytes_allocated(layout, tokens));
  }
  return total;
}

ContextCost context_cost(const Model& model, const StateOptions& options, int64_t tokens) {
  ContextCost cost;
  cost.tokens = tokens;
  cost.state_bytes = exact_state_bytes(model, options, tokens);
  cost.state_bytes_allocated = allocated_state_bytes(model, options, tokens);
  cost.flops_per_token = model.flops_per_token(tokens);
  cost.bytes_read_per_token = model.bytes_read_per_token(tokens, options);
  return cost;
}

// Rooms keep f16 rows where the blocks of the type asked for do not divide a head.
std::string refused_cache_dtype(const Model& model, const StateOptions& options) {
  const int64_t block = traits(options.cache_dtype).block_elements;
  if (block == 1) return "";
  size_t layers = 0;
  const std::vector<StateLayout> layouts = model.state_layouts(options);
  for (const StateLayout& layout : layouts) {
    layers += std::ranges::any_of(layout.regions, [](const RegionSpec& region) { return region.dtype == DType::kF16; });
  }
  if (layers == 0) return "";
  return std::to_string(layers) + " of " + std::to_string(layouts.size()) + " layers keep their context as f16: their heads are not whole blocks of " +
         std::to_string(block) + ", which cache type " + std::string(dtype_name(options.cache_dtype)) + " needs";
}

ModelFacts model_facts(const ModelSource& source, const Model& model, const StateOptions& options) {
  const ModelConfig& config = source.config;
  const LayerConfig& first = config.layers.front();
  ModelFacts facts;
  facts.path = source.path;
  facts.name = config.name.empty() ? last_part(source.folder.empty() ? source.path : source.folder) : config.name;
  facts.architecture = config.architecture;
  facts.file_format = source.format;
  facts.quantisation = quantisation_of(source.tensors());
  facts.weight_bytes = source.tensors().tensor_bytes();
  facts.layers = static_cast<int64_t>(config.layers.size());
  facts.hidden = config.hidden;
  facts.heads = whole_setting(first.attention, "heads");
  facts.kv_heads = whole_setting(first.attention, "kv_heads");
  facts.head_dim = whole_setting(first.attention, "head_dim");
  const auto& experts = first.feed_forward.experts;
  facts.feed_forward = experts.has_value() ? experts->inner : first.feed_forward.inner;
  facts.vocabulary = config.vocabulary;
  facts.trained_context = config.trained_context;
  for (const LayerConfig& layer : config.layers) {
    facts.layer_rooms.push_back(layer.room);
    facts.layer_settings.push_back(settings_text(layer));
  }
  for (const NamedTensor& tensor : source.tensors().tensors()) {
    facts.tensors.push_back({printable(tensor.name, 256), std::string(dtype_name(tensor.view.dtype)), tensor.view.shape,
                             tensor.view.bytes.size()});
    if (tensor.name != "rope_freqs.weight") facts.parameters += element_count(tensor.view.shape);
  }
  // The slope where every window is full.
  constexpr int64_t kFar = int64_t{1} << 24;
  facts.state_bytes_per_token =
      static_cast<double>(exact_state_bytes(model, options, 2 * kFar) - exact_state_bytes(model, options, kFar)) / kFar;
  facts.warnings = source.warnings;
  if (const std::string refused = refused_cache_dtype(model, options); !refused.empty()) facts.warnings.push_back(refused);
  return facts;
}

}  // namespace quipu
