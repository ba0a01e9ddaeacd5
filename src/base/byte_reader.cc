#include "base/byte_reader.h"

#include "base/utf8.h"

namespace quipu {

Result<std::span<const std::byte>> ByteReader::take(std::string_view field, uint64_t count) {
  if (count > remaining()) return past_end(field, count);
  const auto part = bytes_.subspan(offset_, count);
  offset_ += count;
  return part;
}

Result<std::string_view> ByteReader::string64(std::string_view field, uint64_t limit) {
  ASSIGN_OR_RETURN(const uint64_t length, number<uint64_t>(std::string(field) + " length"));
  if (length > limit) {
    return error_here(field, "length " + std::to_string(length) + " is over the limit of " + std::to_string(limit));
  }
  ASSIGN_OR_RETURN(const auto bytes, take(field, length));
  return std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

Result<void> ByteReader::skip(std::string_view field, uint64_t count) {
  auto taken = take(field, count);
  if (!taken.ok()) return std::move(taken).error();
  return {};
}

Error ByteReader::error_here(std::string_view field, std::string_view what) const {
  return bad_input(std::string(file_) + ": " + printable(field) + " at byte " + std::to_string(offset_) + ": " +
                   std::string(what));
}

Error ByteReader::past_end(std::string_view field, uint64_t wanted) const {
  return error_here(field, "needs " + std::to_string(wanted) + " bytes, but only " + std::to_string(remaining()) +
                               " of the file's " + std::to_string(bytes_.size()) + " are left");
}

std::string printable(std::string_view text, size_t limit) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  size_t at = 0;
  while (at < text.size()) {
    if (out.size() >= limit) return out + "...";
    const unsigned char byte = static_cast<unsigned char>(text[at]);
    const size_t length = utf8_sequence_length(text.substr(at));
    if (length == 0 || byte < 0x20 || byte == 0x7f || byte == '\\') {
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
      ++at;
    } else {
      out += text.substr(at, length);
      at += length;
    }
  }
  return out;
}

}  // namespace quipu
