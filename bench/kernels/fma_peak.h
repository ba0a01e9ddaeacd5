// The most fp32 multiply-adds an instruction set does, from registers alone: the matrix roof of one thread.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"

namespace quipu {

struct FmaPeak {
  double (*run)(int64_t rounds);   // the result keeps the work alive
  int64_t flops_per_round;
};
FmaPeak fma_peak(Isa isa);

}  // namespace quipu
