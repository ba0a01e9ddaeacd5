// The task "passkey": a number is stated somewhere in a long, boring text and asked for at its end.
//                                                           [Mohtashami & Jaggi 2023, the prompt of Infini-attention]
//
//   There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about
//   it. The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.   (again and again)
//   The pass key is 12345. Remember it. 12345 is the pass key.                                  (somewhere in it)
//   What is the pass key? The pass key is 12345.
//
// [data.passkey]:
//   vocabulary = "words"     one token a word and a digit, or "bytes": one a byte (11 times longer texts)
//   digits = 5
//   lm_weight = 0.1          weight of the loss on everything but the answer, whose weight is 1
//   early = 0.3              this share of questions has the needle within the first two segments; the others anywhere
//   start_length = 0         tokens of the first questions; they double until train.sequence. 0: full length from the
//   start curriculum = 0.5         share of the run over which they grow repeat_max = 1           repeat-count
//   augmentation: the memory takes every segment of pure filler m times, m drawn
//                            log-uniformly from 1 to this for each question                    (needs a model with
//                            segments)
//   repeat_start = 0.25      share of the run before it begins
//   repeat_plain = 0.3       share of questions with m = 1 even then
#pragma once

#include <string>
#include <vector>

#include "text/tokenizer.h"
#include "train/task.h"

namespace quipu {

struct PasskeySettings {
  bool bytes = false;
  int64_t digits = 5;
  double lm_weight = 0.1, early = 0.3;
  int64_t start_length = 0;
  double curriculum = 0.5;
  int64_t repeat_max = 1;
  double repeat_start = 0.25, repeat_plain = 0.3;
};

// One question of exactly `length` tokens and what is known about it; also for evaluation at any length.
struct PasskeyQuestion {
  std::vector<int32_t> tokens;  // [length + 1]: the answer's last digit is the last target
  std::string digits;
  int64_t needle_begin = 0, needle_end = 0;
  int64_t answer_begin = 0;  // first token of the answer
};

class PasskeyText {
 public:
  static Result<PasskeyText> create(bool bytes, int64_t digits);
  std::string tokenizer_json() const { return tokenizer_json_; }
  int64_t vocabulary() const { return tokenizer_->vocab_size(); }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  int64_t shortest() const;  // tokens of a question without filler
  int64_t filler_period() const { return static_cast<int64_t>(filler_.size()); }

  // seed decides digits and the phase of the filler; depth in [0, 1] where the needle begins: 0 right behind the
  // opening. The needle is put at the sentence boundary nearest to it. length >= shortest().
  PasskeyQuestion question(int64_t length, double depth, uint64_t seed) const;

 private:
  std::vector<int32_t> ids(std::string_view text) const;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string tokenizer_json_;
  int64_t digits_ = 5;
  std::vector<int32_t> opening_, filler_, question_;
  std::vector<int64_t> sentence_begins_;  // in filler_
};

Result<std::unique_ptr<Task>> make_passkey_task(SettingsReader settings, const TaskOptions& options);

}  // namespace quipu
