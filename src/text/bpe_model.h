// BpeModel: byte pair encoding of one piece of text.
//
// Start from single symbols (bytes of a byte-level vocabulary, else characters) and merge the adjacent pair of lowest
// rank, the leftmost of equals, until no pair can merge. Ranks come from a list of merges (Hugging Face, GGUF "gpt2") or
// from scores (SentencePiece, GGUF "llama": any two neighbours whose joined text is a token, best score first).
// Cost: O(n log n) for a piece of n symbols, whatever the vocabulary.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/vocabulary.h"

namespace quipu {

// Pairs of ids to (rank, id of the merged token).
class PairTable {
 public:
  struct Merge {
    uint32_t rank;
    int32_t id;
  };
  explicit PairTable(size_t pairs = 0);
  // Keeps the later of two entries for the same pair, as the reference implementation does. At most `pairs` calls.
  void insert(int32_t left, int32_t right, Merge merge);
  const Merge* find(int32_t left, int32_t right) const;

 private:
  struct Slot {
    uint64_t key = ~uint64_t{0};
    Merge merge{};
  };
  static uint64_t key_of(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  size_t slot_of(uint64_t key) const { return (key * 0x9e3779b97f4a7c15u) >> shift_; }
  std::vector<Slot> slots_;
  int shift_ = 64;
};

// Working memory of one encode call, reused from piece to piece, with a cache of pieces met before.
class BpeScratch {
 public:
  BpeScratch();
  ~BpeScratch();

 private:
  friend class BpeModel;
  template <class Pairer>
  friend class MergeRun;
  struct State;
  std::unique_ptr<State> state_;
};

struct BpeConfig {
  bool byte_level = false;      // symbols are bytes, `tokens` are raw bytes
  bool byte_fallback = false;   // an unknown character becomes its byte tokens
  bool fuse_unknown = false;    // neighbouring unknown characters become one unknown token
  bool ignore_merges = false;   // a piece that is a token is that token, whatever the merges say
  bool by_score = false;        // ranks from scores, not from merges
  bool cut_words = true;        // false: merges join byte or unknown tokens, so no place is safe to cut at
  int32_t unknown_id = -1;
  std::array<int32_t, 256> byte_ids{};   // id of each byte (byte level or fallback), -1 when absent
};

class BpeModel {
 public:
  // tokens: piece texts by id. producible: ids that text may become (not control tokens). merges: for by_score empty.
  // scores: only for by_score, one per token.
  BpeModel(BpeConfig config, const std::vector<std::string_view>& tokens, const std::vector<bool>& producible, PairTable merges,
           const std::vector<double>& scores);

  // Appends the ids of `piece` (valid UTF-8 unless byte_level) to `out`.
  // A symbol that the vocabulary cannot express (no byte tokens, no unknown token) is left out when merges rank, as the
  // reference does (SmolLM2 has no token for control bytes); with scores it is an error.
  Result<void> encode(std::vector<int32_t>& out, std::string_view piece, BpeScratch& scratch) const;

  const Vocabulary& words() const { return words_; }

 private:
  enum Direct : uint8_t { kUntried, kYes, kNo };   // whether a piece equal to this token becomes just it

  Result<void> encode_word(std::vector<int32_t>& out, std::string_view word, BpeScratch& scratch) const;
  Result<void> merge_word(std::vector<int32_t>& out, std::string_view word, BpeScratch& scratch) const;
  Result<void> express_scored(std::vector<int32_t>& out, std::string_view word, BpeScratch& scratch) const;
  void load_symbols(std::string_view word, BpeScratch& scratch) const;
  bool may_cut(std::string_view text, size_t at) const;
  void find_inner_pairs(const std::vector<std::string_view>& tokens, const std::vector<bool>& producible);

  BpeConfig config_;
  Vocabulary words_;
  PairTable merges_;
  std::vector<uint32_t> score_ranks_;                       // [tokens], by_score only
  std::unique_ptr<std::atomic<uint8_t>[]> direct_;          // [tokens], filled as pieces are met
  std::vector<uint64_t> inner_pairs_;                       // bit set of hashed character pairs that occur inside tokens
  std::array<bool, 128> known_ascii_{};
  bool known_metaspace_ = false;
};

}  // namespace quipu
