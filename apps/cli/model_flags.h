// Flags that several verbs share, and the model they lead to.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/engine.h"

namespace quipu::cli {

struct ModelFlags {
  std::string model;
  int64_t threads = 0;
  std::string context_text;              // as typed; "" when not given
  std::vector<std::string> cache_types;  // every one given; they must agree
  int64_t batch = 512;
  bool exact = false;
  bool reference = false;
};

// MODEL or -m alone.
void add_model_word(CLI::App& app, ModelFlags& flags);
// The cache type alone (inspect needs no other).
void add_cache_flag(CLI::App& app, ModelFlags& flags);
// All of them.
void add_model_flags(CLI::App& app, ModelFlags& flags, bool with_context);

struct SamplingFlags {
  SamplingOptions options;
  int64_t max_tokens = -1;
  int64_t seed = -1;  // -1: drawn anew for every run, and reported
  std::vector<std::string> stop;
  bool ignore_end = false;
};
void add_sampling_flags(CLI::App& app, SamplingFlags& flags);
// The options the engine wants; draws the seed when none was given.
GenerateOptions generate_options(const SamplingFlags& flags);

Result<DType> cache_type(const ModelFlags& flags);
// Tokens of context asked for, 0 when the flag was not given.
Result<int64_t> asked_context(const ModelFlags& flags);
// The trained context, but at most kDefaultContext unless more is needed for `needed` tokens (0: unknown).
inline constexpr int64_t kDefaultContext = 8192;
Result<int64_t> chosen_context(const ModelFlags& flags, const ModelFacts& facts, int64_t needed);

// A path stays as it is; a bare name such as "smollm2" becomes the file that ./quickstart keeps in the cache folder.
// kUsage when no model was named, kBadInput when there is none of that name.
Result<std::string> resolve_model(const std::string& name);

// Loads with a progress line on a terminal; `quiet` shows none. Warnings of the model go to stderr.
Result<std::unique_ptr<Engine>> load_engine(const ModelFlags& flags, bool quiet);

// kBadInput, with what to do, when the model has no tokenizer: for verbs that turn text into tokens.
Result<void> require_tokenizer(const Engine& engine);

// The whole of a file, or of standard input for "-"; at most kMaxTextBytes.
inline constexpr size_t kMaxTextBytes = size_t{1} << 30;
Result<std::string> read_text(const std::string& path);

}  // namespace quipu::cli
