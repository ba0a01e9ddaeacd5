// ProgressBar: how far a long task is, how fast it goes and how long it will still take, on stderr.
//
// On a terminal one line is redrawn in place (coloured unless NO_COLOR is set); elsewhere a plain line is written every
// few seconds, so that a log stays readable. Nothing is shown for tasks that end within half a second.
#pragma once

#include <cstdio>
#include <string>

namespace quipu::cli {

class ProgressBar {
 public:
  struct Style {
    bool tokens = true;          // false: the counts are bytes
    bool share = false;          // the counts are parts of some work: shown as a percentage alone
    bool keep = false;           // leave the finished line on the terminal
    bool silent = false;         // show nothing at all
    bool terminal_only = false;  // no plain lines elsewhere
  };
  ProgressBar(std::string label, Style style);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // done of total (total > 0); note: a short text at the end, such as the running perplexity.
  void update(double done, double total, const std::string& note = {});
  // Ends the line; further calls do nothing. The destructor calls it.
  void finish();

 private:
  std::string line(double done, double total, const std::string& note, double seconds, int columns) const;

  std::string label_;
  Style style_;
  bool terminal_ = false;
  bool drawn_ = false;
  bool finished_ = false;
  double start_ = 0;
  double last_drawn_ = 0;
};

bool stream_is_terminal(std::FILE* stream);
bool colour_wanted(std::FILE* stream);  // a terminal, NO_COLOR unset or empty, TERM not "dumb"
int terminal_columns();                 // of stderr; 80 when unknown

}  // namespace quipu::cli
