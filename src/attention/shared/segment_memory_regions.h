// How the memory's state is laid out: shared by the code that declares it and the code that runs on it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/shared/segment_memory.h"

namespace quipu {

// Numbers of the regions, in the order of SegmentMemory::declare(). kAbsent where the settings need none.
struct SegmentMemory::Regions {
  static constexpr size_t kAbsent = SIZE_MAX;
  size_t segment = kAbsent, memory = kAbsent, open_memory = kAbsent;
  size_t sum = kAbsent, open_sum = kAbsent, memory_carry = kAbsent, sum_carry = kAbsent;
  // Writes that wait: how many for each memory (int32), [memories][write_group] rows of features, and of values.
  size_t waiting = kAbsent, waiting_key = kAbsent, waiting_value = kAbsent;
};

// Where the state is in its segments; bytes of the region "segment". All zero: the beginning. A file may hold anything:
// begin() forces the numbers into bounds before they are used.
struct SegmentRecord {
  int64_t segment = 0;    // of the last token
  int64_t open_rows = 0;  // tokens of that segment so far, at local rows base_rows ...
  int64_t base_rows = 0;  // local rows of the segment before
  int64_t folded = 0;     // 1: the segment has ended and is in the memory
};

}  // namespace quipu
