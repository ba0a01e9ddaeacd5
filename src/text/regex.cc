#include "text/regex.h"

#include <algorithm>
#include <array>
#include <cstring>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/byte_reader.h"
#include "base/utf8.h"

namespace quipu {
namespace {

constexpr size_t kPatternBytes = 1 << 16;
constexpr uint32_t kParenthesisDepth = 100;
constexpr uint32_t kStepsPerMatch = 50'000'000;
constexpr uint32_t kStepsPerProbe = 100'000;
constexpr size_t kJitStackBytes = 1 << 20;

// [Oniguruma RE: \w for UTF-8 is Alphabetic, Mark, Decimal_Number, Connector_Punctuation]
constexpr std::string_view kWordClass = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";

// PCRE2 reads \p{Han} as Script_Extensions, Oniguruma as Script.
constexpr std::array<std::string_view, 24> kScripts = {
    "Arabic",   "Armenian", "Bengali", "Bopomofo", "Cyrillic", "Devanagari", "Georgian", "Greek",
    "Gujarati", "Gurmukhi", "Han",     "Hangul",   "Hebrew",   "Hiragana",   "Kannada",  "Katakana",
    "Khmer",    "Lao",      "Latin",   "Malayalam", "Tamil",   "Telugu",     "Thai",     "Tibetan"};

// Rewrites one pattern, front to back.
class Rewriter {
 public:
  Rewriter(std::string_view pattern, std::string_view where) : in_(pattern), where_(where) {}

  Result<std::string> run() {
    while (at_ < in_.size()) {
      if (in_[at_] == '\\') {
        RETURN_IF_ERROR(escape());
      } else if (class_depth_ > 0) {
        RETURN_IF_ERROR(inside_class());
      } else if (in_[at_] == '[') {
        open_class();
      } else if (in_[at_] == '(') {
        RETURN_IF_ERROR(group());
      } else {
        out_ += in_[at_++];
      }
    }
    return std::move(out_);
  }

 private:
  Error refuse(std::string_view what) const {
    return bad_input(std::string(where_) + ": regex at byte " + std::to_string(at_) + ": " + std::string(what) +
                     " is not supported: " + printable(in_));
  }

  void open_class() {
    out_ += in_[at_++];
    if (at_ < in_.size() && in_[at_] == '^') out_ += in_[at_++];
    if (at_ < in_.size() && in_[at_] == ']') {
      out_ += "\\]";
      ++at_;
    }
    class_depth_ = 1;
  }

  Result<void> inside_class() {
    const char c = in_[at_];
    if (c == ']') {
      if (--class_depth_ == 0) out_ += ']';
      ++at_;
    } else if (c == '[') {
      const size_t close = in_.find(":]", at_ + 1);
      if (in_.substr(at_).starts_with("[:") && close != std::string_view::npos) {
        out_ += in_.substr(at_, close + 2 - at_);
        at_ = close + 2;
      } else if (in_.substr(at_).starts_with("[^")) {
        return refuse("a negated class inside a class");
      } else {
        ++class_depth_;   // a nested class is a union: its brackets can go
        ++at_;
      }
    } else if (in_.substr(at_).starts_with("&&")) {
      return refuse("class intersection (&&)");
    } else {
      out_ += c;
      ++at_;
    }
    return {};
  }

  Result<void> group() {
    const std::string_view rest = in_.substr(at_);
    if (rest.starts_with("(*")) return refuse("a verb (*...)");
    if (!rest.starts_with("(?")) {
      out_ += in_[at_++];
      return {};
    }
    for (std::string_view plain : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?i)", "(?-i:", "(?-i)"}) {
      if (rest.starts_with(plain)) {
        out_ += plain;
        at_ += plain.size();
        return {};
      }
    }
    return refuse("this kind of group " + printable(rest.substr(0, 4)));
  }

  Result<void> escape() {
    if (at_ + 1 >= in_.size()) return refuse("a backslash at the end");
    const char c = in_[at_ + 1];
    const bool in_class = class_depth_ > 0;
    switch (c) {
      case 's': return replace(2, "\\p{White_Space}");
      case 'S': return replace(2, "\\P{White_Space}");
      case 'w': return replace(2, in_class ? std::string(kWordClass) : "[" + std::string(kWordClass) + "]");
      case 'W':
        if (in_class) return refuse("\\W inside a class");
        return replace(2, "[^" + std::string(kWordClass) + "]");
      case 'u': {
        const std::string_view digits = in_.substr(at_ + 2, 4);
        if (digits.size() != 4 || !std::all_of(digits.begin(), digits.end(), [](unsigned char d) { return std::isxdigit(d); }))
          return refuse("\\u without four hexadecimal digits");
        return replace(6, "\\x{" + std::string(digits) + "}");
      }
      case 'p':
      case 'P': return property(c);
      default: break;
    }
    if (std::strchr("123456789hHRXKGQECNgkoyY", c) != nullptr) return refuse("\\" + std::string(1, c));
    return replace(2, in_.substr(at_, 2));
  }

  Result<void> property(char letter) {
    const size_t close = in_.find('}', at_);
    if (at_ + 2 >= in_.size() || in_[at_ + 2] != '{' || close == std::string_view::npos) return replace(2, in_.substr(at_, 2));
    std::string_view name = in_.substr(at_ + 3, close - at_ - 3);
    const std::string_view negation = name.starts_with('^') ? "^" : "";
    name.remove_prefix(negation.size());
    const bool script = std::find(kScripts.begin(), kScripts.end(), name) != kScripts.end();
    std::string written = "\\";
    written += letter;
    written += '{';
    written += negation;
    if (script) written += "sc:";
    written += name;
    written += '}';
    return replace(close + 1 - at_, written);
  }

  Result<void> replace(size_t read, std::string_view written) {
    out_ += written;
    at_ += read;
    return {};
  }

  std::string_view in_, where_;
  size_t at_ = 0;
  int class_depth_ = 0;
  std::string out_;
};

template <class T, void (*kFree)(T*)>
struct Freer {
  void operator()(T* object) const { kFree(object); }
};
template <class T, void (*kFree)(T*)>
using Handle = std::unique_ptr<T, Freer<T, kFree>>;

}  // namespace

struct RegexScratch::State {
  Handle<pcre2_match_data, pcre2_match_data_free> match{pcre2_match_data_create(1, nullptr)};
  Handle<pcre2_match_context, pcre2_match_context_free> context{pcre2_match_context_create(nullptr)};
  Handle<pcre2_jit_stack, pcre2_jit_stack_free> stack{pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr)};

  explicit State(uint32_t steps) {
    pcre2_set_match_limit(context.get(), steps);
    pcre2_set_depth_limit(context.get(), steps);
    pcre2_set_heap_limit(context.get(), 64 << 10);   // KiB
    if (stack) pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  }
};

RegexScratch::RegexScratch() = default;
RegexScratch::~RegexScratch() = default;

struct Regex::Code {
  Handle<pcre2_code, pcre2_code_free> code;
  bool jit = false;
};

Regex::Regex(std::string source, std::unique_ptr<Code> code) : source_(std::move(source)), code_(std::move(code)) {}
Regex::~Regex() = default;
Regex::Regex(Regex&& other) noexcept = default;
Regex& Regex::operator=(Regex&& other) noexcept = default;

Result<std::string> regex_from_oniguruma(std::string_view pattern, std::string_view where) {
  return Rewriter(pattern, where).run();
}

Result<Regex> Regex::compile(std::string_view pattern, std::string_view where) {
  if (pattern.size() > kPatternBytes) {
    return bad_input(std::string(where) + ": regex of " + std::to_string(pattern.size()) + " bytes, limit " +
                     std::to_string(kPatternBytes));
  }
  ASSIGN_OR_RETURN(const std::string rewritten, regex_from_oniguruma(pattern, where));
  Handle<pcre2_compile_context, pcre2_compile_context_free> context{pcre2_compile_context_create(nullptr)};
  if (!context) return failed("no memory to compile a regex");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), kParenthesisDepth);
  // Ruby's ^ and $ are line anchors always, hence MULTILINE.
  const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_AUTO_CAPTURE | PCRE2_NEVER_BACKSLASH_C;
  int error = 0;
  size_t offset = 0;
  auto code = std::make_unique<Code>();
  code->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(rewritten.data()), rewritten.size(), options, &error, &offset,
                                 context.get()));
  if (!code->code) {
    char message[160] = {};
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof message);
    return bad_input(std::string(where) + ": regex is invalid near byte " + std::to_string(offset) + ": " + message + ": " +
                     printable(pattern));
  }
  code->jit = pcre2_jit_compile(code->code.get(), PCRE2_JIT_COMPLETE) == 0;   // without it the interpreter serves
  Regex regex(std::string(pattern), std::move(code));
  if (regex.backtracks_exponentially()) {
    return bad_input(std::string(where) + ": regex backtracks exponentially (more than " + std::to_string(kStepsPerProbe) +
                     " steps on a text of 40 characters): " + printable(pattern));
  }
  return regex;
}

Regex::Found Regex::find(Span& match, std::string_view text, size_t from, RegexScratch& scratch) const {
  if (!scratch.state_) scratch.state_ = std::make_unique<RegexScratch::State>(kStepsPerMatch);
  RegexScratch::State& state = *scratch.state_;
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  // NO_UTF_CHECK: PCRE2 would else validate the rest of the text at every match, which is quadratic.
  const int status = code_->jit
      ? pcre2_jit_match(code_->code.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK, state.match.get(), state.context.get())
      : pcre2_match(code_->code.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK, state.match.get(), state.context.get());
  if (status == PCRE2_ERROR_NOMATCH) return Found::kNone;
  if (status < 0) return Found::kLimit;
  const size_t* bounds = pcre2_get_ovector_pointer(state.match.get());
  match = {bounds[0], bounds[1]};
  return Found::kMatch;
}

// Runs the pattern over repetitions of each character it mentions, ended by one that it may not. A pattern that needs
// 2^n steps for n characters passes the limit at n = 40; linear and quadratic ones stay far below.
bool Regex::backtracks_exponentially() const {
  RegexScratch scratch;
  scratch.state_ = std::make_unique<RegexScratch::State>(kStepsPerProbe);
  std::string letters = "a0 .\n";
  for (char c : source_) {
    if (static_cast<unsigned char>(c) < 0x80 && letters.size() < 32 && letters.find(c) == std::string::npos) letters += c;
  }
  for (char letter : letters) {
    for (const char* end : {"", "!", "\x01", "b"}) {
      const std::string text = std::string(40, letter) + end;
      Span ignored;
      if (find(ignored, text, 0, scratch) == Found::kLimit) return true;
    }
  }
  return false;
}

}  // namespace quipu
