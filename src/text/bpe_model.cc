#include "text/bpe_model.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/byte_reader.h"
#include "base/utf8.h"
#include "text/merge_queue.h"

namespace quipu {
namespace {

constexpr uint32_t kNoRank = MergeQueue::kNoRank;
constexpr size_t kScanSymbols = 40;         // up to here a scan for the lowest rank beats a queue
constexpr size_t kCacheSlots = 1 << 13;
constexpr size_t kCacheAfterBytes = 4096;   // a call that has seen less text needs no cache
constexpr size_t kCachedWordBytes = 64;
constexpr size_t kInnerPairBits = 1 << 20;

}  // namespace

PairTable::PairTable(size_t pairs) {
  const size_t slots = std::bit_ceil(pairs + pairs / 2 + 2);
  slots_.resize(slots);
  shift_ = 64 - std::countr_zero(slots);
}

void PairTable::insert(int32_t left, int32_t right, Merge merge) {
  const uint64_t key = key_of(left, right);
  size_t slot = slot_of(key);
  while (slots_[slot].key != ~uint64_t{0} && slots_[slot].key != key) slot = (slot + 1) & (slots_.size() - 1);
  slots_[slot] = {key, merge};
}

const PairTable::Merge* PairTable::find(int32_t left, int32_t right) const {
  const uint64_t key = key_of(left, right);
  for (size_t slot = slot_of(key); slots_[slot].key != ~uint64_t{0}; slot = (slot + 1) & (slots_.size() - 1)) {
    if (slots_[slot].key == key) return &slots_[slot].merge;
  }
  return nullptr;
}

// A piece of the word at hand: bytes begin .. begin of the next one. One struct, not six arrays: merging a long word
// jumps about in memory, and this way a jump costs one cache line.
struct Symbol {
  int32_t id = -1;
  uint32_t begin = 0;
  uint32_t rank = kNoRank;   // of the pair with the next symbol; kNoRank when they cannot merge
  int32_t merged = -1;       // the token that pair becomes
  uint32_t next = 0, previous = 0;
};

struct BpeScratch::State {
  std::vector<Symbol> symbols;   // ends with one that only marks the end of the word
  MergeQueue queue;

  struct Cached {
    uint64_t hash = 0;
    uint8_t bytes = 0, ids = 0;
    char word[kCachedWordBytes];
    int32_t id[16];
  };
  std::vector<Cached> cache;
  size_t seen_bytes = 0;
};

BpeScratch::BpeScratch() : state_(std::make_unique<State>()) {}
BpeScratch::~BpeScratch() = default;

// One run of merging over scratch symbols. Pairer: bool(rank&, merged&, left id, right id, joined text).
template <class Pairer>
class MergeRun {
 public:
  MergeRun(BpeScratch& scratch, std::string_view word, const Pairer& pairer)
      : symbols_(scratch.state_->symbols), queue_(scratch.state_->queue), word_(word), pairer_(pairer) {}

  void run() {
    if (symbols_.size() <= kScanSymbols) {
      scan();
    } else {
      queue();
    }
  }

 private:
  void rate(Symbol& left, const Symbol& right, size_t end) {
    const std::string_view joined = word_.substr(left.begin, end - left.begin);
    if (!pairer_(left.rank, left.merged, left.id, right.id, joined)) left.rank = kNoRank;
  }

  // Few symbols: lowest rank by scanning, merged symbols closed up.
  void scan() {
    size_t n = symbols_.size() - 1;
    for (size_t i = 0; i + 1 < n; ++i) rate(symbols_[i], symbols_[i + 1], symbols_[i + 2].begin);
    while (n > 1) {
      size_t best = 0;
      for (size_t i = 1; i + 1 < n; ++i) {
        if (symbols_[i].rank < symbols_[best].rank) best = i;
      }
      if (symbols_[best].rank == kNoRank) break;
      symbols_[best].id = symbols_[best].merged;
      symbols_.erase(symbols_.begin() + static_cast<ptrdiff_t>(best) + 1);
      --n;
      symbols_[best].rank = kNoRank;
      if (best + 1 < n) rate(symbols_[best], symbols_[best + 1], symbols_[best + 2].begin);
      if (best > 0) rate(symbols_[best - 1], symbols_[best], symbols_[best + 1].begin);
    }
  }

  // Many symbols: a linked list and a queue of ranked places. An entry is stale unless the place still has its rank.
  // The end mark is the last in the list.
  void queue() {
    const auto end = static_cast<uint32_t>(symbols_.size() - 1);
    for (uint32_t i = 0; i <= end; ++i) {
      symbols_[i].next = i + 1;
      symbols_[i].previous = i - 1;
    }
    for (uint32_t i = 0; i + 1 < end; ++i) rate(symbols_[i], symbols_[i + 1], symbols_[i + 2].begin);
    queue_.start(end, [this](uint32_t place) { return symbols_[place].rank; });
    uint32_t rank = 0, place = 0;
    while (queue_.pop(rank, place)) {
      const auto* soon = reinterpret_cast<const char*>(&symbols_[queue_.upcoming()]);
      __builtin_prefetch(soon - 64);   // a word's symbols lie far apart in rank order, their neighbours beside them
      __builtin_prefetch(soon);
      __builtin_prefetch(soon + 64);
      if (symbols_[place].rank != rank) continue;
      Symbol& left = symbols_[place];
      Symbol& gone = symbols_[left.next];
      left.id = left.merged;
      left.next = gone.next;
      gone.rank = kNoRank;
      symbols_[left.next].previous = place;
      if (place > 0) requeue(left.previous, end);
      requeue(place, end);
    }
    size_t kept = 0;
    for (uint32_t i = 0; i != end; i = symbols_[i].next) symbols_[kept++] = symbols_[i];
    symbols_[kept++] = symbols_[end];
    symbols_.resize(kept);
  }

  void requeue(uint32_t place, uint32_t end) {
    Symbol& left = symbols_[place];
    left.rank = kNoRank;
    if (left.next == end) return;
    const Symbol& right = symbols_[left.next];
    rate(left, right, symbols_[right.next].begin);
    if (left.rank != kNoRank) queue_.push(left.rank, place);
  }

  std::vector<Symbol>& symbols_;
  MergeQueue& queue_;
  std::string_view word_;
  const Pairer& pairer_;
};

namespace {

// Dense ranks: the best score is 0, equal scores share a rank.
std::vector<uint32_t> ranks_of_scores(const std::vector<double>& scores, const std::vector<bool>& producible) {
  std::vector<double> sorted;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (producible[i]) sorted.push_back(scores[i]);
  }
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  std::vector<uint32_t> ranks(scores.size(), kNoRank);
  for (size_t i = 0; i < scores.size(); ++i) {
    if (producible[i]) {
      ranks[i] = static_cast<uint32_t>(std::lower_bound(sorted.begin(), sorted.end(), scores[i], std::greater<>()) - sorted.begin());
    }
  }
  return ranks;
}

// A bit of the set of character pairs; pairs may share one, which only forbids a cut that was possible.
size_t pair_bit(std::string_view left, std::string_view right) {
  uint32_t a = 0, b = 0;
  std::memcpy(&a, left.data(), std::min<size_t>(left.size(), 4));
  std::memcpy(&b, right.data(), std::min<size_t>(right.size(), 4));
  return ((static_cast<uint64_t>(a) << 32 | b) * 0x9e3779b97f4a7c15u) >> (64 - 20);
}

size_t character_bytes(std::string_view text) { return std::max<size_t>(1, utf8_sequence_length(text)); }

}  // namespace

BpeModel::BpeModel(BpeConfig config, const std::vector<std::string_view>& tokens, const std::vector<bool>& producible,
                   PairTable merges, const std::vector<double>& scores)
    : config_(config), words_(Vocabulary::build(tokens, producible)), merges_(std::move(merges)) {
  if (config_.by_score) score_ranks_ = ranks_of_scores(scores, producible);
  direct_ = std::make_unique<std::atomic<uint8_t>[]>(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) {
    direct_[id].store(config_.ignore_merges && producible[id] ? kYes : kUntried, std::memory_order_relaxed);
  }
  if (!config_.byte_level) find_inner_pairs(tokens, producible);
}

void BpeModel::find_inner_pairs(const std::vector<std::string_view>& tokens, const std::vector<bool>& producible) {
  inner_pairs_.assign(kInnerPairBits / 64, 0);
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (!producible[id]) continue;
    std::string_view rest = tokens[id];
    size_t length = rest.empty() ? 0 : character_bytes(rest);
    if (rest.size() == 1 && static_cast<unsigned char>(rest[0]) < 0x80) known_ascii_[static_cast<unsigned char>(rest[0])] = true;
    if (rest == "\u2581") known_metaspace_ = true;
    while (length < rest.size()) {
      const size_t following = character_bytes(rest.substr(length));
      const size_t bit = pair_bit(rest.substr(0, length), rest.substr(length, following));
      inner_pairs_[bit / 64] |= uint64_t{1} << (bit % 64);
      rest.remove_prefix(length);
      length = following;
    }
  }
}

// Whether the word can be split before byte `at` (a character boundary > 0) without changing its ids: no token has
// these two characters side by side, and the right one is known, so that no run of unknowns crosses.
bool BpeModel::may_cut(std::string_view text, size_t at) const {
  const auto first = static_cast<unsigned char>(text[at]);
  const bool known = first < 0x80 ? known_ascii_[first] : known_metaspace_ && text.substr(at).starts_with("\u2581");
  if (!known) return false;
  size_t left = at - 1;
  while (left > 0 && (static_cast<unsigned char>(text[left]) & 0xc0) == 0x80) --left;
  const size_t bit = pair_bit(text.substr(left, at - left), text.substr(at, first < 0x80 ? 1 : 3));
  return (inner_pairs_[bit / 64] >> (bit % 64) & 1) == 0;
}

Result<void> BpeModel::encode(std::vector<int32_t>& out, std::string_view piece, BpeScratch& scratch) const {
  if (config_.byte_level || !config_.cut_words) return encode_word(out, piece, scratch);
  size_t begin = 0;
  for (size_t at = 1; at < piece.size(); ++at) {
    const auto byte = static_cast<unsigned char>(piece[at]);
    if ((byte < 0x80 || byte == 0xe2) && may_cut(piece, at)) {
      RETURN_IF_ERROR(encode_word(out, piece.substr(begin, at - begin), scratch));
      begin = at;
    }
  }
  return encode_word(out, piece.substr(begin), scratch);
}

Result<void> BpeModel::encode_word(std::vector<int32_t>& out, std::string_view word, BpeScratch& scratch) const {
  if (word.empty()) return {};
  const int32_t whole = words_.find(word);
  if (whole >= 0) {
    uint8_t direct = direct_[whole].load(std::memory_order_relaxed);
    if (direct == kUntried) {
      std::vector<int32_t> ids;
      RETURN_IF_ERROR(merge_word(ids, word, scratch));
      direct = ids.size() == 1 && ids[0] == whole ? kYes : kNo;
      direct_[whole].store(direct, std::memory_order_relaxed);   // every thread finds the same
    }
    if (direct == kYes) {
      out.push_back(whole);
      return {};
    }
  }
  BpeScratch::State& s = *scratch.state_;
  s.seen_bytes += word.size();
  if (s.seen_bytes < kCacheAfterBytes || word.size() > kCachedWordBytes) return merge_word(out, word, scratch);
  if (s.cache.empty()) s.cache.resize(kCacheSlots);
  const uint64_t hash = XXH3_64bits(word.data(), word.size());
  auto& cached = s.cache[hash % kCacheSlots];
  if (cached.hash == hash && std::string_view(cached.word, cached.bytes) == word) {
    out.insert(out.end(), cached.id, cached.id + cached.ids);
    return {};
  }
  const size_t before = out.size();
  RETURN_IF_ERROR(merge_word(out, word, scratch));
  if (out.size() - before <= std::size(cached.id)) {
    cached.hash = hash;
    cached.bytes = static_cast<uint8_t>(word.size());
    cached.ids = static_cast<uint8_t>(out.size() - before);
    std::memcpy(cached.word, word.data(), word.size());
    std::copy(out.begin() + static_cast<ptrdiff_t>(before), out.end(), cached.id);
  }
  return {};
}

// Fills scratch with the first symbols of `word`: id -1 stands for an unknown character.
void BpeModel::load_symbols(std::string_view word, BpeScratch& scratch) const {
  std::vector<Symbol>& symbols = scratch.state_->symbols;
  symbols.clear();
  symbols.reserve(config_.byte_level ? word.size() + 1 : 0);
  for (size_t at = 0; at < word.size();) {
    const size_t length = config_.byte_level ? 1 : character_bytes(word.substr(at));
    const auto byte = static_cast<unsigned char>(word[at]);
    const int32_t id = config_.byte_level ? config_.byte_ids[byte] : words_.find(word.substr(at, length));
    bool by_bytes = false;
    if (id < 0 && config_.byte_fallback && !config_.by_score) {
      by_bytes = true;
      for (size_t i = at; i < at + length; ++i) by_bytes &= config_.byte_ids[static_cast<unsigned char>(word[i])] >= 0;
    }
    if (by_bytes) {
      for (size_t i = at; i < at + length; ++i) {
        symbols.push_back({.id = config_.byte_ids[static_cast<unsigned char>(word[i])], .begin = static_cast<uint32_t>(i)});
      }
    } else if (id >= 0 || config_.by_score) {
      symbols.push_back({.id = id, .begin = static_cast<uint32_t>(at)});
    } else if (!config_.byte_level && config_.unknown_id >= 0) {
      // The unknown token takes part in merging; neighbouring ones are one symbol when fused.
      const bool fuses = config_.fuse_unknown && !symbols.empty() && symbols.back().id == config_.unknown_id;
      if (!fuses) symbols.push_back({.id = config_.unknown_id, .begin = static_cast<uint32_t>(at)});
    }
    at += length;
  }
  symbols.push_back({.begin = static_cast<uint32_t>(word.size())});
}

Result<void> BpeModel::merge_word(std::vector<int32_t>& out, std::string_view word, BpeScratch& scratch) const {
  load_symbols(word, scratch);
  if (!config_.by_score) {
    const auto by_merges = [this](uint32_t& rank, int32_t& merged, int32_t left, int32_t right, std::string_view) {
      const PairTable::Merge* merge = merges_.find(left, right);
      if (merge == nullptr) return false;
      rank = merge->rank;
      merged = merge->id;
      return true;
    };
    MergeRun<decltype(by_merges)>(scratch, word, by_merges).run();
    const std::vector<Symbol>& symbols = scratch.state_->symbols;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) out.push_back(symbols[i].id);
    return {};
  }
  const auto by_score = [this](uint32_t& rank, int32_t& merged, int32_t, int32_t, std::string_view joined) {
    const int32_t id = words_.find(joined);
    if (id < 0) return false;
    rank = score_ranks_[id];
    merged = id;
    return true;
  };
  MergeRun<decltype(by_score)>(scratch, word, by_score).run();
  return express_scored(out, word, scratch);
}

// Score merging joins texts, so unknown characters stay open until the end: here they become bytes or the unknown token.
Result<void> BpeModel::express_scored(std::vector<int32_t>& out, std::string_view word, BpeScratch& scratch) const {
  const std::vector<Symbol>& symbols = scratch.state_->symbols;
  bool after_unknown = false;
  for (size_t i = 0; i + 1 < symbols.size(); ++i) {
    if (symbols[i].id >= 0) {
      out.push_back(symbols[i].id);
      after_unknown = false;
      continue;
    }
    const std::string_view character = word.substr(symbols[i].begin, symbols[i + 1].begin - symbols[i].begin);
    bool by_bytes = config_.byte_fallback;
    for (char c : character) by_bytes = by_bytes && config_.byte_ids[static_cast<unsigned char>(c)] >= 0;
    if (by_bytes) {
      for (char c : character) out.push_back(config_.byte_ids[static_cast<unsigned char>(c)]);
    } else if (config_.unknown_id < 0) {
      return bad_input("the vocabulary has no token for " + printable(character) + " and no unknown token");
    } else if (!(after_unknown && config_.fuse_unknown)) {
      out.push_back(config_.unknown_id);
    }
    after_unknown = !by_bytes;
  }
  return {};
}

}  // namespace quipu
