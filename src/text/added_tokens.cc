#include "text/added_tokens.h"

#include <algorithm>

#include "base/utf8.h"
#include "text/characters.h"

namespace quipu {
namespace {

// Where the last character of text[0, end) starts.
size_t last_character(std::string_view text, size_t end) {
  size_t at = end - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) --at;
  return at;
}

bool stands_alone(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && is_word_character(utf8_code_point(text.substr(last_character(text, begin))))) return false;
  return end == text.size() || !is_word_character(utf8_code_point(text.substr(end)));
}

}  // namespace

void AddedTokenMatcher::add(AddedToken token) {
  if (token.searched.empty()) token.searched = token.content;
  const auto start = static_cast<unsigned char>(token.searched[0]);
  if (!starts_[start]) ++distinct_starts_;
  starts_[start] = true;
  only_start_ = token.searched[0];
  trie_.insert(token.searched, static_cast<int32_t>(tokens_.size()));
  tokens_.push_back(std::move(token));
}

size_t AddedTokenMatcher::candidate(std::string_view text, size_t from) const {
  if (distinct_starts_ == 1) return std::min(text.size(), text.find(only_start_, from));
  while (from < text.size() && !starts_[static_cast<unsigned char>(text[from])]) ++from;
  return from;
}

bool AddedTokenMatcher::find(Match& match, std::string_view text, size_t from, bool with_special) const {
  for (size_t begin = candidate(text, from); begin < text.size(); begin = candidate(text, begin)) {
    int32_t node = ByteTrie::kRoot;
    const AddedToken* longest = nullptr;
    for (size_t end = begin; end < text.size();) {
      node = trie_.step(node, static_cast<unsigned char>(text[end++]));
      if (node == ByteTrie::kNone) break;
      const int32_t index = trie_.value(node);
      if (index != ByteTrie::kNone && (with_special || !tokens_[index].special)) longest = &tokens_[index];
    }
    if (longest == nullptr) {
      ++begin;
      continue;
    }
    const size_t end = begin + longest->searched.size();
    if (longest->single_word && !stands_alone(text, begin, end)) {
      begin = end;
      continue;
    }
    match = {begin, end, longest->id};
    while (longest->lstrip && match.begin > from) {
      const size_t before = last_character(text, match.begin);
      if (before < from || !is_white_space(utf8_code_point(text.substr(before)))) break;
      match.begin = before;
    }
    while (longest->rstrip && match.end < text.size() && is_white_space(utf8_code_point(text.substr(match.end)))) {
      match.end += utf8_sequence_length(text.substr(match.end));
    }
    return true;
  }
  return false;
}

}  // namespace quipu
