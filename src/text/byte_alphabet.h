// The byte-level alphabet: GPT-2 writes each byte as one printable character, so that vocabularies are text.
// Bytes 33-126, 161-172 and 174-255 stand for themselves as code points; the other 68, in order, are U+0100 + n.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace quipu {

// Code point of each byte.
const std::array<char32_t, 256>& byte_alphabet();

// The bytes that `token` spells in the alphabet; nothing when a character is outside it. token must be valid UTF-8.
std::optional<std::string> bytes_from_alphabet(std::string_view token);

}  // namespace quipu
