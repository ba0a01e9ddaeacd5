// The same model with another memory of the context: what `quipu cost` compares and `quipu bench-rooms` measures.
//
// "Equal outward shape": hidden width, layers, feed-forward parts, number of query heads and width of a head stay; what
// a layer keeps of the context changes. rule_texts() says how the sizes of the latents and memories were chosen.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "model/config.h"

namespace quipu {

// A configuration, and what is known about the weights beside it.
struct DescribedModel {
  ModelConfig config;
  double bytes_per_weight = 2;  // 16 bits, where there are none
  bool weights_seen = false;    // bytes_per_weight is their average
};
// path: a config.json (ours or Hugging Face's), a folder that holds one, with or without weights, or a GGUF file.
Result<DescribedModel> describe_model(const std::string& path);

// What the rooms share of an attention layer, and what a model already says about a latent.
struct AttentionOutline {
  int64_t heads = 0, kv_heads = 0, head_dim = 0, value_dim = 0;
  int64_t latent_rank = 0, rope_dim = 0, query_rank = 0;  // rank 0: the layer has no latent
  int64_t segment_tokens = 0;                             // 0: no segments
  double rope_theta = 1e4;
};
// Nothing of it is guessed: an error when the room is one this does not know.
Result<AttentionOutline> attention_outline(const LayerConfig& layer);

struct RoomVariant {
  std::string name;     // "MHA", "MTLA s=3", "Infini delta, window", "... + MoD"
  std::string key;      // for --rooms: "mha", "mtla3", "infini-delta-window"; with depths "+mod"
  bool depths = false;  // mixture of depths on every other layer
  bool own = false;     // the model as its file describes it
  ModelConfig config;
};

struct VariantOptions {
  int64_t segment_tokens = 2048;  // of Infini where the model has no segments itself
  double capacity = 0.125;        // of the mixture of depths
  bool windows = true;            // Infini also with the window over the segment before
  bool own = true;                // the model itself first
  bool depths = true;             // every variant also with mixture of depths
};

// The model itself, then MHA, GQA, MQA, MLA, MTLA with strides 2, 3, 4 and Infini with its three rules; then the same
// with mixture of depths. One that would be the model itself is left out (`own` stands for it).
Result<std::vector<RoomVariant>> room_variants(const ModelConfig& config, const VariantOptions& options);
// How the sizes in room_variants() were chosen for this model: one line each.
Result<std::vector<std::string>> rule_texts(const ModelConfig& config, const VariantOptions& options);

// "MHA", "GQA 3", "MLA 576", ...; "hybrid" when layers differ.
std::string room_title(const ModelConfig& config);

}  // namespace quipu
