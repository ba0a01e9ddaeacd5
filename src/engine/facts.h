// Facts and costs of a model, for inspect and closing lines.
#pragma once

#include <memory>

#include "engine/engine.h"
#include "engine/model_source.h"
#include "model/model.h"

namespace quipu {

// Everything but tokenizer and chat template.
ModelFacts model_facts(const ModelSource& source, const Model& model, const StateOptions& options);
ContextCost context_cost(const Model& model, const StateOptions& options, int64_t tokens);
// Bytes of pages a context of `tokens` tokens takes, all layers.
uint64_t allocated_state_bytes(const Model& model, const StateOptions& options, int64_t tokens);

}  // namespace quipu
