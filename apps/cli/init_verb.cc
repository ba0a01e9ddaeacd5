// quipu init CONFIG OUT --seed N
#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "arguments.h"
#include "base/byte_reader.h"
#include "base/clock.h"
#include "engine/init_model.h"
#include "human_text.h"
#include "progress_bar.h"
#include "report.h"
#include "verb.h"

namespace quipu::cli {
namespace {

struct InitFlags {
  std::string config, out, dtype = "f32", tokenizer;
  int64_t seed = 0;
  int64_t threads = 0;
  bool force = false;
  bool json = false;
};

Result<void> init(const InitFlags& flags) {
  if (flags.config.empty() || flags.out.empty())
    return usage_error("init needs two paths: quipu init CONFIG OUT --seed N");
  const auto dtype = dtype_from_name(flags.dtype);
  if (!dtype)
    return usage_error("--dtype: '" + printable(flags.dtype) + "' is no tensor type; expected f32, f16 or bf16");
  const double start = monotonic_seconds();
  ProgressBar bar("making weights", {.tokens = false, .keep = false, .silent = flags.json});
  InitOptions options;
  options.seed = static_cast<uint64_t>(flags.seed);
  options.dtype = *dtype;
  options.replace = flags.force;
  options.tokenizer = flags.tokenizer;
  options.threads = static_cast<int>(flags.threads);
  options.on_progress = [&bar](uint64_t done, uint64_t total) {
    bar.update(static_cast<double>(done), static_cast<double>(total));
  };
  ASSIGN_OR_RETURN(const InitReport report, init_model(flags.config, flags.out, options));
  bar.finish();
  const double seconds = monotonic_seconds() - start;
  if (flags.json) {
    return print_json({{"folder", report.folder},
                       {"architecture", report.architecture},
                       {"seed", flags.seed},
                       {"dtype", dtype_name(*dtype)},
                       {"tensors", report.tensors},
                       {"parameters", report.parameters},
                       {"weight_bytes", report.weight_bytes},
                       {"tokenizer", report.has_tokenizer},
                       {"files", report.files},
                       {"seconds", seconds}});
  }
  return print_text(
      printable(report.folder, 400) + ": " + human_count(static_cast<double>(report.parameters)) + " parameters in " +
      std::to_string(report.tensors) + " tensors, " + human_bytes(static_cast<double>(report.weight_bytes)) + " of " +
      std::string(dtype_name(*dtype)) + ", seed " + std::to_string(flags.seed) + ", in " + human_seconds(seconds) +
      (report.has_tokenizer ? "\n" : "\nno tokenizer: bench works, run and chat need --tokenizer FOLDER\n"));
}

}  // namespace

Action declare_init(CLI::App& app) {
  auto flags = std::make_shared<InitFlags>();
  app.add_option("CONFIG", flags->config, "a config.json, or a folder that holds one");
  app.add_option("OUT", flags->out, "the folder to write");
  app.add_option("-s,--seed", flags->seed, "equal seeds give equal weights (0)")->check(whole_number(0));
  app.add_option("--dtype", flags->dtype, "type of the matrices: f32, f16, bf16 (f32)");
  app.add_option("--tokenizer", flags->tokenizer, "a folder whose tokenizer files are copied");
  app.add_option("-t,--threads", flags->threads, "threads; the weights do not depend on it (one per core)")
      ->check(whole_number(0, 4096));
  app.add_flag("--force", flags->force, "replace the model in OUT if there is one");
  app.add_flag("--json", flags->json, "one JSON object on standard output");
  return [flags] { return init(*flags); };
}

}  // namespace quipu::cli
