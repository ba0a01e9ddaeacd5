// What a memory is made of: settings, weights, the state it declares and what it costs. What it does:
// segment_memory_step.cc.
#include "attention/shared/segment_memory.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "attention/shared/memory_tile.h"
#include "attention/shared/segment_memory_regions.h"

namespace quipu {
namespace {

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

// The text under `key`, which must be `first` or `second`: whether it is `second`. Absent: `first`.
Result<bool> is_second(const HyperParameters& p, std::string_view key, std::string_view first,
                       std::string_view second) {
  ASSIGN_OR_RETURN(const std::string text, p.text_or(key, std::string(first)));
  if (text != first && text != second)
    return refused_setting(p, key, text, std::string(first) + " or " + std::string(second));
  return text == second;
}

Result<MemoryRule> read_rule(const HyperParameters& p) {
  ASSIGN_OR_RETURN(const std::string rule, p.text("rule"));
  if (rule == "linear") return MemoryRule::kLinear;
  if (rule == "delta") return MemoryRule::kDelta;
  if (rule == "delta_true") return MemoryRule::kDeltaTrue;
  return refused_setting(p, "rule", rule, "linear, delta or delta_true");
}

Result<FeatureMap> read_feature(const HyperParameters& p, int64_t key_dim, MemoryRule rule) {
  FeatureMap map{.dim = key_dim, .unit = rule == MemoryRule::kDeltaTrue};
  ASSIGN_OR_RETURN(const std::string feature, p.text_or("feature", "elu1"));
  if (feature == "elu1") return map;
  if (feature == "dpfp") {
    map.feature = Feature::kDpfp;
    ASSIGN_OR_RETURN(map.nu, p.integer("dpfp_nu", 1, std::min(kMostNu, 2 * key_dim - 1)));
    return map;
  }
  if (feature == "silu_l2") {
    map.feature = Feature::kSiluL2;
    return map;
  }
  return refused_setting(p, "feature", feature, "elu1, dpfp or silu_l2");
}

Result<ReadNorm> read_norm_kind(const HyperParameters& p, MemoryRule rule) {
  const bool unnormalised = rule == MemoryRule::kDeltaTrue;
  ASSIGN_OR_RETURN(const std::string norm, p.text_or("norm", unnormalised ? "none" : "z"));
  if (norm == "rms") return ReadNorm::kRms;
  if (norm == "none" && unnormalised) return ReadNorm::kNone;
  if (norm == "z" && !unnormalised) return ReadNorm::kSum;
  return refused_setting(p, "norm", norm,
                         unnormalised ? "none or rms with rule delta_true" : "z or rms with this rule");
}

Result<WriteGate> read_write_gate(const HyperParameters& p) {
  ASSIGN_OR_RETURN(const std::string gate, p.text_or("write_gate", "none"));
  if (gate == "none") return WriteGate::kNone;
  if (gate == "soft") return WriteGate::kSoft;
  if (gate == "hard") return WriteGate::kHard;
  return refused_setting(p, "write_gate", gate, "none, soft or hard");
}

}  // namespace

Error refused_setting(const HyperParameters& p, std::string_view key, std::string_view value,
                      std::string_view expected) {
  return bad_input(p.origin() + ": attention setting " + std::string(key) + " is \"" + std::string(value) +
                   "\", expected " + std::string(expected));
}

Result<MemorySettings> read_memory_settings(const MemoryShape& shape, const HyperParameters& p) {
  MemorySettings s;
  static_cast<MemoryShape&>(s) = shape;
  ASSIGN_OR_RETURN(s.segment_tokens, p.integer("segment_tokens", 1, kMostSegmentTokens));
  ASSIGN_OR_RETURN(s.rule, read_rule(p));
  ASSIGN_OR_RETURN(s.map, read_feature(p, shape.key_dim, s.rule));
  ASSIGN_OR_RETURN(s.norm, read_norm_kind(p, s.rule));
  if (s.map.feature == Feature::kSiluL2 && s.has_sum()) {
    return refused_setting(p, "feature", "silu_l2",
                           "elu1 or dpfp: its features may be negative, which " +
                               std::string(s.rule == MemoryRule::kDelta ? "rule delta" : "norm z") +
                               " cannot divide by");
  }
  ASSIGN_OR_RETURN(s.token_gate, is_second(p, "gate", "head", "token"));
  ASSIGN_OR_RETURN(s.write_gate, read_write_gate(p));
  ASSIGN_OR_RETURN(s.previous_window, is_second(p, "window", "none", "previous"));
  ASSIGN_OR_RETURN(const bool local_first, is_second(p, "first_segment", "gated", "local"));
  s.first_segment_gated = !local_first;
  ASSIGN_OR_RETURN(s.compensated, is_second(p, "accumulation", "fp32", "compensated"));
  if (s.compensated && s.rule == MemoryRule::kDeltaTrue) {
    return refused_setting(p, "accumulation", "compensated", "fp32 with rule delta_true, which keeps no growing sums");
  }
  return s;
}

Result<void> SegmentMemory::bind(WeightSource& weights, Backend& backend) {
  const int64_t heads = s_.heads, memories = s_.memories;
  const std::string of_memories = "memories " + std::to_string(memories);
  if (s_.token_gate) {
    ASSIGN_OR_RETURN(gate_, float_matrix(weights, backend, "memory_gate_proj", heads, hidden_, "heads"));
    ASSIGN_OR_RETURN(gate_bias_, optional_vector(weights, "memory_gate", heads, "heads"));
  } else {
    ASSIGN_OR_RETURN(gate_bias_, weights.vector("memory_gate", heads, "heads"));
  }
  if (s_.write_gate != WriteGate::kNone) {
    ASSIGN_OR_RETURN(write_gate_, float_matrix(weights, backend, "write_gate", memories, hidden_, of_memories));
    ASSIGN_OR_RETURN(write_gate_bias_, optional_vector(weights, "write_gate_bias", memories, of_memories));
  }
  if (s_.rule == MemoryRule::kDeltaTrue) {
    ASSIGN_OR_RETURN(write_strength_, float_matrix(weights, backend, "write_strength", memories, hidden_, of_memories));
    ASSIGN_OR_RETURN(write_strength_bias_, optional_vector(weights, "write_strength_bias", memories, of_memories));
  }
  if (s_.norm == ReadNorm::kRms) {
    ASSIGN_OR_RETURN(read_norm_, optional_vector(weights, "read_norm", s_.value_dim, "value_dim"));
  }
  return {};
}

Result<SegmentMemory> SegmentMemory::create(const MemorySettings& settings, int64_t hidden, size_t first_region,
                                            WeightSource& weights, Backend& backend) {
  SegmentMemory memory;
  memory.s_ = settings;
  memory.hidden_ = hidden;
  memory.first_region_ = first_region;
  RETURN_IF_ERROR(memory.bind(weights, backend));
  return memory;
}

SegmentMemory::Regions SegmentMemory::regions() const {
  Regions r;
  size_t next = first_region_;
  r.segment = next++;
  r.memory = next++;
  r.open_memory = next++;
  if (s_.has_sum()) {
    r.sum = next++;
    r.open_sum = next++;
  }
  if (s_.compensated) {
    r.memory_carry = next++;
    if (s_.has_sum()) r.sum_carry = next++;
  }
  if (s_.write_group() > 1) {
    r.waiting = next++;
    r.waiting_key = next++;
    r.waiting_value = next++;
  }
  return r;
}

void SegmentMemory::declare(StateLayout& layout) const {
  CHECK(layout.regions.size() == first_region_)
      << layout.regions.size() << " regions before the memory's, which is to be " << first_region_;
  // The order of Regions.
  const auto floats = [&](const char* name, int64_t count) {
    layout.regions.push_back(
        {.name = name, .dtype = DType::kF32, .row_elements = count, .growth = Growth::kFixed, .fixed_rows = 1});
  };
  floats("segment", static_cast<int64_t>(sizeof(SegmentRecord) / sizeof(float)));
  floats("memory", s_.memory_floats());
  floats("open_memory", s_.memory_floats());
  if (s_.has_sum()) {
    floats("norm", s_.sum_floats());
    floats("open_norm", s_.sum_floats());
  }
  if (s_.compensated) {
    floats("memory_carry", s_.memory_floats());
    if (s_.has_sum()) floats("norm_carry", s_.sum_floats());
  }
  if (s_.write_group() > 1) {
    floats("waiting", s_.memories);
    floats("waiting_key", s_.memories * s_.write_group() * s_.map.count());
    floats("waiting_value", s_.memories * s_.write_group() * s_.value_dim);
  }
}

std::vector<float> SegmentMemory::memory(const LayerState& state) const {
  std::vector<float> rows(static_cast<size_t>(s_.memory_floats()));
  const RegionState& region = state.region(regions().memory);
  if (region.pages.empty()) return rows;
  const float* stored = reinterpret_cast<const float*>(region.pages[0]);
  const TileGrid grid{s_.map.count(), s_.value_dim};
  for (int64_t number = 0; number < s_.memories; ++number) {
    for (int64_t tile = 0; tile < grid.tiles(); ++tile) {
      const int64_t columns = grid.columns(tile);
      const float* from = stored + number * grid.features * grid.dim + grid.offset(tile);
      for (int64_t i = 0; i < grid.features; ++i) {
        float* to = rows.data() + (number * grid.features + i) * grid.dim + tile * kTileColumns;
        std::memcpy(to, from + i * columns, static_cast<size_t>(columns) * sizeof(float));
      }
    }
  }
  return rows;
}

std::vector<float> SegmentMemory::memory_norm(const LayerState& state) const {
  if (!s_.has_sum()) return {};
  const RegionState& region = state.region(regions().sum);
  if (region.pages.empty()) return std::vector<float>(static_cast<size_t>(s_.sum_floats()));
  const float* stored = reinterpret_cast<const float*>(region.pages[0]);
  return {stored, stored + s_.sum_floats()};
}

std::vector<StateTensor> SegmentMemory::state_tensors(const LayerState& state) const {
  const int64_t features = s_.map.count();
  std::vector<StateTensor> tensors = {
      {"final_memory", {s_.memories, features, s_.value_dim}, memory(state)}};
  if (s_.has_sum()) tensors.push_back({"final_norm", {s_.memories, features}, memory_norm(state)});
  return tensors;
}

int64_t SegmentMemory::weight_bytes() const {
  int64_t bytes = 0;
  for (const auto* matrix : {&gate_, &write_gate_, &write_strength_}) {
    if (*matrix != nullptr) bytes += (*matrix)->bytes();
  }
  for (const auto* vector : {&gate_bias_, &write_gate_bias_, &write_strength_bias_, &read_norm_}) {
    bytes += static_cast<int64_t>(vector->size() * sizeof(float));
  }
  return bytes;
}

int64_t SegmentMemory::flops_per_token() const {
  const int64_t gates = (s_.token_gate ? s_.heads : 0) +
                        (s_.write_gate != WriteGate::kNone ? s_.memories : 0) +
                        (s_.rule == MemoryRule::kDeltaTrue ? s_.memories : 0);
  // Every query head reads; every memory is written, and with a delta rule read by its key.
  const int64_t reads = s_.heads + (s_.rule == MemoryRule::kLinear ? 0 : s_.memories);
  return 2 * hidden_ * gates + 2 * (reads + s_.memories) * s_.map.count() * s_.value_dim;
}

int64_t SegmentMemory::bytes_read_per_token() const {
  const int64_t sums = s_.has_sum() ? s_.sum_floats() : 0;
  const int64_t group = s_.write_group();
  // The memory of closed segments, the open one once for every group, and a token's own waiting row.
  const int64_t waiting = group > 1 ? s_.memories * (s_.map.count() + s_.value_dim) : 0;
  return (s_.memory_floats() + s_.memory_floats() / group + waiting + 2 * sums) * static_cast<int64_t>(sizeof(float));
}

}  // namespace quipu
