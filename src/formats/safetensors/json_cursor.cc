#include "formats/safetensors/json_cursor.h"

#include <limits>

#include "base/byte_reader.h"
#include "base/utf8.h"

namespace quipu {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

}  // namespace

Error JsonCursor::error_at(std::string_view field, uint64_t offset, std::string_view what) const {
  return bad_input(std::string(file_) + ": " + printable(field, 160) + " at byte " + std::to_string(offset) + ": " +
                   std::string(what));
}

std::string JsonCursor::found() const {
  if (at_ >= text_.size()) return "the end of the text";
  const size_t length = utf8_sequence_length(rest());
  return "'" + printable(rest().substr(0, length == 0 ? 1 : length)) + "'";
}

char JsonCursor::peek() {
  while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) ++at_;
  return at_ < text_.size() ? text_[at_] : '\0';
}

bool JsonCursor::accept(char wanted) {
  if (peek() != wanted || at_ >= text_.size()) return false;
  ++at_;
  return true;
}

Result<void> JsonCursor::expect(char wanted, std::string_view field) {
  if (accept(wanted)) return {};
  return error(field, std::string("expected '") + wanted + "', found " + found());
}

Result<std::string> JsonCursor::string(std::string_view field, uint64_t limit) {
  RETURN_IF_ERROR(expect('"', field));
  const uint64_t begin = offset();
  std::string out;
  while (true) {
    if (at_ >= text_.size()) return error_at(field, begin, "the string does not end");
    // Plain characters are taken in runs.
    size_t end = at_;
    const auto plain = [](char c) { return c != '"' && c != '\\' && static_cast<unsigned char>(c) >= 0x20; };
    while (end < text_.size() && plain(text_[end])) ++end;
    const std::string_view run = text_.substr(at_, end - at_);
    if (run.size() > limit - out.size()) {
      return error_at(field, begin, "the string is longer than the limit of " + std::to_string(limit) + " bytes");
    }
    const size_t valid = utf8_valid_prefix(run);
    at_ += valid;
    if (valid != run.size()) return error(field, "the string is not UTF-8");
    out += run;
    if (at_ >= text_.size()) continue;
    if (text_[at_] == '"') {
      ++at_;
      return out;
    }
    if (text_[at_] != '\\') return error(field, "a control character in a string: " + found());
    RETURN_IF_ERROR(escape(field, out));
    if (out.size() > limit) {
      return error_at(field, begin, "the string is longer than the limit of " + std::to_string(limit) + " bytes");
    }
  }
}

Result<void> JsonCursor::escape(std::string_view field, std::string& out) {
  const uint64_t begin = offset();
  ++at_;   // the backslash
  const char kind = at_ < text_.size() ? text_[at_] : '\0';
  static constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
  if (const size_t simple = kFrom.find(kind); kind != '\0' && simple != std::string_view::npos) {
    out += kTo[simple];
    ++at_;
    return {};
  }
  if (kind != 'u') return error_at(field, begin, "an unknown escape in a string");
  ++at_;
  ASSIGN_OR_RETURN(uint32_t code, hex4(field));
  if (code >= 0xdc00 && code <= 0xdfff) return error_at(field, begin, "a lone surrogate in a string");
  if (code >= 0xd800 && code <= 0xdbff) {
    if (!rest().starts_with("\\u")) return error_at(field, begin, "a lone surrogate in a string");
    at_ += 2;
    ASSIGN_OR_RETURN(const uint32_t low, hex4(field));
    if (low < 0xdc00 || low > 0xdfff) return error_at(field, begin, "a lone surrogate in a string");
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  }
  utf8_append(out, static_cast<char32_t>(code));
  return {};
}

Result<uint32_t> JsonCursor::hex4(std::string_view field) {
  uint32_t code = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    const char c = at_ < text_.size() ? text_[at_] : '\0';
    if (is_digit(c)) {
      code = code * 16 + static_cast<uint32_t>(c - '0');
    } else if (c >= 'a' && c <= 'f') {
      code = code * 16 + static_cast<uint32_t>(c - 'a' + 10);
    } else if (c >= 'A' && c <= 'F') {
      code = code * 16 + static_cast<uint32_t>(c - 'A' + 10);
    } else {
      return error(field, "\\u needs four hexadecimal digits, found " + found());
    }
  }
  return code;
}

Result<uint64_t> JsonCursor::whole_number(std::string_view field) {
  const char first = peek();
  const uint64_t begin = offset();
  if (!is_digit(first)) return error(field, "expected a whole number, found " + found());
  uint64_t value = 0;
  const size_t start = at_;
  for (; at_ < text_.size() && is_digit(text_[at_]); ++at_) {
    if (__builtin_mul_overflow(value, uint64_t{10}, &value) ||
        __builtin_add_overflow(value, static_cast<uint64_t>(text_[at_] - '0'), &value)) {
      return error_at(field, begin, "the number is over 2^64-1");
    }
  }
  if (first == '0' && at_ - start > 1) return error_at(field, begin, "a number must not start with 0");
  const char next = at_ < text_.size() ? text_[at_] : '\0';
  if (next == '.' || next == 'e' || next == 'E') {
    return error_at(field, begin, "expected a whole number in plain digits, found " + printable(text_.substr(start, 24)));
  }
  return value;
}

Result<void> JsonCursor::skip_number(std::string_view field) {
  const uint64_t begin = offset();
  const auto digits = [&] {
    const size_t start = at_;
    while (at_ < text_.size() && is_digit(text_[at_])) ++at_;
    return at_ - start;
  };
  if (rest().starts_with('-')) ++at_;
  const bool zero = rest().starts_with('0');
  const size_t whole = digits();
  bool good = whole > 0 && !(zero && whole > 1);
  if (rest().starts_with('.')) {
    ++at_;
    good = digits() > 0 && good;
  }
  if (rest().starts_with('e') || rest().starts_with('E')) {
    ++at_;
    if (rest().starts_with('+') || rest().starts_with('-')) ++at_;
    good = digits() > 0 && good;
  }
  if (!good) return error_at(field, begin, "malformed number");
  return {};
}

Result<void> JsonCursor::skip_value(std::string_view field, int depth) {
  if (depth > kMaxDepth) return error(field, "nested deeper than the limit of " + std::to_string(kMaxDepth));
  const char first = peek();
  if (first == '{') {
    return object(field, text_.size(), [&](const std::string&) { return skip_value(field, depth + 1); });
  }
  if (first == '[') return array(field, [&] { return skip_value(field, depth + 1); });
  if (first == '"') {
    auto text = string(field, text_.size());
    if (!text.ok()) return std::move(text).error();
    return {};
  }
  if (first == '-' || is_digit(first)) return skip_number(field);
  for (const std::string_view word : {"true", "false", "null"}) {
    if (!rest().starts_with(word)) continue;
    at_ += word.size();
    return {};
  }
  return error(field, "expected a value, found " + found());
}

}  // namespace quipu
