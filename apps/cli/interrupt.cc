#include "interrupt.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstddef>

namespace quipu::cli {
namespace {

volatile bool interrupt_seen = false;
int wakeup[2] = {-1, -1};  // a pipe: what waits in poll() is woken whichever thread got the signal

void on_signal(int) {
  constexpr int kInterruptedTwice = 130;
  if (interrupt_seen) {
    static const char message[] = "\nquipu: stopped at once\n";
    const ssize_t ignored = write(STDERR_FILENO, message, sizeof(message) - 1);
    static_cast<void>(ignored);
    _exit(kInterruptedTwice);
  }
  interrupt_seen = true;
  const int saved_errno = errno;
  const ssize_t ignored = write(wakeup[1], "!", 1);
  static_cast<void>(ignored);
  errno = saved_errno;
}

}  // namespace

void install_interrupt_handlers() {
  if (pipe2(wakeup, O_NONBLOCK | O_CLOEXEC) != 0) {
    wakeup[0] = wakeup[1] = -1;  // poll() skips -1
  }
  struct sigaction action{};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

const volatile bool* interrupt_flag() { return &interrupt_seen; }
int interrupt_descriptor() { return wakeup[0]; }

void clear_interrupt() {
  char drained[16];
  while (read(wakeup[0], drained, sizeof(drained)) > 0) {
  }
  interrupt_seen = false;
}

}  // namespace quipu::cli
