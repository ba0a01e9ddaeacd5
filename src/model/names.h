// Name tables: what a role of the model is called in a file.
//
// Roles are the model's own words. Of one layer: attention_norm, feed_forward_norm, attention_post_norm,
// feed_forward_post_norm, gate, up, down, and those the rooms list in their headers. Of the whole model: token_embedding,
// final_norm, logits.
//
// Of a mixture of experts: experts.router, experts.correction, experts.N.gate and so on, shared_experts.gate and so on.
//
// The bias of a part is the role "<part>_bias". A role the tables do not know is still a name: a room's own word under the
// attention of its layer, and "part.word" under that part, so that a new room needs no line here:
//   memory_gate               model.layers.3.self_attn.memory_gate.weight          blk.3.attn_memory_gate.weight
//   mixture_of_depths.router  model.layers.3.mixture_of_depths.router.weight       blk.3.mixture_of_depths.router.weight
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace quipu {

enum class NameStyle {
  kGguf,
  kHuggingFace,
  kMtlaModule,   // Hugging Face around the MTLA module, which has DeepSeek's own short names: wq, wkv_a, wo
};

class NameTable {
 public:
  // post_norms: Hugging Face's "post_attention_layernorm" is the norm before the feed-forward part in most models and the
  // one after attention in those with post norms (Gemma 3).
  NameTable(NameStyle style, bool post_norms) : style_(style), post_norms_(post_norms) {}

  // The name in the file.
  std::string of_layer(int64_t layer, std::string_view role) const;
  // GGUF keeps the matrices of all experts in one tensor: which of them the role "experts.7.gate" is (7). -1: the role is a
  // tensor of its own.
  int64_t part_of(std::string_view role) const;
  std::string of_model(std::string_view role) const;   // empty when this style has none

 private:
  NameStyle style_;
  bool post_norms_;
};

}  // namespace quipu
