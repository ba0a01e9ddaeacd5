#include "arguments.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "base/byte_reader.h"
#include "base/near_word.h"
#include "human_text.h"

namespace quipu::cli {
namespace {

constexpr std::array<std::pair<std::string_view, std::string_view>, 9> kLongSpellings = {{
    {"-ctk", "--cache-type"},
    {"-ctv", "--cache-type"},
    {"-sys", "--system"},
    {"-ub", "--batch"},
    {"-tb", "--threads"},
    {"-hf", "--hf-repo"},
    {"-ngl", "--gpu-layers"},
    {"-fa", "--flash-attn"},
    {"-np", "--parallel"},
}};

// Flags of other engines that have no counterpart here: better a reason than "unknown".
constexpr std::array<std::pair<std::string_view, std::string_view>, 5> kForeignFlags = {{
    {"--gpu-layers", "there is no GPU back end yet; leave the flag out"},
    {"--flash-attn",
     "attention never builds a T x T matrix here, so there is nothing to switch on; leave the flag out"},
    {"--hf-repo", "models are not downloaded by name; give the path of a GGUF file or of a Hugging Face folder"},
    {"--parallel", "there is no server yet; run one program per conversation"},
    {"--jinja", "the model's own template is always used; --raw turns it off"},
}};

bool looks_like_flag(std::string_view word) {
  if (word.size() < 2 || word[0] != '-') return false;
  // "-1" and "-.5" are values; "-" alone is standard input.
  return !(word[1] >= '0' && word[1] <= '9') && word[1] != '.';
}

bool takes_value(const CLI::Option& option) { return option.get_items_expected_min() > 0; }

}  // namespace

std::vector<std::string> with_long_spellings(std::vector<std::string> words) {
  for (std::string& word : words) {
    if (word == "--") break;
    for (const auto& [spelling, longer] : kLongSpellings) {
      if (word == spelling) word = longer;
    }
  }
  return words;
}

std::vector<std::string> flag_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
  }
  return names;
}

Result<void> check_flags_known(const CLI::App& app, const std::vector<std::string>& words) {
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == "--") break;
    if (!looks_like_flag(word)) continue;
    const bool is_long = word.substr(0, 2) == "--";
    const std::string name = is_long ? word.substr(0, word.find('=')) : word.substr(0, 2);
    const CLI::Option* option = app.get_option_no_throw(name);
    // "-t4" is "-t 4", but "-temp" is a mistyped "--temp" rather than "-t emp".
    const bool glued_text = !is_long && word.size() > 3 && option != nullptr && std::isalpha(word[2]) != 0;
    if (option != nullptr && !glued_text) {
      const bool value_inside = word.size() > name.size();
      if (takes_value(*option) && !value_inside) ++i;
      continue;
    }
    for (const auto& [flag, reason] : kForeignFlags) {
      if (name == flag) return usage_error(std::string(flag) + ": " + std::string(reason));
    }
    const std::string shown = is_long ? name : word;
    const std::string near = nearest_word(shown, flag_names(app));
    return usage_error(
        "unknown flag " + printable(shown) +
        (near.empty() ? "; '" + app.get_name() + " --help' lists them" : "; did you mean " + near + "?"));
  }
  return {};
}

Result<void> parse_words(CLI::App& app, const std::vector<std::string>& words) {
  RETURN_IF_ERROR(check_flags_known(app, words));
  try {
    std::vector<std::string> reversed(words.rbegin(), words.rend());  // CLI11 wants the last word first
    app.parse(std::move(reversed));
  } catch (const CLI::ExtrasError&) {
    const std::vector<std::string> extra = app.remaining();
    return usage_error("'" + printable(extra.empty() ? "" : extra[0]) +
                       "' is one word too many; quote text that has spaces, or see '" + app.get_name() + " --help'");
  } catch (const CLI::ParseError& error) {
    std::string message = error.what();
    message = message.substr(0, message.find('\n'));
    return usage_error(message + "; see '" + app.get_name() + " --help'");
  }
  return {};
}

CLI::Validator whole_number(int64_t low, int64_t high) {
  return CLI::Validator(
      [low, high](std::string& word) -> std::string {
        int64_t value = 0;
        const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
        if (error == std::errc::result_out_of_range ||
            (error == std::errc() && end == word.data() + word.size() && (value < low || value > high))) {
          const bool open = high == std::numeric_limits<int64_t>::max();
          return printable(word) + (open ? " is less than " + std::to_string(low)
                                         : " is not within " + std::to_string(low) + " to " + std::to_string(high));
        }
        if (error != std::errc() || end != word.data() + word.size()) {
          return "'" + printable(word) + "' is not a whole number";
        }
        return "";
      },
      "");
}

CLI::Validator real_number(double low, double high) {
  return CLI::Validator(
      [low, high](std::string& word) -> std::string {
        char* end = nullptr;
        const double value = std::strtod(word.c_str(), &end);
        if (word.empty() || *end != '\0') return "'" + printable(word) + "' is not a number";
        if (!(value >= low && value <= high)) return printable(word) + text_f(" is not within %g to %g", low, high);
        return "";
      },
      "");
}

Result<int64_t> parse_count(std::string_view text, std::string_view flag) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string_view unit = text.substr(static_cast<size_t>(end - text.data()));
  const int shift = unit == "k" || unit == "K" ? 10 : unit == "M" ? 20 : unit.empty() ? 0 : -1;
  if (error != std::errc() || shift < 0 || value < 0 || value > (std::numeric_limits<int64_t>::max() >> 20)) {
    return usage_error(std::string(flag) + ": '" + printable(text) + "' is not a count such as 512, 4k or 1M");
  }
  return value << shift;
}

Result<std::vector<int64_t>> parse_counts(std::string_view text, std::string_view flag, int64_t low, int64_t high) {
  std::vector<int64_t> counts;
  while (true) {
    const size_t comma = text.find(',');
    ASSIGN_OR_RETURN(const int64_t count, parse_count(text.substr(0, comma), flag));
    if (count < low || count > high) {
      return usage_error(std::string(flag) + text_f(": %lld is not within %lld to %lld", static_cast<long long>(count),
                                                    static_cast<long long>(low), static_cast<long long>(high)));
    }
    counts.push_back(count);
    if (comma == std::string_view::npos) return counts;
    text.remove_prefix(comma + 1);
  }
}

}  // namespace quipu::cli
