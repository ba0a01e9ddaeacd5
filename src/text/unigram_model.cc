#include "text/unigram_model.h"

#include <algorithm>
#include <limits>

#include "base/byte_reader.h"
#include "base/utf8.h"

namespace quipu {

UnigramModel::UnigramModel(UnigramConfig config, const std::vector<std::string_view>& tokens, const std::vector<double>& scores,
                           const std::vector<bool>& usable)
    : config_(config), scores_(scores) {
  double lowest = std::numeric_limits<double>::infinity();
  for (size_t id = 0; id < tokens.size(); ++id) {
    lowest = std::min(lowest, scores[id]);
    if (usable[id]) trie_.insert(tokens[id], static_cast<int32_t>(id));
  }
  unknown_score_ = (tokens.empty() ? 0 : lowest) - 10;
}

Result<void> UnigramModel::encode(std::vector<int32_t>& out, std::string_view piece) const {
  constexpr int32_t kUnreached = -2, kUnknown = -1;
  struct Best {
    double score = 0;
    uint32_t begin = 0;
    int32_t id = kUnreached;
  };
  std::vector<Best> best(piece.size() + 1);   // of all ways to write piece[0, i)
  best[0].id = kUnknown;
  const auto offer = [&best](size_t begin, size_t end, int32_t id, double score) {
    if (best[end].id == kUnreached || score > best[end].score) best[end] = {score, static_cast<uint32_t>(begin), id};
  };
  for (size_t begin = 0; begin < piece.size();) {
    const size_t character = std::max<size_t>(1, utf8_sequence_length(piece.substr(begin)));
    bool whole_character = false;
    int32_t node = ByteTrie::kRoot;
    for (size_t end = begin; end < piece.size();) {
      node = trie_.step(node, static_cast<unsigned char>(piece[end++]));
      if (node == ByteTrie::kNone) break;
      const int32_t id = trie_.value(node);
      if (id == ByteTrie::kNone) continue;
      offer(begin, end, id, best[begin].score + scores_[id]);
      whole_character |= end == begin + character;
    }
    if (!whole_character) offer(begin, begin + character, kUnknown, best[begin].score + unknown_score_);
    begin += character;
  }
  std::vector<Best> path;   // last token first; Best.score unused
  size_t end = piece.size();
  std::vector<size_t> ends;
  while (end > 0) {
    path.push_back(best[end]);
    ends.push_back(end);
    end = best[end].begin;
  }
  for (size_t i = path.size(); i-- > 0;) {
    if (path[i].id >= 0) {
      out.push_back(path[i].id);
      continue;
    }
    const size_t begin = path[i].begin;
    while (i > 0 && path[i - 1].id < 0) --i;
    RETURN_IF_ERROR(append_unknown(out, piece.substr(begin, ends[i] - begin)));
  }
  return {};
}

Result<void> UnigramModel::append_unknown(std::vector<int32_t>& out, std::string_view text) const {
  bool by_bytes = config_.byte_fallback;
  for (char c : text) by_bytes = by_bytes && config_.byte_ids[static_cast<unsigned char>(c)] >= 0;
  if (by_bytes) {
    for (char c : text) out.push_back(config_.byte_ids[static_cast<unsigned char>(c)]);
    return {};
  }
  if (config_.unknown_id < 0) {
    return bad_input("the vocabulary has no token for " + printable(text) + " and no unknown token");
  }
  out.push_back(config_.unknown_id);
  return {};
}

}  // namespace quipu
