// The readers of config.json, one for each family of architectures, and what they share. For .cc files.
#pragma once

#include "base/result.h"
#include "model/config.h"
#include "model/json_object.h"

namespace quipu {

// model_type "quipu": a model of ours.
Result<ModelConfig> read_quipu_config(const JsonObject& object);

// "silu" or "gelu_pytorch_tanh", with their other spellings.
Result<GateActivation> read_activation(const JsonObject& object, const char* key);

}  // namespace quipu
