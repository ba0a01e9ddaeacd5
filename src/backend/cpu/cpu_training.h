// Training on the CPU: fp32 weights and sums, products of fp32 factors or, with AMX, of bfloat16 ones. VDPBF16PS is not used:
// on the machines measured it does half the operations a second of fp32's FMA (bench/NOTES.md).
#pragma once

#include <memory>

#include "ops/training.h"

namespace quipu {

struct CpuTrainingOptions {
  int threads = 0;                               // 0: one per available core
  Isa isa = Isa::kPortable;                      // at most best_isa()
  MatmulPrecision precision = MatmulPrecision::kFull;
  bool isa_is_emulated = false;                  // tests only: something traps and runs what this machine lacks
};

// kUsage when this machine lacks the instruction set.
Result<std::unique_ptr<TrainingOps<float>>> make_cpu_training_ops(const CpuTrainingOptions& options);

}  // namespace quipu
