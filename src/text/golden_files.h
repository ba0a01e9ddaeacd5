// Test support: the battery of texts and the golden ids in testdata, as tools/make_tokenizer_goldens.py writes them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "text/gguf_vocabulary.h"

namespace quipu::golden {

// Ids as they are, or their number and FNV-1a hash when there were many.
struct Ids {
  std::vector<int32_t> ids;
  std::optional<uint64_t> count;
  std::string fnv1a;
  bool matches(const std::vector<int32_t>& found) const;
};

struct File {
  std::vector<Ids> ids;                            // one per text of the battery, special tokens parsed
  std::map<size_t, std::vector<int32_t>> plain;    // where the ids differ without parsing special tokens
  bool has_decoded = false;
  std::map<size_t, std::string> decoded;           // where decoding the ids does not give the text back
  std::map<std::string, std::vector<int32_t>> with_special;
};

std::string testdata(const std::string& name);     // path
std::string read_file(const std::string& path);    // its bytes; fails the test when it cannot
const std::vector<std::string>& battery();
File read_golden(const std::string& name);         // golden_<name>.json

struct Variant {
  std::string name, tokenizer;                     // bytes of a tokenizer.json
  std::map<size_t, std::vector<int32_t>> ids;      // by battery index
};
std::vector<Variant> variants();

// A vocabulary with the memory its views point into.
struct OwnedVocabulary {
  std::string bytes;
  std::vector<std::string> strings;
  GgufVocabulary vocabulary;
};
std::unique_ptr<OwnedVocabulary> spm_vocabulary();                              // vocab_spm_bpe.json
std::unique_ptr<OwnedVocabulary> read_gguf_vocabulary(const std::string& path);  // only what the tests need of GGUF

}  // namespace quipu::golden
