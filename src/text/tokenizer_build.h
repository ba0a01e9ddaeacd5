// Steps that every loader of a tokenizer shares. Internal to text/.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "text/tokenizer_parts.h"

namespace quipu {

// XXH3 over a sequence of values, each with its length, so that no two sequences run together.
class Fingerprint {
 public:
  Fingerprint();
  ~Fingerprint();
  void add(std::string_view bytes);
  void add(int64_t value) { add(std::string_view(reinterpret_cast<const char*>(&value), sizeof value)); }
  void add(double value) { add(std::string_view(reinterpret_cast<const char*>(&value), sizeof value)); }
  uint64_t value() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// A BPE model as its file states it. Views must live as long as the call that uses it.
struct BpeSource {
  std::string_view where;                  // for messages
  std::vector<std::string_view> tokens;    // by id, as written; empty for unused ids
  std::vector<bool> producible;            // ids that text may become
  std::vector<std::pair<std::string_view, std::string_view>> merges;
  std::vector<double> scores;              // config.by_score only
  BpeConfig config;
};

// Resolves merges and byte tokens. Errors name the merge that does not fit.
Result<BpeModel> build_bpe(BpeSource source);

// The id of each byte token <0x00> ... <0xFF> in `vocabulary`, -1 where absent.
std::array<int32_t, 256> byte_token_ids(const Vocabulary& vocabulary);

// The byte that a token <0xHH> stands for, or -1.
int byte_of_token(std::string_view token);

// Appends the text of the next id to parts.output_*.
void append_output(TokenizerParts& parts, std::string_view bytes);

std::string replaced(std::string_view text, std::string_view from, std::string_view to);

}  // namespace quipu
