// The CPU back end: our kernels, chosen once for the machine (or as QUIPU_ISA says).
#pragma once

#include <memory>

#include "ops/backend.h"

namespace quipu {

struct CpuBackendOptions {
  int threads = 0;                               // 0: one per available core
  Isa isa = Isa::kPortable;                      // at most best_isa()
  Activations activations = Activations::kFast;
  bool isa_is_emulated = false;                  // tests only: something traps and runs what this machine lacks
};

// kUsage when this machine lacks the instruction set.
Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuBackendOptions& options);

}  // namespace quipu
