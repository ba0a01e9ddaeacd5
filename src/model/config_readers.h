// The readers of config.json, one for each family of architectures, and what they share. For .cc files.
#pragma once

#include "base/result.h"
#include "model/config.h"
#include "model/json_object.h"

namespace quipu {

// model_type "quipu": a model of ours.
Result<ModelConfig> read_quipu_config(const JsonObject& object);

// DeepseekV2ForCausalLM and DeepseekV3ForCausalLM: room latent, some layers with experts.
Result<ModelConfig> read_deepseek_config(const JsonObject& object, bool third);
// model_type "llama-mtla": room temporal_latent in a Llama.
Result<ModelConfig> read_llama_mtla_config(const JsonObject& object);

// Sets rope_theta and the rope_scaling... settings of attention/shared/rope_frequencies.h from rope_parameters
// (transformers 5) or rope_theta and rope_scaling (transformers 4). mscale_all_dim is handed on, too: latent rooms
// scale their scores by it.
Result<void> set_rope(HyperParameters& parameters, const JsonObject& object, int64_t trained_context);

// hidden_size, vocab_size, max_position_embeddings, rms_norm_eps and tie_word_embeddings (absent: `tied`).
Result<ModelConfig> read_common(const JsonObject& object, std::string_view architecture, bool tied);
// Refuses quantization_config; warns about code that will not be run.
Result<void> check_promises(ModelConfig& config, const JsonObject& object);

// "silu" or "gelu_pytorch_tanh", with their other spellings.
Result<GateActivation> read_activation(const JsonObject& object, const char* key);

}  // namespace quipu
