// The pass key hidden in a long text and asked for, by a model that comes with the program.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/result.h"

namespace quipu {

// What is known before reading begins.
struct PasskeyDemoPlan {
  std::string model;         // folder
  int64_t parameters = 0, layers = 0, hidden = 0;
  std::string memory;        // of a layer, in words
  std::string key;
  std::string before, needle, after;   // the needle's sentence and the text around it
  int64_t tokens = 0, needle_at = 0;   // of the question, without the answer; tokens before the needle
  int64_t text_bytes = 0;
  int64_t cache_bytes = 0;   // of keys and values of all tokens, were they kept
};

struct PasskeyDemoRequest {
  std::string model;         // folder; empty: the one that comes with the program
  int64_t tokens = 0;        // of the question
  double position = 0.5;     // of the needle, 0 to 1
  uint64_t seed = 0;
  int threads = 0;
  const volatile bool* interrupted = nullptr;
  std::function<void(const PasskeyDemoPlan& plan)> on_plan;
  std::function<void(int64_t done, int64_t total, int64_t state_bytes)> on_progress;
};

struct PasskeyDemoOutcome {
  std::string expected, answer;
  int64_t tokens = 0, text_bytes = 0;
  double seconds = 0;        // of reading and answering
  int64_t state_bytes = 0;   // the whole context, when the answer is given
};

Result<PasskeyDemoOutcome> run_passkey_demo(const PasskeyDemoRequest& request);

// The folder of a model that comes with the program, such as "passkey": beside the program, where it is installed to, or
// where it was built. kFailed, with the places that were searched, when it is in none of them.
Result<std::string> find_own_model(const std::string& name);

}  // namespace quipu
