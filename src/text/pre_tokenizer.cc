#include "text/pre_tokenizer.h"

#include <algorithm>

#include "base/byte_reader.h"
#include "base/utf8.h"

namespace quipu {
namespace {

using namespace pre_tokenize;

struct Stretch {
  size_t begin = 0, end = 0;
  bool matched = false;
};

// Walks the stretches of a text, matched and not, in order.
class Stretches {
 public:
  Stretches(const Split& split, std::string_view text, RegexScratch& scratch) : split_(split), text_(text), scratch_(scratch) {}

  // False at the end or when the regex gave up (then limited()).
  bool next(Stretch& stretch) {
    if (pending_) {
      pending_ = false;
      stretch = {match_.begin, match_.end, !split_.invert};
      done_ = match_.end;
      return true;
    }
    if (exhausted_) return false;
    if (!find()) {
      exhausted_ = true;
      if (limited_ || done_ == text_.size()) return false;
      stretch = {done_, text_.size(), split_.invert};
      return true;
    }
    if (match_.begin > done_) {
      pending_ = true;
      stretch = {done_, match_.begin, split_.invert};
      return true;
    }
    stretch = {match_.begin, match_.end, !split_.invert};
    done_ = match_.end;
    return true;
  }
  bool limited() const { return limited_; }

 private:
  bool find() {
    if (from_ > text_.size()) return false;
    if (const auto* literal = std::get_if<std::string>(&split_.pattern)) {
      const size_t hit = text_.find(*literal, from_);
      if (hit == std::string_view::npos) return false;
      match_ = {hit, hit + literal->size()};
    } else {
      const Regex::Found found = std::get<Regex>(split_.pattern).find(match_, text_, from_, scratch_);
      limited_ = found == Regex::Found::kLimit;
      if (found != Regex::Found::kMatch) return false;
    }
    from_ = match_.end;
    if (match_.begin == match_.end) {   // an empty match cuts, and the search goes on behind the next character
      from_ += from_ < text_.size() ? utf8_sequence_length(text_.substr(from_)) : 1;
    }
    return true;
  }

  const Split& split_;
  std::string_view text_;
  RegexScratch& scratch_;
  Regex::Span match_;
  size_t done_ = 0, from_ = 0;
  bool pending_ = false, exhausted_ = false, limited_ = false;
};

// Joins stretches as the behavior says; front to back, or back to front for kMergedWithNext.
std::vector<Stretch> merged(const std::vector<Stretch>& all, Behavior behavior) {
  std::vector<Stretch> out;
  bool previous = false;
  const auto add = [&](const Stretch& s) {
    const bool joins = !out.empty() && (behavior == Behavior::kContiguous ? s.matched == previous : s.matched && !previous);
    if (!joins) {
      out.push_back(s);
    } else if (behavior == Behavior::kMergedWithNext) {
      out.back().begin = s.begin;
    } else {
      out.back().end = s.end;
    }
    previous = s.matched;
  };
  if (behavior == Behavior::kMergedWithNext) {
    std::for_each(all.rbegin(), all.rend(), add);
    std::reverse(out.begin(), out.end());
  } else {
    std::for_each(all.begin(), all.end(), add);
  }
  return out;
}

Error step_limit(const Split& split) {
  return bad_input("a pre-tokenizer regex passed its step limit: " + printable(std::get<Regex>(split.pattern).source()));
}

}  // namespace

Result<void> PreTokenizer::run(size_t step, std::string_view piece, bool first, Work work) const {
  if (piece.empty()) return {};
  if (step == steps_.size()) return work.sink.piece(piece);
  if (const auto* split = std::get_if<Split>(&steps_[step])) return run_split(step, *split, piece, first, work);
  if (const auto* metaspace = std::get_if<Metaspace>(&steps_[step])) return run_metaspace(step, *metaspace, piece, first, work);
  if (piece.starts_with(' ')) return run(step + 1, piece, first, work);
  std::string prefixed;
  prefixed.reserve(piece.size() + 1);
  prefixed += ' ';
  prefixed += piece;
  return run(step + 1, prefixed, first, work);
}

Result<void> PreTokenizer::run_split(size_t step, const Split& split, std::string_view piece, bool first, Work work) const {
  Stretches stretches(split, piece, work.scratch);
  Stretch s;
  if (split.behavior == Behavior::kIsolated || split.behavior == Behavior::kRemoved) {
    while (stretches.next(s)) {
      if (s.matched && split.behavior == Behavior::kRemoved) continue;
      RETURN_IF_ERROR(run(step + 1, piece.substr(s.begin, s.end - s.begin), first && s.begin == 0, work));
    }
    return stretches.limited() ? Result<void>(step_limit(split)) : Result<void>();
  }
  std::vector<Stretch> all;
  while (stretches.next(s)) all.push_back(s);
  if (stretches.limited()) return step_limit(split);
  for (const Stretch& m : merged(all, split.behavior)) {
    RETURN_IF_ERROR(run(step + 1, piece.substr(m.begin, m.end - m.begin), first && m.begin == 0, work));
  }
  return {};
}

Result<void> PreTokenizer::run_metaspace(size_t step, const Metaspace& metaspace, std::string_view piece, bool first,
                                         Work work) const {
  std::string text;
  text.reserve(piece.size() + piece.size() / 4 + metaspace.replacement.size());
  const bool prepends = metaspace.prepend == Prepend::kAlways || (metaspace.prepend == Prepend::kFirst && first);
  if (prepends && !piece.starts_with(' ') && !piece.starts_with(metaspace.replacement)) text += metaspace.replacement;
  for (char c : piece) {
    if (c == ' ') {
      text += metaspace.replacement;
    } else {
      text += c;
    }
  }
  if (!metaspace.split) return run(step + 1, text, first, work);
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.size(), text.find(metaspace.replacement, begin + 1));
    RETURN_IF_ERROR(run(step + 1, std::string_view(text).substr(begin, end - begin), first && begin == 0, work));
    begin = end;
  }
  return {};
}

}  // namespace quipu
