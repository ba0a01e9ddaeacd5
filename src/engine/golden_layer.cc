#include "engine/golden_layer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "attention/shared/rope_frequencies.h"
#include "base/byte_reader.h"
#include "formats/safetensors/safetensors_file.h"
#include "model/bounded_json.h"
#include "tensor/quant_blocks.h"

namespace quipu {
namespace {

// Sets of rooms, as bits.
constexpr unsigned kGroupedQuery = 1, kLatent = 2, kTemporal = 4, kInfini = 8;
constexpr unsigned kLatents = kLatent | kTemporal, kKeyed = kGroupedQuery | kInfini, kAll = kLatents | kKeyed;

unsigned room_bit(std::string_view room) {
  if (room == "grouped_query") return kGroupedQuery;
  if (room == "latent") return kLatent;
  if (room == "temporal_latent") return kTemporal;
  return room == "infini" ? kInfini : 0;
}

enum class Kind { kWhole, kReal, kText };

struct MetadataKey {
  std::string_view theirs, ours;
  Kind kind;
  unsigned rooms;      // that have the setting
  unsigned required;   // that cannot do without this key
};

constexpr MetadataKey kKeys[] = {
    {"num_attention_heads", "heads", Kind::kWhole, kAll, kAll},
    {"num_key_value_heads", "kv_heads", Kind::kWhole, kKeyed, kKeyed},
    {"head_dim", "head_dim", Kind::kWhole, kKeyed, kKeyed},
    {"rotary_dim", "rope_dim", Kind::kWhole, kKeyed, 0},
    {"v_head_dim", "value_dim", Kind::kWhole, kAll, kLatents},
    {"q_lora_rank", "query_rank", Kind::kWhole, kLatents, 0},
    {"kv_lora_rank", "latent_rank", Kind::kWhole, kLatents, kLatents},
    {"qk_nope_head_dim", "nope_dim", Kind::kWhole, kLatents, kLatents},
    {"qk_rope_head_dim", "rope_dim", Kind::kWhole, kLatents, kLatents},
    {"latent_norm", "latent_norm", Kind::kText, kLatents, kLatents},
    {"norm_eps", "norm_epsilon", Kind::kReal, kAll, 0},
    {"rms_norm_eps", "norm_epsilon", Kind::kReal, kAll, 0},
    {"stride", "stride", Kind::kWhole, kTemporal, kTemporal},
    {"merge", "merge", Kind::kText, kTemporal, 0},
    {"rope_theta", "rope_theta", Kind::kReal, kAll, 0},
    {"softmax_scale", "scale", Kind::kReal, kAll, 0},
    {"sliding_window", "window", Kind::kWhole, kGroupedQuery, 0},
    {"attn_logit_softcapping", "softcap", Kind::kReal, kGroupedQuery, 0},
    {"qk_norm", "qk_norm", Kind::kText, kGroupedQuery, 0},
    {"segment_tokens", "segment_tokens", Kind::kWhole, kInfini, kInfini},
    {"memory_rule", "rule", Kind::kText, kInfini, kInfini},
    {"feature", "feature", Kind::kText, kInfini, 0},
    {"memory_feature", "feature", Kind::kText, kInfini, 0},
    {"dpfp_nu", "dpfp_nu", Kind::kWhole, kInfini, 0},
    {"norm", "norm", Kind::kText, kInfini, 0},
    {"memory_norm", "norm", Kind::kText, kInfini, 0},
    {"gate", "gate", Kind::kText, kInfini, 0},
    {"write_gate", "write_gate", Kind::kText, kInfini, 0},
    {"window", "window", Kind::kText, kInfini, 0},
    {"accumulation", "accumulation", Kind::kText, kInfini, 0},
};
// Read by code of their own.
constexpr std::string_view kSpecialKeys[] = {"room",         "hidden_size",    "rope_layout",
                                             "rope_scaling", "rope_positions", "first_segment"};
// Prose.
constexpr std::string_view kRemarks[] = {"source", "note", "notes", "comment", "description", "seed", "license", "format"};

bool among(std::span<const std::string_view> words, std::string_view word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

struct RoleName {
  std::string_view role, name;
};
constexpr RoleName kNames[] = {
    // DeepSeek's and MTLA's reference modules
    {"query", "wq.weight"},
    {"query_down", "wq_a.weight"},
    {"query_norm", "q_norm.weight"},
    {"query_down_norm", "q_norm.weight"},
    {"query_up", "wq_b.weight"},
    {"key", "wk.weight"},
    {"key_norm", "k_norm.weight"},
    {"value", "wv.weight"},
    {"latent_down", "wkv_a.weight"},
    {"latent_norm", "kv_norm.weight"},
    {"latent_up", "wkv_b.weight"},
    {"output", "wo.weight"},
    {"hypernet_fc_c", "hypernet_down.fc_c.weight"},
    {"hypernet_fc_p", "hypernet_down.fc_p.weight"},
    // Hugging Face modules
    {"query", "q_proj.weight"},
    {"query_down", "q_a_proj.weight"},
    {"query_down_norm", "q_a_layernorm.weight"},
    {"query_up", "q_b_proj.weight"},
    {"key", "k_proj.weight"},
    {"value", "v_proj.weight"},
    {"latent_down", "kv_a_proj_with_mqa.weight"},
    {"latent_norm", "kv_a_layernorm.weight"},
    {"latent_up", "kv_b_proj.weight"},
    {"output", "o_proj.weight"},
};

constexpr std::string_view kResultPrefix = "final_";

// Names a role may have in a file, the usual ones first.
std::vector<std::string> names_of(std::string_view role) {
  std::vector<std::string> names;
  const bool bias = role.ends_with("_bias");
  const std::string_view owner = bias ? role.substr(0, role.size() - std::strlen("_bias")) : role;
  const std::string_view ending = bias ? ".bias" : ".weight";
  for (const RoleName& known : kNames) {
    if (known.role != owner) continue;
    const std::string_view stem = known.name.substr(0, known.name.size() - std::strlen(".weight"));
    names.push_back(std::string(stem) + std::string(ending));
  }
  names.push_back(std::string(owner) + std::string(ending));
  names.emplace_back(role);
  return names;
}

Result<std::vector<double>> finite_values(const std::string& file, const NamedTensor& tensor) {
  const auto count = static_cast<size_t>(element_count(tensor.view.shape));
  std::vector<double> values(count);
  if (tensor.view.dtype == DType::kF64) {
    std::memcpy(values.data(), tensor.view.bytes.data(), count * sizeof(double));
  } else {
    std::vector<float> floats(count);
    dequantise_row(floats.data(), tensor.view.dtype, tensor.view.bytes.data(), static_cast<int64_t>(count));
    std::copy(floats.begin(), floats.end(), values.begin());
  }
  for (size_t i = 0; i < count; ++i) {
    if (!std::isfinite(values[i])) {
      return bad_input(file + ": tensor " + printable(tensor.name) + ", element " + std::to_string(i) +
                       ": not a finite number");
    }
  }
  return values;
}

Result<const NamedTensor*> find_tensor(const TensorFile& file, std::string_view name, std::string_view expected) {
  const NamedTensor* tensor = file.find(name);
  if (tensor != nullptr) return tensor;
  return bad_input(file.display_name() + ": tensor " + std::string(name) + " is missing; expected " +
                   std::string(expected));
}

// Turns metadata into hyperparameters.
class MetadataReader {
 public:
  MetadataReader(const TensorFile& file, std::string_view room)
      : file_(file), room_(room), bit_(room_bit(room)), parameters_(file.display_name()) {}

  Result<HyperParameters> read() {
    for (const auto& [key, value] : file_.metadata()) {
      if (among(kRemarks, key) || among(kSpecialKeys, key)) continue;
      RETURN_IF_ERROR(read_setting(key, value));
    }
    for (const MetadataKey& key : kKeys) {
      if ((key.required & bit_) != 0 && !parameters_.has(key.ours)) {
        return bad_input(file_.display_name() + ": metadata key " + std::string(key.theirs) + " is missing; room " +
                         room_ + " needs it");
      }
    }
    RETURN_IF_ERROR(read_rope());
    RETURN_IF_ERROR(read_first_segment());
    return parameters_;
  }

  // The text of a key; nothing where it is absent or says so.
  std::optional<std::string> text(std::string_view key) const {
    const auto found = file_.metadata().find(key);
    if (found == file_.metadata().end() || found->second == "null" || found->second == "None") return std::nullopt;
    return found->second;
  }
  Error wrong(std::string_view key, std::string_view value, std::string_view expected) const {
    return bad_input(file_.display_name() + ": metadata key " + printable(key) + " is \"" + printable(value) +
                     "\", expected " + std::string(expected));
  }
  Result<int64_t> whole(std::string_view key, std::string_view value) const {
    int64_t number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error != std::errc() || end != value.data() + value.size()) return wrong(key, value, "a whole number");
    return number;
  }

 private:
  Result<void> read_setting(const std::string& key, const std::string& value) {
    const auto* known = std::find_if(std::begin(kKeys), std::end(kKeys), [&](const MetadataKey& k) {
      return k.theirs == key && (k.rooms & bit_) != 0;
    });
    if (known == std::end(kKeys)) {
      return bad_input(file_.display_name() + ": metadata key \"" + printable(key) + "\" (value \"" + printable(value) +
                       "\") is none that room " + room_ + " knows");
    }
    if (!text(key)) return {};   // "null": absent
    const std::string ours(known->ours);
    if (known->kind == Kind::kText) {
      parameters_.set(ours, value);
      return {};
    }
    if (known->kind == Kind::kWhole) {
      ASSIGN_OR_RETURN(const int64_t number, whole(key, value));
      parameters_.set(ours, number);
      return {};
    }
    double number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error != std::errc() || end != value.data() + value.size() || !std::isfinite(number)) {
      return wrong(key, value, "a number");
    }
    parameters_.set(ours, number);
    return {};
  }

  Result<void> read_rope() {
    const std::string layout = text("rope_layout").value_or("half_split");
    if (layout != "interleaved" && layout != "half_split") {
      return wrong("rope_layout", layout, "interleaved or half_split");
    }
    parameters_.set("rope_interleaved", layout == "interleaved");
    const std::string positions = text("rope_positions").value_or("absolute");
    if (positions != "absolute") return wrong("rope_positions", positions, "absolute");
    const std::optional<std::string> scaling = text("rope_scaling");
    return scaling && *scaling != "none" ? read_scaling(*scaling) : Result<void>();
  }

  // A rope_scaling object as Hugging Face configurations have it.
  Result<void> read_scaling(const std::string& json_text) {
    const std::string where = file_.display_name() + ": metadata key rope_scaling";
    ASSIGN_OR_RETURN(const nlohmann::json object, parse_bounded_json(where, json_text));
    constexpr std::pair<std::string_view, std::string_view> kNumbers[] = {
        {"factor", "rope_scaling_factor"},
        {"original_max_position_embeddings", "rope_original_context"},
        {"low_freq_factor", "rope_low_frequency_factor"},
        {"high_freq_factor", "rope_high_frequency_factor"},
        {"beta_fast", "rope_beta_fast"},
        {"beta_slow", "rope_beta_slow"},
        {"mscale", "rope_mscale"},
        {"mscale_all_dim", "rope_mscale_all_dim"},
        {"attention_factor", "rope_attention_factor"}};
    for (const auto& item : object.items()) {
      const std::string& key = item.key();
      const nlohmann::json& value = item.value();
      if (value.is_null()) continue;
      if (key == "type" || key == "rope_type") {
        if (!value.is_string()) return bad_input(where + ": " + key + " must be a text");
        const std::string kind = value.get<std::string>();
        parameters_.set("rope_scaling", kind == "default" ? std::string("none") : kind);
        continue;
      }
      const auto* known = std::find_if(std::begin(kNumbers), std::end(kNumbers), [&](const auto& n) { return n.first == key; });
      if (known == std::end(kNumbers)) return bad_input(where + ": unknown setting \"" + printable(key) + "\"");
      if (!value.is_number()) return bad_input(where + ": " + key + " must be a number");
      parameters_.set(std::string(known->second), value.get<double>());
    }
    if (!parameters_.has("rope_scaling")) return bad_input(where + ": type is missing; expected yarn, llama3 or linear");
    return pair_magnitudes();
  }

  // The reference module has mscale alone, which multiplies the softmax scale and not cos and sin: the same as both
  // equal. mscale_all_dim alone leaves cos and sin as if neither were there: the same as a mscale of zero.
  Result<void> pair_magnitudes() {
    const bool one = parameters_.has("rope_mscale"), all = parameters_.has("rope_mscale_all_dim");
    if (one && !all) {
      ASSIGN_OR_RETURN(const double magnitude, parameters_.number("rope_mscale", 0.0, 1e3));
      parameters_.set("rope_mscale_all_dim", magnitude);
    } else if (all && !one) {
      parameters_.set("rope_mscale", 0.0);
    }
    return {};
  }

  Result<void> read_first_segment() {
    const std::optional<std::string> first = text("first_segment");
    if (!first) return {};
    if (bit_ != kInfini) return wrong("first_segment", *first, "none: room " + room_ + " has no segments");
    if (!first->starts_with("gated") && !first->starts_with("local")) {
      return wrong("first_segment", *first, "a text that begins with gated or local");
    }
    parameters_.set("first_segment", first->substr(0, std::strlen("gated")));
    return {};
  }

  const TensorFile& file_;
  std::string room_;
  unsigned bit_;
  HyperParameters parameters_;
};

Result<void> read_rows(GoldenLayer& layer) {
  const std::string rows = "[tokens, " + std::to_string(layer.hidden) + "]";
  ASSIGN_OR_RETURN(const NamedTensor* input, find_tensor(layer.file, "input", rows));
  ASSIGN_OR_RETURN(const NamedTensor* output, find_tensor(layer.file, "output", rows));
  const Shape& shape = input->view.shape;
  if (shape.size() != 2 || shape[0] < 1 || shape[1] != layer.hidden) {
    return bad_input(layer.file.display_name() + ": tensor input: shape " + shape_text(shape) + ", expected " + rows +
                     " with at least one token");
  }
  if (output->view.shape != shape) {
    return bad_input(layer.file.display_name() + ": tensor output: shape " + shape_text(output->view.shape) +
                     ", expected " + shape_text(shape) + ", as input has");
  }
  layer.tokens = shape[0];
  ASSIGN_OR_RETURN(const std::vector<double> x, finite_values(layer.file.display_name(), *input));
  layer.input.assign(x.begin(), x.end());
  ASSIGN_OR_RETURN(layer.output, finite_values(layer.file.display_name(), *output));
  for (const NamedTensor& tensor : layer.file.tensors()) {
    if (!tensor.name.starts_with(kResultPrefix)) continue;
    ASSIGN_OR_RETURN(std::vector<double> values, finite_values(layer.file.display_name(), tensor));
    layer.final_state.push_back({tensor.name, tensor.view.shape, std::move(values)});
  }
  return {};
}

// The file's softmax scale counts; where the other settings give another one, the person is told.
void compare_scale(GoldenLayer& layer) {
  const HyperParameters& p = layer.parameters;
  const auto scale = p.number("scale", 0.0, 1e9);
  const auto nope = p.integer_or("nope_dim", 0, 1 << 16, 0), rope = p.integer_or("rope_dim", 0, 1 << 16, 0);
  const auto factor = p.number_or("rope_scaling_factor", 1.0, 1e6, 1.0);
  const auto multiplier = p.number_or("rope_mscale_all_dim", 0.0, 1e3, 0.0);
  if (!scale.ok() || !nope.ok() || !rope.ok() || *nope + *rope == 0 || !factor.ok() || !multiplier.ok()) return;
  const double magnitude = *multiplier > 0.0 ? yarn_magnitude(*factor, *multiplier) : 1.0;
  const double derived = magnitude * magnitude / std::sqrt(static_cast<double>(*nope + *rope));
  if (std::abs(derived - *scale) <= 1e-6 * derived) return;
  layer.notes.push_back("softmax_scale is " + std::to_string(*scale) + ", the other settings give " +
                        std::to_string(derived) + "; the file's is used");
}

}  // namespace

Result<GoldenLayer> read_golden_layer(const std::string& path) {
  ASSIGN_OR_RETURN(TensorFile file, read_safetensors(path));
  GoldenLayer layer(std::move(file));
  const std::string& name = layer.file.display_name();
  const auto room = layer.file.metadata().find("room");
  if (room == layer.file.metadata().end()) {
    return bad_input(name + ": no metadata key room; expected a golden file, whose metadata names room and settings");
  }
  layer.room = room->second;
  const auto entry = find_room(layer.room);
  if (!entry.ok()) return bad_input(name + ": metadata key room: " + entry.error().message);
  if (room_bit(layer.room) == 0) return bad_input(name + ": room " + layer.room + " has no golden files yet");
  const auto source = layer.file.metadata().find("source");
  if (source != layer.file.metadata().end()) layer.source = source->second;

  MetadataReader reader(layer.file, layer.room);
  const std::optional<std::string> hidden = reader.text("hidden_size");
  if (!hidden) return bad_input(name + ": metadata key hidden_size is missing");
  ASSIGN_OR_RETURN(layer.hidden, reader.whole("hidden_size", *hidden));
  if (layer.hidden < 1 || layer.hidden > 1 << 20) return reader.wrong("hidden_size", *hidden, "1 to 1048576");
  ASSIGN_OR_RETURN(layer.parameters, reader.read());
  RETURN_IF_ERROR(read_rows(layer));

  const bool latent = (room_bit(layer.room) & kLatents) != 0;
  layer.forms = latent ? std::vector<std::string>{"absorbed", "expanded", "auto"} : std::vector<std::string>{""};
  if (latent) compare_scale(layer);
  const char* period = layer.room == "infini" ? "segment_tokens" : "stride";
  ASSIGN_OR_RETURN(layer.period, layer.parameters.integer_or(period, 1, int64_t{1} << 40, 1));
  // The hyper-network's width is no metadata of its own.
  const NamedTensor* hyper = layer.file.find("hypernet_down.fc_c.weight");
  if (hyper != nullptr && hyper->view.shape.size() == 2) layer.parameters.set("hyper_dim", hyper->view.shape[0]);
  return layer;
}

bool GoldenWeights::has(std::string_view role) const {
  const std::vector<std::string> names = names_of(role);
  return std::any_of(names.begin(), names.end(), [&](const std::string& n) { return layer_.file.find(n) != nullptr; });
}

Result<const NamedTensor*> GoldenWeights::find(std::string_view role, const std::string& expected) {
  const std::vector<std::string> names = names_of(role);
  for (const std::string& name : names) {
    const NamedTensor* tensor = layer_.file.find(name);
    if (tensor == nullptr) continue;
    used_.insert(name);
    return tensor;
  }
  std::string others;
  for (size_t i = 1; i < names.size(); ++i) others += (i > 1 ? ", " : "") + names[i];
  return bad_input(layer_.file.display_name() + ": tensor " + names[0] + " is missing (nor is there " + others +
                   "); expected " + expected);
}

Result<std::vector<float>> GoldenWeights::dense(std::string_view role, int64_t rows, int64_t cols,
                                                std::string_view meaning) {
  const Shape wanted = {rows, cols};
  const std::string expected = shape_text(wanted) + " (" + std::string(meaning) + ")";
  ASSIGN_OR_RETURN(const NamedTensor* tensor, find(role, expected));
  if (tensor->view.shape != wanted) {
    return bad_input(layer_.file.display_name() + ": tensor " + printable(tensor->name) + ": shape " +
                     shape_text(tensor->view.shape) + ", expected " + expected);
  }
  ASSIGN_OR_RETURN(const std::vector<double> values, finite_values(layer_.file.display_name(), *tensor));
  return std::vector<float>(values.begin(), values.end());
}

Result<std::vector<float>> GoldenWeights::vector(std::string_view role, int64_t length, std::string_view meaning) {
  const std::string expected = shape_text({length}) + " (" + std::string(meaning) + ")";
  ASSIGN_OR_RETURN(const NamedTensor* tensor, find(role, expected));
  // Modules keep some vectors with extents of one around them.
  Shape shape = tensor->view.shape;
  if (shape.size() > 1) std::erase(shape, 1);
  if (element_count(shape) != length || shape.size() > 1) {
    return bad_input(layer_.file.display_name() + ": tensor " + printable(tensor->name) + ": shape " +
                     shape_text(tensor->view.shape) + ", expected " + expected);
  }
  ASSIGN_OR_RETURN(const std::vector<double> values, finite_values(layer_.file.display_name(), *tensor));
  return std::vector<float>(values.begin(), values.end());
}

Result<std::unique_ptr<PackedMatrix>> GoldenWeights::matrix(std::string_view role, int64_t rows, int64_t cols,
                                                            std::string_view meaning) {
  ASSIGN_OR_RETURN(const std::vector<float> values, dense(role, rows, cols, meaning));
  return backend_.pack({DType::kF32, rows, cols, std::as_bytes(std::span(values))});
}

std::vector<std::string> GoldenWeights::unused() const {
  std::vector<std::string> names;
  for (const NamedTensor& tensor : layer_.file.tensors()) {
    const bool known = tensor.name == "input" || tensor.name == "output" || tensor.name.starts_with(kResultPrefix);
    if (!known && !used_.contains(tensor.name)) names.push_back(tensor.name);
  }
  return names;
}

}  // namespace quipu
