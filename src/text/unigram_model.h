// UnigramModel: the most probable way to write a piece of text as tokens (Viterbi).       [Kudo 2018, arXiv 1804.10959]
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/byte_trie.h"

namespace quipu {

struct UnigramConfig {
  bool byte_fallback = false;
  int32_t unknown_id = -1;
  std::array<int32_t, 256> byte_ids{};   // -1 when absent
};

class UnigramModel {
 public:
  // tokens, scores (log probabilities, finite) by id; only ids with usable[id] are found in text.
  UnigramModel(UnigramConfig config, const std::vector<std::string_view>& tokens, const std::vector<double>& scores,
               const std::vector<bool>& usable);

  // Appends the ids of `piece` (valid UTF-8). An unknown character costs the lowest score less 10; neighbouring unknown
  // characters are one unknown token, or their bytes. Cost: O(n * longest token).
  // Error: an unknown character where there is neither an unknown token nor its byte tokens.
  Result<void> encode(std::vector<int32_t>& out, std::string_view piece) const;

 private:
  Result<void> append_unknown(std::vector<int32_t>& out, std::string_view text) const;

  UnigramConfig config_;
  ByteTrie trie_;
  std::vector<double> scores_;
  double unknown_score_ = 0;
};

}  // namespace quipu
