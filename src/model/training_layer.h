// One layer of a trainable model from its configuration.
#pragma once

#include <memory>

#include "blocks/training.h"
#include "model/config.h"

namespace quipu {

// kUsage for what has no trainable form, kBadInput for a setting that is wrong; Real: float or double.
template <class Real>
Result<std::unique_ptr<TrainableBlock<Real>>> make_trainable_layer(const ModelConfig& config, int64_t index, const TrainingOps<Real>& ops);

}  // namespace quipu
