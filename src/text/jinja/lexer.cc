#include "text/jinja/lexer.h"

#include <array>

#include "base/utf8.h"
#include "text/jinja/limits.h"
#include "text/jinja/python_text.h"

namespace quipu::jinja {
namespace {

// All line ends become \n and one trailing line end is dropped (keep_trailing_newline is off).
std::string normalise_lines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out.push_back('\n');
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out.push_back(source[i]);
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_decimal(char c) { return c >= '0' && c <= '9'; }
bool is_name_byte(char c) { return is_name_start(c) || is_decimal(c); }
int hex_digit(char c) {
  if (is_decimal(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return 99;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : text_(source) {}

  std::vector<Token> run() {
    while (position_ < text_.size()) lex_outside();
    push(TokenType::kEnd, "");
    return std::move(tokens_);
  }

 private:
  char at(size_t position) const { return position < text_.size() ? text_[position] : '\0'; }
  bool starts_with(size_t position, std::string_view what) const {
    return position <= text_.size() && text_.substr(position).starts_with(what);
  }
  size_t after_space(size_t position) const {
    return text_.size() - skip_space(text_.substr(position)).size();
  }

  void push(TokenType type, std::string text) { tokens_.push_back({type, line_, std::move(text)}); }

  void advance(size_t to) {
    for (size_t i = position_; i < to; ++i) line_ += text_[i] == '\n';
    line_starting_ = to > 0 && text_[to - 1] == '\n';
    position_ = to;
  }

  // Pushes text_[position_, end), which a tag with this sign follows. A '-' takes all white space before the tag;
  // otherwise what stands between the line's start and a block or comment goes (lstrip_blocks), unless '+' forbids.
  void push_text(size_t end, char sign, bool is_output) {
    std::string_view text = text_.substr(position_, end - position_);
    if (sign == '-') {
      text = strip_right_space(text);
    } else if (sign != '+' && !is_output) {
      const size_t line_begin = text.rfind('\n') + 1;   // npos + 1 == 0
      if ((line_begin > 0 || line_starting_) && skip_space(text.substr(line_begin)).empty()) {
        text = text.substr(0, line_begin);
      }
    }
    if (!text.empty()) push(TokenType::kText, std::string(text));
    advance(end);
  }

  // The end of a block tag or comment that closes at `position`: the closing two characters, then what they swallow.
  size_t after_closing(size_t position, char sign) const {
    const size_t end = position + 2;
    if (sign == '-') return after_space(end);
    return sign != '+' && at(end) == '\n' ? end + 1 : end;
  }

  void lex_outside() {
    size_t open = position_;
    while (true) {
      open = text_.find('{', open);
      if (open == std::string_view::npos) {
        push(TokenType::kText, std::string(text_.substr(position_)));
        advance(text_.size());
        return;
      }
      const char next = at(open + 1);
      if (next == '{' || next == '%' || next == '#') break;
      ++open;
    }
    const char kind = at(open + 1);
    const char sign = at(open + 2) == '-' || at(open + 2) == '+' ? at(open + 2) : '\0';
    push_text(open, sign, kind == '{');
    const size_t inside = open + (sign ? 3 : 2);
    if (kind == '#') return lex_comment(inside);
    if (kind == '%') {
      if (size_t raw_end = raw_tag_end(inside, "raw", false)) return lex_raw(raw_end);
    }
    push(kind == '{' ? TokenType::kOutputBegin : TokenType::kBlockBegin, "");
    advance(inside);
    lex_tag(kind == '{');
  }

  void lex_comment(size_t inside) {
    const size_t close = text_.find("#}", inside);
    if (close == std::string_view::npos) fail("comment {# is never closed with #}", line_);
    const char before = close > inside ? text_[close - 1] : '\0';
    advance(after_closing(close, before));
  }

  // If a raw or endraw tag's name and closing stand at `position`, the offset after it; else 0.
  size_t raw_tag_end(size_t position, std::string_view name, bool trims_newline) const {
    position = after_space(position);
    if (!starts_with(position, name)) return 0;
    position = after_space(position + name.size());
    if (starts_with(position, "-%}")) return after_space(position + 3);
    if (trims_newline && starts_with(position, "+%}")) return position + 3;
    if (!starts_with(position, "%}")) return 0;
    return trims_newline && at(position + 2) == '\n' ? position + 3 : position + 2;
  }

  void lex_raw(size_t begin) {
    const int opened_at = line_;
    advance(begin);
    for (size_t open = text_.find("{%", begin); open != std::string_view::npos; open = text_.find("{%", open + 2)) {
      const char sign = at(open + 2) == '-' || at(open + 2) == '+' ? at(open + 2) : '\0';
      if (size_t end = raw_tag_end(open + (sign ? 3 : 2), "endraw", true)) {
        push_text(open, sign, false);
        advance(end);
        return;
      }
    }
    fail("raw block is never closed with {% endraw %}", opened_at);
  }

  // True when the tag ended here. Inside brackets `}}` and `%}` are not an end.
  bool lex_tag_end(bool is_output) {
    if (!brackets_.empty()) return false;
    const char sign = at(position_) == '-' || (at(position_) == '+' && !is_output) ? at(position_) : '\0';
    const size_t close = position_ + (sign ? 1 : 0);
    if (!starts_with(close, is_output ? "}}" : "%}")) return false;
    push(is_output ? TokenType::kOutputEnd : TokenType::kBlockEnd, "");
    if (is_output) advance(sign ? after_space(close + 2) : close + 2);
    else advance(after_closing(close, sign));
    return true;
  }

  void lex_tag(bool is_output) {
    brackets_.clear();
    const int opened_at = line_;
    while (position_ < text_.size()) {
      if (lex_tag_end(is_output)) return;
      const size_t space = after_space(position_);
      if (space != position_) { advance(space); continue; }
      const char c = at(position_);
      if (is_decimal(c)) lex_number();
      else if (is_name_start(c)) lex_name();
      else if (c == '\'' || c == '"') lex_string(c);
      else lex_operator();
    }
    fail(std::string("tag is never closed with ") + (is_output ? "}}" : "%}"), opened_at);
  }

  void lex_name() {
    size_t end = position_;
    while (is_name_byte(at(end))) ++end;
    push(TokenType::kName, std::string(text_.substr(position_, end - position_)));
    advance(end);
  }

  // (digit _)* digit; returns where it ends, or `from` when there is none. Appends the digits without underscores.
  size_t digits(size_t from, std::string& out, int base = 10) const {
    size_t i = from;
    while (hex_digit(at(i)) < base || (i > from && at(i) == '_' && hex_digit(at(i + 1)) < base)) {
      if (at(i) != '_') out.push_back(at(i));
      ++i;
    }
    return i;
  }

  void lex_number() {
    std::string value;
    const char marker = static_cast<char>(at(position_ + 1) | 0x20);
    const int base = at(position_) != '0' ? 10 : marker == 'x' ? 16 : marker == 'o' ? 8 : marker == 'b' ? 2 : 10;
    if (base != 10) {
      const size_t first = position_ + 2 + (at(position_ + 2) == '_' ? 1 : 0);
      std::string body;
      const size_t end = digits(first, body, base);
      if (end != first) {
        push(TokenType::kInteger, std::string{'0', marker} + body);
        return advance(end);
      }
    }
    size_t end = digits(position_, value);
    const bool may_be_float = position_ == 0 || text_[position_ - 1] != '.';
    bool is_float = false;
    if (may_be_float && at(end) == '.' && is_decimal(at(end + 1))) {
      value.push_back('.');
      end = digits(end + 1, value);
      is_float = true;
    }
    if (may_be_float && (at(end) | 0x20) == 'e') {
      const size_t sign = at(end + 1) == '+' || at(end + 1) == '-' ? 1 : 0;
      if (is_decimal(at(end + 1 + sign))) {
        value.push_back('e');
        if (sign) value.push_back(at(end + 1));
        end = digits(end + 1 + sign, value);
        is_float = true;
      }
    }
    if (!is_float && value.size() > 1 && value[0] == '0') {
      if (value.find_first_not_of('0') != std::string::npos) fail("integer with a leading zero: " + value.substr(0, 20), line_);
      value = "0";
    }
    push(is_float ? TokenType::kFloat : TokenType::kInteger, std::move(value));
    advance(end);
  }

  void lex_string(char quote) {
    std::string value;
    size_t i = position_ + 1;
    while (i < text_.size() && text_[i] != quote) {
      if (text_[i] == '\\') i = unescape(i + 1, value);
      else value.push_back(text_[i++]);
    }
    if (i >= text_.size()) fail("string is never closed", line_);
    push(TokenType::kString, std::move(value));
    advance(i + 1);
  }

  // Python's escapes; `i` is after the backslash. Returns where reading goes on. Unknown escapes stay as they are.
  size_t unescape(size_t i, std::string& out) const {
    if (i >= text_.size()) fail("string is never closed", line_);
    const char c = text_[i];
    static constexpr std::string_view kNames = "abfnrtv\\'\"", kValues = "\a\b\f\n\r\t\v\\'\"";
    if (const size_t known = kNames.find(c); known != std::string_view::npos) {
      out.push_back(kValues[known]);
      return i + 1;
    }
    if (c == '\n') return i + 1;
    if (c == 'x' || c == 'u' || c == 'U') return unescape_hex(i + 1, c == 'x' ? 2 : c == 'u' ? 4 : 8, out);
    if (c >= '0' && c <= '7') {
      char32_t code = 0;
      size_t end = i;
      while (end < i + 3 && at(end) >= '0' && at(end) <= '7') code = code * 8 + static_cast<char32_t>(at(end++) - '0');
      utf8_append(out, code);
      return end;
    }
    if (c == 'N') fail("\\N{...} escapes are not supported", line_);
    out.push_back('\\');
    out.push_back(c);   // the first byte of a longer character is fine: the rest follows
    return i + 1;
  }

  size_t unescape_hex(size_t i, size_t digits_wanted, std::string& out) const {
    char32_t code = 0;
    for (size_t k = 0; k < digits_wanted; ++k) {
      const int digit = hex_digit(at(i + k));
      if (digit > 15) fail("truncated \\x, \\u or \\U escape in a string", line_);
      code = code * 16 + static_cast<char32_t>(digit);
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) fail("escape is not a Unicode character", line_);
    utf8_append(out, code);
    return i + digits_wanted;
  }

  void lex_operator() {
    static constexpr std::array<std::string_view, 7> kLong = {"//", "**", "==", "!=", ">=", "<="};
    static constexpr std::string_view kShort = "+-/*%~[](){}><=.:|,;";
    for (std::string_view op : kLong) {
      if (!op.empty() && starts_with(position_, op)) {
        push(TokenType::kOperator, std::string(op));
        return advance(position_ + 2);
      }
    }
    const char c = at(position_);
    if (c == '\0' || kShort.find(c) == std::string_view::npos) {
      fail("unexpected character " + quoted(text_.substr(position_, utf8_sequence_length(text_.substr(position_)))), line_);
    }
    track_brackets(c);
    push(TokenType::kOperator, std::string(1, c));
    advance(position_ + 1);
  }

  void track_brackets(char c) {
    if (c == '(' || c == '[' || c == '{') {
      if (brackets_.size() >= static_cast<size_t>(kMaxNesting)) {
        fail("brackets nested deeper than " + std::to_string(kMaxNesting), line_);
      }
      brackets_.push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
    } else if (c == ')' || c == ']' || c == '}') {
      if (brackets_.empty()) fail(std::string("unexpected '") + c + "'", line_);
      if (brackets_.back() != c) fail(std::string("unexpected '") + c + "', expected '" + brackets_.back() + "'", line_);
      brackets_.pop_back();
    }
  }

  std::string_view text_;
  size_t position_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::string brackets_;   // the closing brackets awaited
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  const std::string text = normalise_lines(source);
  return Lexer(text).run();
}

}  // namespace quipu::jinja
