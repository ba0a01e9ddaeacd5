// Normalizer: changes of the text before it is split. A flat list of steps, run in order.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"
#include "text/regex.h"

namespace quipu {

namespace normalize {
enum class Form { kNfc, kNfd, kNfkc, kNfkd };
struct Unicode { Form form; };
struct Prepend { std::string text; };                         // in front of a text that is not empty
struct ReplaceText { std::string from, to; };                 // every occurrence, left to right; from is not empty
struct ReplaceRegex { Regex from; std::string to; };          // `to` is literal
struct Lowercase {};                                          // character by character
struct Strip { bool left, right; };                           // white space
struct StripAccents {};                                       // removes combining marks
using Step = std::variant<Unicode, Prepend, ReplaceText, ReplaceRegex, Lowercase, Strip, StripAccents>;
}  // namespace normalize

class Normalizer {
 public:
  Normalizer() = default;
  explicit Normalizer(std::vector<normalize::Step> steps) : steps_(std::move(steps)) {}

  bool empty() const { return steps_.empty(); }
  // text: valid UTF-8. Error: a regex passed its step limit, or memory ran out.
  Result<std::string> apply(std::string_view text, RegexScratch& scratch) const;

 private:
  std::vector<normalize::Step> steps_;
};

}  // namespace quipu
