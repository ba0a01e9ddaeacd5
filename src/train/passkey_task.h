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
//   haystack = "repeated"    five sentences again and again, or "prose": sentences that are put together anew each time
//   needle = "number"        `digits` decimal digits, or "identifier": hexadecimal ones              [RULER's S-NIAH-2, 3]
//   digits = 5
//   lm_weight = 0.1          weight of the loss on everything but the answer, whose weight is 1
//   lm_share = 1             share of those tokens that are predicted at all; predicting none of the rest saves time
//   copy_weight = 0          further weight on the needle's second statement, which can be copied from its first
//   early = 0.3              this share of questions has the needle within the first two segments; the others anywhere
//   start_length = 0         tokens of the first questions; they double until train.sequence. 0: full length at once
//   curriculum = 0.5         share of the run over which they grow
//   shorter = 0.25           share of questions that are shorter than what has been reached, log-uniform down to the first
//   repeat_max = 1           repeat-count augmentation: the memory takes every segment of pure filler m times, m drawn
//                            log-uniformly from 1 to this for each question             (needs a model with segments)
//   repeat_start = 0.25      share of the run before it begins
//   repeat_full = 0          share of the run at which repeat_max is reached; before, the largest m rises to it as a power
//   repeat_plain = 0.3       share of questions with m = 1 even then
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/random.h"
#include "text/tokenizer.h"
#include "train/task.h"

namespace quipu {

// What the texts are made of.
struct PasskeyKind {
  bool bytes = false;
  bool prose = false;        // the haystack
  bool identifier = false;   // the needle
  int64_t digits = 5;
};

struct PasskeySettings {
  PasskeyKind kind;
  double lm_weight = 0.1, lm_share = 1, copy_weight = 0, early = 0.3;
  int64_t start_length = 0;
  double curriculum = 0.5, shorter = 0.25;
  int64_t repeat_max = 1;
  double repeat_start = 0.25, repeat_full = 0, repeat_plain = 0.3;
};

// One question of exactly `length` tokens and what is known about it.
struct PasskeyQuestion {
  std::vector<int32_t> tokens;  // [length + 1]: the answer's last digit is the last target
  std::string digits;
  int64_t needle_begin = 0, needle_end = 0;
  int64_t copy_begin = 0;    // first token of the needle's second statement of the digits
  int64_t answer_begin = 0;  // first token of the answer
};

// The haystack, token after token, without an end. Repeated sentences begin anywhere in their period; prose is a pure
// function of the seed.
class PasskeyHaystack {
 public:
  // Appends the next `count` tokens.
  void take(std::vector<int32_t>& out, int64_t count);
  // The same up to the next place between two sentences, nothing when it is at one, but no more than `most` tokens.
  void take_sentence(std::vector<int32_t>& out, int64_t most);
  int64_t taken() const { return taken_; }

 private:
  friend class PasskeyText;
  PasskeyHaystack(const class PasskeyText& text, uint64_t seed);
  void refill();
  const PasskeyText* text_;
  RandomStream random_;
  std::vector<int32_t> sentence_;  // that is being read
  size_t at_ = 0;                  // in it
  size_t next_ = 0;                // repeated: number of the sentence after it
  int64_t taken_ = 0;
};

class PasskeyText {
 public:
  static Result<PasskeyText> create(const PasskeyKind& kind);
  const PasskeyKind& kind() const { return kind_; }
  std::string tokenizer_json() const { return tokenizer_json_; }
  int64_t vocabulary() const { return tokenizer_->vocab_size(); }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  int64_t shortest() const;       // tokens of a question without filler
  int64_t filler_period() const;  // tokens after which repeated sentences repeat

  // The parts of a question: opening, haystack, needle, haystack, question_text, answer.
  PasskeyHaystack haystack(uint64_t seed) const { return {*this, seed}; }
  std::span<const int32_t> opening() const { return opening_; }
  std::span<const int32_t> question_text() const { return question_; }
  std::vector<int32_t> needle(const std::string& digits) const;
  std::vector<int32_t> answer(const std::string& digits) const { return ids(digits); }
  std::string draw_digits(uint64_t seed) const;
  // Tokens of haystack in a question of `length` tokens, and how many at least lie before the needle: it is put behind
  // the sentence that is being read then, or at the end.
  int64_t filler_tokens(int64_t length) const { return length - shortest(); }
  int64_t filler_before(int64_t length, double depth) const {
    return static_cast<int64_t>(depth * static_cast<double>(filler_tokens(length)));
  }

  // seed decides digits and haystack; depth in [0, 1] where the needle begins: 0 right behind the opening, 1 right before
  // the question. length >= shortest().
  PasskeyQuestion question(int64_t length, double depth, uint64_t seed) const;
  PasskeyQuestion question(int64_t length, double depth, const std::string& digits, uint64_t haystack_seed) const;

 private:
  friend class PasskeyHaystack;
  std::vector<int32_t> ids(std::string_view text) const;
  std::string prose_sentence(RandomStream& random) const;
  PasskeyKind kind_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string tokenizer_json_;
  std::vector<int32_t> opening_, question_;
  std::vector<std::vector<int32_t>> sentences_;  // that repeat
  int64_t needle_tokens_ = 0;
};

Result<std::unique_ptr<Task>> make_passkey_task(SettingsReader settings, const TaskOptions& options);

}  // namespace quipu
