#include "text/tokenizer_build.h"

#include <algorithm>
#include <optional>

#include <xxhash.h>

#include "base/byte_reader.h"
#include "text/byte_alphabet.h"

namespace quipu {

struct Fingerprint::State {
  XXH3_state_t* xxh = XXH3_createState();
  ~State() { XXH3_freeState(xxh); }
};

Fingerprint::Fingerprint() : state_(std::make_unique<State>()) {
  CHECK(state_->xxh != nullptr) << "no memory for a hash state";
  XXH3_64bits_reset(state_->xxh);
}
Fingerprint::~Fingerprint() = default;

void Fingerprint::add(std::string_view bytes) {
  const uint64_t length = bytes.size();
  XXH3_64bits_update(state_->xxh, &length, sizeof length);
  XXH3_64bits_update(state_->xxh, bytes.data(), bytes.size());
}
uint64_t Fingerprint::value() const { return XXH3_64bits_digest(state_->xxh); }

int byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; };
  const int high = digit(token[3]), low = digit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

std::array<int32_t, 256> byte_token_ids(const Vocabulary& vocabulary) {
  constexpr char kDigits[] = "0123456789ABCDEF";
  std::array<int32_t, 256> ids{};
  for (int byte = 0; byte < 256; ++byte) {
    const char name[] = {'<', '0', 'x', kDigits[byte / 16], kDigits[byte % 16], '>'};
    ids[byte] = vocabulary.find({name, sizeof name});
  }
  return ids;
}

void append_output(TokenizerParts& parts, std::string_view bytes) {
  parts.output_bytes += bytes;
  parts.output_ends.push_back(parts.output_bytes.size());
}

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t at = 0;
  for (size_t hit = text.find(from); hit != std::string_view::npos; hit = text.find(from, at)) {
    out.append(text, at, hit - at);
    out += to;
    at = hit + from.size();
  }
  out.append(text, at);
  return out;
}

namespace {

Result<PairTable> resolve_merges(BpeConfig& config, const BpeSource& source, const Vocabulary& written) {
  PairTable table(source.merges.size());
  std::string joined;
  for (size_t i = 0; i < source.merges.size(); ++i) {
    const auto [left, right] = source.merges[i];
    joined.assign(left);
    joined += right;
    const int32_t left_id = written.find(left), right_id = written.find(right), id = written.find(joined);
    if (left_id < 0 || right_id < 0 || id < 0) {
      const std::string_view missing = left_id < 0 ? left : right_id < 0 ? right : std::string_view(joined);
      return bad_input(std::string(source.where) + ": merge " + std::to_string(i) + " (" + printable(left, 40) + " " +
                       printable(right, 40) + ") names a token that is not in the vocabulary: \"" + printable(missing) + "\"");
    }
    table.insert(left_id, right_id, {static_cast<uint32_t>(i), id});
    for (int32_t part : {left_id, right_id}) {
      if (part == config.unknown_id || (config.byte_fallback && byte_of_token(written.token(part)) >= 0)) config.cut_words = false;
    }
  }
  return table;
}

}  // namespace

Result<BpeModel> build_bpe(BpeSource source) {
  BpeConfig config = source.config;
  const Vocabulary written = Vocabulary::build(source.tokens);
  ASSIGN_OR_RETURN(PairTable merges, resolve_merges(config, source, written));
  config.byte_ids.fill(-1);
  if (!config.byte_level) {
    if (config.byte_fallback) config.byte_ids = byte_token_ids(written);
    // Where a character can be left out, its neighbours meet and may merge.
    const bool leaves_out = config.unknown_id < 0 && std::count(config.byte_ids.begin(), config.byte_ids.end(), -1) > 0;
    if (leaves_out && !config.by_score) config.cut_words = false;
    return BpeModel(config, source.tokens, source.producible, std::move(merges), source.scores);
  }
  // Byte level: keep the bytes that tokens spell; a token outside the alphabet can only be an added one.
  std::vector<std::string> spelled(source.tokens.size());
  std::vector<std::string_view> raw(source.tokens.size());
  std::vector<bool> producible = source.producible;
  for (size_t id = 0; id < raw.size(); ++id) {
    std::optional<std::string> bytes = bytes_from_alphabet(source.tokens[id]);
    if (!bytes) {
      producible[id] = false;
      continue;
    }
    spelled[id] = std::move(*bytes);
    raw[id] = spelled[id];
    if (raw[id].size() == 1 && producible[id]) config.byte_ids[static_cast<unsigned char>(raw[id][0])] = static_cast<int32_t>(id);
  }
  return BpeModel(config, raw, producible, std::move(merges), {});
}

}  // namespace quipu
