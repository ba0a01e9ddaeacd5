// Learning a tokenizer from text files, as programs see it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "train/bpe_trainer.h"

namespace quipu {

// Writes a tokenizer.json learnt from text files (train/bpe_trainer.h).
struct TokenizerTraining {
  std::vector<std::string> files;
  std::string out;
  BpeTrainingOptions options;
};
struct TokenizerTrained {
  int64_t vocabulary = 0, words = 0, forgotten_words = 0;
  uint64_t bytes = 0;
};
// on_progress(stage, done, total): "reading" in bytes, "learning" in tokens; false stops.
Result<TokenizerTrained> train_tokenizer(
    const TokenizerTraining& request,
    const std::function<bool(const char* stage, uint64_t done, uint64_t total)>& on_progress);

}  // namespace quipu
