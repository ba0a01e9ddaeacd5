// quipu tokenizer train FILES...: learns a byte-level BPE vocabulary.
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/byte_reader.h"
#include "base/clock.h"
#include "engine/train_tokenizer.h"
#include "human_text.h"
#include "interrupt.h"
#include "progress_bar.h"
#include "report.h"
#include "verb.h"

namespace quipu::cli {
namespace {

struct TokenizerFlags {
  std::vector<std::string> words;
  std::string out, pattern = "gpt2";
  std::vector<std::string> special;
  int64_t vocab_size = 32000, min_count = 2, max_words = 4'000'000;
  bool force = false, json = false;
};

Result<void> train_one(const TokenizerFlags& flags) {
  TokenizerTraining request;
  request.files.assign(flags.words.begin() + 1, flags.words.end());
  if (request.files.empty())
    return usage_error(
        "tokenizer train needs text files: quipu tokenizer train FILES... --vocab-size N -o tokenizer.json");
  if (flags.out.empty()) return usage_error("-o: where to write the tokenizer.json");
  if (flags.pattern != "gpt2" && flags.pattern != "llama3") {
    return usage_error("--pattern: '" + printable(flags.pattern) + "' is unknown; gpt2 or llama3");
  }
  struct stat facts{};
  if (!flags.force && stat(flags.out.c_str(), &facts) == 0)
    return usage_error(printable(flags.out, 400) + ": exists already; --force replaces it");
  request.out = flags.out;
  request.options.vocab_size = flags.vocab_size;
  request.options.llama3_pattern = flags.pattern == "llama3";
  request.options.min_count = flags.min_count;
  request.options.max_words = flags.max_words;
  if (!flags.special.empty()) request.options.special_tokens = flags.special;

  const double start = monotonic_seconds();
  std::unique_ptr<ProgressBar> bar;
  const char* shown = nullptr;
  const auto on_progress = [&](const char* stage, uint64_t done, uint64_t total) {
    if (shown == nullptr || std::strcmp(shown, stage) != 0) {
      shown = stage;
      bar = std::make_unique<ProgressBar>(
          stage, ProgressBar::Style{.tokens = std::strcmp(stage, "learning") == 0, .keep = true, .silent = flags.json});
    }
    bar->update(static_cast<double>(done), static_cast<double>(total));
    return !interrupted();
  };
  ASSIGN_OR_RETURN(const TokenizerTrained trained, train_tokenizer(request, on_progress));
  bar.reset();
  const double seconds = monotonic_seconds() - start;
  if (flags.json) {
    return print_json({{"out", flags.out},
                       {"vocabulary", trained.vocabulary},
                       {"bytes", trained.bytes},
                       {"words", trained.words},
                       {"forgotten_words", trained.forgotten_words},
                       {"pattern", flags.pattern},
                       {"seconds", seconds}});
  }
  std::string text = printable(flags.out, 400) + ": " + grouped_count(trained.vocabulary) + " tokens from " +
                     human_bytes(static_cast<double>(trained.bytes)) + " of text, " + grouped_count(trained.words) +
                     " distinct words, in " + human_seconds(seconds) + "\n";
  if (trained.vocabulary < flags.vocab_size) {
    text += "the text holds no more pairs seen " + std::to_string(flags.min_count) +
            " times: " + grouped_count(flags.vocab_size) + " were asked for\n";
  }
  if (trained.forgotten_words > 0)
    text += grouped_count(trained.forgotten_words) + " rare words were left out (--max-words)\n";
  return print_text(text);
}

Result<void> tokenizer(const TokenizerFlags& flags) {
  if (flags.words.empty())
    return usage_error("tokenizer: what to do? quipu tokenizer train FILES... -o tokenizer.json");
  if (flags.words[0] == "train") return train_one(flags);
  return usage_error("tokenizer: unknown action " + printable(flags.words[0]) + "; there is: train");
}

}  // namespace

Action declare_tokenizer(CLI::App& app) {
  auto flags = std::make_shared<TokenizerFlags>();
  app.add_option("WORDS", flags->words, "train, then the text files")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_option("-o,--out", flags->out, "the tokenizer.json to write");
  app.add_option("--vocab-size", flags->vocab_size, "tokens, with the 256 bytes and special tokens; 32000 by default")
      ->check(CLI::Range(int64_t{257}, int64_t{1} << 20));
  app.add_option("--pattern", flags->pattern,
                 "how texts are cut into words: gpt2 (default) or llama3 (digits in threes)");
  app.add_option("--special", flags->special, "a special token; again for more; <|endoftext|> by default")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->expected(1)
      ->allow_extra_args(false);
  app.add_option("--min-count", flags->min_count, "pairs seen less often are not joined; 2 by default")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  app.add_option("--max-words", flags->max_words, "distinct words held in memory; beyond, the rarest are forgotten")
      ->check(CLI::Range(int64_t{1000}, int64_t{1} << 32));
  app.add_flag("--force", flags->force, "replace the file if it exists");
  app.add_flag("--json", flags->json, "one JSON object on standard output");
  return [flags] { return tokenizer(*flags); };
}

}  // namespace quipu::cli
