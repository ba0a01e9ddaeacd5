// Session: one conversation with a model: its context, the logits after it, and what can be done with them. The interface
// that programs see through engine/engine.h; generate/model_session.h is the implementation.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace quipu {

struct SamplingOptions {
  double temperature = 0.8;            // 0: greedy
  int64_t top_k = 40;                  // 0: off
  double top_p = 0.95;                 // 1: off
  double min_p = 0.05;                 // 0: off
  double repeat_penalty = 1.0;         // 1: off
  int64_t repeat_last = 64;
  uint64_t seed = 0;                   // the draw at a position depends on seed and position only
};

struct GenerateOptions {
  SamplingOptions sampling;
  int64_t max_tokens = -1;             // -1: until the context is full
  std::vector<std::string> stop;       // text that ends generation and is not shown
  bool ignore_end = false;             // go on after an end-of-generation token
  const volatile bool* interrupted = nullptr;   // checked between tokens (Ctrl-C)
};

enum class FinishReason { kStop, kLength, kContextFull, kInterrupted };
std::string_view finish_reason_name(FinishReason reason);   // "stop", "length", "context", "interrupted"

struct GenerateResult {
  std::string text;
  std::vector<int32_t> tokens;
  FinishReason finish = FinishReason::kStop;
};

// Time and traffic since a session began or counters were cleared.
struct SessionCounters {
  int64_t prompt_tokens = 0;
  double prompt_seconds = 0;
  int64_t generated_tokens = 0;
  double generate_seconds = 0;
  double generate_bytes = 0;           // weights and state read while generating
};

// How many tokens a layer with a depth router took in; the others passed it by.
struct RoutedLayer {
  int64_t layer = 0;
  int64_t seen = 0;          // tokens of the context
  int64_t taken = 0;         // of them, those that went through the layer
  int64_t reserved = 0;      // most it has room for in this context
  int64_t passed_full = 0;   // tokens that passed it by after its room was used up, whatever the router said
};

class Session {
 public:
  virtual ~Session() = default;

  virtual int64_t tokens() const = 0;              // in the context now
  virtual int64_t context() const = 0;             // most it can hold
  virtual std::span<const int32_t> token_ids() const = 0;
  virtual uint64_t state_bytes() const = 0;        // held now
  virtual std::vector<RoutedLayer> routed_layers() const { return {}; }   // of models with mixture of depths
  virtual const SessionCounters& counters() const = 0;
  virtual void clear_counters() = 0;

  // Takes in tokens (a prompt). kUsage when they do not fit, before anything is changed.
  // on_progress(done, total) is called after every chunk; `interrupted` stops between chunks with kFailed.
  virtual Result<void> feed(std::span<const int32_t> ids,
                            const std::function<void(int64_t done, int64_t total)>& on_progress = {},
                            const volatile bool* interrupted = nullptr) = 0;
  // The same, returning logits of every fed token, row by row [ids.size(), vocabulary], to `on_logits(row, logits)`.
  virtual Result<void> feed_with_logits(std::span<const int32_t> ids,
                                        const std::function<void(int64_t row, std::span<const float> logits)>& on_logits) = 0;
  // Logits after the last token; empty before the first.
  virtual std::span<const float> logits() const = 0;
  // XXH3-64 over the bits of logits(): equal runs print equal hashes.
  virtual uint64_t logits_hash() const = 0;

  // Samples from logits() and goes on, token by token; on_piece gets whole UTF-8 characters as they become certain.
  virtual Result<GenerateResult> generate(const GenerateOptions& options,
                                          const std::function<void(std::string_view piece)>& on_piece) = 0;

  // Cuts the context back to `tokens` (kUsage when this model's state cannot).
  virtual Result<void> rewind(int64_t tokens) = 0;
  virtual Result<std::unique_ptr<Session>> fork() const = 0;
  virtual Result<void> reset() = 0;

  // The context as a file: versioned, checksummed, tied to model and layout; written whole or not at all.
  // save returns the bytes written. load replaces the context; on error the session is as it was.
  virtual Result<uint64_t> save_state(const std::string& path) const = 0;
  virtual Result<void> load_state(const std::string& path) = 0;
};

}  // namespace quipu
