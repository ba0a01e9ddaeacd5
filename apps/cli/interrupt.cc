#include "interrupt.h"

#include <csignal>
#include <cstddef>
#include <unistd.h>

namespace quipu::cli {
namespace {

volatile bool interrupt_seen = false;

void on_signal(int) {
  constexpr int kInterruptedTwice = 130;
  if (interrupt_seen) {
    static const char message[] = "\nquipu: stopped at once\n";
    const ssize_t ignored = write(STDERR_FILENO, message, sizeof(message) - 1);
    static_cast<void>(ignored);
    _exit(kInterruptedTwice);
  }
  interrupt_seen = true;
}

}  // namespace

void install_interrupt_handlers() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

const volatile bool* interrupt_flag() { return &interrupt_seen; }
void clear_interrupt() { interrupt_seen = false; }

}  // namespace quipu::cli
