// Classes of characters that tokenizers ask about.
#pragma once

namespace quipu {

// Unicode White_Space.
inline bool is_white_space(char32_t c) {
  return (c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
         c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

// A letter, mark, decimal or letter number, or connector: what \w matches.
bool is_word_character(char32_t c);

}  // namespace quipu
