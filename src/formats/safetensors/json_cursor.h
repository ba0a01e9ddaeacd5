// JsonCursor: a strict, bounded walk over JSON text, for headers of model files.
//
// simdjson was considered: its index takes four bytes for every byte of a header that may be 100 MB, most of them hostile,
// and on-demand parsing skips what nobody asks for. This cursor allocates only the strings it returns, checks what it
// passes, and names the byte where something is wrong. Standard JSON [RFC 8259] and nothing else.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace quipu {

class JsonCursor {
 public:
  // file: name for messages. start: offset of text[0] in the file. Both views must outlive the cursor.
  JsonCursor(std::string_view file, std::string_view text, uint64_t start) : file_(file), text_(text), start_(start) {}

  uint64_t offset() const { return start_ + at_; }          // in the file, of the next byte
  std::string_view rest() const { return text_.substr(at_); }

  // The next byte after white space, not consumed; 0 at the end.
  char peek();
  // Consumes white space and then `wanted` if it is there.
  bool accept(char wanted);
  Result<void> expect(char wanted, std::string_view field);

  // A string of at most `limit` bytes, escapes resolved. Raw control characters, invalid UTF-8 and lone surrogates are
  // errors.
  Result<std::string> string(std::string_view field, uint64_t limit);

  // A whole number 0 .. 2^64-1 in plain digits: no sign, fraction, exponent or leading zero.
  Result<uint64_t> whole_number(std::string_view field);

  // Passes any value; nesting deeper than kMaxDepth is an error.
  Result<void> skip_value(std::string_view field) { return skip_value(field, 0); }

  // Walks an object whose next byte is '{': calls member(key) with the cursor before each value; member must consume it.
  // key_limit bounds the bytes of a key. Duplicate keys are the caller's business.
  template <class Member>
  Result<void> object(std::string_view field, uint64_t key_limit, Member member) {
    RETURN_IF_ERROR(expect('{', field));
    if (accept('}')) return {};
    do {
      ASSIGN_OR_RETURN(std::string key, string(field, key_limit));
      RETURN_IF_ERROR(expect(':', field));
      RETURN_IF_ERROR(member(std::move(key)));
    } while (accept(','));
    return expect('}', field);
  }

  // The same for an array: calls element() before each value.
  template <class Element>
  Result<void> array(std::string_view field, Element element) {
    RETURN_IF_ERROR(expect('[', field));
    if (accept(']')) return {};
    do {
      RETURN_IF_ERROR(element());
    } while (accept(','));
    return expect(']', field);
  }

  // "<file>: <field> at byte <offset>: <what>" (kBadInput).
  Error error(std::string_view field, std::string_view what) const { return error_at(field, offset(), what); }
  Error error_at(std::string_view field, uint64_t offset, std::string_view what) const;

  static constexpr int kMaxDepth = 128;

 private:
  Result<void> escape(std::string_view field, std::string& out);
  Result<uint32_t> hex4(std::string_view field);
  Result<void> skip_value(std::string_view field, int depth);
  Result<void> skip_number(std::string_view field);
  // The next byte or "the end", quoted for a message.
  std::string found() const;

  std::string_view file_;
  std::string_view text_;
  uint64_t start_;
  size_t at_ = 0;
};

}  // namespace quipu
