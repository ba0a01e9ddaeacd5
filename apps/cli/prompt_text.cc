#include "prompt_text.h"

#include <cstdio>

#include "model_flags.h"
#include "progress_bar.h"

namespace quipu::cli {

void add_prompt_flags(CLI::App& app, PromptFlags& flags) {
  flags.text_option = app.add_option("-p,--prompt", flags.text, "the text");
  app.add_option("-f,--file", flags.file, "a file with the text, after -p if both are given; - is standard input");
}

bool prompt_given(const PromptFlags& flags) {
  return !flags.file.empty() || (flags.text_option != nullptr && flags.text_option->count() > 0);
}

Result<std::string> prompt_text(const PromptFlags& flags) {
  const bool has_text = flags.text_option != nullptr && flags.text_option->count() > 0;
  if (has_text && flags.file.empty()) return flags.text;
  if (flags.file.empty() && stream_is_terminal(stdin)) {
    return usage_error("no prompt: give -p \"TEXT\", -f FILE, or text on standard input");
  }
  ASSIGN_OR_RETURN(std::string text, read_text(flags.file.empty() ? "-" : flags.file));
  if (text.ends_with('\n')) text.pop_back();
  if (text.ends_with('\r')) text.pop_back();
  return has_text ? flags.text + "\n\n" + text : text;
}

}  // namespace quipu::cli
