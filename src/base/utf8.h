// UTF-8, strictly: overlong forms, surrogates and code points above U+10FFFF are invalid.      [RFC 3629]
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace quipu {

// Length in bytes (1 to 4) of the valid sequence that `text` starts with; 0 when it starts with none.
size_t utf8_sequence_length(std::string_view text);

// Whether `text` could become valid if more bytes followed: it is a proper prefix of one valid sequence.
bool utf8_is_incomplete(std::string_view text);

// Number of bytes before the first invalid one (text.size() when all is valid).
size_t utf8_valid_prefix(std::string_view text);
inline bool utf8_is_valid(std::string_view text) { return utf8_valid_prefix(text) == text.size(); }

// The code point of the valid sequence at the start of `text` (its length must not be 0).
char32_t utf8_code_point(std::string_view text);

void utf8_append(std::string& out, char32_t code_point);

// Replaces each maximal invalid part by U+FFFD, as Rust's from_utf8_lossy and Python's errors="replace" do.
std::string utf8_lossy(std::string_view text);

}  // namespace quipu
