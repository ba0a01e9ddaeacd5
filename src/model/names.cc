#include "model/names.h"

#include <array>

namespace quipu {
namespace {

struct Row {
  std::string_view role, gguf, hugging_face;
};

constexpr std::array<Row, 20> kLayerRows = {{
    {"attention_norm", "attn_norm.weight", "input_layernorm.weight"},
    {"query", "attn_q.weight", "self_attn.q_proj.weight"},
    {"key", "attn_k.weight", "self_attn.k_proj.weight"},
    {"value", "attn_v.weight", "self_attn.v_proj.weight"},
    {"output", "attn_output.weight", "self_attn.o_proj.weight"},
    {"query_bias", "attn_q.bias", "self_attn.q_proj.bias"},
    {"key_bias", "attn_k.bias", "self_attn.k_proj.bias"},
    {"value_bias", "attn_v.bias", "self_attn.v_proj.bias"},
    {"output_bias", "attn_output.bias", "self_attn.o_proj.bias"},
    {"query_norm", "attn_q_norm.weight", "self_attn.q_norm.weight"},
    {"key_norm", "attn_k_norm.weight", "self_attn.k_norm.weight"},
    {"attention_post_norm", "post_attention_norm.weight", "post_attention_layernorm.weight"},
    {"feed_forward_norm", "ffn_norm.weight", "pre_feedforward_layernorm.weight"},
    {"gate", "ffn_gate.weight", "mlp.gate_proj.weight"},
    {"up", "ffn_up.weight", "mlp.up_proj.weight"},
    {"down", "ffn_down.weight", "mlp.down_proj.weight"},
    {"gate_bias", "ffn_gate.bias", "mlp.gate_proj.bias"},
    {"up_bias", "ffn_up.bias", "mlp.up_proj.bias"},
    {"down_bias", "ffn_down.bias", "mlp.down_proj.bias"},
    {"feed_forward_post_norm", "post_ffw_norm.weight", "post_feedforward_layernorm.weight"},
}};

constexpr std::array<Row, 3> kModelRows = {{
    {"token_embedding", "token_embd.weight", "model.embed_tokens.weight"},
    {"final_norm", "output_norm.weight", "model.norm.weight"},
    {"logits", "output.weight", "lm_head.weight"},
}};

}  // namespace

std::string NameTable::of_layer(int64_t layer, std::string_view role) const {
  for (const Row& row : kLayerRows) {
    if (row.role != role) continue;
    if (style_ == NameStyle::kGguf) return "blk." + std::to_string(layer) + "." + std::string(row.gguf);
    std::string_view name = row.hugging_face;
    if (!post_norms_ && role == "feed_forward_norm") name = "post_attention_layernorm.weight";
    return "model.layers." + std::to_string(layer) + "." + std::string(name);
  }
  return {};
}

std::string NameTable::of_model(std::string_view role) const {
  for (const Row& row : kModelRows) {
    if (row.role == role) return std::string(style_ == NameStyle::kGguf ? row.gguf : row.hugging_face);
  }
  return {};
}

}  // namespace quipu
