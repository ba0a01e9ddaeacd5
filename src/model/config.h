// ModelConfig: what a model is made of, as plain data that has been checked. Readers fill it from a GGUF file's metadata or
// a Hugging Face config.json; everything missing or contradictory is an error that names file and key, never a guess.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attention/hyperparameters.h"
#include "attention/shared/rope_frequencies.h"
#include "base/result.h"
#include "blocks/experts.h"
#include "model/names.h"
#include "ops/backend.h"

namespace quipu {

class GgufMetadata;   // formats/gguf/metadata.h

// Attention with per-head keys and values: what the readers know about one layer before it becomes the settings of the
// room "grouped_query".
struct GroupedQuerySettings {
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  int64_t rotary_dim = 0;          // even, <= head_dim
  bool interleaved = false;        // pairs (2i, 2i+1); otherwise (i, i + rotary_dim / 2)
  double rope_theta = 0;
  RopeScaling scaling;
  double rope_magnitude = 1;       // multiplies cos and sin (YaRN)
  std::vector<double> frequency_divisors;   // [rotary_dim / 2] or empty: GGUF's rope_freqs.weight
  int64_t window = 0;              // > 0: a row sees the last `window` tokens, itself included
  double scale = 0;                // multiplies q . k; 0 means 1 / sqrt(head_dim)
  double logit_softcap = 0;
  bool query_key_norm = false;     // RMS norm over each head of queries and keys before the rotation
  double norm_epsilon = 0;         // of that norm
  bool qkv_bias = false, output_bias = false;
};

struct FeedForwardConfig {
  GateActivation activation = GateActivation::kSilu;
  int64_t inner = 0;               // of the gated one; without use when there are experts
  bool bias = false;               // promised; biases a file has are used in any case
  std::optional<ExpertsSettings> experts;   // in place of the gated one
};

// Only some tokens enter a layer with this. What is in `settings` is the block's own business.
struct MixtureOfDepthsConfig {
  double capacity = 1;             // share of the tokens that enter, in (0, 1]
  std::string decode;              // how they are chosen without seeing later ones: "threshold", "predictor", "moving"
  HyperParameters settings;        // everything in the section
};

struct LayerConfig {
  std::string room;                // name in the attention registry
  HyperParameters attention;       // its settings
  std::vector<std::string> required_roles;   // weights the room treats as optional but this configuration promises
  FeedForwardConfig feed_forward;
  std::optional<MixtureOfDepthsConfig> mixture_of_depths;
  std::string summary;             // every setting as text: goes into the model's hash
};

struct ModelConfig {
  std::string origin;              // file the values came from
  std::string architecture;        // "quipu", "llama", "mistral", "qwen2", "qwen3", "gemma3",
                                   // "deepseek2", "llama-mtla"
  std::string name;                // as the file states it; may be empty

  int64_t hidden = 0;
  int64_t vocabulary = 0;          // rows of the embedding
  int64_t trained_context = 0;     // tokens
  double norm_epsilon = 0;
  double norm_weight_offset = 0;   // added to every norm weight of the file: 1 for Gemma in safetensors
  double embedding_scale = 1;
  double logit_scale = 1;
  double logit_softcap = 0;        // > 0: logit = cap * tanh(logit / cap)
  bool tied_output = false;        // the output matrix is the embedding
  bool post_norms = false;         // Gemma 3: norms after attention and feed-forward, before the residual sum

  std::vector<LayerConfig> layers;
  std::vector<std::string> warnings;
};

// Architectures that can be read, for messages.
std::string supported_gguf_architectures();      // "llama, qwen2, qwen3, gemma3"
std::string supported_hf_architectures();        // "LlamaForCausalLM, ..."

// What the tensors of a GGUF file say about its configuration. embedding_rows: of token_embd.weight. has_output: the file holds
// output.weight. frequency_divisors: rope_freqs.weight decoded, or empty.
struct GgufModelFacts {
  int64_t embedding_rows = 0;
  bool has_output = false;
  std::vector<double> frequency_divisors;
  bool has_expert_correction = false;   // blk.N.exp_probs_b.bias
};
Result<ModelConfig> read_gguf_config(const GgufMetadata& metadata, const GgufModelFacts& facts);

// json: the text of config.json; file: its name in messages. model_type "quipu" is a model of ours (docs/file_formats.md):
// its attention, depth routing and feed-forward sections are tried on the parts they are for, so that a key nobody reads, or a
// setting out of range, is refused here, before any weights are looked at.
Result<ModelConfig> read_hf_config(std::string_view file, std::string_view json);

// How the tensors of a Hugging Face folder with this configuration are named.
NameStyle folder_names(const ModelConfig& config);

// The checks both readers share: bounds, divisibility, epsilon. Errors read "<origin>: <key> ...".
Result<void> validate_config(const ModelConfig& config);

// Limits on what a file may claim. They are far above any model there is and keep products of two of them below 2^63.
inline constexpr int64_t kMaxHidden = 1 << 18;
inline constexpr int64_t kMaxLayers = 4096;
inline constexpr int64_t kMaxHeads = 4096;
inline constexpr int64_t kMaxHeadDim = 4096;
inline constexpr int64_t kMaxFeedForward = 1 << 22;
inline constexpr int64_t kMaxVocabulary = 1 << 24;
inline constexpr int64_t kMaxContext = int64_t{1} << 31;

// Tokens after which the layer's attention puts what it knows into a memory; 0: it has none.
int64_t segment_tokens(const LayerConfig& layer);

// Every value that changes what the model computes, as one text: goes into the model's hash.
std::string config_text(const ModelConfig& config);

// Every setting as text; equal texts, equal bits.
std::string settings_text(const HyperParameters& parameters);

// Turns the settings into those of the room and checks them.
Result<LayerConfig> grouped_query_layer(const std::string& origin, const GroupedQuerySettings& settings);

}  // namespace quipu
