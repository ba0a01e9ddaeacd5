// BpeTrainer: learns a byte-level BPE vocabulary from text and writes it as a Hugging Face tokenizer.json.
//
// Texts are cut into words by the pre-tokenizer's pattern; every step joins the neighbouring pair of tokens that occurs
// most often (of equals, the pair of lowest ids). The rule, the order of the alphabet and the tie-break are those of
// the Hugging Face `tokenizers` BpeTrainer with the byte alphabet and no minimum frequency beyond `min_count`, so equal
// texts give an equal file.                                                              [Sennrich et al. 2016, alg. 1]
//
// Memory is bounded by `max_words` distinct words, not by the text: when more are met, the rarest are forgotten.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace quipu {

struct BpeTrainingOptions {
  int64_t vocab_size = 32000;   // special tokens and the 256 bytes included
  bool llama3_pattern = false;  // words and digits cut as Llama 3 does; otherwise as GPT-2
  std::vector<std::string> special_tokens = {"<|endoftext|>"};  // ids 0, 1, ...
  int64_t min_count = 2;                                        // pairs seen less often are not joined
  int64_t max_words = 4'000'000;                                // distinct words held at once
};

class BpeTrainer {
 public:
  // Errors (kUsage): a vocabulary too small for bytes and special tokens, or above 1,048,576; an empty or repeated
  // special token.
  static Result<BpeTrainer> create(BpeTrainingOptions options);
  BpeTrainer(BpeTrainer&&) noexcept;
  ~BpeTrainer();

  // Counts the words of the next part of a text, of any size; what may continue in the next part is kept back.
  // Bytes that are not UTF-8 count as U+FFFD.
  Result<void> add(std::string_view part);
  // Ends one text (file): no word spans two texts.
  Result<void> end_text();

  int64_t words() const;            // distinct words held
  int64_t forgotten_words() const;  // distinct words dropped to stay within max_words

  // Learns the merges. on_progress(tokens, vocab_size) returns false to stop (then an Error says "interrupted").
  // A text with too few pairs gives a smaller vocabulary, not an error. No text at all: an error (kBadInput).
  Result<void> learn(const std::function<bool(int64_t tokens, int64_t vocab_size)>& on_progress);
  int64_t vocabulary() const;  // tokens after learn()

  // The text of tokenizer.json; valid after learn().
  std::string tokenizer_json() const;

 private:
  struct State;
  explicit BpeTrainer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace quipu
