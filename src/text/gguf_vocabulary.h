// The tokenizer inside a GGUF file (metadata keys tokenizer.ggml.*), as plain data, so that text/ needs no file reader.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/tokenizer.h"

namespace quipu {

// Who fills it must have refused arrays of another element type: tokens and merges are strings, scores float32, types
// int32. Views must live until tokenizer_from_gguf returns.
struct GgufVocabulary {
  std::string file = "GGUF";              // for messages
  std::string model;                      // tokenizer.ggml.model: "gpt2" (byte-level BPE), "llama" (SentencePiece BPE)
  std::string pre;                        // tokenizer.ggml.pre; "gpt2" only
  std::vector<std::string_view> tokens;   // [V]
  std::vector<float> scores;              // [V]; "llama" only
  std::vector<int32_t> types;             // [V] or empty. 1 normal 2 unknown 3 control 4 user defined 5 unused 6 byte
  std::vector<std::string_view> merges;   // "left right"; "gpt2" only
  std::optional<int64_t> bos, eos, unknown, padding;   // tokenizer.ggml.{bos,eos,unknown,padding}_token_id
  std::vector<int64_t> end_ids;           // tokenizer.ggml.{eot,eom}_token_id and the like
  std::optional<bool> add_bos, add_eos, add_space_prefix;
};

// Errors (kBadInput) name the key, the value and what is expected: unknown model or pre-tokenizer, array lengths that
// differ from V, an id outside 0 .. V-1, a type outside 0 .. 6, a score that is not finite, a merge of unknown tokens.
Result<std::shared_ptr<const Tokenizer>> tokenizer_from_gguf(const GgufVocabulary& vocabulary);

// Names that tokenizer.ggml.pre may have.
std::vector<std::string_view> gguf_pre_tokenizer_names();

}  // namespace quipu
