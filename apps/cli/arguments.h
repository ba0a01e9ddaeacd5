// From the words of a command line to a verb's flags: CLI11 does the reading, this adds what people expect of it:
// llama.cpp's spellings, numbers with clear limits, and a suggestion for what was mistyped.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "base/result.h"

namespace quipu::cli {

// Rewrites spellings that have two letters after one dash (-ctk, -sys, -ub, ...) to their long forms.
std::vector<std::string> with_long_spellings(std::vector<std::string> words);

// The first word that looks like a flag but is none of `app`'s, as an error with the nearest flag; ok() otherwise.
Result<void> check_flags_known(const CLI::App& app, const std::vector<std::string>& words);

// Reads `words` (without program and verb) into the variables bound in `app`. Errors are kUsage.
Result<void> parse_words(CLI::App& app, const std::vector<std::string>& words);

// Every flag name of `app`, with dashes.
std::vector<std::string> flag_names(const CLI::App& app);

// Checkers for CLI::Option::check: the word must be a number within [low, high].
CLI::Validator whole_number(int64_t low, int64_t high = std::numeric_limits<int64_t>::max());
CLI::Validator real_number(double low, double high);

// A count such as "512", "4k" (4096) or "1M" (1048576).
Result<int64_t> parse_count(std::string_view text, std::string_view flag);
// Several, separated by commas; each within [low, high].
Result<std::vector<int64_t>> parse_counts(std::string_view text, std::string_view flag, int64_t low, int64_t high);

}  // namespace quipu::cli
