#include "engine/cost_rooms.h"

#include <sys/stat.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <sstream>

#include "base/byte_reader.h"
#include "base/mapped_file.h"
#include "engine/model_source.h"
#include "formats/safetensors/safetensors_file.h"

namespace quipu {
namespace {

constexpr int64_t kMost = int64_t{1} << 40;
constexpr int64_t kStrides[] = {2, 3, 4};
constexpr std::string_view kRules[] = {"linear", "delta", "delta_true"};

// The largest divisor of `heads` that is at most heads / 4: the MTLA paper's 2 of 8 and the usual 8 of 32.
int64_t grouped_heads(int64_t heads) {
  for (int64_t count = std::max<int64_t>(1, heads / 4); count > 1; --count) {
    if (heads % count == 0) return count;
  }
  return 1;
}

// Sizes of a latent: the model's own, or DeepSeek's rule r = 4 d, rope d / 2 (an even number).
int64_t latent_rank(const AttentionOutline& o) { return o.latent_rank > 0 ? o.latent_rank : 4 * o.head_dim; }
int64_t latent_rope(const AttentionOutline& o) {
  return o.latent_rank > 0 ? o.rope_dim : std::max<int64_t>(2, o.head_dim / 4 * 2);
}

std::string text_of(const HyperParameters& parameters) {
  std::ostringstream text;
  text << std::hexfloat;
  for (const auto& [name, value] : parameters.values()) {
    text << name << "=";
    std::visit(
        [&](const auto& v) {
          if constexpr (std::is_same_v<std::decay_t<decltype(v)>, std::vector<double>>) {
            for (const double one : v) text << one << ",";
          } else {
            text << v;
          }
        },
        value);
    text << " ";
  }
  return text.str();
}

// A layer that keeps everything of `base` but its attention.
LayerConfig with_attention(const LayerConfig& base, std::string room, HyperParameters parameters) {
  LayerConfig layer;
  layer.room = std::move(room);
  layer.attention = std::move(parameters);
  layer.feed_forward = base.feed_forward;
  layer.mixture_of_depths = base.mixture_of_depths;
  layer.summary = text_of(layer.attention) + (base.mixture_of_depths ? text_of(base.mixture_of_depths->settings) : "");
  return layer;
}

HyperParameters grouped_query(const AttentionOutline& o, int64_t kv_heads) {
  HyperParameters p;
  p.set("heads", o.heads);
  p.set("kv_heads", kv_heads);
  p.set("head_dim", o.head_dim);
  p.set("value_dim", o.value_dim);
  p.set("rope_dim", o.head_dim / 2 * 2);
  p.set("rope_theta", o.rope_theta);
  return p;
}

// stride 0: MLA.
HyperParameters latent(const AttentionOutline& o, int64_t stride) {
  HyperParameters p;
  p.set("heads", o.heads);
  p.set("latent_rank", latent_rank(o));
  p.set("nope_dim", o.head_dim);
  p.set("rope_dim", latent_rope(o));
  p.set("value_dim", o.value_dim);
  if (o.query_rank > 0) p.set("query_rank", o.query_rank);
  p.set("latent_norm", std::string(stride > 0 ? "layer" : "rms"));
  p.set("norm_epsilon", 1e-6);
  p.set("rope_theta", o.rope_theta);
  p.set("rope_interleaved", true);
  p.set("form", std::string("auto"));  // prompts expanded, tokens absorbed
  if (stride > 0) p.set("stride", stride);
  return p;
}

HyperParameters infini(const AttentionOutline& o, std::string_view rule, bool window, int64_t segment_tokens) {
  HyperParameters p = grouped_query(o, o.kv_heads);
  p.set("segment_tokens", segment_tokens);
  p.set("rule", std::string(rule));
  p.set("feature", std::string(rule == "delta_true" ? "silu_l2" : "elu1"));
  p.set("window", std::string(window ? "previous" : "none"));
  return p;
}

using MakeLayer = std::function<LayerConfig(const LayerConfig& base, const AttentionOutline& outline)>;

Result<ModelConfig> substituted(const ModelConfig& config, const MakeLayer& make) {
  ModelConfig changed = config;
  for (LayerConfig& layer : changed.layers) {
    ASSIGN_OR_RETURN(const AttentionOutline outline, attention_outline(layer));
    layer = make(layer, outline);
  }
  return changed;
}

// Every other layer, the second first: the paper's best placement. [2404.02258]
ModelConfig with_depths(const ModelConfig& config, double capacity) {
  ModelConfig changed = config;
  for (size_t i = 1; i < changed.layers.size(); i += 2) {
    MixtureOfDepthsConfig depths;
    depths.capacity = capacity;
    depths.decode = "moving";  // a border in the file, so that random weights can be given one, too
    depths.settings = HyperParameters(config.origin, "mixture_of_depths");
    depths.settings.set("capacity", capacity);
    depths.settings.set("decode", std::string("moving"));
    depths.settings.set("router_input", std::string("rms"));
    depths.settings.set("output", std::string("update"));
    changed.layers[i].mixture_of_depths = std::move(depths);
    changed.layers[i].summary += " depths";
  }
  return changed;
}

int64_t setting(const LayerConfig& layer, const char* name, int64_t otherwise) {
  const auto value = layer.attention.integer_or(name, 0, kMost, otherwise);
  return value.ok() ? *value : otherwise;
}

std::string layer_title(const LayerConfig& layer) {
  if (layer.room == "latent") return "MLA";
  if (layer.room == "temporal_latent") return "MTLA s=" + std::to_string(setting(layer, "stride", 1));
  if (layer.room == "infini" || layer.room == "infini_latent") {
    const auto rule = layer.attention.text("rule");
    const auto window = layer.attention.text_or("window", "none");
    const std::string over = layer.room == "infini" ? "Infini " : "Infini-MLA ";
    return over + (rule.ok() ? *rule : std::string("?")) + (window.ok() && *window == "previous" ? " +window" : "");
  }
  if (layer.room != "grouped_query") return layer.room;
  const int64_t heads = setting(layer, "heads", 0), kv_heads = setting(layer, "kv_heads", 0);
  if (kv_heads == heads) return "MHA";
  return kv_heads == 1 ? "MQA" : "GQA " + std::to_string(kv_heads);
}

// True when every layer keeps the same of the context, to the row: then the two need not both be shown.
bool same_memory(const ModelConfig& a, const ModelConfig& b) {
  for (size_t i = 0; i < a.layers.size(); ++i) {
    if (layer_title(a.layers[i]) != layer_title(b.layers[i])) return false;
    if (a.layers[i].mixture_of_depths.has_value() != b.layers[i].mixture_of_depths.has_value()) return false;
    for (const char* name : {"window", "segment_tokens"}) {
      if (a.layers[i].room == "infini" && std::string_view(name) == "window") continue;
      if (setting(a.layers[i], name, 0) != setting(b.layers[i], name, 0)) return false;
    }
  }
  return true;
}

bool is_there(const std::string& path, bool folder) {
  struct stat facts{};
  return stat(path.c_str(), &facts) == 0 && (folder ? S_ISDIR(facts.st_mode) : S_ISREG(facts.st_mode));
}

double average_bytes(const TensorFile& file) {
  int64_t elements = 0;
  for (const NamedTensor& tensor : file.tensors()) elements += element_count(tensor.view.shape);
  return elements == 0 ? 2.0 : static_cast<double>(file.tensor_bytes()) / static_cast<double>(elements);
}

}  // namespace

Result<DescribedModel> describe_model(const std::string& path) {
  DescribedModel described;
  std::string config = is_there(path, true) ? path + "/config.json" : path;
  if (!config.ends_with(".json")) {
    ASSIGN_OR_RETURN(const ModelSource source, open_model(path));
    described.config = source.config;
    described.bytes_per_weight = average_bytes(source.tensors());
    described.weights_seen = true;
    return described;
  }
  if (!is_there(config, false)) {
    return bad_input(printable(path, 400) +
                     ": no config.json there; expected a configuration, a model folder or a GGUF file");
  }
  ASSIGN_OR_RETURN(const auto file, MappedFile::open(config));
  const auto bytes = file->bytes();
  ASSIGN_OR_RETURN(described.config,
                   read_hf_config(config, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}));
  const std::string folder = config.find('/') == std::string::npos ? "." : config.substr(0, config.rfind('/'));
  // A configuration alone is enough; weights that cannot be read are no reason to refuse it.
  if (const auto weights = read_safetensors(folder); weights.ok()) {
    described.bytes_per_weight = average_bytes(*weights);
    described.weights_seen = true;
  }
  return described;
}

Result<AttentionOutline> attention_outline(const LayerConfig& layer) {
  const HyperParameters& p = layer.attention;
  AttentionOutline o;
  ASSIGN_OR_RETURN(o.heads, p.integer("heads", 1, kMost));
  if (p.has("rope_theta")) {
    ASSIGN_OR_RETURN(o.rope_theta, p.number("rope_theta", 1, 1e15));
  }
  if (layer.room == "infini" || layer.room == "infini_latent") {
    ASSIGN_OR_RETURN(o.segment_tokens, p.integer("segment_tokens", 1, kMost));
  }
  if (layer.room == "latent" || layer.room == "temporal_latent" || layer.room == "infini_latent") {
    ASSIGN_OR_RETURN(o.head_dim, p.integer("nope_dim", 1, kMost));
    ASSIGN_OR_RETURN(o.value_dim, p.integer("value_dim", 1, kMost));
    ASSIGN_OR_RETURN(o.latent_rank, p.integer("latent_rank", 1, kMost));
    ASSIGN_OR_RETURN(o.rope_dim, p.integer("rope_dim", 0, kMost));
    ASSIGN_OR_RETURN(o.query_rank, p.integer_or("query_rank", 0, kMost, 0));
    o.kv_heads = o.heads;
    return o;
  }
  if (layer.room != "grouped_query" && layer.room != "infini") {
    return bad_input(p.origin() + ": no rule to put another kind of attention in the place of " + layer.room);
  }
  ASSIGN_OR_RETURN(o.kv_heads, p.integer("kv_heads", 1, o.heads));
  ASSIGN_OR_RETURN(o.head_dim, p.integer("head_dim", 1, kMost));
  ASSIGN_OR_RETURN(o.value_dim, p.integer_or("value_dim", 1, kMost, o.head_dim));
  return o;
}

std::string room_title(const ModelConfig& config) {
  const std::string first = layer_title(config.layers.front());
  for (const LayerConfig& layer : config.layers) {
    if (layer_title(layer) != first) return "hybrid";
  }
  return first;
}

Result<std::vector<RoomVariant>> room_variants(const ModelConfig& config, const VariantOptions& options) {
  std::vector<RoomVariant> variants;
  const auto add = [&](std::string name, std::string key, const MakeLayer& make) -> Result<void> {
    ASSIGN_OR_RETURN(ModelConfig changed, substituted(config, make));
    if (options.own && same_memory(config, changed)) return {};
    variants.push_back({std::move(name), std::move(key), false, false, std::move(changed)});
    return {};
  };
  const auto heads_of = [](const std::function<int64_t(const AttentionOutline&)>& kv_heads) {
    return [kv_heads](const LayerConfig& base, const AttentionOutline& o) {
      return with_attention(base, "grouped_query", grouped_query(o, kv_heads(o)));
    };
  };
  ASSIGN_OR_RETURN(const AttentionOutline first, attention_outline(config.layers.front()));
  const auto shared = [](const AttentionOutline& o) {
    return o.kv_heads > 1 && o.kv_heads < o.heads ? o.kv_heads : grouped_heads(o.heads);
  };
  RETURN_IF_ERROR(add("MHA", "mha", heads_of([](const AttentionOutline& o) { return o.heads; })));
  if (shared(first) > 1) RETURN_IF_ERROR(add("GQA " + std::to_string(shared(first)), "gqa", heads_of(shared)));
  RETURN_IF_ERROR(add("MQA", "mqa", heads_of([](const AttentionOutline&) { return int64_t{1}; })));
  RETURN_IF_ERROR(add("MLA", "mla", [](const LayerConfig& base, const AttentionOutline& o) {
    return with_attention(base, "latent", latent(o, 0));
  }));
  for (const int64_t stride : kStrides) {
    const std::string s = std::to_string(stride);
    RETURN_IF_ERROR(add("MTLA s=" + s, "mtla" + s, [stride](const LayerConfig& base, const AttentionOutline& o) {
      return with_attention(base, "temporal_latent", latent(o, stride));
    }));
  }
  for (const bool window : {false, true}) {
    if (window && !options.windows) continue;
    for (const std::string_view rule : kRules) {
      const std::string name = "Infini " + std::string(rule) + (window ? " +window" : "");
      std::string key = "infini-" + std::string(rule) + (window ? "-window" : "");
      std::replace(key.begin(), key.end(), '_', '-');
      RETURN_IF_ERROR(add(name, key, [&](const LayerConfig& base, const AttentionOutline& o) {
        const int64_t segment = o.segment_tokens > 0 ? o.segment_tokens : options.segment_tokens;
        return with_attention(base, "infini", infini(o, rule, window, segment));
      }));
    }
  }
  if (options.own) variants.insert(variants.begin(), {room_title(config), "own", false, true, config});
  if (!options.depths || config.layers.size() < 2) return variants;
  const size_t count = variants.size();
  for (size_t i = 0; i < count; ++i) {
    const bool routed = std::any_of(variants[i].config.layers.begin(), variants[i].config.layers.end(),
                                    [](const LayerConfig& layer) { return layer.mixture_of_depths.has_value(); });
    if (routed) continue;
    variants.push_back({variants[i].name + " + MoD", variants[i].key + "+mod", true, false,
                        with_depths(variants[i].config, options.capacity)});
  }
  return variants;
}

Result<std::vector<std::string>> rule_texts(const ModelConfig& config, const VariantOptions& options) {
  ASSIGN_OR_RETURN(const AttentionOutline o, attention_outline(config.layers.front()));
  const auto number = [](int64_t value) { return std::to_string(value); };
  std::vector<std::string> lines;
  lines.push_back("Equal outward shape: hidden " + number(config.hidden) + ", " + number(o.heads) + " query heads of " +
                  number(o.head_dim) + ", same feed-forward parts; only what is kept of the context changes.");
  if (o.latent_rank > 0) {
    lines.push_back("MLA, MTLA: the model's own latent, rank " + number(o.latent_rank) + " and rope " +
                    number(o.rope_dim) + ".");
  } else {
    lines.push_back("MLA, MTLA: DeepSeek's rule, rank 4 d = " + number(latent_rank(o)) + ", rope d/2 = " +
                    number(latent_rope(o)) + "; prompts in the cheaper of the expanded and the absorbed form.");
  }
  const int64_t segment = o.segment_tokens > 0 ? o.segment_tokens : options.segment_tokens;
  lines.push_back("Infini: " + number(o.kv_heads) + " fp32 memories a layer (one per key head), segments of " +
                  number(segment) + " tokens; +window: the segment before is attended to exactly, too.");
  std::ostringstream depth;
  depth << "MoD: every other layer takes in " << options.capacity * 100 << " % of the tokens.";
  lines.push_back(depth.str());
  return lines;
}

}  // namespace quipu
