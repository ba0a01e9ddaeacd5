// The time of day, for what people read: results and reports.
#pragma once

#include <string>

namespace quipu {

// UTC, as "2026-11-28T18:49:13Z"; the date is its first 10 characters.
std::string utc_now();

}  // namespace quipu
