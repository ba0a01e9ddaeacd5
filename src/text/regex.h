// Regex: a pattern from a tokenizer file, compiled by PCRE2 for UTF-8 text.
//
// Tokenizer files are written for Oniguruma (Ruby syntax). compile() rewrites what the two engines read differently
// (\s, \w, script names, nested classes, line anchors) and refuses by name what it cannot rewrite: back references,
// recursion, verbs, set intersections, inline flags other than i. Patterns are untrusted: their length, nesting and the
// steps of one match are bounded, and a pattern that backtracks exponentially on probe texts is refused at compile time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"

namespace quipu {

// What one thread needs to match; made once per encode call, used by all regexes of a tokenizer.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;

 private:
  friend class Regex;
  struct State;
  std::unique_ptr<State> state_;   // made at the first match
};

class Regex {
 public:
  // where: the place of the pattern in its file, for messages ("tokenizer.json: pre_tokenizer.pattern").
  static Result<Regex> compile(std::string_view pattern, std::string_view where);
  ~Regex();
  Regex(Regex&& other) noexcept;
  Regex& operator=(Regex&& other) noexcept;

  enum class Found { kMatch, kNone, kLimit };
  struct Span {
    size_t begin = 0, end = 0;
  };
  // The first match that starts at or after byte `from`. text must be valid UTF-8, at most 2 GiB. kLimit: the pattern
  // needed more steps than one match is allowed.
  Found find(Span& match, std::string_view text, size_t from, RegexScratch& scratch) const;

  const std::string& source() const { return source_; }

 private:
  struct Code;
  Regex(std::string source, std::unique_ptr<Code> code);
  bool backtracks_exponentially() const;
  std::string source_;
  std::unique_ptr<Code> code_;
};

// The pattern as PCRE2 must see it to mean what Oniguruma means. Public for its tests.
Result<std::string> regex_from_oniguruma(std::string_view pattern, std::string_view where);

}  // namespace quipu
