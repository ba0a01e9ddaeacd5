// What a machine's multipliers can do at most: independent multiply-adds in registers, no memory.
#pragma once

#include "base/cpu_features.h"

namespace quipu::cpu {

// Operations per second (a multiply-add is two) of `threads` threads at once, the median of a few short runs. bfloat16: of
// the fastest way the set multiplies those: tiles with AMX, fp32 otherwise.
double matrix_roof(Isa isa, bool bfloat16, int threads);

}  // namespace quipu::cpu
