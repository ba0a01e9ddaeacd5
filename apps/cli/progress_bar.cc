#include "progress_bar.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "base/clock.h"
#include "human_text.h"

namespace quipu::cli {
namespace {

constexpr double kFirstShownSeconds = 0.5;
constexpr double kRedrawSeconds = 0.1;
constexpr double kPlainLineSeconds = 5.0;

}  // namespace

bool stream_is_terminal(std::FILE* stream) { return isatty(fileno(stream)) == 1; }

bool colour_wanted(std::FILE* stream) {
  const char* no_colour = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  return stream_is_terminal(stream) && (no_colour == nullptr || *no_colour == '\0') && term != nullptr &&
         std::string_view(term) != "dumb";
}

int terminal_columns() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

ProgressBar::ProgressBar(std::string label, Style style)
    : label_(std::move(label)), style_(style), terminal_(stream_is_terminal(stderr)), start_(monotonic_seconds()) {
  last_drawn_ = start_;
  if (style_.terminal_only && !terminal_) style_.silent = true;
}

ProgressBar::~ProgressBar() { finish(); }

void ProgressBar::update(double done, double total, const std::string& note) {
  if (style_.silent || finished_) return;
  const double now = monotonic_seconds();
  const double seconds = now - start_;
  const bool last = done >= total;
  if (!drawn_ && (seconds < kFirstShownSeconds)) return;
  if (terminal_) {
    if (drawn_ && !last && now - last_drawn_ < kRedrawSeconds) return;
    std::fprintf(stderr, "\r\033[K%s", line(done, total, note, seconds, terminal_columns() - 1).c_str());
  } else {
    if (!last && now - last_drawn_ < kPlainLineSeconds) return;
    std::fprintf(stderr, "%s\n", line(done, total, note, seconds, 0).c_str());
  }
  std::fflush(stderr);
  drawn_ = true;
  last_drawn_ = now;
}

void ProgressBar::finish() {
  if (finished_) return;
  finished_ = true;
  if (!drawn_ || !terminal_) return;
  std::fputs(style_.keep ? "\n" : "\r\033[K", stderr);
  std::fflush(stderr);
}

std::string ProgressBar::line(double done, double total, const std::string& note, double seconds, int columns) const {
  const double fraction = total > 0 ? std::clamp(done / total, 0.0, 1.0) : 0.0;
  const double rate = seconds > 0 ? done / seconds : 0;
  std::string right = text_f(" %3.0f %%", fraction * 100);
  if (style_.share) {
    // the percentage says it
  } else if (style_.tokens) {
    right += text_f("  %s of %s tokens  %.4g tok/s", grouped_count(static_cast<int64_t>(done)).c_str(),
                    grouped_count(static_cast<int64_t>(total)).c_str(), rate);
  } else {
    right += "  " + human_bytes(done) + " of " + human_bytes(total) + "  " + human_bytes(rate) + "/s";
  }
  if (fraction > 0 && fraction < 1) {
    right += "  " + human_seconds(seconds / fraction - seconds) + " left";
  }
  if (fraction >= 1) right += "  in " + human_seconds(seconds);
  if (!note.empty()) right += "  " + note;
  if (columns == 0) return label_ + right;

  const int room = columns - static_cast<int>(display_width(label_) + display_width(right)) - 1;
  if (room < 8) {
    std::string narrow = label_ + right;
    return narrow.substr(0, static_cast<size_t>(std::max(columns, 1)));
  }
  const int cells = std::min(room, 30);
  const int filled = static_cast<int>(fraction * cells);
  const bool colour = colour_wanted(stderr);
  std::string bar = label_ + " " + (colour ? "\033[36m" : "");
  for (int i = 0; i < filled; ++i) bar += "━";
  bar += colour ? "\033[90m" : "";
  for (int i = filled; i < cells; ++i) bar += colour ? "━" : "·";
  return bar + (colour ? "\033[0m" : "") + right;
}

}  // namespace quipu::cli
