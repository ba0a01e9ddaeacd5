// One line from a person: with editing and a history on a terminal, plainly from a pipe.
#pragma once

#include <memory>
#include <optional>
#include <string>

namespace quipu::cli {

class LineEditor {
 public:
  // history_path: kept between runs, readable by its owner only; "" keeps none. `prompt` stands before every line.
  LineEditor(std::string prompt, std::string history_path);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  enum class Outcome { kLine, kInterrupted, kEnd };
  // The next line without its line break. Ctrl-C gives kInterrupted, Ctrl-D or the end of the input kEnd.
  Outcome read(std::string& line);
  // What is read as the first line's continuation gets this prompt instead (for """ blocks).
  void set_prompt(std::string prompt) { prompt_ = std::move(prompt); }

  bool interactive() const;
  const std::string& prompt() const { return prompt_; }

 private:
  struct Terminal;
  std::unique_ptr<Terminal> terminal_;  // null: input is no terminal
  std::string prompt_;
};

}  // namespace quipu::cli
