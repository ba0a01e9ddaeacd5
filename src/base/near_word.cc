#include "base/near_word.h"

#include <algorithm>
#include <vector>

namespace quipu {

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before(b.size() + 1), above(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) above[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    before.swap(above);
    above.swap(row);
  }
  return above[b.size()];
}

std::string nearest_word(std::string_view word, std::span<const std::string> words) {
  const auto bare = [](std::string_view text) {
    text.remove_prefix(std::min(text.find_first_not_of('-'), text.size()));
    return text;
  };
  constexpr size_t kLongestWord = 64;  // a pasted paragraph is nobody's misspelt flag
  const std::string_view wanted = bare(word);
  if (wanted.empty() || wanted.size() > kLongestWord) return "";
  std::string best;
  size_t best_distance = std::max<size_t>(1, wanted.size() / 3) + 1;
  for (const std::string& candidate : words) {
    const std::string_view known = bare(candidate);
    // One-letter flags are one letter away from everything short: only their own long form is a suggestion.
    if (known.size() < 2) continue;
    size_t distance = edit_distance(wanted, known);
    if (wanted.size() >= 3 && known.substr(0, wanted.size()) == wanted) distance = std::min<size_t>(distance, 1);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace quipu
