// sweep_rooms: every kind of memory at every depth and batch, measured on this machine: what `quipu bench-rooms`
// prints.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "tensor/dtype.h"

namespace quipu {

// One memory at one depth and batch.
struct SweepCase {
  std::string name, key;  // "MTLA s=3 + MoD", "mtla3+mod"
  bool depths = false;
  int64_t context = 0;  // tokens already there when a token is decoded
  int64_t batch = 0;    // sequences, each with its own state
  std::string skipped;  // why it was not measured; empty: it was

  int64_t prompt_tokens = 0;  // of the prompt that was measured, from an empty context; 0: none
  double prompt_tokens_per_second = 0;
  double decode_tokens_per_second = 0;     // of all sequences together: median over groups of steps
  double decode_low = 0, decode_high = 0;  // slowest and fastest group
  int64_t decode_steps = 0;
  std::string filled;        // how the context came to be: "prompt", "random rows", "prompt of 2048" (fixed state)
  uint64_t state_bytes = 0;  // of one sequence, to the row
  uint64_t held_bytes = 0;   // pages of all sequences
  uint64_t peak_bytes = 0;   // most memory of the process during this case, weights included
  double routed_share = 1;   // of tokens that routed layers let in; 1 without such layers
};

struct SweepReport {
  std::string shape;       // as asked for
  std::string shape_text;  // "9 layers of width 512, 8 heads of 64"
  std::string backend;     // "cpu avx512"
  int threads = 0;
  uint64_t memory_limit = 0;
  std::vector<SweepCase> cases;
  std::vector<std::string> rules;
  bool interrupted = false;
  bool peak_per_case = true;  // false: peaks count from the start of the process
};

struct SweepOptions {
  std::string shape = "mtla";  // one of sweep_shapes(), or the path of a configuration, model folder or GGUF file
  std::vector<int64_t> contexts = {1024, 4096, 16384};
  std::vector<int64_t> batches = {1, 8};
  std::vector<std::string> rooms;  // keys such as "mha", "mtla3", "infini-linear"; empty: all
  bool depths = true;              // each also with mixture of depths
  DType cache_dtype = DType::kF16;
  int threads = 0;
  int64_t prompt_tokens = 2048;  // longest prompt that is measured
  int64_t segment_tokens = 2048;
  double budget_seconds = 600;
  uint64_t memory_limit = 0;  // 0: two thirds of what is available, at most 8 GB
  const volatile bool* interrupted = nullptr;
  // Shares of the whole work done, and what comes next.
  std::function<void(double done, double total, const std::string& next)> on_progress;
};

std::string sweep_shapes();  // "mtla, smollm2, gqa-1b, infini"
// Keys of rooms, for messages and help.
std::string sweep_room_keys();

// kUsage for unknown rooms, out-of-range counts. What was measured before an interruption is in the report.
Result<SweepReport> sweep_rooms(const SweepOptions& options);

}  // namespace quipu
