#include "text/jinja/python_text.h"

#include <cstring>

#include <utf8proc.h>

#include "base/utf8.h"
#include "text/jinja/limits.h"

namespace quipu::jinja {

bool is_space(char32_t c) {
  if (c < 0x80) return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

size_t space_length(std::string_view text) {
  if (text.empty()) return 0;
  const auto first = static_cast<unsigned char>(text[0]);
  if (first < 0x80) return is_space(first) ? 1 : 0;
  const size_t bytes = utf8_sequence_length(text);
  return bytes > 0 && is_space(utf8_code_point(text)) ? bytes : 0;
}

std::string_view skip_space(std::string_view text) {
  while (const size_t bytes = space_length(text)) text.remove_prefix(bytes);
  return text;
}

namespace {

// Byte offset of the last character of non-empty, valid text.
size_t last_character(std::string_view text) {
  size_t i = text.size() - 1;
  while (i > 0 && (static_cast<unsigned char>(text[i]) & 0xC0) == 0x80) --i;
  return i;
}

}  // namespace

std::string_view strip_right_space(std::string_view text) {
  while (!text.empty()) {
    const size_t last = last_character(text);
    if (space_length(text.substr(last)) == 0) break;
    text = text.substr(0, last);
  }
  return text;
}

std::string_view strip(std::string_view text, std::optional<std::string_view> characters, bool left, bool right) {
  if (!characters) {
    if (left) text = skip_space(text);
    return right ? strip_right_space(text) : text;
  }
  // Long sets are looked up by bytes of whole characters: a find of one character in a valid string is exact.
  while (left && !text.empty()) {
    const size_t bytes = utf8_sequence_length(text);
    if (characters->find(text.substr(0, bytes)) == std::string_view::npos) break;
    text.remove_prefix(bytes);
  }
  while (right && !text.empty()) {
    const size_t last = last_character(text);
    if (characters->find(text.substr(last)) == std::string_view::npos) break;
    text = text.substr(0, last);
  }
  return text;
}

int64_t count_code_points(std::string_view text) {
  int64_t count = 0;
  for (char c : text) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

std::vector<std::string_view> code_points(Heap& heap, std::string_view text) {
  heap.require_room(static_cast<Int>(text.size() * sizeof(std::string_view)));
  std::vector<std::string_view> out;
  while (!text.empty()) {
    const size_t bytes = utf8_sequence_length(text);
    out.push_back(text.substr(0, bytes));
    text.remove_prefix(bytes);
  }
  return out;
}

size_t byte_offset(std::string_view text, int64_t index) {
  size_t i = 0;
  while (i < text.size() && index > 0) {
    ++i;
    while (i < text.size() && (static_cast<unsigned char>(text[i]) & 0xC0) == 0x80) ++i;
    --index;
  }
  return i;
}

size_t find_bytes(std::string_view text, std::string_view needle, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  if (needle.empty()) return from;
  const void* found = memmem(text.data() + from, text.size() - from, needle.data(), needle.size());
  return found ? static_cast<size_t>(static_cast<const char*>(found) - text.data()) : std::string_view::npos;
}

std::string replace_all(Heap& heap, std::string_view text, std::string_view from, std::string_view to, int64_t limit) {
  heap.charge_work(text.size());
  std::string out;
  size_t position = 0;
  for (int64_t done = 0; limit < 0 || done < limit; ++done) {
    size_t found;
    if (from.empty()) {   // between all characters
      found = done == 0 ? 0 : position + utf8_sequence_length(text.substr(position));
      if (done > 0 && position >= text.size()) break;
    } else {
      found = find_bytes(text, from, position);
      if (found == std::string_view::npos) break;
    }
    heap.require_room(static_cast<Int>(out.size()) + static_cast<Int>(to.size()));
    heap.charge_steps(1);
    out += text.substr(position, found - position);
    out += to;
    position = found + from.size();
  }
  out += text.substr(position);
  return out;
}

std::vector<std::string_view> split_on(Heap& heap, std::string_view text, std::string_view separator, int64_t limit,
                                       bool from_right) {
  std::vector<std::string_view> out;
  if (!from_right) {
    size_t position = 0;
    while (limit < 0 || static_cast<int64_t>(out.size()) < limit) {
      const size_t found = find_bytes(text, separator, position);
      if (found == std::string_view::npos) break;
      heap.charge_steps(1);
      out.push_back(text.substr(position, found - position));
      position = found + separator.size();
    }
    out.push_back(text.substr(position));
    return out;
  }
  // From the right matches can differ ('aaa' on 'aa'); text and separator reversed make it the case above.
  const std::string back(text.rbegin(), text.rend()), needle(separator.rbegin(), separator.rend());
  for (std::string_view part : split_on(heap, back, needle, limit, false)) {
    const size_t end = text.size() - static_cast<size_t>(part.data() - back.data());
    out.insert(out.end(), text.substr(end - part.size(), part.size()));
  }
  return {out.rbegin(), out.rend()};
}

std::vector<std::string_view> split_space(Heap& heap, std::string_view text, int64_t limit, bool from_right) {
  std::vector<std::string_view> out;
  text = from_right ? strip_right_space(text) : skip_space(text);
  while (!text.empty()) {
    heap.charge_steps(1);
    if (limit >= 0 && static_cast<int64_t>(out.size()) >= limit) {
      out.push_back(text);
      break;
    }
    if (from_right) {
      size_t begin = text.size();
      while (begin > 0 && space_length(text.substr(last_character(text.substr(0, begin)))) == 0) {
        begin = last_character(text.substr(0, begin));
      }
      out.push_back(text.substr(begin));
      text = strip_right_space(text.substr(0, begin));
    } else {
      size_t end = 0;
      while (end < text.size() && space_length(text.substr(end)) == 0) end += utf8_sequence_length(text.substr(end));
      out.push_back(text.substr(0, end));
      text = skip_space(text.substr(end));
    }
  }
  if (from_right) return {out.rbegin(), out.rend()};
  return out;
}

std::vector<std::string_view> split_lines(Heap& heap, std::string_view text, bool keep_ends) {
  const auto line_end = [&](size_t i) -> size_t {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c == '\r') return i + 1 < text.size() && text[i + 1] == '\n' ? 2 : 1;
    if (c == '\n' || c == '\v' || c == '\f' || (c >= 0x1C && c <= 0x1E)) return 1;
    if (text.substr(i).starts_with("\xC2\x85")) return 2;
    return text.substr(i).starts_with("\xE2\x80\xA8") || text.substr(i).starts_with("\xE2\x80\xA9") ? 3 : 0;
  };
  std::vector<std::string_view> out;
  size_t begin = 0;
  for (size_t i = 0; i < text.size();) {
    const size_t bytes = line_end(i);
    if (bytes == 0) { ++i; continue; }
    heap.charge_steps(1);
    out.push_back(text.substr(begin, i - begin + (keep_ends ? bytes : 0)));
    i += bytes;
    begin = i;
  }
  if (begin < text.size()) out.push_back(text.substr(begin));
  return out;
}

namespace {

utf8proc_category_t category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

void append_upper(std::string& out, char32_t c) {
  if (c == 0xDF) out += "SS";   // the one common letter whose capital is longer
  else utf8_append(out, static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))));
}

void append_lower(std::string& out, char32_t c) {
  utf8_append(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
}

void append_title(std::string& out, char32_t c) {
  if (c == 0xDF) out += "Ss";
  else utf8_append(out, static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))));
}

template <class Function>
void each_code_point(std::string_view text, Function function) {
  while (!text.empty()) {
    const size_t bytes = utf8_sequence_length(text);
    function(utf8_code_point(text));
    text.remove_prefix(bytes);
  }
}

}  // namespace

std::string upper(std::string_view text) {
  std::string out;
  each_code_point(text, [&](char32_t c) { append_upper(out, c); });
  return out;
}

std::string lower(std::string_view text) {
  std::string out;
  each_code_point(text, [&](char32_t c) { append_lower(out, c); });
  return out;
}

std::string capitalize(std::string_view text) {
  std::string out;
  bool first = true;
  each_code_point(text, [&](char32_t c) {
    if (std::exchange(first, false)) append_title(out, c);
    else append_lower(out, c);
  });
  return out;
}

std::string title(std::string_view text) {
  std::string out;
  bool inside = false;
  each_code_point(text, [&](char32_t c) {
    if (inside) append_lower(out, c);
    else append_title(out, c);
    inside = is_upper(c) || is_lower(c);
  });
  return out;
}

bool is_alphabetic(char32_t c) {
  const auto k = category(c);
  return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}
bool is_digit(char32_t c) { return category(c) == UTF8PROC_CATEGORY_ND; }
bool is_upper(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LU; }
bool is_lower(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LL; }

bool is_printable(char32_t c) {
  if (c < 0x7F) return c >= 0x20;
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS: return false;
    default: return true;
  }
}

std::string quoted(std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  const auto hex = [&](char32_t c, int digits) {
    static constexpr char kDigits[] = "0123456789abcdef";
    for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) out.push_back(kDigits[(c >> shift) & 15]);
  };
  each_code_point(text, [&](char32_t c) {
    if (c == '\n') out += "\\n";
    else if (c == '\r') out += "\\r";
    else if (c == '\t') out += "\\t";
    else if (c == '\\' || c == static_cast<char32_t>(quote)) { out.push_back('\\'); out.push_back(static_cast<char>(c)); }
    else if (is_printable(c)) utf8_append(out, c);
    else if (c < 0x100) { out += "\\x"; hex(c, 2); }
    else if (c < 0x10000) { out += "\\u"; hex(c, 4); }
    else { out += "\\U"; hex(c, 8); }
  });
  out.push_back(quote);
  return out;
}

}  // namespace quipu::jinja
