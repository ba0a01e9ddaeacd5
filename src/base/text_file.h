// A small text file in one call: read whole, written whole or not at all.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace quipu {

// Errors: those of MappedFile::open (kBadInput).
Result<std::string> read_text_file(const std::string& path);
// Errors: those of AtomicFile (kFailed); what stood under that name is kept then.
Result<void> write_text_file(const std::string& path, std::string_view text);

}  // namespace quipu
