// What this machine can do at most, measured now: the roofs that speeds are stated against.
#pragma once

#include <string>

namespace quipu {

struct MemoryRoof {
  double gigabytes_per_second = 0;   // median read bandwidth, `threads` threads, 8 streams each, from DRAM
  double low = 0, high = 0;          // spread over the repetitions
  int threads = 0;
};

// Reads a buffer that is in no cache, several times; takes about `seconds`, and 128 MB while it runs (512 MB on machines
// other than x86-64).
MemoryRoof measure_memory_roof(int threads, double seconds = 0.5);

}  // namespace quipu
