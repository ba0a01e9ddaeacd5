// What the names in tokenizer.ggml.pre stand for. Internal to text/.
#pragma once

#include <string_view>
#include <vector>

namespace quipu {

struct GgufPreTokenizer {
  std::vector<std::string_view> names;
  std::vector<std::string_view> patterns;   // each isolates its matches in every piece of the one before
  bool ignore_merges = false;
  bool adds_bos = false;                    // where the file does not say
  bool nfc = false;
};

const std::vector<GgufPreTokenizer>& gguf_pre_tokenizers();

}  // namespace quipu
