// What a loader fills to make a Tokenizer. Internal to text/.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe_model.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/unigram_model.h"

namespace quipu {

struct TokenizerParts {
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::variant<std::monostate, BpeModel, UnigramModel> model;

  AddedTokenMatcher raw_added;          // searched in the text as given
  AddedTokenMatcher normalized_added;   // searched after normalisation
  std::vector<AddedToken> added;

  std::vector<int32_t> prefix, suffix;  // what add_special puts around the ids

  // What each id writes: output_bytes[output_ends[id-1], output_ends[id]).
  std::string output_bytes;
  std::vector<size_t> output_ends;
  std::vector<bool> special;            // [vocab_size]
  bool strips_leading_space = false;    // of a decoded text

  int32_t bos = -1, eos = -1, unknown = -1, padding = -1;   // -1: none
  std::vector<int32_t> end_of_generation;                   // ascending
  uint64_t fingerprint = 0;
};

// Adds to parts.end_of_generation: eos and every special token whose text is known to end a turn or a text.
void find_end_tokens(TokenizerParts& parts);

// Sorts parts.added into the two matchers.
void index_added_tokens(TokenizerParts& parts);

}  // namespace quipu
