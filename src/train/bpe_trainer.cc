#include "train/bpe_trainer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <queue>
#include <set>
#include <unordered_map>
#include <utility>

#include "base/byte_reader.h"
#include "base/utf8.h"
#include "text/byte_alphabet.h"
#include "text/pre_tokenizer.h"

namespace quipu {
namespace {

using nlohmann::ordered_json;

constexpr char kGpt2Pattern[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr char kLlama3Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr size_t kBlockBytes = size_t{1} << 20;
constexpr size_t kWordBytes = 4096;  // longer words (blobs) are counted in parts
constexpr int64_t kMaxVocabulary = 1 << 20;

using WordCounts = std::unordered_map<std::string, int64_t>;

class WordCounter final : public PieceSink {
 public:
  explicit WordCounter(WordCounts& counts) : counts_(counts) {}
  Result<void> piece(std::string_view word) override {
    for (size_t at = 0; at < word.size(); at += kWordBytes) ++counts_[std::string(word.substr(at, kWordBytes))];
    return {};
  }

 private:
  WordCounts& counts_;
};

// The last place of `text` where neither pattern lets a word go on: behind a line break that a letter, digit or sign
// follows. 0 when there is none.
size_t safe_cut(std::string_view text) {
  for (size_t at = text.size(); at > 1; --at) {
    const unsigned char next = static_cast<unsigned char>(text[at - 1]);
    if (text[at - 2] == '\n' && next > ' ' && next < 0x80) return at - 1;
  }
  return 0;
}

// What can become a prefix of a longer character is left for the next block.
size_t whole_characters(std::string_view text) {
  size_t end = text.size();
  while (end > 0 && text.size() - end < 4 && (static_cast<unsigned char>(text[end - 1]) & 0xC0) == 0x80) --end;
  if (end > 0 && static_cast<unsigned char>(text[end - 1]) >= 0xC0) return end - 1;
  return text.size();
}

uint64_t key_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

struct Pair {
  int64_t count = 0;
  std::vector<uint32_t> words;  // that held it once; may hold words that no longer do
};

struct Candidate {
  int64_t count;
  uint64_t key;
  bool operator<(const Candidate& other) const {  // the best on top: highest count, then lowest ids
    return count != other.count ? count < other.count : key > other.key;
  }
};

// All words as token ids in one block; a word shrinks in place as its tokens join.
struct WordTokens {
  std::vector<int32_t> ids;
  std::vector<size_t> begin;
  std::vector<uint32_t> length;
  std::vector<int64_t> count;
};

}  // namespace

struct BpeTrainer::State {
  BpeTrainingOptions options;
  PreTokenizer pre_tokenizer;
  RegexScratch scratch;
  WordCounts counts;
  int64_t forgotten = 0, forget_below = 2;
  std::string pending;

  std::vector<std::string> tokens;                 // raw bytes by id; special tokens as written
  std::unordered_map<std::string, int32_t> id_of;  // without special tokens
  std::vector<std::pair<int32_t, int32_t>> merges;

  WordTokens words;
  std::unordered_map<uint64_t, Pair> pairs;
  std::priority_queue<Candidate> queue;

  Result<void> count_block(std::string_view block);
  void forget_rare();
  void make_alphabet();
  void load_words();
  int32_t joined(int32_t left, int32_t right);
  void join_in_words(uint64_t key, int32_t id);
};

Result<void> BpeTrainer::State::count_block(std::string_view block) {
  WordCounter counter(counts);
  RETURN_IF_ERROR(pre_tokenizer.split(utf8_lossy(block), false, counter, scratch));
  if (static_cast<int64_t>(counts.size()) > options.max_words) forget_rare();
  return {};
}

void BpeTrainer::State::forget_rare() {
  while (static_cast<int64_t>(counts.size()) > options.max_words / 2) {
    forgotten +=
        static_cast<int64_t>(std::erase_if(counts, [this](const auto& entry) { return entry.second < forget_below; }));
    if (static_cast<int64_t>(counts.size()) > options.max_words / 2) ++forget_below;
  }
}

void BpeTrainer::State::make_alphabet() {
  tokens = options.special_tokens;
  const auto& alphabet = byte_alphabet();
  std::vector<int> order(256);
  for (int byte = 0; byte < 256; ++byte) order[static_cast<size_t>(byte)] = byte;
  std::sort(order.begin(), order.end(),
            [&](int a, int b) { return alphabet[static_cast<size_t>(a)] < alphabet[static_cast<size_t>(b)]; });
  for (const int byte : order) {
    id_of[std::string(1, static_cast<char>(byte))] = static_cast<int32_t>(tokens.size());
    tokens.emplace_back(1, static_cast<char>(byte));
  }
}

void BpeTrainer::State::load_words() {
  // Sorted, so that nothing depends on the order in which a hash table lists them.
  std::vector<const WordCounts::value_type*> sorted;
  sorted.reserve(counts.size());
  for (const auto& entry : counts) sorted.push_back(&entry);
  std::sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) { return a->first < b->first; });
  for (const auto* entry : sorted) {
    const uint32_t word = static_cast<uint32_t>(words.begin.size());
    words.begin.push_back(words.ids.size());
    words.length.push_back(static_cast<uint32_t>(entry->first.size()));
    words.count.push_back(entry->second);
    int32_t previous = -1;
    for (const char byte : entry->first) {
      const int32_t id = id_of.at(std::string(1, byte));
      words.ids.push_back(id);
      if (previous >= 0) {
        Pair& pair = pairs[key_of(previous, id)];
        pair.count += entry->second;
        if (pair.words.empty() || pair.words.back() != word) pair.words.push_back(word);
      }
      previous = id;
    }
  }
  counts = WordCounts();
  for (const auto& [key, pair] : pairs) queue.push({pair.count, key});
}

// The id of the token that the two make; two ways to the same bytes share one.
int32_t BpeTrainer::State::joined(int32_t left, int32_t right) {
  const std::string bytes = tokens[static_cast<size_t>(left)] + tokens[static_cast<size_t>(right)];
  const auto [found, fresh] = id_of.try_emplace(bytes, static_cast<int32_t>(tokens.size()));
  if (fresh) tokens.push_back(bytes);
  return found->second;
}

void BpeTrainer::State::join_in_words(uint64_t key, int32_t id) {
  const int32_t left = static_cast<int32_t>(key >> 32), right = static_cast<int32_t>(key & 0xffffffffu);
  const std::vector<uint32_t> holders = std::move(pairs[key].words);
  pairs[key].words.clear();
  std::set<uint64_t> grown;
  for (const uint32_t word : holders) {
    int32_t* ids = words.ids.data() + words.begin[word];
    uint32_t length = words.length[word];
    const int64_t count = words.count[word];
    const auto change = [&](int32_t a, int32_t b, int64_t by) {
      Pair& pair = pairs[key_of(a, b)];
      pair.count += by;
      if (by > 0) {
        if (pair.words.empty() || pair.words.back() != word) pair.words.push_back(word);
        grown.insert(key_of(a, b));
      }
    };
    for (uint32_t i = 0; i + 1 < length; ++i) {
      if (ids[i] != left || ids[i + 1] != right) continue;
      if (i > 0) {
        change(ids[i - 1], left, -count);
        change(ids[i - 1], id, count);
      }
      if (i + 2 < length) {
        change(right, ids[i + 2], -count);
        change(id, ids[i + 2], count);
      }
      ids[i] = id;
      std::copy(ids + i + 2, ids + length, ids + i + 1);
      --length;
    }
    words.length[word] = length;
  }
  pairs[key].count = 0;  // none is left; a later way to one of the two tokens starts anew
  for (const uint64_t other : grown) {
    const int64_t count = pairs[other].count;
    if (count > 0) queue.push({count, other});
  }
}

BpeTrainer::BpeTrainer(std::unique_ptr<State> state) : state_(std::move(state)) {}
BpeTrainer::BpeTrainer(BpeTrainer&&) noexcept = default;
BpeTrainer::~BpeTrainer() = default;

Result<BpeTrainer> BpeTrainer::create(BpeTrainingOptions options) {
  const int64_t least = 256 + static_cast<int64_t>(options.special_tokens.size());
  if (options.vocab_size < least || options.vocab_size > kMaxVocabulary) {
    return usage_error("a vocabulary of " + std::to_string(options.vocab_size) + " tokens; expected " +
                       std::to_string(least) + " (256 bytes and the special tokens) to " +
                       std::to_string(kMaxVocabulary));
  }
  std::set<std::string> seen;
  for (const std::string& token : options.special_tokens) {
    if (token.empty() || !utf8_is_valid(token)) return usage_error("a special token is empty or not UTF-8");
    if (!seen.insert(token).second) return usage_error("special token " + printable(token) + " is given twice");
  }
  auto state = std::make_unique<State>();
  const char* pattern = options.llama3_pattern ? kLlama3Pattern : kGpt2Pattern;
  ASSIGN_OR_RETURN(Regex regex, Regex::compile(pattern, "the pre-tokenizer"));
  std::vector<pre_tokenize::Step> steps;
  steps.emplace_back(pre_tokenize::Split{std::move(regex), pre_tokenize::Behavior::kIsolated, false});
  state->pre_tokenizer = PreTokenizer(std::move(steps));
  state->options = std::move(options);
  return BpeTrainer(std::move(state));
}

Result<void> BpeTrainer::add(std::string_view part) {
  std::string& pending = state_->pending;
  while (!part.empty()) {
    const size_t taken = std::min(part.size(), kBlockBytes);
    pending += part.substr(0, taken);
    part.remove_prefix(taken);
    if (pending.size() < kBlockBytes) continue;
    size_t cut = safe_cut(pending);
    if (cut == 0 && pending.size() >= 4 * kBlockBytes) cut = whole_characters(pending);  // one endless line
    if (cut == 0) continue;
    RETURN_IF_ERROR(state_->count_block(std::string_view(pending).substr(0, cut)));
    pending.erase(0, cut);
  }
  return {};
}

Result<void> BpeTrainer::end_text() {
  RETURN_IF_ERROR(state_->count_block(state_->pending));
  state_->pending.clear();
  return {};
}

int64_t BpeTrainer::words() const { return static_cast<int64_t>(state_->counts.size()); }
int64_t BpeTrainer::forgotten_words() const { return state_->forgotten; }
int64_t BpeTrainer::vocabulary() const { return static_cast<int64_t>(state_->tokens.size()); }

Result<void> BpeTrainer::learn(const std::function<bool(int64_t, int64_t)>& on_progress) {
  State& s = *state_;
  if (s.counts.empty()) return bad_input("the texts hold no words: a vocabulary cannot be learnt from nothing");
  s.make_alphabet();
  s.load_words();
  while (static_cast<int64_t>(s.tokens.size()) < s.options.vocab_size && !s.queue.empty()) {
    const Candidate best = s.queue.top();
    s.queue.pop();
    const int64_t count = s.pairs[best.key].count;
    if (count != best.count) {  // it changed since it was queued
      if (count > 0) s.queue.push({count, best.key});
      continue;
    }
    if (best.count < std::max<int64_t>(s.options.min_count, 1)) break;
    const int32_t left = static_cast<int32_t>(best.key >> 32), right = static_cast<int32_t>(best.key & 0xffffffffu);
    const int32_t id = s.joined(left, right);
    s.merges.emplace_back(left, right);
    s.join_in_words(best.key, id);
    if (on_progress && s.merges.size() % 64 == 0 &&
        !on_progress(static_cast<int64_t>(s.tokens.size()), s.options.vocab_size)) {
      return failed("interrupted; no vocabulary was written");
    }
  }
  s.pairs.clear();
  return {};
}

std::string BpeTrainer::tokenizer_json() const {
  const State& s = *state_;
  const auto& alphabet = byte_alphabet();
  const auto written = [&](int32_t id) {
    std::string text;
    for (const char byte : s.tokens[static_cast<size_t>(id)])
      utf8_append(text, alphabet[static_cast<unsigned char>(byte)]);
    return text;
  };
  ordered_json added = ordered_json::array();
  ordered_json vocab = ordered_json::object();
  const int32_t specials = static_cast<int32_t>(s.options.special_tokens.size());
  for (int32_t id = 0; id < static_cast<int32_t>(s.tokens.size()); ++id) {
    const std::string text = id < specials ? s.tokens[static_cast<size_t>(id)] : written(id);
    if (id < specials) {
      added.push_back({{"id", id},
                       {"content", text},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", true}});
    }
    vocab.get_ref<ordered_json::object_t&>().emplace_back(text, id);  // ids are unique: no search for duplicates
  }
  ordered_json merges = ordered_json::array();
  for (const auto& [left, right] : s.merges) merges.push_back(ordered_json::array({written(left), written(right)}));
  const ordered_json byte_level = {{"type", "ByteLevel"},
                                   {"add_prefix_space", false},
                                   {"trim_offsets", true},
                                   {"use_regex", !s.options.llama3_pattern}};
  ordered_json pre_tokenizer = byte_level;
  if (s.options.llama3_pattern) {
    const ordered_json split = {
        {"type", "Split"}, {"pattern", {{"Regex", kLlama3Pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
    pre_tokenizer = {{"type", "Sequence"}, {"pretokenizers", ordered_json::array({split, byte_level})}};
  }
  const ordered_json model = {{"type", "BPE"},
                              {"dropout", nullptr},
                              {"unk_token", nullptr},
                              {"continuing_subword_prefix", nullptr},
                              {"end_of_word_suffix", nullptr},
                              {"fuse_unk", false},
                              {"byte_fallback", false},
                              {"ignore_merges", false},
                              {"vocab", std::move(vocab)},
                              {"merges", std::move(merges)}};
  const ordered_json root = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer", pre_tokenizer},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
      {"model", model}};
  return root.dump(1, ' ', false, ordered_json::error_handler_t::strict) + "\n";
}

}  // namespace quipu
