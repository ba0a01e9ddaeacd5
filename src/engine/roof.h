// What this machine can do at most, measured now: the roofs that speeds are stated against.
#pragma once

#include <string>

namespace quipu {

struct MemoryRoof {
  double gigabytes_per_second = 0;   // median read bandwidth, `threads` threads, 8 streams each, from DRAM
  double low = 0, high = 0;          // spread over the repetitions
  int threads = 0;
};

// Reads a buffer far larger than the caches, several times; takes about `seconds`.
MemoryRoof measure_memory_roof(int threads, double seconds = 0.5);

}  // namespace quipu
