#include "base/number_text.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace quipu {
namespace {

template <class... Values>
std::string formatted(const char* format, Values... values) {
  char text[64];
  return std::snprintf(text, sizeof text, format, values...) > 0 ? text : "";
}

}  // namespace

std::string grouped_count(int64_t count) {
  const std::string digits = std::to_string(count);
  const size_t first = digits[0] == '-' ? 1 : 0;
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > first && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

std::string human_seconds(double seconds) {
  if (!(seconds >= 0)) return "?";
  if (seconds < 9.95) return formatted("%.1f s", seconds);
  const auto whole = static_cast<int64_t>(std::min(std::round(seconds), 1e15));
  if (whole < 60) return formatted("%lld s", static_cast<long long>(whole));
  if (whole < 3600) {
    return formatted("%lld min %02lld s", static_cast<long long>(whole / 60), static_cast<long long>(whole % 60));
  }
  return formatted("%lld h %02lld min", static_cast<long long>(whole / 3600), static_cast<long long>(whole / 60 % 60));
}

}  // namespace quipu
