// The oracle: every operation of ops/backend.h in plain loops with double accumulation, as its formula is written.
//
// Goals: obviously right, on any machine; the same bits for any number of threads, any chunking, any batch neighbours
// (each output number is computed by one task, over its inputs in one fixed order). Non-goals: speed. Activations are
// never rounded (Activations::kExact); weights are decoded to float once, at pack().
#pragma once

#include <memory>

#include "ops/backend.h"

namespace quipu {

// threads: as ThreadPool takes them (0: one per core).
std::unique_ptr<Backend> make_reference_backend(int threads);

}  // namespace quipu
