#include "train/copy_task.h"

#include "base/random.h"

namespace quipu {
namespace {

enum Stream : uint64_t { kTrain = 0x636f7079, kHeldOut = 0x636f7068 };

class CopyTask final : public Task {
 public:
  CopyTask(const TaskOptions& options, int64_t letters, int64_t alphabet)
      : options_(options), letters_(letters), alphabet_(alphabet) {}

  // As many questions "abcd=abcd\n" as fit, each a sequence of its own.
  TrainSample sample(int64_t index, double) const override {
    RandomStream random(mix64(static_cast<uint64_t>(options_.seed)) ^ static_cast<uint64_t>(index),
                        options_.held_out ? kHeldOut : kTrain);
    TrainSample out;
    const int64_t rows = 2 * letters_ + 1;
    while (out.rows() + rows <= options_.sequence) {
      std::string text;
      for (int64_t i = 0; i < letters_; ++i)
        text += static_cast<char>('a' + random.below(static_cast<uint64_t>(alphabet_)));
      text += "=" + text + "\n";
      for (int64_t i = 0; i < rows; ++i) {
        const bool answer = i >= letters_ && i < 2 * letters_;
        if (answer) out.answer_rows.push_back(out.rows());
        out.tokens.push_back(text[static_cast<size_t>(i)]);
        out.targets.push_back(text[static_cast<size_t>(i) + 1]);
        out.weights.push_back(answer ? 1.0f : 0.1f);
      }
      out.answer_ends.push_back(static_cast<int64_t>(out.answer_rows.size()));
      out.lengths.push_back(rows);
    }
    return out;
  }
  int64_t vocabulary() const override { return 257; }
  std::string description() const override {
    return "task copy, " + std::to_string(letters_) + " letters of " + std::to_string(alphabet_);
  }
  std::string tokenizer_json() const override { return word_tokenizer_json({}); }

 private:
  TaskOptions options_;
  int64_t letters_, alphabet_;
};

}  // namespace

Result<std::unique_ptr<Task>> make_copy_task(SettingsReader settings, const TaskOptions& options) {
  int64_t letters = 8, alphabet = 26;
  RETURN_IF_ERROR(settings.whole(letters, "letters", 1, 1 << 20));
  RETURN_IF_ERROR(settings.whole(alphabet, "alphabet", 2, 26));
  RETURN_IF_ERROR(settings.nothing_else());
  if (2 * letters + 1 > options.sequence) {
    return settings.wrong("letters", "needs sequences of " + std::to_string(2 * letters + 1) +
                                         " tokens; train.sequence is " + std::to_string(options.sequence));
  }
  return std::unique_ptr<Task>(std::make_unique<CopyTask>(options, letters, alphabet));
}

}  // namespace quipu
