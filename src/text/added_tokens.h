// Added tokens: texts that become one token wherever they stand, before the model sees anything.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/byte_trie.h"

namespace quipu {

struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool special = false;       // controls the model; found only when the caller asks (EncodeOptions::parse_special)
  bool single_word = false;   // only where no word character touches it
  bool lstrip = false;        // takes the white space on its left with it
  bool rstrip = false;        // and on its right
  bool normalized = false;    // searched in the normalised text
  std::string searched = {};  // what is looked for, when that is not `content` (which may change under the normaliser)
};

class AddedTokenMatcher {
 public:
  struct Match {
    size_t begin = 0, end = 0;
    int32_t id = -1;
  };

  void add(AddedToken token);
  bool empty() const { return tokens_.empty(); }

  // The first token at or after `from`, the longest of those that start there, with the white space it takes.
  // False when there is none. text: valid UTF-8; from: a character boundary.
  bool find(Match& match, std::string_view text, size_t from, bool with_special) const;

 private:
  size_t candidate(std::string_view text, size_t from) const;

  std::vector<AddedToken> tokens_;
  ByteTrie trie_;   // values are indices into tokens_
  std::array<bool, 256> starts_{};
  int distinct_starts_ = 0;
  char only_start_ = 0;
};

}  // namespace quipu
