// Task: generated training data with known answers, and the tokenizer that goes with it.
//
// A task is one file and one line of the table in task.cc. Samples are pure functions of (seed, index, progress); texts
// made by tasks encode to the same ids with the task's tokenizer.json, so that a trained model runs in `quipu run`.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"
#include "train/run_config.h"
#include "train/sample.h"

namespace quipu {

class Task : public SampleSource {
 public:
  int64_t samples_per_epoch() const override { return 0; }
  // The text of a tokenizer.json for its tokens.
  virtual std::string tokenizer_json() const = 0;
};

struct TaskOptions {
  int64_t sequence = 0;  // rows of a sample, at most
  int64_t seed = 0;
  bool held_out = false;          // samples that training never draws, at full length and without augmentation
  int64_t segment = 0;            // tokens of the model's memory segments, when it has any: for repeat counts
  std::string file = "run.toml";  // of the settings, for messages
};

// Errors: kUsage for an unknown name (with the known ones), kBadInput for a setting that is unknown or out of range,
// naming file and line.
Result<std::unique_ptr<Task>> make_task(const std::string& name, const TaskSettings& settings,
                                        const TaskOptions& options);

// Reads a task's settings: every value asked for once, the rest refused.
class SettingsReader {
 public:
  SettingsReader(const std::string& task, const TaskSettings& settings, const std::string& file)
      : task_(task), settings_(settings), file_(file) {}
  Result<void> whole(int64_t& out, const std::string& key, int64_t low, int64_t high);
  Result<void> real(double& out, const std::string& key, double low, double high);  // low <= value <= high
  Result<void> flag(bool& out, const std::string& key);
  Result<void> choice(std::string& out, const std::string& key, const std::vector<std::string>& words);
  Result<void> nothing_else() const;
  Error wrong(const std::string& key, const std::string& what) const;

 private:
  const TaskSettings::Value* find(const std::string& key);
  std::string task_;
  const TaskSettings& settings_;
  std::string file_;
  std::vector<std::string> known_;
};

// A byte-level tokenizer.json whose tokens are the 256 bytes (ids 0 to 255), then `words` (ids 256 ...), then
// <|endoftext|>. A piece of text that is one of the words becomes that token, any other its bytes; digits stand alone.
// words: letters, maybe after one space.
std::string word_tokenizer_json(const std::vector<std::string>& words);

}  // namespace quipu
