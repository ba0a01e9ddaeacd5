#include "base/utf8.h"

namespace quipu {
namespace {

struct SequenceRule {
  size_t length = 0;              // 0: not a lead byte
  unsigned char second_low = 0x80;
  unsigned char second_high = 0xbf;
};

SequenceRule rule_of(unsigned char lead) {
  if (lead < 0x80) return {1};
  if (lead >= 0xc2 && lead <= 0xdf) return {2};
  if (lead == 0xe0) return {3, 0xa0, 0xbf};
  if (lead == 0xed) return {3, 0x80, 0x9f};
  if (lead >= 0xe1 && lead <= 0xef) return {3};
  if (lead == 0xf0) return {4, 0x90, 0xbf};
  if (lead >= 0xf1 && lead <= 0xf3) return {4};
  if (lead == 0xf4) return {4, 0x80, 0x8f};
  return {0};
}

// How many bytes of `text` agree with one sequence: the sequence's own length when complete.
size_t matching_bytes(std::string_view text, const SequenceRule& rule) {
  size_t matched = 1;
  while (matched < rule.length && matched < text.size()) {
    const unsigned char byte = static_cast<unsigned char>(text[matched]);
    const unsigned char low = matched == 1 ? rule.second_low : 0x80;
    const unsigned char high = matched == 1 ? rule.second_high : 0xbf;
    if (byte < low || byte > high) break;
    ++matched;
  }
  return matched;
}

}  // namespace

size_t utf8_sequence_length(std::string_view text) {
  if (text.empty()) return 0;
  const SequenceRule rule = rule_of(static_cast<unsigned char>(text[0]));
  return rule.length != 0 && matching_bytes(text, rule) == rule.length ? rule.length : 0;
}

bool utf8_is_incomplete(std::string_view text) {
  if (text.empty()) return false;
  const SequenceRule rule = rule_of(static_cast<unsigned char>(text[0]));
  return text.size() < rule.length && matching_bytes(text, rule) == text.size();
}

size_t utf8_valid_prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    if (static_cast<unsigned char>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    const size_t length = utf8_sequence_length(text.substr(at));
    if (length == 0) return at;
    at += length;
  }
  return at;
}

char32_t utf8_code_point(std::string_view text) {
  const size_t length = utf8_sequence_length(text);
  const auto byte = [&](size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[i])); };
  switch (length) {
    case 1: return byte(0);
    case 2: return (byte(0) & 0x1f) << 6 | (byte(1) & 0x3f);
    case 3: return (byte(0) & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f);
    case 4: return (byte(0) & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f);
    default: return 0xfffd;
  }
}

void utf8_append(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xc0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xe0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3f));
    out += static_cast<char>(0x80 | (c & 0x3f));
  } else {
    out += static_cast<char>(0xf0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3f));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3f));
    out += static_cast<char>(0x80 | (c & 0x3f));
  }
}

std::string utf8_lossy(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  size_t at = 0;
  while (at < text.size()) {
    const std::string_view rest = text.substr(at);
    const size_t length = utf8_sequence_length(rest);
    if (length != 0) {
      out += rest.substr(0, length);
      at += length;
      continue;
    }
    out += "\xef\xbf\xbd";
    const SequenceRule rule = rule_of(static_cast<unsigned char>(rest[0]));
    at += rule.length == 0 ? 1 : matching_bytes(rest, rule);
  }
  return out;
}

}  // namespace quipu
