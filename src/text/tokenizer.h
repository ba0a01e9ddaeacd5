// Tokenizer: text to the ids a model reads, and back. Immutable and safe to use from many threads.
//
// Made from a Hugging Face tokenizer.json (text/tokenizer_json.h) or the vocabulary of a GGUF file
// (text/gguf_vocabulary.h). Ids equal those of the Hugging Face `tokenizers` library and, for GGUF SentencePiece
// vocabularies, of SentencePiece, on the battery in text/testdata.
//
// Text that is not valid UTF-8 is read as utf8_lossy(text) (base/utf8.h): each maximal invalid part becomes U+FFFD, which is
// what a Python program that decodes with errors="replace" would hand to its tokenizer.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace quipu {

struct TokenizerParts;   // text/tokenizer_parts.h, what the loaders fill

struct EncodeOptions {
  bool add_special = true;      // begin and end tokens, where the model asks for them
  bool parse_special = false;   // special tokens written in the text (<|im_end|>) are read as such; never for user text
};

class Tokenizer {
 public:
  explicit Tokenizer(std::unique_ptr<const TokenizerParts> parts);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // The ids of `text`. Errors (kBadInput): a text over 1 GiB; a character that a vocabulary with scores
  // cannot express (in one with merges it is left out, as in Hugging Face); a pattern of the
  // tokenizer file that needs too many steps on this text. Time: O(n log n) in the length of the text.
  Result<std::vector<int32_t>> encode(std::string_view text, EncodeOptions options = {}) const;

  // Text of the ids, invalid bytes as U+FFFD. Ids out of range are skipped. skip_special leaves out special tokens.
  std::string decode(std::span<const int32_t> ids, bool skip_special = true) const;

  // The bytes that `id` adds to a text: raw, maybe a part of a character. Empty for ids out of range and unused ids.
  // Valid as long as the tokenizer.
  std::string_view token_bytes(int32_t id) const;

  // The id of a whole token: an added token's text, or the bytes of a vocabulary entry.
  std::optional<int32_t> find(std::string_view token) const;

  int64_t vocab_size() const;   // one more than the highest id; a model's embedding may have more rows
  bool is_special(int32_t id) const;
  bool ends_generation(int32_t id) const;                 // eos, end of turn and the like
  const std::vector<int32_t>& end_of_generation() const;  // ascending
  std::optional<int32_t> bos() const;
  std::optional<int32_t> eos() const;
  std::optional<int32_t> unknown() const;
  std::optional<int32_t> padding() const;
  bool adds_bos() const;   // whether encode puts bos in front when add_special is set

  // XXH3 of everything that decides ids: vocabulary, merges, scores, patterns, flags. Equal files, equal fingerprints.
  uint64_t fingerprint() const;

 private:
  friend class StreamingDetokenizer;
  std::unique_ptr<const TokenizerParts> parts_;
};

struct DetokenizerOptions {
  bool skip_special = true;
  bool starts_text = true;   // false: continues a text, so the first token keeps the space it begins with
};

// Ids to text, one at a time, never splitting a character: bytes of an unfinished one are held back.
class StreamingDetokenizer {
 public:
  // The tokenizer must outlive it.
  explicit StreamingDetokenizer(const Tokenizer& tokenizer, DetokenizerOptions options = {});

  // The text that became certain with `id`: valid UTF-8, maybe empty.
  std::string push(int32_t id);
  // The end: an unfinished character becomes U+FFFD.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  bool strips_space_;
  std::string held_;   // a proper prefix of one character
};

}  // namespace quipu
