#include "model/names.h"

#include <array>
#include <charconv>
#include <optional>

namespace quipu {
namespace {

struct Row {
  std::string_view role, gguf, hugging_face;   // without ".weight" and ".bias"
};

constexpr Row kLayerRows[] = {
    {"attention_norm", "attn_norm", "input_layernorm"},
    {"query", "attn_q", "self_attn.q_proj"},
    {"key", "attn_k", "self_attn.k_proj"},
    {"value", "attn_v", "self_attn.v_proj"},
    {"output", "attn_output", "self_attn.o_proj"},
    {"query_norm", "attn_q_norm", "self_attn.q_norm"},
    {"key_norm", "attn_k_norm", "self_attn.k_norm"},
    {"attention_post_norm", "post_attention_norm", "post_attention_layernorm"},
    {"feed_forward_norm", "ffn_norm", "pre_feedforward_layernorm"},
    {"gate", "ffn_gate", "mlp.gate_proj"},
    {"up", "ffn_up", "mlp.up_proj"},
    {"down", "ffn_down", "mlp.down_proj"},
    {"feed_forward_post_norm", "post_ffw_norm", "post_feedforward_layernorm"},
    // latent attention, as DeepSeek's checkpoints and the MTLA module name them
    {"query_down", "attn_q_a", "self_attn.q_a_proj"},
    {"query_down_norm", "attn_q_a_norm", "self_attn.q_a_layernorm"},
    {"query_up", "attn_q_b", "self_attn.q_b_proj"},
    {"latent_down", "attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"},
    {"latent_norm", "attn_kv_a_norm", "self_attn.kv_a_layernorm"},
    {"latent_up", "attn_kv_b", "self_attn.kv_b_proj"},
    {"key_up", "attn_k_b", "self_attn.k_b_proj"},
    {"value_up", "attn_v_b", "self_attn.v_b_proj"},
    {"hypernet_fc_c", "attn_hypernet_fc_c", "self_attn.hypernet_down.fc_c"},
    {"hypernet_fc_p", "attn_hypernet_fc_p", "self_attn.hypernet_down.fc_p"},
    // mixtures of experts; experts.N.gate is read as experts.gate
    {"experts.router", "ffn_gate_inp", "mlp.gate"},
    {"experts.gate", "ffn_gate_exps", "gate_proj"},
    {"experts.up", "ffn_up_exps", "up_proj"},
    {"experts.down", "ffn_down_exps", "down_proj"},
    {"shared_experts.gate", "ffn_gate_shexp", "mlp.shared_experts.gate_proj"},
    {"shared_experts.up", "ffn_up_shexp", "mlp.shared_experts.up_proj"},
    {"shared_experts.down", "ffn_down_shexp", "mlp.shared_experts.down_proj"},
};

constexpr std::array<Row, 3> kModelRows = {{
    {"token_embedding", "token_embd.weight", "model.embed_tokens.weight"},
    {"final_norm", "output_norm.weight", "model.norm.weight"},
    {"logits", "output.weight", "lm_head.weight"},
}};

// Of attention, after "self_attn.", without ".weight" and ".bias".
struct ModuleRow {
  std::string_view role, name;
};
constexpr ModuleRow kModuleRows[] = {
    {"query", "wq"},        {"query_down", "wq_a"},     {"query_down_norm", "q_norm"},
    {"query_up", "wq_b"},   {"latent_down", "wkv_a"},   {"latent_norm", "kv_norm"},
    {"latent_up", "wkv_b"}, {"output", "wo"},
};

struct ExpertRole {
  int64_t index;
  std::string_view part;   // "gate"
};

// "experts.7.gate"
std::optional<ExpertRole> as_expert(std::string_view role) {
  constexpr std::string_view kExperts = "experts.";
  if (!role.starts_with(kExperts)) return std::nullopt;
  const std::string_view rest = role.substr(kExperts.size());
  const size_t dot = rest.find('.');
  if (dot == std::string_view::npos) return std::nullopt;
  int64_t index = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + dot, index);
  if (error != std::errc() || end != rest.data() + dot) return std::nullopt;
  return ExpertRole{index, rest.substr(dot + 1)};
}

}  // namespace

int64_t NameTable::part_of(std::string_view role) const {
  const auto expert = as_expert(role);
  return expert.has_value() && style_ == NameStyle::kGguf ? expert->index : -1;
}

std::string NameTable::of_layer(int64_t layer, std::string_view role) const {
  const bool gguf = style_ == NameStyle::kGguf;
  const std::string place = (gguf ? "blk." : "model.layers.") + std::to_string(layer) + ".";
  if (role == "experts.correction") return place + (gguf ? "exp_probs_b.bias" : "mlp.gate.e_score_correction_bias");
  if (const auto expert = as_expert(role); expert.has_value()) {
    const std::string one = "experts." + std::string(expert->part);
    for (const Row& row : kLayerRows) {
      if (row.role != one) continue;
      if (gguf) return place + std::string(row.gguf) + ".weight";
      return place + "mlp.experts." + std::to_string(expert->index) + "." + std::string(row.hugging_face) + ".weight";
    }
  }
  constexpr std::string_view kBias = "_bias";
  const bool bias = role.ends_with(kBias);
  const std::string_view part = bias ? role.substr(0, role.size() - kBias.size()) : role;
  const std::string ending = bias ? ".bias" : ".weight";
  if (style_ == NameStyle::kMtlaModule) {
    for (const ModuleRow& row : kModuleRows) {
      if (row.role == part) return place + "self_attn." + std::string(row.name) + ending;
    }
  }
  for (const Row& row : kLayerRows) {
    if (row.role != part) continue;
    std::string_view name = gguf ? row.gguf : row.hugging_face;
    if (!gguf && !post_norms_ && part == "feed_forward_norm") name = "post_attention_layernorm";
    return place + std::string(name) + ending;
  }
  if (part.find('.') != std::string_view::npos) return place + std::string(part) + ending;
  return place + (gguf ? "attn_" : "self_attn.") + std::string(part) + ending;
}

std::string NameTable::of_model(std::string_view role) const {
  for (const Row& row : kModelRows) {
    if (row.role == role) return std::string(style_ == NameStyle::kGguf ? row.gguf : row.hugging_face);
  }
  return {};
}

}  // namespace quipu
