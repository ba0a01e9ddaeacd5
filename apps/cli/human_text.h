// Numbers as a person reads them: bytes, counts, durations, and a checked printf into a string.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/number_text.h"

namespace quipu::cli {

// printf into a string; the compiler checks the arguments.
std::string text_f(const char* format, ...) __attribute__((format(printf, 1, 2)));

std::string human_bytes(double bytes);       // "0 B", "23.0 KiB", "1.2 GiB"
std::string human_count(double count);       // "999", "134.5 M", "1.2 B": parameters
std::string human_operations(double count);  // "339.7 MFLOP", "1.4 GFLOP"
std::string human_tokens(int64_t tokens);    // "512", "4k", "1M": whole multiples only, else grouped

// Columns needed on a terminal: code points, with East Asian wide ones counted as one (good enough for names).
size_t display_width(std::string_view text);

// Words of `text` in lines of at most `columns`; every line after the first is indented by `indent` spaces. Line breaks
// in `text` count as spaces, except empty lines.
std::string wrapped(std::string_view text, size_t columns, size_t indent = 0);

// Rows of cells as aligned columns, two spaces between. `right` holds one flag per column: true aligns it right.
// The first row is the heading and is underlined with dashes when `heading` is set.
std::string aligned_table(const std::vector<std::vector<std::string>>& rows, const std::vector<bool>& right,
                          bool heading = true);

}  // namespace quipu::cli
