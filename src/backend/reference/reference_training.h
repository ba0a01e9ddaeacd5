// The meaning of every training operation: plain loops in double. The oracle of all gradient tests.
#pragma once

#include <memory>

#include "ops/training.h"

namespace quipu {

std::unique_ptr<TrainingOps<double>> make_reference_training_ops(int threads = 1);

}  // namespace quipu
