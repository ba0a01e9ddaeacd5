#include "model_flags.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <utility>

#include "arguments.h"
#include "base/byte_reader.h"
#include "base/near_word.h"
#include "base/user_folders.h"
#include "progress_bar.h"

namespace quipu::cli {
namespace {

constexpr int64_t kMostThreads = 1024;
constexpr int64_t kMostContext = int64_t{1} << 31;
constexpr std::array<DType, 4> kCacheTypes = {DType::kF16, DType::kBF16, DType::kQ8_0, DType::kF32};

// Short names of models that ./quickstart can fetch.
constexpr std::array<std::pair<const char*, const char*>, 3> kKnownModels = {{
    {"smollm2", kDefaultModelFile},
    {"smollm2:135m", kDefaultModelFile},
    {"SmolLM2-135M-Instruct", kDefaultModelFile},
}};

bool path_exists(const std::string& path) {
  struct stat facts{};
  return stat(path.c_str(), &facts) == 0;
}

}  // namespace

void add_model_word(CLI::App& app, ModelFlags& flags) {
  app.add_option("-m,--model,MODEL", flags.model,
                 "a GGUF file, a Hugging Face folder, or the name of a model ./quickstart has fetched (smollm2)");
}

void add_cache_flag(CLI::App& app, ModelFlags& flags) {
  app.add_option("--cache-type,--cache-type-k,--cache-type-v", flags.cache_types,
                 "type of the context memory: f16 (default), bf16, q8_0, f32; also -ctk, -ctv")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

void add_model_flags(CLI::App& app, ModelFlags& flags, bool with_context) {
  add_model_word(app, flags);
  app.add_option("-t,--threads", flags.threads, "threads (default: one per core)")
      ->check(whole_number(0, kMostThreads));
  if (with_context) {
    app.add_option("-c,--context,--ctx-size", flags.context_text,
                   "most tokens the context may hold (default: what the model was trained for, at most 8k)");
  }
  add_cache_flag(app, flags);
  app.add_option("-b,--batch,--batch-size,--ubatch-size", flags.batch, "prompt tokens per step (default 512)")
      ->check(whole_number(1, 65536));
  app.add_flag("--exact", flags.exact, "keep activations in 32-bit floats (slower; for comparisons)");
  app.add_flag("--reference", flags.reference, "use the double-precision reference back end (very slow)");
}

void add_sampling_flags(CLI::App& app, SamplingFlags& flags) {
  SamplingOptions& options = flags.options;
  app.add_option("-n,--tokens,--n-predict,--predict", flags.max_tokens,
                 "most tokens to generate (default: until the answer ends)")
      ->check(whole_number(-1));
  app.add_option("--temperature,--temp", options.temperature, "0 is greedy (default 0.8)")->check(real_number(0, 100));
  app.add_option("--top-k", options.top_k, "draw from the k likeliest tokens; 0: off (default 40)")
      ->check(whole_number(0));
  app.add_option("--top-p", options.top_p, "draw from the likeliest tokens that add up to p; 1: off (default 0.95)")
      ->check(real_number(0, 1));
  app.add_option("--min-p", options.min_p, "leave out tokens below p times the likeliest; 0: off (default 0.05)")
      ->check(real_number(0, 1));
  app.add_option("--repeat-penalty", options.repeat_penalty, "divide the score of recent tokens; 1: off (default 1)")
      ->check(real_number(0.01, 100));
  app.add_option("--repeat-last,--repeat-last-n", options.repeat_last, "how many tokens are recent (default 64)")
      ->check(whole_number(0));
  app.add_option("-s,--seed", flags.seed, "same seed, same answer (default: a new one each time, shown at the end)")
      ->check(whole_number(-1));
  app.add_option("--stop,-r,--reverse-prompt", flags.stop, "text that ends the answer; may be given several times")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_flag("--ignore-end,--ignore-eos", flags.ignore_end, "go on after the model says it is done");
}

GenerateOptions generate_options(const SamplingFlags& flags) {
  GenerateOptions options;
  options.sampling = flags.options;
  // 31 bits, so that the number shown is short and can be typed again.
  options.sampling.seed = flags.seed >= 0 ? static_cast<uint64_t>(flags.seed) : std::random_device{}() >> 1;
  options.max_tokens = flags.max_tokens;
  options.stop = flags.stop;
  options.ignore_end = flags.ignore_end;
  return options;
}

Result<DType> cache_type(const ModelFlags& flags) {
  DType chosen = DType::kF16;
  for (size_t i = 0; i < flags.cache_types.size(); ++i) {
    const auto dtype = dtype_from_name(flags.cache_types[i]);
    if (!dtype || std::find(kCacheTypes.begin(), kCacheTypes.end(), *dtype) == kCacheTypes.end()) {
      return usage_error("--cache-type: '" + printable(flags.cache_types[i]) + "' is not one of f16, bf16, q8_0, f32");
    }
    if (i > 0 && *dtype != chosen) {
      return usage_error("--cache-type: keys and values share one type here, but '" + std::string(dtype_name(chosen)) +
                         "' and '" + std::string(dtype_name(*dtype)) + "' were given");
    }
    chosen = *dtype;
  }
  return chosen;
}

Result<int64_t> asked_context(const ModelFlags& flags) {
  if (flags.context_text.empty()) {
    return int64_t{0};
  }
  ASSIGN_OR_RETURN(const int64_t tokens, parse_count(flags.context_text, "--context"));
  if (tokens > kMostContext) {
    return usage_error("--context: " + std::to_string(tokens) + " is not within 0 to 2147483648");
  }
  return tokens;
}

Result<int64_t> chosen_context(const ModelFlags& flags, const ModelFacts& facts, int64_t needed) {
  ASSIGN_OR_RETURN(const int64_t asked, asked_context(flags));
  if (asked > 0) return asked;
  const int64_t trained = facts.trained_context > 0 ? facts.trained_context : kDefaultContext;
  return std::min(trained, std::max(kDefaultContext, needed));
}

Result<std::string> resolve_model(const std::string& name) {
  if (name.empty()) {
    return usage_error(
        "no model given; name a GGUF file, a Hugging Face folder, or 'smollm2' (fetched by ./quickstart)");
  }
  if (path_exists(name)) return name;
  std::vector<std::string> known;
  for (const auto& [word, file] : kKnownModels) {
    known.emplace_back(word);
    if (name != word) continue;
    std::string path = user_cache_folder() + "/models/" + file;
    if (path_exists(path)) return path;
    return bad_input(name + ": not fetched yet (" + path + " is missing); ./quickstart fetches it");
  }
  if (name.find('/') == std::string::npos) {
    std::string path = user_cache_folder() + "/models/" + name + (name.ends_with(".gguf") ? "" : ".gguf");
    if (path_exists(path)) return path;
  }
  const std::string near = name.find_first_of("/.") == std::string::npos ? nearest_word(name, known) : "";
  return bad_input(printable(name, 400) + ": no such file or folder" +
                   (near.empty() ? "" : ", and no model of that name; did you mean " + near + "?"));
}

Result<std::unique_ptr<Engine>> load_engine(const ModelFlags& flags, bool quiet) {
  ASSIGN_OR_RETURN(const std::string path, resolve_model(flags.model));
  ASSIGN_OR_RETURN(const DType cache, cache_type(flags));
  RETURN_IF_ERROR(asked_context(flags));
  ProgressBar bar("loading", {.tokens = false, .silent = quiet, .terminal_only = true});
  struct stat facts{};
  const double bytes =
      stat(path.c_str(), &facts) == 0 && S_ISREG(facts.st_mode) ? static_cast<double>(facts.st_size) : 0;
  EngineOptions options;
  options.threads = static_cast<int>(flags.threads);
  options.exact_activations = flags.exact;
  options.reference_backend = flags.reference;
  options.cache_dtype = cache;
  options.max_chunk = flags.batch;
  options.on_progress = [&bar, bytes](double fraction) { bar.update(fraction * bytes, bytes); };
  auto engine = Engine::load(path, options);
  bar.finish();
  if (engine.ok() && !quiet) {
    for (const std::string& warning : (*engine)->facts().warnings) {
      std::fprintf(stderr, "quipu: warning: %s\n", printable(warning, 400).c_str());
    }
  }
  return engine;
}

Result<void> require_tokenizer(const Engine& engine) {
  if (engine.has_tokenizer()) return {};
  return bad_input(printable(engine.facts().path, 400) +
                   ": the model has no tokenizer, so text cannot become tokens; put tokenizer.json of a model with the same "
                   "vocabulary beside it, or measure it with 'quipu bench'");
}

Result<std::string> read_text(const std::string& path) {
  const bool standard = path == "-";
  const std::string shown = standard ? "standard input" : printable(path, 400);
  struct stat facts{};
  if (!standard && stat(path.c_str(), &facts) == 0 && S_ISDIR(facts.st_mode)) {
    return bad_input(shown + ": is a folder, expected a text file");
  }
  std::FILE* file = standard ? stdin : std::fopen(path.c_str(), "rbe");
  if (file == nullptr) return bad_input(shown + ": " + std::strerror(errno));
  std::string text;
  std::vector<char> part(1 << 16);
  size_t count = 0;
  while ((count = std::fread(part.data(), 1, part.size(), file)) > 0 && text.size() <= kMaxTextBytes) {
    text.append(part.data(), count);
  }
  const bool bad = std::ferror(file) != 0;
  const int code = errno;
  if (!standard) std::fclose(file);
  if (bad) return bad_input(shown + ": " + std::strerror(code));
  if (text.size() > kMaxTextBytes) return bad_input(shown + ": more than 1 GiB of text");
  return text;
}

}  // namespace quipu::cli
