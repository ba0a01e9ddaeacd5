// The `quipu` program: finds the verb, reads its flags, runs it, and turns what went wrong into one line and an exit
// code: 0 done, 1 the machine failed, 2 asked wrongly, 3 a file is bad.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <clocale>
#include <cstdio>
#include <exception>
#include <new>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "arguments.h"
#include "base/byte_reader.h"
#include "base/mapped_file.h"
#include "base/near_word.h"
#include "interrupt.h"
#include "report.h"
#include "verb.h"

namespace quipu::cli {
namespace {

int verdict = 0;

int report_error(const Error& error, bool json) {
  const int code = static_cast<int>(error.error_class);
  // One line, whatever a message quotes.
  std::string message = error.message;
  std::replace(message.begin(), message.end(), '\n', ' ');
  std::fflush(stdout);
  if (json) {
    const nlohmann::ordered_json object = {
        {"error", {{"class", error_class_name(error.error_class)}, {"message", message}, {"exit_code", code}}}};
    static_cast<void>(print_json(object));  // if even this cannot be written, the exit code remains
  }
  std::fprintf(stderr, "quipu: %s\n", message.c_str());
  return code;
}

Result<void> run_words(const Verb& verb, std::vector<std::string> words) {
  CLI::App app{std::string(verb.summary), "quipu " + std::string(verb.name)};
  app.set_help_flag("");
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  const Action action = verb.declare(app);
  RETURN_IF_ERROR(parse_words(app, words));
  return action();
}

Error unknown_verb(const std::string& word) {
  std::vector<std::string> names;
  for (const Verb& verb : all_verbs()) {
    names.emplace_back(verb.name);
    if (!verb.alias.empty()) names.emplace_back(verb.alias);
  }
  const std::string near = nearest_word(word, names);
  const bool flag = word[0] == '-';
  return usage_error(std::string(flag ? "unknown flag " : "unknown verb ") + printable(word) +
                     (near.empty() || flag ? "; 'quipu help' lists what there is" : "; did you mean " + near + "?"));
}

int run_program(std::vector<std::string> words) {
  if (words.empty()) {
    print_overview();
    return 0;
  }
  std::string name = words[0];
  if (name == "-h" || name == "--help") name = "help";
  if (name == "-V" || name == "--version") name = "version";
  words.erase(words.begin());
  const auto end_of_flags = std::find(words.begin(), words.end(), "--");
  const bool json = std::find(words.begin(), end_of_flags, "--json") != end_of_flags;
  const Verb* verb = find_verb(name);
  if (verb == nullptr) return report_error(unknown_verb(name), json);
  const auto asks_help = [](const std::string& word) { return word == "-h" || word == "--help"; };
  if (std::any_of(words.begin(), end_of_flags, asks_help)) {
    print_verb_help(*verb);
    return 0;
  }
  const Result<void> outcome = run_words(*verb, with_long_spellings(std::move(words)));
  return outcome.ok() ? verdict : report_error(outcome.error(), json);
}

}  // namespace

void set_verdict(int exit_code) { verdict = exit_code; }

}  // namespace quipu::cli

int main(int argc, char** argv) {
  using namespace quipu::cli;
  std::setlocale(LC_CTYPE, "");  // the line editor needs to know that the terminal speaks UTF-8
  quipu::install_mapped_file_guard();
  install_interrupt_handlers();
  try {
    return run_program(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const std::bad_alloc&) {
    std::fputs("quipu: out of memory\n", stderr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "quipu: internal error: %s\n", error.what());
  }
  return static_cast<int>(quipu::ErrorClass::kFailed);
}
