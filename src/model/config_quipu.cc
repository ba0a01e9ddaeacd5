// config.json of our own models (docs/file_formats.md). The attention section names a room of the registry; everything
// else in it is that room's business and is handed on by name, so that a new room needs no line here. The same holds
// for the depth routing. What is read here is then tried out: each kind of layer is built once against a source of
// blank weights.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "attention/attention.h"
#include "base/byte_reader.h"
#include "base/near_word.h"
#include "model/config_readers.h"
#include "model/tensor_list.h"

namespace quipu {
namespace {

using nlohmann::json;

constexpr std::string_view kKeys[] = {
    "model_type", "architectures", "hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size", "hidden_act",
    "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "attention", "mixture_of_depths", "feed_forward",
    "layers",
    // Bookkeeping of the Hugging Face tools; of these only the token ids are used, by the tokenizer.
    "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "transformers_version", "_name_or_path",
    "use_cache", "initializer_range"};
constexpr std::string_view kOverrideKeys[] = {"layers", "attention", "mixture_of_depths", "feed_forward"};
constexpr size_t kMostRoles = 64;
constexpr size_t kMostNumbers = 1 << 16;

// One section as it stands in the file.
struct Section {
  std::string path;              // "attention", "layers[1].attention"
  const json* object = nullptr;  // null: there is none
};

// Which sections a layer has.
struct Choice {
  Section attention, depths, feed_forward;
  auto key() const { return std::tuple(attention.object, depths.object, feed_forward.object); }
};

Result<HyperParameters::Value> setting(const JsonObject& object, const std::string& name, const json& value) {
  if (value.is_boolean()) return HyperParameters::Value(value.get<bool>());
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
    return object.error(name.c_str(), "is " + JsonObject::shown(value) + ", which is too large");
  }
  if (value.is_number_integer()) return HyperParameters::Value(value.get<int64_t>());
  if (value.is_number()) return HyperParameters::Value(value.get<double>());
  if (value.is_string()) return HyperParameters::Value(value.get<std::string>());
  if (value.is_array() && value.size() <= kMostNumbers &&
      std::all_of(value.begin(), value.end(), [](const json& one) { return one.is_number(); })) {
    return HyperParameters::Value(value.get<std::vector<double>>());
  }
  return object.error(printable(name).c_str(), "is " + JsonObject::shown(value) +
                                                   ", expected a number, a text, true, false or a list of numbers");
}

// Every key of the section but those in `not_ours`.
Result<HyperParameters> settings_of(const JsonObject& object, std::span<const std::string_view> not_ours) {
  std::string section = object.path();
  if (section.ends_with('.')) section.pop_back();
  HyperParameters parameters(object.file(), section);
  for (const auto& [name, value] : object.json().items()) {
    if (value.is_null() || std::find(not_ours.begin(), not_ours.end(), name) != not_ours.end()) continue;
    ASSIGN_OR_RETURN(HyperParameters::Value taken, setting(object, name, value));
    parameters.set(name, std::move(taken));
  }
  return parameters;
}

Result<std::vector<std::string>> role_list(const JsonObject& object, const char* key) {
  std::vector<std::string> roles;
  if (!object.has(key)) return roles;
  const json& list = object.at(key);
  const auto is_text = [](const json& one) { return one.is_string(); };
  if (!list.is_array() || list.size() > kMostRoles || !std::all_of(list.begin(), list.end(), is_text)) {
    return object.error(
        key, "is " + JsonObject::shown(list) + ", expected a list of at most " + std::to_string(kMostRoles) + " names");
  }
  return list.get<std::vector<std::string>>();
}

class Reader {
 public:
  explicit Reader(const JsonObject& object) : object_(object) {}

  Result<ModelConfig> read() {
    RETURN_IF_ERROR(object_.only(kKeys));
    config_.origin = object_.file();
    config_.architecture = "quipu";
    ASSIGN_OR_RETURN(config_.hidden, object_.integer("hidden_size", 1, kMaxHidden));
    ASSIGN_OR_RETURN(config_.vocabulary, object_.integer("vocab_size", 1, kMaxVocabulary));
    ASSIGN_OR_RETURN(config_.trained_context, object_.integer("max_position_embeddings", 1, kMaxContext));
    ASSIGN_OR_RETURN(config_.norm_epsilon, object_.number("rms_norm_eps"));
    ASSIGN_OR_RETURN(config_.tied_output, object_.boolean_or("tie_word_embeddings", false));
    ASSIGN_OR_RETURN(const int64_t layers, object_.integer("num_hidden_layers", 1, kMaxLayers));
    ASSIGN_OR_RETURN(const std::vector<Choice> choices, choose(layers));
    for (const Choice& choice : choices) {
      ASSIGN_OR_RETURN(LayerConfig layer, layer_of(choice));
      config_.layers.push_back(std::move(layer));
    }
    RETURN_IF_ERROR(validate_config(config_));
    RETURN_IF_ERROR(try_out(choices));
    return std::move(config_);
  }

 private:
  Result<Section> section(const JsonObject& holder, const char* key) const {
    if (!holder.has(key)) return Section{};
    RETURN_IF_ERROR(holder.object(key));
    return Section{holder.path() + key, &holder.at(key)};
  }
  JsonObject open(const Section& section) const {
    return JsonObject(object_.file(), section.path + ".", *section.object);
  }

  // The sections of every layer: the common ones, then what "layers" puts in their place.
  Result<std::vector<Choice>> choose(int64_t layers) const {
    Choice common;
    ASSIGN_OR_RETURN(common.attention, section(object_, "attention"));
    ASSIGN_OR_RETURN(common.depths, section(object_, "mixture_of_depths"));
    ASSIGN_OR_RETURN(common.feed_forward, section(object_, "feed_forward"));
    std::vector<Choice> choices(static_cast<size_t>(layers), common);
    if (object_.has("layers")) {
      const json& list = object_.at("layers");
      if (!list.is_array())
        return object_.error("layers", "is " + JsonObject::shown(list) + ", expected a list of overrides");
      std::vector<bool> taken(choices.size(), false);
      for (size_t i = 0; i < list.size(); ++i) {
        const std::string key = "layers[" + std::to_string(i) + "]";
        if (!list[i].is_object())
          return object_.error(key.c_str(), "is " + JsonObject::shown(list[i]) + ", expected an object");
        RETURN_IF_ERROR(override_some(choices, taken, JsonObject(object_.file(), key + ".", list[i])));
      }
    }
    for (size_t i = 0; i < choices.size(); ++i) {
      if (choices[i].attention.object != nullptr) continue;
      return object_.error("attention",
                           "is missing, and layer " + std::to_string(i) + " has no section of its own in \"layers\"");
    }
    return choices;
  }

  Result<void> override_some(std::vector<Choice>& choices, std::vector<bool>& taken, const JsonObject& entry) const {
    RETURN_IF_ERROR(entry.only(kOverrideKeys));
    if (!entry.has("layers")) return entry.error("layers", "is missing");
    const json& numbers = entry.at("layers");
    if (!numbers.is_array())
      return entry.error("layers", "is " + JsonObject::shown(numbers) + ", expected a list of layer numbers");
    for (const json& number : numbers) {
      const bool whole =
          number.is_number_integer() && !(number.is_number_unsigned() && number.get<uint64_t>() > INT32_MAX);
      const int64_t layer = whole ? number.get<int64_t>() : -1;
      if (layer < 0 || layer >= static_cast<int64_t>(choices.size())) {
        return entry.error(
            "layers", "holds " + JsonObject::shown(number) + ", expected 0 to " + std::to_string(choices.size() - 1));
      }
      if (taken[static_cast<size_t>(layer)])
        return entry.error("layers", "names layer " + std::to_string(layer) + " a second time");
      taken[static_cast<size_t>(layer)] = true;
      Choice& choice = choices[static_cast<size_t>(layer)];
      if (entry.has("attention")) {
        ASSIGN_OR_RETURN(choice.attention, section(entry, "attention"));
      }
      if (entry.json().contains("mixture_of_depths")) {  // null switches it off
        ASSIGN_OR_RETURN(choice.depths, section(entry, "mixture_of_depths"));
      }
      if (entry.has("feed_forward")) {
        ASSIGN_OR_RETURN(choice.feed_forward, section(entry, "feed_forward"));
      }
    }
    return {};
  }

  Result<LayerConfig> layer_of(const Choice& choice) const {
    LayerConfig layer;
    const JsonObject attention = open(choice.attention);
    ASSIGN_OR_RETURN(layer.room, attention.text("room"));
    if (const auto room = find_room(layer.room); !room.ok())
      return attention.error("room", "is unknown: " + room.error().message);
    static constexpr std::string_view kNotSettings[] = {"room", "optional_weights"};
    ASSIGN_OR_RETURN(layer.attention, settings_of(attention, kNotSettings));
    RETURN_IF_ERROR(check_token_counts(attention, layer.attention));
    ASSIGN_OR_RETURN(layer.required_roles, role_list(attention, "optional_weights"));
    layer.summary = choice.attention.object->dump(-1, ' ', true, json::error_handler_t::replace);
    if (choice.depths.object != nullptr) {
      ASSIGN_OR_RETURN(layer.mixture_of_depths, depths_of(open(choice.depths)));
      layer.summary +=
          " mixture_of_depths " + choice.depths.object->dump(-1, ' ', true, json::error_handler_t::replace);
    }
    if (choice.feed_forward.object != nullptr) {
      ASSIGN_OR_RETURN(layer.feed_forward, feed_forward_of(open(choice.feed_forward)));
    } else {
      ASSIGN_OR_RETURN(layer.feed_forward.inner, object_.integer("intermediate_size", 1, kMaxFeedForward));
      ASSIGN_OR_RETURN(layer.feed_forward.activation, activation_of(object_));
    }
    return layer;
  }

  // Settings that count tokens say so in their names, whatever the room: segment_tokens.
  Result<void> check_token_counts(const JsonObject& object, const HyperParameters& parameters) const {
    for (const auto& [name, value] : parameters.values()) {
      const int64_t* tokens = std::get_if<int64_t>(&value);
      if (tokens == nullptr || !name.ends_with("_tokens") || *tokens <= config_.trained_context) continue;
      return object.error(name.c_str(), "is " + std::to_string(*tokens) + ", more than max_position_embeddings " +
                                            std::to_string(config_.trained_context));
    }
    return {};
  }

  Result<GateActivation> activation_of(const JsonObject& object) const {
    if (object.has("hidden_act")) return read_activation(object, "hidden_act");
    if (object_.has("hidden_act")) return read_activation(object_, "hidden_act");
    return GateActivation::kSilu;
  }

  static Result<MixtureOfDepthsConfig> depths_of(const JsonObject& object) {
    MixtureOfDepthsConfig depths;
    ASSIGN_OR_RETURN(depths.settings, settings_of(object, {}));
    constexpr double kLeast = 1e-6;
    ASSIGN_OR_RETURN(depths.capacity, depths.settings.number("capacity", kLeast, 1.0));
    ASSIGN_OR_RETURN(depths.decode, depths.settings.text_or("decode", "threshold"));
    return depths;
  }

  Result<FeedForwardConfig> feed_forward_of(const JsonObject& object) const {
    ASSIGN_OR_RETURN(const std::string kind, object.text("kind"));
    if (kind == "experts") return experts_of(object);
    if (kind != "gated") return object.error("kind", "is \"" + printable(kind) + "\", expected gated or experts");
    static constexpr std::string_view kGatedKeys[] = {"kind", "intermediate_size", "hidden_act", "bias"};
    RETURN_IF_ERROR(object.only(kGatedKeys));
    FeedForwardConfig made;
    const JsonObject& sized = object.has("intermediate_size") ? object : object_;
    ASSIGN_OR_RETURN(made.inner, sized.integer("intermediate_size", 1, kMaxFeedForward));
    ASSIGN_OR_RETURN(made.activation, activation_of(object));
    ASSIGN_OR_RETURN(made.bias, object.boolean_or("bias", false));
    return made;
  }

  Result<FeedForwardConfig> experts_of(const JsonObject& object) const {
    static constexpr std::string_view kExpertKeys[] = {
        "kind",   "hidden_act",  "experts",     "experts_per_token", "intermediate_size", "shared_experts", "scoring",
        "groups", "groups_kept", "group_score", "correction",        "normalise",         "scaling"};
    RETURN_IF_ERROR(object.only(kExpertKeys));
    FeedForwardConfig made;
    ASSIGN_OR_RETURN(made.activation, activation_of(object));
    ExpertsSettings& e = made.experts.emplace();
    ASSIGN_OR_RETURN(e.experts, object.integer("experts", 1, kMaxHeads));
    ASSIGN_OR_RETURN(e.per_token, object.integer("experts_per_token", 1, e.experts));
    ASSIGN_OR_RETURN(e.inner, object.integer("intermediate_size", 1, kMaxFeedForward));
    ASSIGN_OR_RETURN(const int64_t shared, object.integer_or("shared_experts", 0, 1024, 0));
    e.shared_inner = shared * e.inner;
    ASSIGN_OR_RETURN(e.sigmoid, second_of(object, "scoring", "softmax", "sigmoid"));
    ASSIGN_OR_RETURN(e.groups, object.integer_or("groups", 1, e.experts, 1));
    ASSIGN_OR_RETURN(e.groups_kept, object.integer_or("groups_kept", 1, e.groups, e.groups));
    ASSIGN_OR_RETURN(e.group_top_two, second_of(object, "group_score", "best", "best_two"));
    ASSIGN_OR_RETURN(e.correction, object.boolean_or("correction", false));
    ASSIGN_OR_RETURN(e.normalise, object.boolean_or("normalise", false));
    ASSIGN_OR_RETURN(e.scaling, object.number_or("scaling", 1));
    return made;
  }

  // The text under `key`, which must be one of two; absent: the first. Whether it is the second.
  static Result<bool> second_of(const JsonObject& object, const char* key, const std::string& first,
                                const std::string& second) {
    if (!object.has(key)) return false;
    ASSIGN_OR_RETURN(const std::string text, object.text(key));
    if (text == first || text == second) return text == second;
    return object.error(key, "is \"" + printable(text) + "\", expected " + first + " or " + second);
  }

  // Builds one layer of each kind, which checks every setting, and looks for settings nobody has read.
  Result<void> try_out(const std::vector<Choice>& choices) {
    const NameTable names(NameStyle::kHuggingFace, config_.post_norms);
    std::set<decltype(Choice().key())> seen;
    for (size_t i = 0; i < choices.size(); ++i) {
      if (!seen.insert(choices[i].key()).second) continue;
      const LayerConfig& layer = config_.layers[i];
      std::set<std::string, std::less<>> roles;
      RETURN_IF_ERROR(layer_tensors(config_, static_cast<int64_t>(i), names, &roles));
      RETURN_IF_ERROR(layer.attention.all_asked("room " + layer.room));
      if (layer.mixture_of_depths.has_value())
        RETURN_IF_ERROR(layer.mixture_of_depths->settings.all_asked("mixture_of_depths"));
      for (const std::string& role : layer.required_roles) {
        if (roles.contains(role)) continue;
        const std::string near = nearest_word(role, std::vector<std::string>(roles.begin(), roles.end()));
        return open(choices[i].attention)
            .error("optional_weights", "names " + printable(role) + ", which room " + layer.room +
                                           " has no use for with these settings" +
                                           (near.empty() ? "" : "; did you mean " + near + "?"));
      }
    }
    return {};
  }

  const JsonObject& object_;
  ModelConfig config_;
};

}  // namespace

Result<ModelConfig> read_quipu_config(const JsonObject& object) { return Reader(object).read(); }

}  // namespace quipu
