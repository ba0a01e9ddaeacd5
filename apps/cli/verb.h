// A verb of the program: one entry of the table, one file of its own.
#pragma once

#include <functional>
#include <span>
#include <string_view>

#include "base/result.h"

namespace CLI {
class App;
}

namespace quipu::cli {

// What a verb does once its flags are read. An Error becomes one line on stderr (and, with --json, an object on
// stdout) and its class the exit code.
using Action = std::function<Result<void>()>;

struct Verb {
  std::string_view name;
  std::string_view alias;     // another spelling, or ""
  std::string_view summary;   // half a line for the overview
  std::string_view synopsis;  // what follows "usage: "
  std::string_view details;   // a paragraph for `quipu help VERB`, or ""
  std::string_view examples;  // lines of commands with comments
  // Adds this verb's flags to `app` and returns what to do when they have been read.
  Action (*declare)(CLI::App& app);
};

std::span<const Verb> all_verbs();
// nullptr when no verb has this name or alias.
const Verb* find_verb(std::string_view name);

Action declare_run(CLI::App& app);
Action declare_chat(CLI::App& app);
Action declare_inspect(CLI::App& app);
Action declare_tokenize(CLI::App& app);
Action declare_perplexity(CLI::App& app);
Action declare_quantise(CLI::App& app);
Action declare_init(CLI::App& app);
Action declare_bench(CLI::App& app);
Action declare_verify_room(CLI::App& app);
Action declare_train(CLI::App& app);
Action declare_tokenizer(CLI::App& app);
Action declare_cost(CLI::App& app);
Action declare_bench_rooms(CLI::App& app);
Action declare_reproduce(CLI::App& app);
Action declare_demo(CLI::App& app);
Action declare_help(CLI::App& app);
Action declare_version(CLI::App& app);

// For a verb that answers yes or no: the exit code of an answer that was told in full but is a no.
void set_verdict(int exit_code);

// The page of `quipu` without arguments, and of `quipu help VERB`.
void print_overview();
void print_verb_help(const Verb& verb);

}  // namespace quipu::cli
