// How much memory this process may still take.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"

namespace quipu {

// Bytes: the smaller of what the system says is available and what the process's memory group has left, file pages that
// can be dropped not counted as used. Nothing when neither can be read.
std::optional<uint64_t> available_memory();

// kFailed when `wanted` bytes are more than is available: "<what> needs 4.2 GB (<breakdown>), 3.1 GB are available".
Result<void> require_memory(const std::string& what, uint64_t wanted, const std::string& breakdown);

std::string bytes_text(double bytes);   // "1.24 GB", decimal units

}  // namespace quipu
