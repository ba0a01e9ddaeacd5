// Where the words for the model come from: -p, -f or standard input.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "base/result.h"

namespace quipu::cli {

struct PromptFlags {
  std::string text;
  std::string file;
  const CLI::Option* text_option = nullptr;  // to tell -p "" from no -p
};
void add_prompt_flags(CLI::App& app, PromptFlags& flags);

// Whether -p or -f was given.
bool prompt_given(const PromptFlags& flags);

// -p, then -f after an empty line when both are given; standard input when neither is and it is not a terminal.
// One line break at the end of a file is dropped. kUsage when there is nothing to read.
Result<std::string> prompt_text(const PromptFlags& flags);

}  // namespace quipu::cli
