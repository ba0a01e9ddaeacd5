// Reads a Hugging Face tokenizer.json.
//
// Models: BPE (byte-level, or characters with byte fallback), Unigram. A component that is not known is refused by name;
// nothing is guessed or skipped. The file is hostile until read: at most 256 MiB, nested at most 64 deep, ids at most the
// number of entries plus 65,536, at most 64 normalizer or pre-tokenizer steps.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/tokenizer.h"

namespace quipu {

struct TokenizerJsonOptions {
  std::string name = "tokenizer.json";   // for messages
  std::string_view config = {};          // bytes of tokenizer_config.json: names of bos, eos, unk, pad; add_bos_token
  std::vector<int32_t> end_ids = {};     // more ids that end generation (config.json, generation_config.json)
};

Result<std::shared_ptr<const Tokenizer>> parse_tokenizer_json(std::string_view bytes, const TokenizerJsonOptions& options = {});

// path: a tokenizer.json or a folder that has one. The tokenizer_config.json beside it is read where there is one.
Result<std::shared_ptr<const Tokenizer>> load_tokenizer_json(const std::string& path, std::vector<int32_t> end_ids = {});

}  // namespace quipu
