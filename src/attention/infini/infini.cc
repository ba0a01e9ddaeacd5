// What a layer is made of: settings, weights, the state it declares and what it costs. What it computes: forward.cc.
#include "attention/infini/infini.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>

#include "attention/infini/memory_tile.h"
#include "attention/infini/regions.h"

namespace quipu {
namespace {

constexpr int64_t kMostHeads = 1 << 12;
constexpr int64_t kMostHeadDim = 1 << 14;
constexpr int64_t kMostSegmentTokens = 1 << 24;
constexpr int64_t kMostNu = 16;

Result<std::vector<float>> optional_vector(WeightSource& weights, std::string_view role, int64_t length,
                                           std::string_view meaning) {
  if (!weights.has(role)) return std::vector<float>();
  return weights.vector(role, length, meaning);
}

Result<std::unique_ptr<PackedMatrix>> float_matrix(WeightSource& weights, Backend& backend, std::string_view role,
                                                   int64_t rows, int64_t cols, std::string_view meaning) {
  ASSIGN_OR_RETURN(const std::vector<float> values, weights.dense(role, rows, cols, meaning));
  return backend.pack({DType::kF32, rows, cols, std::as_bytes(std::span(values))});
}

Error refused(const HyperParameters& p, std::string_view key, std::string_view value, std::string_view expected) {
  return bad_input(p.origin() + ": attention setting " + std::string(key) + " is \"" + std::string(value) +
                   "\", expected " + std::string(expected));
}

// The text under `key`, which must be `first` or `second`: whether it is `second`. Absent: `first`.
Result<bool> is_second(const HyperParameters& p, std::string_view key, std::string_view first,
                       std::string_view second) {
  ASSIGN_OR_RETURN(const std::string text, p.text_or(key, std::string(first)));
  if (text != first && text != second) return refused(p, key, text, std::string(first) + " or " + std::string(second));
  return text == second;
}

Result<MemoryRule> read_rule(const HyperParameters& p) {
  ASSIGN_OR_RETURN(const std::string rule, p.text("rule"));
  if (rule == "linear") return MemoryRule::kLinear;
  if (rule == "delta") return MemoryRule::kDelta;
  if (rule == "delta_true") return MemoryRule::kDeltaTrue;
  return refused(p, "rule", rule, "linear, delta or delta_true");
}

Result<FeatureMap> read_feature(const HyperParameters& p, int64_t head_dim, MemoryRule rule) {
  FeatureMap map{.dim = head_dim, .unit = rule == MemoryRule::kDeltaTrue};
  ASSIGN_OR_RETURN(const std::string feature, p.text_or("feature", "elu1"));
  if (feature == "elu1") return map;
  if (feature == "dpfp") {
    map.feature = Feature::kDpfp;
    ASSIGN_OR_RETURN(map.nu, p.integer("dpfp_nu", 1, std::min(kMostNu, 2 * head_dim - 1)));
    return map;
  }
  if (feature == "silu_l2") {
    map.feature = Feature::kSiluL2;
    return map;
  }
  return refused(p, "feature", feature, "elu1, dpfp or silu_l2");
}

Result<ReadNorm> read_norm_kind(const HyperParameters& p, MemoryRule rule) {
  const bool unnormalised = rule == MemoryRule::kDeltaTrue;
  ASSIGN_OR_RETURN(const std::string norm, p.text_or("norm", unnormalised ? "none" : "z"));
  if (norm == "rms") return ReadNorm::kRms;
  if (norm == "none" && unnormalised) return ReadNorm::kNone;
  if (norm == "z" && !unnormalised) return ReadNorm::kSum;
  return refused(p, "norm", norm, unnormalised ? "none or rms with rule delta_true" : "z or rms with this rule");
}

Result<WriteGate> read_write_gate(const HyperParameters& p) {
  ASSIGN_OR_RETURN(const std::string gate, p.text_or("write_gate", "none"));
  if (gate == "none") return WriteGate::kNone;
  if (gate == "soft") return WriteGate::kSoft;
  if (gate == "hard") return WriteGate::kHard;
  return refused(p, "write_gate", gate, "none, soft or hard");
}

}  // namespace

int64_t Infini::Settings::local_pages() const {
  return (segment_tokens * (previous_window ? 2 : 1) + kPageRows - 1) / kPageRows;
}

Result<void> Infini::read_memory_settings(Settings& s, const HyperParameters& p) {
  ASSIGN_OR_RETURN(s.segment_tokens, p.integer("segment_tokens", 1, kMostSegmentTokens));
  ASSIGN_OR_RETURN(s.rule, read_rule(p));
  ASSIGN_OR_RETURN(s.map, read_feature(p, s.head_dim, s.rule));
  ASSIGN_OR_RETURN(s.norm, read_norm_kind(p, s.rule));
  if (s.map.feature == Feature::kSiluL2 && s.has_sum()) {
    return refused(p, "feature", "silu_l2",
                   "elu1 or dpfp: its features may be negative, which " +
                       std::string(s.rule == MemoryRule::kDelta ? "rule delta" : "norm z") + " cannot divide by");
  }
  ASSIGN_OR_RETURN(s.token_gate, is_second(p, "gate", "head", "token"));
  ASSIGN_OR_RETURN(s.write_gate, read_write_gate(p));
  ASSIGN_OR_RETURN(s.previous_window, is_second(p, "window", "none", "previous"));
  ASSIGN_OR_RETURN(const bool local_first, is_second(p, "first_segment", "gated", "local"));
  s.first_segment_gated = !local_first;
  ASSIGN_OR_RETURN(s.compensated, is_second(p, "accumulation", "fp32", "compensated"));
  if (s.compensated && s.rule == MemoryRule::kDeltaTrue) {
    return refused(p, "accumulation", "compensated", "fp32 with rule delta_true, which keeps no growing sums");
  }
  return {};
}

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
  RETURN_IF_ERROR(read_memory_settings(s, p));
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
  if (s_.token_gate) {
    ASSIGN_OR_RETURN(gate_, float_matrix(weights, backend, "memory_gate_proj", s_.heads, s_.hidden, "heads"));
    ASSIGN_OR_RETURN(gate_bias_, optional_vector(weights, "memory_gate", s_.heads, "heads"));
  } else {
    ASSIGN_OR_RETURN(gate_bias_, weights.vector("memory_gate", s_.heads, "heads"));
  }
  if (s_.write_gate != WriteGate::kNone) {
    ASSIGN_OR_RETURN(write_gate_, float_matrix(weights, backend, "write_gate", s_.kv_heads, s_.hidden, "kv_heads"));
    ASSIGN_OR_RETURN(write_gate_bias_, optional_vector(weights, "write_gate_bias", s_.kv_heads, "kv_heads"));
  }
  if (s_.rule == MemoryRule::kDeltaTrue) {
    ASSIGN_OR_RETURN(write_strength_,
                     float_matrix(weights, backend, "write_strength", s_.kv_heads, s_.hidden, "kv_heads"));
    ASSIGN_OR_RETURN(write_strength_bias_, optional_vector(weights, "write_strength_bias", s_.kv_heads, "kv_heads"));
  }
  if (s_.norm == ReadNorm::kRms) {
    ASSIGN_OR_RETURN(read_norm_, optional_vector(weights, "read_norm", s_.value_dim, "value_dim"));
  }
  return {};
}

Result<std::unique_ptr<Attention>> Infini::create(const AttentionShape& shape, const HyperParameters& parameters,
                                                  WeightSource& weights, Backend& backend) {
  auto room = std::make_unique<Infini>();
  ASSIGN_OR_RETURN(room->s_, read_settings(shape, parameters));
  RETURN_IF_ERROR(room->bind(weights, backend));
  return std::unique_ptr<Attention>(std::move(room));
}

Infini::Regions Infini::regions() const {
  Regions r;
  size_t next = Regions::kFirstOptional;
  if (s_.has_sum()) {
    r.sum = next++;
    r.open_sum = next++;
  }
  if (s_.compensated) {
    r.memory_carry = next++;
    if (s_.has_sum()) r.sum_carry = next++;
  }
  return r;
}

StateLayout Infini::state_layout(const StateOptions& options) const {
  DType dtype = options.cache_dtype;
  CHECK(is_kv_dtype(dtype)) << "cache dtype " << dtype_name(dtype);
  const int64_t block = traits(dtype).block_elements;
  if (s_.head_dim % block != 0 || s_.value_dim % block != 0) dtype = DType::kF16;
  const int64_t rows = s_.local_pages() * kPageRows;
  const auto fixed = [](std::string name, DType type, int64_t elements, int64_t count) {
    return RegionSpec{.name = std::move(name),
                      .dtype = type,
                      .row_elements = elements,
                      .growth = Growth::kFixed,
                      .fixed_rows = count};
  };
  const auto floats = [&](std::string name, int64_t count) { return fixed(std::move(name), DType::kF32, count, 1); };
  // The order of Regions.
  StateLayout layout;
  layout.rewind = Rewind::kNever;
  layout.regions.push_back(fixed("key", dtype, s_.kv_heads * s_.head_dim, rows));
  layout.regions.push_back(fixed("value", dtype, s_.kv_heads * s_.value_dim, rows));
  layout.regions.push_back(floats("segment", static_cast<int64_t>(sizeof(SegmentRecord) / sizeof(float))));
  layout.regions.push_back(floats("memory", s_.memory_floats()));
  layout.regions.push_back(floats("open_memory", s_.memory_floats()));
  if (s_.has_sum()) {
    layout.regions.push_back(floats("norm", s_.sum_floats()));
    layout.regions.push_back(floats("open_norm", s_.sum_floats()));
  }
  if (s_.compensated) {
    layout.regions.push_back(floats("memory_carry", s_.memory_floats()));
    if (s_.has_sum()) layout.regions.push_back(floats("norm_carry", s_.sum_floats()));
  }
  return layout;
}

std::vector<float> Infini::memory(const LayerState& state) const {
  std::vector<float> rows(static_cast<size_t>(s_.memory_floats()));
  const RegionState& region = state.region(Regions::kMemory);
  if (region.pages.empty()) return rows;
  const float* stored = reinterpret_cast<const float*>(region.pages[0]);
  const TileGrid grid{s_.map.count(), s_.value_dim};
  for (int64_t head = 0; head < s_.kv_heads; ++head) {
    for (int64_t tile = 0; tile < grid.tiles(); ++tile) {
      const int64_t columns = grid.columns(tile);
      const float* from = stored + head * grid.features * grid.dim + grid.offset(tile);
      for (int64_t i = 0; i < grid.features; ++i) {
        float* to = rows.data() + (head * grid.features + i) * grid.dim + tile * kTileColumns;
        std::memcpy(to, from + i * columns, static_cast<size_t>(columns) * sizeof(float));
      }
    }
  }
  return rows;
}

std::vector<float> Infini::memory_norm(const LayerState& state) const {
  if (!s_.has_sum()) return {};
  const RegionState& region = state.region(regions().sum);
  if (region.pages.empty()) return std::vector<float>(static_cast<size_t>(s_.sum_floats()));
  const float* stored = reinterpret_cast<const float*>(region.pages[0]);
  return {stored, stored + s_.sum_floats()};
}

std::vector<StateTensor> Infini::state_tensors(const LayerState& state) const {
  const int64_t features = s_.map.count();
  std::vector<StateTensor> tensors = {{"final_memory", {s_.kv_heads, features, s_.value_dim}, memory(state)}};
  if (s_.has_sum()) tensors.push_back({"final_norm", {s_.kv_heads, features}, memory_norm(state)});
  return tensors;
}

int64_t Infini::weight_bytes() const {
  int64_t bytes = query_->bytes() + key_->bytes() + value_->bytes() + output_->bytes();
  for (const auto* matrix : {&gate_, &write_gate_, &write_strength_}) {
    if (*matrix != nullptr) bytes += (*matrix)->bytes();
  }
  for (const auto* vector : {&query_bias_, &key_bias_, &value_bias_, &output_bias_, &gate_bias_, &write_gate_bias_,
                             &write_strength_bias_, &read_norm_, &s_.rope.inverse_frequency}) {
    bytes += static_cast<int64_t>(vector->size() * sizeof(float));
  }
  return bytes;
}

int64_t Infini::flops_per_token() const {
  const int64_t gates = (s_.token_gate ? s_.heads : 0) + (s_.write_gate != WriteGate::kNone ? s_.kv_heads : 0) +
                        (s_.rule == MemoryRule::kDeltaTrue ? s_.kv_heads : 0);
  const int64_t projections = 2 * s_.hidden * ((s_.heads + s_.kv_heads) * (s_.head_dim + s_.value_dim) + gates);
  // Every query head reads; every memory is written, and with a delta rule read by its key.
  const int64_t reads = s_.heads + (s_.rule == MemoryRule::kLinear ? 0 : s_.kv_heads);
  return projections + 2 * (reads + s_.kv_heads) * s_.map.count() * s_.value_dim;
}

int64_t Infini::context_flops(int64_t tokens) const {
  // The last of `tokens` tokens sees its segment up to itself, and with a window all of the one before.
  const int64_t open = tokens == 0 ? 0 : (tokens - 1) % s_.segment_tokens + 1;
  const int64_t seen = open + (s_.previous_window && tokens > open ? s_.segment_tokens : 0);
  return 2 * s_.heads * (s_.head_dim + s_.value_dim) * seen;
}

int64_t Infini::context_bytes_read(int64_t tokens, const StateOptions& options) const {
  const StateLayout layout = state_layout(options);
  const int64_t window = std::min(tokens, s_.segment_tokens * (s_.previous_window ? 2 : 1));
  const int64_t row = layout.regions[Regions::kKey].bytes_per_row() + layout.regions[Regions::kValue].bytes_per_row();
  const int64_t sums = s_.has_sum() ? s_.sum_floats() : 0;
  return window * row + 2 * (s_.memory_floats() + sums) * static_cast<int64_t>(sizeof(float));
}

Result<std::unique_ptr<Attention>> create_infini(const AttentionShape& shape, const HyperParameters& parameters,
                                                 WeightSource& weights, Backend& backend) {
  return Infini::create(shape, parameters, weights, backend);
}

}  // namespace quipu
