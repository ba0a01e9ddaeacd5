// quipu quantise IN OUT --type T
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/byte_reader.h"
#include "base/clock.h"
#include "engine/engine.h"
#include "human_text.h"
#include "model_flags.h"
#include "progress_bar.h"
#include "report.h"
#include "verb.h"

namespace quipu::cli {
namespace {

struct QuantiseFlags {
  std::string in, out, type;
  bool json = false;
  bool pure = false;
  bool force = false;
};

uint64_t file_bytes(const std::string& path) {
  struct stat facts{};
  return stat(path.c_str(), &facts) == 0 ? static_cast<uint64_t>(facts.st_size) : 0;
}

bool same_file(const std::string& a, const std::string& b) {
  struct stat left{}, right{};
  return stat(a.c_str(), &left) == 0 && stat(b.c_str(), &right) == 0 && left.st_ino == right.st_ino &&
         left.st_dev == right.st_dev;
}

Result<void> quantise(const QuantiseFlags& flags) {
  if (flags.in.empty() || flags.out.empty()) {
    return usage_error("quantise needs two paths: quipu quantise IN OUT --type TYPE");
  }
  if (flags.type.empty()) return usage_error("--type: which type? For example --type q8_0");
  ASSIGN_OR_RETURN(const std::string in, resolve_model(flags.in));
  if (same_file(in, flags.out)) return usage_error(printable(flags.out, 400) + ": IN and OUT are the same file");
  if (!flags.force && file_bytes(flags.out) > 0) {
    return usage_error(printable(flags.out, 400) + ": exists already; --force replaces it");
  }
  const double start = monotonic_seconds();
  QuantiseReport done;
  {
    ProgressBar bar("quantising to " + flags.type, {.tokens = false, .keep = true, .silent = flags.json});
    ASSIGN_OR_RETURN(done, Engine::quantise(in, flags.out, {.type = flags.type,
                                                            .pure = flags.pure,
                                                            .on_progress = [&bar](uint64_t bytes, uint64_t total) {
                                                              bar.update(static_cast<double>(bytes), static_cast<double>(total));
                                                            }}));
  }
  ASSIGN_OR_RETURN(const ModelFacts before, Engine::inspect(in));
  ASSIGN_OR_RETURN(const ModelFacts after, Engine::inspect(flags.out));
  const double seconds = monotonic_seconds() - start;
  if (flags.json) {
    return print_json({{"in", in},
                       {"out", flags.out},
                       {"type", flags.type},
                       {"seconds", seconds},
                       {"weight_bytes_before", before.weight_bytes},
                       {"weight_bytes_after", after.weight_bytes},
                       {"quantisation", after.quantisation},
                       {"notes", done.notes}});
  }
  for (const std::string& note : done.notes) print_note(note);
  return print_text(printable(flags.out, 400) + ": " + after.quantisation + ", " +
                    human_bytes(static_cast<double>(after.weight_bytes)) + " of weights (" +
                    human_bytes(static_cast<double>(before.weight_bytes)) + " before) in " + human_seconds(seconds) +
                    "\n");
}

}  // namespace

Action declare_quantise(CLI::App& app) {
  auto flags = std::make_shared<QuantiseFlags>();
  app.add_option("IN", flags->in, "the model to read, a GGUF file");
  app.add_option("OUT", flags->out, "the GGUF file to write");
  app.add_option("--type,TYPE", flags->type, "one of " + Engine::quantise_types());
  app.add_flag("--pure", flags->pure, "every matrix that type, no finer ones where errors reach far");
  app.add_flag("--force", flags->force, "replace OUT if it exists");
  app.add_flag("--json", flags->json, "one JSON object on standard output");
  return [flags] { return quantise(*flags); };
}

}  // namespace quipu::cli
