// One layer of a model from its configuration: which parts it has and where each takes its weights.
#pragma once

#include <optional>

#include "attention/attention.h"
#include "blocks/mixture_of_depths.h"
#include "blocks/pre_norm.h"
#include "model/config.h"

namespace quipu {

// Takes what config.layers[index] asks for out of `source`. Errors name the setting or tensor that is wrong first.
Result<PreNormBlock> make_layer(const ModelConfig& config, int64_t index, WeightSource& source, Backend& backend);
// The router in front of that layer, where the configuration has one.
Result<std::optional<MixtureOfDepths>> make_depth_router(const ModelConfig& config, int64_t index, WeightSource& source,
                                                         Backend& backend);

}  // namespace quipu
