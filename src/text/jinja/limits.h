// What one template may cost. Templates come with model files and messages come from users: both are hostile.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace quipu::jinja {

// Bounds at parsing. Real templates are under 32 KiB and nest fewer than 20 levels.
inline constexpr int64_t kMaxSourceBytes = int64_t{1} << 20;
inline constexpr int kMaxNesting = 100;      // statements in statements, brackets in brackets
inline constexpr int kMaxNodeDepth = 200;    // a.b.c..., x|f|g...: chains that become a tree leaning left

// Bounds at rendering. Each is counted over one render call.
struct Limits {
  int64_t steps = 5'000'000;               // nodes evaluated, loop rounds, items produced
  int64_t work_bytes = int64_t{1} << 30;   // bytes read by searching, splitting, comparing, counting
  int64_t memory_bytes = int64_t{192} << 20;  // bytes of all values ever made: nothing is freed before the end
  int64_t output_bytes = int64_t{8} << 20;
  int call_depth = 100;                    // macros inside macros
};

// Evaluation frames on the machine stack, over all macro calls together. A test runs the deepest on a small stack.
inline constexpr int kMaxEvaluationDepth = 1000;
// Levels of lists in lists that printing, comparing and tojson follow.
inline constexpr int kMaxValueDepth = 100;

// How the interpreter reports trouble inside itself; never leaves this library (template.cc turns it into an Error).
class TemplateError : public std::runtime_error {
 public:
  explicit TemplateError(const std::string& message, int at_line = 0) : std::runtime_error(message), line(at_line) {}
  int line;  // 0 when the thrower does not know it
};

[[noreturn]] inline void fail(const std::string& message, int line = 0) { throw TemplateError(message, line); }

}  // namespace quipu::jinja
