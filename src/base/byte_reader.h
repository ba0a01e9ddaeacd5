// ByteReader: the one bounded cursor over bytes from outside. All formats read through it.
//
// Every read names the field it wants; a read that would pass the end returns an Error naming file, field, offset,
// bytes wanted and bytes left. Little endian, as all formats here are. Does not own the bytes.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/result.h"

namespace quipu {

static_assert(std::endian::native == std::endian::little, "the file formats are read in place, little endian");

class ByteReader {
 public:
  // file: name used in messages. Both must outlive the reader.
  ByteReader(std::string_view file, std::span<const std::byte> bytes) : file_(file), bytes_(bytes) {}

  uint64_t offset() const { return offset_; }
  uint64_t remaining() const { return bytes_.size() - offset_; }
  std::string_view file() const { return file_; }

  // Reads one little-endian number.
  template <class T>
    requires std::is_arithmetic_v<T>
  Result<T> number(std::string_view field) {
    if (remaining() < sizeof(T)) return past_end(field, sizeof(T));
    T value;
    std::memcpy(&value, bytes_.data() + offset_, sizeof(T));
    offset_ += sizeof(T);
    return value;
  }

  // The next `count` bytes, not copied.
  Result<std::span<const std::byte>> take(std::string_view field, uint64_t count);

  // A string of 64-bit length then bytes (GGUF style), at most `limit` bytes long, not copied.
  Result<std::string_view> string64(std::string_view field, uint64_t limit);

  Result<void> skip(std::string_view field, uint64_t count);

  // An error at the current offset: "<file>: <field> at byte <offset>: <what>".
  Error error_here(std::string_view field, std::string_view what) const;

 private:
  Error past_end(std::string_view field, uint64_t wanted) const;

  std::string_view file_;
  std::span<const std::byte> bytes_;
  uint64_t offset_ = 0;
};

// Makes a name from outside safe for one line of a terminal or log: control characters, invalid UTF-8 and backslashes
// are escaped, and the text is cut after `limit` bytes with "...".
std::string printable(std::string_view text, size_t limit = 80);

}  // namespace quipu
