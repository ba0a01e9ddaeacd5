// PasskeyEvaluation: how often a model finds a pass key in a haystack of any length, and whether it is its memory that
// does. Many questions run side by side in ragged batches, and what questions have in common is read once: haystacks up
// to a needle are shared between the questions that have the same one, haystacks behind a needle at the start between
// lengths.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "train/passkey_task.h"

namespace quipu {

struct Runtime;

// What answers are given from.
enum class PasskeyMemory {
  kOwn,
  // Before the question every sequence gets the memories of the next one, so long before that nothing its local windows hold was made
  // with its own (in a model of many layers the window's tokens have read the memory, too).
  kForeign,
};

// One table cell: questions of one length with the needle at one depth.
struct PasskeyCell {
  int64_t tokens = 0;  // of the text and all of the answer but its last digit, which is only predicted
  double depth = 0;    // 0: right behind the opening, 1: right before the question
  int64_t samples = 0;
  PasskeyMemory memory = PasskeyMemory::kOwn;
  int64_t first = 0;   // question; the others follow
};

struct PasskeyAnswers {
  int64_t samples = 0, digits = 0;            // answers, and digits of all of them
  int64_t digits_right = 0, answers_right = 0;  // place by place; whole answers
  int64_t foreign_right = 0;                  // kForeign: digits of the key that belongs to the memory
  std::vector<std::vector<int32_t>> given;    // tokens of every answer
  double text_bytes = 0;                      // of one text, the mean
  int64_t state_bytes = 0;                    // of one sequence
  int64_t tokens_read = 0;                    // by the model for this cell: less than samples * tokens where shared
  double seconds = 0;

  double digit_share() const { return share(digits_right, digits); }
  double answer_share() const { return share(answers_right, samples); }
  double foreign_share() const { return share(foreign_right, digits); }

 private:
  static double share(int64_t part, int64_t of) { return of > 0 ? static_cast<double>(part) / static_cast<double>(of) : 0; }
};

struct PasskeyEvaluationOptions {
  uint64_t seed = 1;
  int64_t share = 5;        // neighbouring questions that have one haystack
  int64_t rows = 2048;      // of one pass of the model, about
  const volatile bool* interrupted = nullptr;
  std::function<void(int64_t done, int64_t total)> on_progress;  // tokens of this cell
};

class PasskeyEvaluation {
 public:
  // runtime: a model whose vocabulary is that of `text` or larger.
  PasskeyEvaluation(std::shared_ptr<Runtime> runtime, PasskeyText text, PasskeyEvaluationOptions options);
  ~PasskeyEvaluation();
  PasskeyEvaluation(PasskeyEvaluation&&) noexcept;

  // Cells in any order give the same answers; with tokens rising, what is shared is read once. kFailed when interrupted.
  Result<PasskeyAnswers> run(const PasskeyCell& cell);

  // Of question i, whatever the cell. PasskeyText::question() makes the same text of them.
  std::string key(int64_t question) const;
  uint64_t haystack_seed(int64_t question) const;

 private:
  struct Stream;  // a sequence and what it has still to read
  using Streams = std::vector<Stream>;
  using Kept = std::map<int64_t, Stream>;
  Result<Stream> begin(int64_t question) const;
  Result<void> read(std::span<Stream*> streams, std::span<const int64_t> until);
  Result<void> read_in_groups(std::span<Stream*> streams, int64_t until);
  int64_t window_reach() const;
  Result<void> feed(std::span<Stream> streams, std::span<const std::vector<int32_t>> tokens);
  Result<void> read_prefixes(int64_t before, std::span<const int64_t> questions);
  Result<Streams> behind_needle(const PasskeyCell& cell, std::span<const int64_t> questions);
  Result<void> exchange_memories(Streams& streams) const;
  Result<void> answer(Streams& streams, PasskeyAnswers& out);
  Result<void> forward(std::span<Stream*> streams, std::span<const std::span<const int32_t>> tokens, bool logits);

  std::shared_ptr<Runtime> runtime_;
  PasskeyText text_;
  PasskeyEvaluationOptions options_;
  std::vector<double> token_bytes_;        // of each token of the vocabulary
  Kept prefixes_;                          // by number of the haystack: read so far, no needle yet
  Kept from_start_;                        // by question: needle at the start, haystack read so far
  int64_t read_tokens_ = 0, planned_tokens_ = 0;   // of the cell
  std::vector<float> logits_;
};

}  // namespace quipu
