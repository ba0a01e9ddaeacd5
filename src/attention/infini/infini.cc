// What a layer is made of: settings, weights, the state it declares and what it costs. What it computes: forward.cc.
#include "attention/infini/infini.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>

namespace quipu {
namespace {

constexpr int64_t kMostHeads = 1 << 12;
constexpr int64_t kMostHeadDim = 1 << 14;

Result<std::vector<float>> optional_vector(WeightSource& weights, std::string_view role, int64_t length,
                                           std::string_view meaning) {
  if (!weights.has(role)) return std::vector<float>();
  return weights.vector(role, length, meaning);
}

}  // namespace

Result<Infini::Settings> Infini::read_settings(const AttentionShape& shape, const HyperParameters& p) {
  Settings s;
  s.hidden = shape.hidden;
  ASSIGN_OR_RETURN(s.heads, p.integer("heads", 1, kMostHeads));
  ASSIGN_OR_RETURN(s.kv_heads, p.integer("kv_heads", 1, s.heads));
  if (s.heads % s.kv_heads != 0) {
    return bad_input(p.origin() + ": attention setting heads is " + std::to_string(s.heads) +
                     ", expected a multiple of kv_heads " + std::to_string(s.kv_heads));
  }
  ASSIGN_OR_RETURN(s.head_dim, p.integer("head_dim", 1, kMostHeadDim));
  ASSIGN_OR_RETURN(s.value_dim, p.integer_or("value_dim", 1, kMostHeadDim, s.head_dim));
  ASSIGN_OR_RETURN(s.rope, rope_settings(p, s.head_dim));
  ASSIGN_OR_RETURN(const double scale,
                   p.number_or("scale", 1e-9, 1e9, 1.0 / std::sqrt(static_cast<double>(s.head_dim))));
  s.scale = static_cast<float>(scale);
  const MemoryShape memory{s.heads, s.kv_heads, s.head_dim, s.value_dim};
  ASSIGN_OR_RETURN(static_cast<MemorySettings&>(s), read_memory_settings(memory, p));
  return s;
}

Result<void> Infini::bind(WeightSource& weights, Backend& backend) {
  const auto product = [](const char* count_name, int64_t count, const char* dim_name, int64_t dim) {
    return std::string(count_name) + " " + std::to_string(count) + " * " + dim_name + " " + std::to_string(dim);
  };
  const int64_t query_rows = s_.heads * s_.head_dim;
  const int64_t key_rows = s_.kv_heads * s_.head_dim;
  const int64_t value_rows = s_.kv_heads * s_.value_dim;
  const int64_t output_cols = s_.heads * s_.value_dim;
  const std::string query_meaning = product("heads", s_.heads, "head_dim", s_.head_dim);
  const std::string key_meaning = product("kv_heads", s_.kv_heads, "head_dim", s_.head_dim);
  const std::string value_meaning = product("kv_heads", s_.kv_heads, "value_dim", s_.value_dim);
  const std::string output_meaning = product("columns: heads", s_.heads, "value_dim", s_.value_dim);
  ASSIGN_OR_RETURN(query_, weights.matrix("query", query_rows, s_.hidden, query_meaning));
  ASSIGN_OR_RETURN(key_, weights.matrix("key", key_rows, s_.hidden, key_meaning));
  ASSIGN_OR_RETURN(value_, weights.matrix("value", value_rows, s_.hidden, value_meaning));
  ASSIGN_OR_RETURN(output_, weights.matrix("output", s_.hidden, output_cols, output_meaning));
  ASSIGN_OR_RETURN(query_bias_, optional_vector(weights, "query_bias", query_rows, query_meaning));
  ASSIGN_OR_RETURN(key_bias_, optional_vector(weights, "key_bias", key_rows, key_meaning));
  ASSIGN_OR_RETURN(value_bias_, optional_vector(weights, "value_bias", value_rows, value_meaning));
  ASSIGN_OR_RETURN(output_bias_, optional_vector(weights, "output_bias", s_.hidden, "hidden"));
  ASSIGN_OR_RETURN(SegmentMemory memory, SegmentMemory::create(s_, s_.hidden, kMemoryRegions, weights, backend));
  memory_.emplace(std::move(memory));
  return {};
}

Result<std::unique_ptr<Attention>> Infini::create(const AttentionShape& shape, const HyperParameters& parameters,
                                                  WeightSource& weights, Backend& backend) {
  auto room = std::make_unique<Infini>();
  ASSIGN_OR_RETURN(room->s_, read_settings(shape, parameters));
  RETURN_IF_ERROR(room->bind(weights, backend));
  return std::unique_ptr<Attention>(std::move(room));
}

StateLayout Infini::state_layout(const StateOptions& options) const {
  DType dtype = options.cache_dtype;
  CHECK(is_kv_dtype(dtype)) << "cache dtype " << dtype_name(dtype);
  const int64_t block = traits(dtype).block_elements;
  if (s_.head_dim % block != 0 || s_.value_dim % block != 0) dtype = DType::kF16;
  const auto local = [&](const char* name, int64_t elements) {
    return RegionSpec{.name = name,
                      .dtype = dtype,
                      .row_elements = elements,
                      .growth = Growth::kFixed,
                      .fixed_rows = s_.local_pages() * kPageRows};
  };
  StateLayout layout;
  layout.rewind = Rewind::kNever;
  layout.regions.push_back(local("key", s_.kv_heads * s_.head_dim));
  layout.regions.push_back(local("value", s_.kv_heads * s_.value_dim));
  memory_->declare(layout);
  return layout;
}

int64_t Infini::weight_bytes() const {
  int64_t bytes = query_->bytes() + key_->bytes() + value_->bytes() + output_->bytes() + memory_->weight_bytes();
  for (const auto* vector : {&query_bias_, &key_bias_, &value_bias_, &output_bias_, &s_.rope.inverse_frequency}) {
    bytes += static_cast<int64_t>(vector->size() * sizeof(float));
  }
  return bytes;
}

int64_t Infini::flops_per_token() const {
  return 2 * s_.hidden * (s_.heads + s_.kv_heads) * (s_.head_dim + s_.value_dim) + memory_->flops_per_token();
}

int64_t Infini::context_flops(int64_t tokens) const {
  return 2 * s_.heads * (s_.head_dim + s_.value_dim) * s_.tokens_seen(tokens);
}

int64_t Infini::context_bytes_read(int64_t tokens, const StateOptions& options) const {
  const StateLayout layout = state_layout(options);
  const int64_t row = layout.regions[kKey].bytes_per_row() + layout.regions[kValue].bytes_per_row();
  return std::min(tokens, s_.local_tokens()) * row + memory_->bytes_read_per_token();
}

Result<std::unique_ptr<Attention>> create_infini(const AttentionShape& shape, const HyperParameters& parameters,
                                                 WeightSource& weights, Backend& backend) {
  return Infini::create(shape, parameters, weights, backend);
}

}  // namespace quipu
