// Python's str operations on UTF-8: positions are code points, whitespace is Unicode's.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/value.h"

namespace quipu::jinja {

bool is_space(char32_t code_point);
// Byte length of the whitespace character at the start of `text`, 0 when there is none.
size_t space_length(std::string_view text);
std::string_view skip_space(std::string_view text);
std::string_view strip_right_space(std::string_view text);
// `characters` absent: whitespace.
std::string_view strip(std::string_view text, std::optional<std::string_view> characters, bool left, bool right);

int64_t count_code_points(std::string_view text);
std::vector<std::string_view> code_points(Heap& heap, std::string_view text);
// Byte offset of code point number `index`; text.size() past the end.
size_t byte_offset(std::string_view text, int64_t index);

// Linear-time search (a hostile needle must not make it quadratic). npos when absent.
size_t find_bytes(std::string_view text, std::string_view needle, size_t from = 0);
std::string replace_all(Heap& heap, std::string_view text, std::string_view from, std::string_view to, int64_t limit);
std::vector<std::string_view> split_on(Heap& heap, std::string_view text, std::string_view separator, int64_t limit,
                                       bool from_right);
std::vector<std::string_view> split_space(Heap& heap, std::string_view text, int64_t limit, bool from_right);
std::vector<std::string_view> split_lines(Heap& heap, std::string_view text, bool keep_ends);

std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string capitalize(std::string_view text);
std::string title(std::string_view text);        // str.title: a letter after a non-letter
bool is_alphabetic(char32_t code_point);
bool is_digit(char32_t code_point);
bool is_upper(char32_t code_point);
bool is_lower(char32_t code_point);
bool is_printable(char32_t code_point);
// repr(text), quotes included.
std::string quoted(std::string_view text);

// 'text %s' % values and 'text {}'.format(...).
std::string percent_format(Heap& heap, std::string_view format, const Value& values);
std::string brace_format(Heap& heap, std::string_view format, const Arguments& arguments);

}  // namespace quipu::jinja
