#include "text/byte_alphabet.h"

#include "base/utf8.h"

namespace quipu {

const std::array<char32_t, 256>& byte_alphabet() {
  static const std::array<char32_t, 256> alphabet = [] {
    std::array<char32_t, 256> a{};
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
      a[byte] = printable ? static_cast<char32_t>(byte) : next++;
    }
    return a;
  }();
  return alphabet;
}

std::optional<std::string> bytes_from_alphabet(std::string_view token) {
  static const std::array<int16_t, 0x144> byte_of = [] {
    std::array<int16_t, 0x144> inverse;
    inverse.fill(-1);
    for (int byte = 0; byte < 256; ++byte) inverse[byte_alphabet()[byte]] = static_cast<int16_t>(byte);
    return inverse;
  }();
  std::string bytes;
  bytes.reserve(token.size());
  for (size_t at = 0; at < token.size();) {
    const size_t length = utf8_sequence_length(token.substr(at));
    if (length == 0) return std::nullopt;
    const char32_t c = utf8_code_point(token.substr(at));
    if (c >= byte_of.size() || byte_of[c] < 0) return std::nullopt;
    bytes += static_cast<char>(byte_of[c]);
    at += length;
  }
  return bytes;
}

}  // namespace quipu
