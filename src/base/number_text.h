// Counts and durations as a person reads them.
#pragma once

#include <cstdint>
#include <string>

namespace quipu {

std::string grouped_count(int64_t count);    // "1,048,576"
std::string human_seconds(double seconds);   // "0.4 s", "12 s", "3 min 05 s", "2 h 07 min"

}  // namespace quipu
