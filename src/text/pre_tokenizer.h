// PreTokenizer: cuts a text into the pieces that the model encodes one by one. A flat list of steps; each step works on
// every piece of the step before. Pieces are handed on as they are found, so no list of pieces is kept.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"
#include "text/regex.h"

namespace quipu {

namespace pre_tokenize {

// What becomes of the stretches that match the pattern, as Hugging Face names it.
enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct Split {
  std::variant<Regex, std::string> pattern;   // a string is literal and not empty
  Behavior behavior = Behavior::kIsolated;
  bool invert = false;                        // the stretches between matches are the matches
};
struct PrefixSpace {};                        // a space in front of every piece that does not start with one
enum class Prepend { kNever, kFirst, kAlways };
struct Metaspace {
  std::string replacement;                    // stands for a space; one character
  Prepend prepend = Prepend::kAlways;         // kFirst: only in front of the piece that starts the whole text
  bool split = true;                          // a new piece before every replacement
};
using Step = std::variant<Split, PrefixSpace, Metaspace>;

}  // namespace pre_tokenize

class PieceSink {
 public:
  virtual ~PieceSink() = default;
  virtual Result<void> piece(std::string_view piece) = 0;   // never empty; valid during the call
};

class PreTokenizer {
 public:
  PreTokenizer() = default;
  explicit PreTokenizer(std::vector<pre_tokenize::Step> steps) : steps_(std::move(steps)) {}

  // text: valid UTF-8. starts_text: nothing of the caller's text lies before it.
  // Error: the sink's, or a regex passed its step limit.
  Result<void> split(std::string_view text, bool starts_text, PieceSink& sink, RegexScratch& scratch) const {
    return run(0, text, starts_text, {sink, scratch});
  }

 private:
  struct Work {
    PieceSink& sink;
    RegexScratch& scratch;
  };
  Result<void> run(size_t step, std::string_view piece, bool first, Work work) const;
  Result<void> run_split(size_t step, const pre_tokenize::Split& split, std::string_view piece, bool first, Work work) const;
  Result<void> run_metaspace(size_t step, const pre_tokenize::Metaspace& metaspace, std::string_view piece, bool first,
                             Work work) const;

  std::vector<pre_tokenize::Step> steps_;
};

}  // namespace quipu
