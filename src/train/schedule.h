// The learning rate over a run, as a factor of the base rate.
#pragma once

#include <cstdint>

#include "train/run_config.h"

namespace quipu {

// step from 0 to steps - 1. Warm-up rises linearly to 1 at its last step. Then:
//   constant  1
//   cosine    f + (1 - f) (1 + cos(pi t)) / 2,  t from 0 to 1 over the rest                    [Loshchilov & Hutter
//   2017] wsd       1, and over the last decay_steps f + (1 - f) (1 - sqrt(t))                       [Hägele et al.
//   2024]
// f: final_fraction.
double schedule_factor(const OptimizerSection& optimizer, int64_t step, int64_t steps);

}  // namespace quipu
