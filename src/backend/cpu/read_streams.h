// Reading memory as fast as the machine can, for measuring its roof.
#pragma once

#include <cstdint>

namespace quipu::cpu {

inline constexpr int64_t kReadStreams = 8;     // a core keeps more lines in flight when it reads from several places at once
inline constexpr int64_t kWordsPerLine = 8;    // 64 bytes

// Sums `words` 64-bit words of each of kReadStreams streams that lie `words` apart; data is aligned to 64 bytes, words a
// multiple of kWordsPerLine. The sum keeps the loads alive.
using SumStreams = uint64_t (*)(const uint64_t* data, int64_t words);
SumStreams best_sum_streams();

// Takes `words` words out of every cache, where the machine can (can_flush); otherwise does nothing.
bool can_flush();
void flush(const uint64_t* data, int64_t words);

}  // namespace quipu::cpu
