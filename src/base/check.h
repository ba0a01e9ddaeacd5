// CHECK(condition) << details: stops the program when *we* made a mistake. Never used on bytes from outside.
#pragma once

#include <sstream>

namespace quipu {

// Prints file, line, condition and the streamed details to stderr, then aborts.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition);
  [[noreturn]] ~CheckFailure();
  std::ostream& stream() { return message_; }

 private:
  std::ostringstream message_;
};

struct CheckVoidify {
  void operator&(std::ostream&) const {}
};

}  // namespace quipu

#define CHECK(condition)                    \
  (__builtin_expect(!!(condition), 1))      \
      ? (void)0                             \
      : ::quipu::CheckVoidify() & ::quipu::CheckFailure(__FILE__, __LINE__, #condition).stream()
