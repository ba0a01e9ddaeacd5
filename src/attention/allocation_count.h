// Test support: a program that links allocation_count.cc counts its calls of operator new.
#pragma once

#include <cstdint>

namespace quipu {

int64_t allocations_so_far();

}  // namespace quipu
