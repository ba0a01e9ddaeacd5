#include "line_editor.h"

#include <histedit.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cwchar>

#include "interrupt.h"
#include "progress_bar.h"

namespace quipu::cli {
namespace {

constexpr int kHistoryLines = 1000;

void make_folders(const std::string& path) {
  for (size_t slash = path.find('/', 1); slash != std::string::npos; slash = path.find('/', slash + 1)) {
    mkdir(path.substr(0, slash).c_str(), 0700);  // exists already: fine; cannot: the history is not kept
  }
}

// One character of the terminal, as libedit wants it: 1 read, 0 end of input, -1 interrupted or failed.
int read_character(wchar_t& out) {
  std::mbstate_t partial{};
  while (true) {
    if (interrupted()) return -1;
    // The descriptor also wakes this when Ctrl-C came just before the wait, or was delivered to another thread.
    pollfd sources[] = {{STDIN_FILENO, POLLIN, 0}, {interrupt_descriptor(), POLLIN, 0}};
    if (poll(sources, 2, -1) < 0) {
      if (errno == EINTR) continue;
      return -1;
    }
    if (interrupted()) return -1;
    char byte = 0;
    const ssize_t count = ::read(STDIN_FILENO, &byte, 1);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return static_cast<int>(count);
    const size_t outcome = std::mbrtowc(&out, &byte, 1, &partial);
    if (outcome == static_cast<size_t>(-2)) {
      continue;  // the character goes on
    }
    if (outcome == static_cast<size_t>(-1)) {
      partial = {};  // no character: wait for one that is
      continue;
    }
    return 1;
  }
}

}  // namespace

struct LineEditor::Terminal {
  EditLine* editor = nullptr;
  History* history = nullptr;
  HistEvent event{};
  std::string history_path;
};

LineEditor::LineEditor(std::string prompt, std::string history_path) : prompt_(std::move(prompt)) {
  if (!stream_is_terminal(stdin)) return;
  terminal_ = std::make_unique<Terminal>();
  // The prompt goes to standard error, so that `quipu chat > answers.txt` holds answers only.
  terminal_->editor = el_init("quipu", stdin, stderr, stderr);
  if (terminal_->editor == nullptr) {
    terminal_.reset();
    return;
  }
  el_set(terminal_->editor, EL_CLIENTDATA, this);
  el_set(
      terminal_->editor, EL_PROMPT, +[](EditLine* editor) -> char* {
        LineEditor* self = nullptr;
        el_get(editor, EL_CLIENTDATA, &self);
        return self->prompt_.data();
      });
  el_set(terminal_->editor, EL_GETCFN, +[](EditLine*, wchar_t* out) -> int { return read_character(*out); });
  el_set(terminal_->editor, EL_EDITOR, "emacs");
  el_set(terminal_->editor, EL_SIGNAL, 0);  // Ctrl-C is ours: see interrupt.h
  el_set(terminal_->editor, EL_BIND, "^R", "em-inc-search-prev", nullptr);
  terminal_->history = history_init();
  if (terminal_->history != nullptr) {
    history(terminal_->history, &terminal_->event, H_SETSIZE, kHistoryLines);
    history(terminal_->history, &terminal_->event, H_SETUNIQUE, 1);
    el_set(terminal_->editor, EL_HIST, history, terminal_->history);
    terminal_->history_path = std::move(history_path);
    if (!terminal_->history_path.empty()) {
      make_folders(terminal_->history_path);
      history(terminal_->history, &terminal_->event, H_LOAD, terminal_->history_path.c_str());
    }
  }
  el_source(terminal_->editor, nullptr);  // the user's ~/.editrc
}

LineEditor::~LineEditor() {
  if (!terminal_) return;
  if (terminal_->history != nullptr) {
    if (!terminal_->history_path.empty()) {
      const mode_t before = umask(0077);
      history(terminal_->history, &terminal_->event, H_SAVE, terminal_->history_path.c_str());
      umask(before);
    }
    history_end(terminal_->history);
  }
  el_end(terminal_->editor);
}

bool LineEditor::interactive() const { return terminal_ != nullptr; }

LineEditor::Outcome LineEditor::read(std::string& line) {
  line.clear();
  if (!terminal_) {
    char* text = nullptr;
    size_t capacity = 0;
    const ssize_t length = getline(&text, &capacity, stdin);
    if (length > 0) line.assign(text, static_cast<size_t>(length));
    std::free(text);
    if (length < 0) return interrupted() ? Outcome::kInterrupted : Outcome::kEnd;
  } else {
    int length = 0;
    // Before the prompt is drawn: a key pressed in between would be read by the rules of the line-wise terminal.
    el_set(terminal_->editor, EL_PREP_TERM, 1);
    const char* text = el_gets(terminal_->editor, &length);
    if (text == nullptr || length <= 0) {
      if (!interrupted()) return Outcome::kEnd;
      clear_interrupt();
      el_reset(terminal_->editor);
      std::fputs("\n", stderr);
      return Outcome::kInterrupted;
    }
    line.assign(text, static_cast<size_t>(length));
    if (terminal_->history != nullptr && line.find_first_not_of(" \n") != std::string::npos) {
      history(terminal_->history, &terminal_->event, H_ENTER, line.c_str());
    }
  }
  while (line.ends_with('\n') || line.ends_with('\r')) line.pop_back();
  return Outcome::kLine;
}

}  // namespace quipu::cli
