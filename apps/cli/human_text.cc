#include "human_text.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdarg>
#include <cstdio>

namespace quipu::cli {

std::string text_f(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  va_list again;
  va_copy(again, arguments);
  const int length = std::vsnprintf(nullptr, 0, format, arguments);
  va_end(arguments);
  std::string text(length > 0 ? static_cast<size_t>(length) : 0, '\0');
  std::vsnprintf(text.data(), text.size() + 1, format, again);
  va_end(again);
  return text;
}

std::string human_bytes(double bytes) {
  static constexpr std::array<const char*, 6> kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  size_t unit = 0;
  // 1023.95 would print as "1024.0": go one unit up before rounding does.
  while (unit + 1 < kUnits.size() && bytes >= (unit == 0 ? 1024.0 : 1023.95)) {
    bytes /= 1024.0;
    ++unit;
  }
  if (unit == 0) return text_f("%.0f B", bytes);
  return text_f("%.1f %s", bytes, kUnits[unit]);
}

namespace {

// In thousands: `units` of growing size, the first for numbers below 1000.
std::string in_thousands(double count, const std::array<const char*, 5>& units) {
  size_t unit = 0;
  while (unit + 1 < units.size() && count >= (unit == 0 ? 1000.0 : 999.95)) {
    count /= 1000.0;
    ++unit;
  }
  return unit == 0 ? text_f("%.0f%s", count, units[0]) : text_f("%.1f%s", count, units[unit]);
}

}  // namespace

std::string human_count(double count) { return in_thousands(count, {"", " k", " M", " B", " T"}); }
std::string human_operations(double count) {
  return in_thousands(count, {" FLOP", " kFLOP", " MFLOP", " GFLOP", " TFLOP"});
}

std::string human_tokens(int64_t tokens) {
  constexpr int64_t kKilo = 1024, kMega = kKilo * 1024;
  if (tokens >= kMega && tokens % kMega == 0) {
    return std::to_string(tokens / kMega) + "M";
  }
  if (tokens >= kKilo && tokens % kKilo == 0) {
    return std::to_string(tokens / kKilo) + "k";
  }
  return grouped_count(tokens);
}

size_t display_width(std::string_view text) {
  size_t width = 0;
  for (const char c : text) width += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return width;
}

std::string wrapped(std::string_view text, size_t columns, size_t indent) {
  std::string out;
  size_t used = indent;
  for (size_t i = 0; i < text.size();) {
    if (text.substr(i, 2) == "\n\n") {
      out += "\n\n";
      used = 0;
    }
    while (i < text.size() && (text[i] == ' ' || text[i] == '\n')) ++i;
    const size_t end = std::min(text.find_first_of(" \n", i), text.size());
    const std::string_view word = text.substr(i, end - i);
    const size_t width = display_width(word);
    if (width == 0) break;
    const bool starts_line = used == 0 || (out.empty() && used == indent);
    if (!starts_line && used + 1 + width > columns) {
      out += '\n' + std::string(indent, ' ');
      used = indent;
    } else if (!starts_line) {
      out += ' ';
      ++used;
    }
    out += word;
    used += width;
    i = end;
  }
  return out;
}

std::string aligned_table(const std::vector<std::vector<std::string>>& rows, const std::vector<bool>& right,
                          bool heading) {
  std::vector<size_t> widths(right.size(), 0);
  for (const auto& row : rows) {
    for (size_t column = 0; column < row.size() && column < widths.size(); ++column) {
      widths[column] = std::max(widths[column], display_width(row[column]));
    }
  }
  std::string text;
  const auto append_row = [&](const std::vector<std::string>& row) {
    std::string line;
    for (size_t column = 0; column < row.size() && column < widths.size(); ++column) {
      const std::string gap(widths[column] - display_width(row[column]), ' ');
      line += (column == 0 ? "" : "  ") + (right[column] ? gap + row[column] : row[column] + gap);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  };
  for (size_t r = 0; r < rows.size(); ++r) {
    append_row(rows[r]);
    if (r == 0 && heading) {
      std::vector<std::string> dashes;
      for (const size_t width : widths) dashes.emplace_back(width, '-');
      append_row(dashes);
    }
  }
  return text;
}

}  // namespace quipu::cli
