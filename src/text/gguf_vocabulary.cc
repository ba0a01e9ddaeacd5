#include "text/gguf_vocabulary.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/byte_reader.h"
#include "base/utf8.h"
#include "text/byte_alphabet.h"
#include "text/gguf_pre_tokenizers.h"
#include "text/tokenizer_build.h"

namespace quipu {
namespace {

enum TokenType { kUndefined, kNormal, kUnknown, kControl, kUserDefined, kUnused, kByte };
constexpr std::string_view kMetaspace = "\u2581";

class GgufLoader {
 public:
  explicit GgufLoader(const GgufVocabulary& vocabulary) : v_(vocabulary), parts_(std::make_unique<TokenizerParts>()) {}

  Result<std::shared_ptr<const Tokenizer>> run() {
    if (v_.model != "gpt2" && v_.model != "llama") {
      return fault("model", "is \"" + printable(v_.model) + "\", supported are gpt2 (byte-level BPE) and llama (SentencePiece BPE)");
    }
    RETURN_IF_ERROR(check_arrays());
    RETURN_IF_ERROR(read_ids());
    add_added_tokens();
    if (v_.model == "gpt2") {
      RETURN_IF_ERROR(build_byte_level());
    } else {
      RETURN_IF_ERROR(build_sentence_piece());
    }
    RETURN_IF_ERROR(read_special_policy());
    parts_->fingerprint = fingerprint();
    index_added_tokens(*parts_);
    find_end_tokens(*parts_);
    return std::shared_ptr<const Tokenizer>(std::make_shared<Tokenizer>(std::move(parts_)));
  }

 private:
  Error fault(std::string_view key, std::string_view what) const {
    return bad_input(v_.file + ": tokenizer.ggml." + std::string(key) + " " + std::string(what));
  }

  int type_of(size_t id) const { return v_.types.empty() ? kNormal : v_.types[id]; }

  Result<void> check_arrays() const {
    const size_t size = v_.tokens.size();
    if (size == 0) return fault("tokens", "is empty");
    if (size > static_cast<size_t>(std::numeric_limits<int32_t>::max())) return fault("tokens", "has more than 2^31 entries");
    if (!v_.types.empty() && v_.types.size() != size) {
      return fault("token_type", "has " + std::to_string(v_.types.size()) + " entries, expected " + std::to_string(size) +
                                     " (one per token)");
    }
    for (size_t id = 0; id < v_.types.size(); ++id) {
      if (v_.types[id] < kUndefined || v_.types[id] > kByte) {
        return fault("token_type", "of token " + std::to_string(id) + " is " + std::to_string(v_.types[id]) + ", expected 0 to 6");
      }
    }
    if (v_.model == "llama" && v_.scores.size() != size) {
      return fault("scores", "has " + std::to_string(v_.scores.size()) + " entries, expected " + std::to_string(size) +
                                 " (one per token)");
    }
    for (size_t id = 0; v_.model == "llama" && id < size; ++id) {
      if (!std::isfinite(v_.scores[id])) return fault("scores", "of token " + std::to_string(id) + " is not finite");
    }
    for (size_t id = 0; id < size; ++id) {
      if (!utf8_is_valid(v_.tokens[id])) {
        return fault("tokens", "entry " + std::to_string(id) + " is not UTF-8: \"" + printable(v_.tokens[id]) + "\"");
      }
    }
    return {};
  }

  Result<int32_t> checked_id(std::string_view key, int64_t id) const {
    if (id < 0 || id >= static_cast<int64_t>(v_.tokens.size())) {
      return fault(key, "is " + std::to_string(id) + ", expected 0 to " + std::to_string(v_.tokens.size() - 1));
    }
    return static_cast<int32_t>(id);
  }

  Result<void> read_ids() {
    const auto read = [this](int32_t& out, std::string_view key, const std::optional<int64_t>& id) -> Result<void> {
      if (!id) return {};
      ASSIGN_OR_RETURN(out, checked_id(key, *id));
      return {};
    };
    RETURN_IF_ERROR(read(parts_->bos, "bos_token_id", v_.bos));
    RETURN_IF_ERROR(read(parts_->eos, "eos_token_id", v_.eos));
    RETURN_IF_ERROR(read(parts_->unknown, "unknown_token_id", v_.unknown));
    RETURN_IF_ERROR(read(parts_->padding, "padding_token_id", v_.padding));
    for (int64_t end : v_.end_ids) {
      ASSIGN_OR_RETURN(const int32_t id, checked_id("eot_token_id", end));
      parts_->end_of_generation.push_back(id);
    }
    for (size_t id = 0; id < v_.types.size() && parts_->unknown < 0; ++id) {
      if (v_.types[id] == kUnknown) parts_->unknown = static_cast<int32_t>(id);
    }
    return {};
  }

  void add_added_tokens() {
    parts_->special.resize(v_.tokens.size());
    for (size_t id = 0; id < v_.tokens.size(); ++id) {
      const int type = type_of(id);
      parts_->special[id] = type == kControl || type == kUnknown;
      if (v_.tokens[id].empty() || (type != kControl && type != kUserDefined && type != kUnknown)) continue;
      // SentencePiece looks for its user-defined pieces in the normalised text (spaces are U+2581 there).
      parts_->added.push_back({.id = static_cast<int32_t>(id), .content = std::string(v_.tokens[id]), .special = parts_->special[id],
                               .normalized = v_.model == "llama" && type == kUserDefined});
    }
  }

  Result<void> build_byte_level() {
    const GgufPreTokenizer* pre = nullptr;
    for (const GgufPreTokenizer& known : gguf_pre_tokenizers()) {
      if (std::find(known.names.begin(), known.names.end(), v_.pre) != known.names.end()) pre = &known;
    }
    if (pre == nullptr) {
      std::string names;
      for (std::string_view name : gguf_pre_tokenizer_names()) names += " " + std::string(name);
      return fault("pre", v_.pre.empty() ? "is missing; convert the model again with a current converter"
                                         : "is \"" + printable(v_.pre) + "\", supported are" + names);
    }
    pre_ = pre;
    std::vector<pre_tokenize::Step> steps;
    for (std::string_view pattern : pre->patterns) {
      ASSIGN_OR_RETURN(Regex regex, Regex::compile(pattern, v_.pre));
      steps.emplace_back(pre_tokenize::Split{.pattern = std::move(regex)});
    }
    parts_->pre_tokenizer = PreTokenizer(std::move(steps));
    if (pre->nfc) {
      std::vector<normalize::Step> normal;
      normal.emplace_back(normalize::Unicode{normalize::Form::kNfc});
      parts_->normalizer = Normalizer(std::move(normal));
    }
    BpeSource source{.where = v_.file, .tokens = v_.tokens, .producible = {}, .merges = {}, .scores = {}, .config = {}};
    source.config.byte_level = true;
    source.config.ignore_merges = pre->ignore_merges;
    for (size_t id = 0; id < v_.tokens.size(); ++id) source.producible.push_back(type_of(id) == kNormal || type_of(id) == kUndefined);
    for (size_t i = 0; i < v_.merges.size(); ++i) {
      const size_t space = v_.merges[i].find(' ', 1);
      if (space == std::string_view::npos) {
        return fault("merges", "entry " + std::to_string(i) + " is \"" + printable(v_.merges[i]) + "\", expected two tokens and a space");
      }
      source.merges.emplace_back(v_.merges[i].substr(0, space), v_.merges[i].substr(space + 1));
    }
    ASSIGN_OR_RETURN(BpeModel model, build_bpe(std::move(source)));
    parts_->model.emplace<BpeModel>(std::move(model));
    for (size_t id = 0; id < v_.tokens.size(); ++id) {
      const bool written = type_of(id) == kControl || type_of(id) == kUserDefined;
      const auto bytes = written ? std::nullopt : bytes_from_alphabet(v_.tokens[id]);
      append_output(*parts_, bytes ? std::string_view(*bytes) : v_.tokens[id]);
    }
    return {};
  }

  Result<void> build_sentence_piece() {
    const bool prefix = v_.add_space_prefix.value_or(true);
    std::vector<normalize::Step> normal;
    if (prefix) normal.emplace_back(normalize::Prepend{std::string(kMetaspace)});
    normal.emplace_back(normalize::ReplaceText{" ", std::string(kMetaspace)});
    parts_->normalizer = Normalizer(std::move(normal));
    parts_->strips_leading_space = prefix;

    BpeSource source{.where = v_.file, .tokens = v_.tokens, .producible = {}, .merges = {}, .scores = {}, .config = {}};
    source.scores.assign(v_.scores.begin(), v_.scores.end());
    source.config = {.byte_fallback = true, .fuse_unknown = true, .by_score = true, .unknown_id = parts_->unknown};
    for (size_t id = 0; id < v_.tokens.size(); ++id) {
      source.producible.push_back(type_of(id) == kNormal || type_of(id) == kUndefined || type_of(id) == kUserDefined);
    }
    ASSIGN_OR_RETURN(BpeModel model, build_bpe(std::move(source)));
    parts_->model.emplace<BpeModel>(std::move(model));
    for (size_t id = 0; id < v_.tokens.size(); ++id) {
      const int byte = type_of(id) == kByte || v_.types.empty() ? byte_of_token(v_.tokens[id]) : -1;
      const char raw = static_cast<char>(byte);
      append_output(*parts_, byte >= 0 ? std::string(1, raw) : replaced(v_.tokens[id], kMetaspace, " "));
    }
    return {};
  }

  Result<void> read_special_policy() {
    const bool default_bos = v_.model == "llama" || (pre_ != nullptr && pre_->adds_bos);
    if (v_.add_bos.value_or(false) && parts_->bos < 0) return fault("add_bos_token", "is true, but bos_token_id is missing");
    if (v_.add_eos.value_or(false) && parts_->eos < 0) return fault("add_eos_token", "is true, but eos_token_id is missing");
    if (v_.add_bos.value_or(default_bos) && parts_->bos >= 0) parts_->prefix.push_back(parts_->bos);
    if (v_.add_eos.value_or(false)) parts_->suffix.push_back(parts_->eos);
    return {};
  }

  uint64_t fingerprint() const {
    Fingerprint hash;
    hash.add("gguf");
    hash.add(v_.model);
    hash.add(v_.pre);
    for (std::string_view token : v_.tokens) hash.add(token);
    for (float score : v_.scores) hash.add(double{score});
    for (int32_t type : v_.types) hash.add(int64_t{type});
    for (std::string_view merge : v_.merges) hash.add(merge);
    for (const auto* ids : {&parts_->prefix, &parts_->suffix}) {
      hash.add(static_cast<int64_t>(ids->size()));
      for (int32_t id : *ids) hash.add(int64_t{id});
    }
    hash.add(int64_t{v_.add_space_prefix.value_or(true)});
    return hash.value();
  }

  const GgufVocabulary& v_;
  std::unique_ptr<TokenizerParts> parts_;
  const GgufPreTokenizer* pre_ = nullptr;
};

}  // namespace

Result<std::shared_ptr<const Tokenizer>> tokenizer_from_gguf(const GgufVocabulary& vocabulary) { return GgufLoader(vocabulary).run(); }

std::vector<std::string_view> gguf_pre_tokenizer_names() {
  std::vector<std::string_view> names;
  for (const GgufPreTokenizer& known : gguf_pre_tokenizers()) names.insert(names.end(), known.names.begin(), known.names.end());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace quipu
