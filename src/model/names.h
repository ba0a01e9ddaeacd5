// Name tables: what a role of the model is called in a file.
//
// Roles are the model's own words. Of one layer: attention_norm, query, key, value, output, query_bias, key_bias,
// value_bias, output_bias, query_norm, key_norm, attention_post_norm, feed_forward_norm, gate, up, down, gate_bias, up_bias,
// down_bias, feed_forward_post_norm. Of the whole model: token_embedding, final_norm, logits.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace quipu {

enum class NameStyle { kGguf, kHuggingFace };

class NameTable {
 public:
  // post_norms: Hugging Face's "post_attention_layernorm" is the norm before the feed-forward part in most models and the
  // one after attention in those with post norms (Gemma 3).
  NameTable(NameStyle style, bool post_norms) : style_(style), post_norms_(post_norms) {}

  // The name in the file; empty when this style has none for the role.
  std::string of_layer(int64_t layer, std::string_view role) const;
  std::string of_model(std::string_view role) const;

 private:
  NameStyle style_;
  bool post_norms_;
};

}  // namespace quipu
