// The nearest known word to a mistyped one: for "did you mean".
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace quipu {

// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b` (restricted Damerau-Levenshtein).
size_t edit_distance(std::string_view a, std::string_view b);

// The word of `words` nearest to `word`, or "" when none is near: at most a third of the letters wrong, at least one
// allowed; a word that `word` abbreviates counts as near. Leading dashes are not compared.
std::string nearest_word(std::string_view word, std::span<const std::string> words);

}  // namespace quipu
