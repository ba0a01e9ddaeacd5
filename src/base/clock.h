// Monotonic seconds for intervals; nothing here reads the wall clock.
#pragma once

#include <chrono>

namespace quipu {

inline double monotonic_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace quipu
