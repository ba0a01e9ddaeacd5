#include "text/tokenizer.h"

#include <algorithm>
#include <array>

#include "base/byte_reader.h"
#include "base/utf8.h"
#include "text/tokenizer_parts.h"

namespace quipu {
namespace {

constexpr size_t kTextBytes = size_t{1} << 30;

// Texts that end a turn or a text in the chat formats of published models.
constexpr std::array<std::string_view, 22> kEndTexts = {
    "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<|EOT|>", "<EOT>", "_<EOT>",
    "<end_of_turn>", "<turn|>", "</s>", "<eos>", "<|eot|>", "<|endofturn|>", "<|end_of_turn|>", "<｜end▁of▁sentence｜>",
    "<end▁of▁sentence>", "<|END_OF_TURN_TOKEN|>", "<|end_of_sentence|>", "<end_of_utterance>", "<|return|>"};

// One encode call.
class Encoding : public PieceSink {
 public:
  Encoding(const TokenizerParts& parts, EncodeOptions options, std::vector<int32_t>& out)
      : parts_(parts), options_(options), out_(out) {}

  Result<void> run(std::string_view text) {
    size_t done = 0;
    AddedTokenMatcher::Match match;
    while (!parts_.raw_added.empty() && parts_.raw_added.find(match, text, done, options_.parse_special)) {
      RETURN_IF_ERROR(segment(text.substr(done, match.begin - done), done == 0));
      out_.push_back(match.id);
      done = match.end;
    }
    return segment(text.substr(done), done == 0);
  }

  Result<void> piece(std::string_view piece) override {
    if (const auto* bpe = std::get_if<BpeModel>(&parts_.model)) return bpe->encode(out_, piece, bpe_scratch_);
    return std::get<UnigramModel>(parts_.model).encode(out_, piece);
  }

 private:
  // Text between added tokens.
  Result<void> segment(std::string_view text, bool starts_text) {
    if (text.empty()) return {};
    std::string normal;
    if (!parts_.normalizer.empty()) {
      ASSIGN_OR_RETURN(normal, parts_.normalizer.apply(text, regex_scratch_));
      text = normal;
    }
    size_t done = 0;
    AddedTokenMatcher::Match match;
    while (!parts_.normalized_added.empty() && parts_.normalized_added.find(match, text, done, options_.parse_special)) {
      RETURN_IF_ERROR(split(text.substr(done, match.begin - done), starts_text && done == 0));
      out_.push_back(match.id);
      done = match.end;
    }
    return split(text.substr(done), starts_text && done == 0);
  }

  Result<void> split(std::string_view text, bool starts_text) {
    return parts_.pre_tokenizer.split(text, starts_text, *this, regex_scratch_);
  }

  const TokenizerParts& parts_;
  const EncodeOptions options_;
  std::vector<int32_t>& out_;
  RegexScratch regex_scratch_;
  BpeScratch bpe_scratch_;
};

std::optional<int32_t> id_or_none(int32_t id) { return id < 0 ? std::nullopt : std::optional<int32_t>(id); }

}  // namespace

void find_end_tokens(TokenizerParts& parts) {
  auto& ends = parts.end_of_generation;
  if (parts.eos >= 0) ends.push_back(parts.eos);
  for (const AddedToken& token : parts.added) {
    if (token.special && std::find(kEndTexts.begin(), kEndTexts.end(), token.content) != kEndTexts.end()) ends.push_back(token.id);
  }
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
}

void index_added_tokens(TokenizerParts& parts) {
  for (const AddedToken& token : parts.added) (token.normalized ? parts.normalized_added : parts.raw_added).add(token);
}

Tokenizer::Tokenizer(std::unique_ptr<const TokenizerParts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

Result<std::vector<int32_t>> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  if (text.size() > kTextBytes) {
    return bad_input("a text of " + std::to_string(text.size()) + " bytes to tokenize, limit " + std::to_string(kTextBytes));
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + parts_->prefix.size() + parts_->suffix.size());
  if (options.add_special) ids = parts_->prefix;
  Encoding encoding(*parts_, options, ids);
  if (utf8_is_valid(text)) {
    RETURN_IF_ERROR(encoding.run(text));
  } else {
    RETURN_IF_ERROR(encoding.run(utf8_lossy(text)));
  }
  if (options.add_special) ids.insert(ids.end(), parts_->suffix.begin(), parts_->suffix.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  StreamingDetokenizer stream(*this, {.skip_special = skip_special});
  std::string text;
  for (int32_t id : ids) text += stream.push(id);
  return text += stream.finish();
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  const size_t begin = id == 0 ? 0 : parts_->output_ends[id - 1];
  return std::string_view(parts_->output_bytes).substr(begin, parts_->output_ends[id] - begin);
}

std::optional<int32_t> Tokenizer::find(std::string_view token) const {
  for (const AddedToken& added : parts_->added) {
    if (added.content == token) return added.id;
  }
  for (int32_t id = 0; id < vocab_size(); ++id) {
    if (token_bytes(id) == token && !token.empty()) return id;
  }
  return std::nullopt;
}

int64_t Tokenizer::vocab_size() const { return static_cast<int64_t>(parts_->output_ends.size()); }
bool Tokenizer::is_special(int32_t id) const { return id >= 0 && id < vocab_size() && parts_->special[id]; }
bool Tokenizer::ends_generation(int32_t id) const {
  return std::binary_search(parts_->end_of_generation.begin(), parts_->end_of_generation.end(), id);
}
const std::vector<int32_t>& Tokenizer::end_of_generation() const { return parts_->end_of_generation; }
std::optional<int32_t> Tokenizer::bos() const { return id_or_none(parts_->bos); }
std::optional<int32_t> Tokenizer::eos() const { return id_or_none(parts_->eos); }
std::optional<int32_t> Tokenizer::unknown() const { return id_or_none(parts_->unknown); }
std::optional<int32_t> Tokenizer::padding() const { return id_or_none(parts_->padding); }
bool Tokenizer::adds_bos() const {
  return parts_->bos >= 0 && std::find(parts_->prefix.begin(), parts_->prefix.end(), parts_->bos) != parts_->prefix.end();
}
uint64_t Tokenizer::fingerprint() const { return parts_->fingerprint; }

StreamingDetokenizer::StreamingDetokenizer(const Tokenizer& tokenizer, DetokenizerOptions options)
    : tokenizer_(tokenizer),
      skip_special_(options.skip_special),
      strips_space_(options.starts_text && tokenizer.parts_->strips_leading_space) {}

std::string StreamingDetokenizer::push(int32_t id) {
  if (skip_special_ && tokenizer_.is_special(id)) return {};
  std::string_view bytes = tokenizer_.token_bytes(id);
  if (strips_space_ && !bytes.empty()) {
    if (bytes.starts_with(' ')) bytes.remove_prefix(1);
    strips_space_ = false;
  }
  held_ += bytes;
  // Hold back the longest tail that may still become a character; the rest is final.
  size_t keep = 0;
  for (size_t tail = std::min<size_t>(3, held_.size()); tail > 0; --tail) {
    if (utf8_is_incomplete(std::string_view(held_).substr(held_.size() - tail))) {
      keep = tail;
      break;
    }
  }
  std::string ready = utf8_lossy(std::string_view(held_).substr(0, held_.size() - keep));
  held_.erase(0, held_.size() - keep);
  return ready;
}

std::string StreamingDetokenizer::finish() {
  std::string rest = utf8_lossy(held_);
  held_.clear();
  return rest;
}

}  // namespace quipu
