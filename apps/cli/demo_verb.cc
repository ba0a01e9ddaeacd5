// quipu demo passkey: a number hidden in a long text before the user's eyes, and asked for.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>

#include "arguments.h"
#include "base/byte_reader.h"
#include "engine/passkey_demo.h"
#include "human_text.h"
#include "interrupt.h"
#include "progress_bar.h"
#include "report.h"
#include "verb.h"

namespace quipu::cli {
namespace {

struct DemoFlags {
  std::string name, model, length = "1M";
  int64_t seed = -1, threads = 0;
  double position = 0.5;
  bool json = false;
};

void show_plan(const PasskeyDemoPlan& plan) {
  const auto line = [](const char* what, const std::string& text) {
    std::fprintf(stderr, "%-9s %s\n", what, wrapped(text, 100, 10).c_str());
  };
  line("model", human_count(static_cast<double>(plan.parameters)) + " parameters, " + std::to_string(plan.layers) +
                    " layers of " + std::to_string(plan.hidden) + " (" + plan.memory + ")");
  line("text", grouped_count(plan.tokens) + " tokens, " + human_bytes(static_cast<double>(plan.text_bytes)));
  line("hidden", "behind token " + grouped_count(plan.needle_at) + ":");
  const bool colour = colour_wanted(stderr);
  const std::string needle = (colour ? "\033[1m" : "") + plan.needle + (colour ? "\033[0m" : "");
  line("", "..." + plan.before + needle + plan.after + " ...");
}

Result<void> demo(const DemoFlags& flags) {
  if (flags.name != "passkey") {
    return usage_error(flags.name.empty() ? "nothing named: quipu demo passkey"
                                          : "no demo named " + printable(flags.name) + "; there is passkey");
  }
  PasskeyDemoRequest request;
  ASSIGN_OR_RETURN(request.tokens, parse_count(flags.length, "--length"));
  request.model = flags.model;
  request.position = flags.position;
  request.seed = flags.seed >= 0 ? static_cast<uint64_t>(flags.seed) : std::random_device()() >> 1;
  request.threads = static_cast<int>(flags.threads);
  request.interrupted = interrupt_flag();
  int64_t cache_bytes = 0;
  request.on_plan = [&](const PasskeyDemoPlan& plan) {
    cache_bytes = plan.cache_bytes;
    if (!flags.json) show_plan(plan);
  };
  ProgressBar bar("reading", {.keep = true});
  request.on_progress = [&](int64_t done, int64_t total, int64_t state_bytes) {
    bar.update(static_cast<double>(done), static_cast<double>(total),
               "memory " + human_bytes(static_cast<double>(state_bytes)));
  };
  auto outcome = run_passkey_demo(request);
  bar.finish();
  if (!outcome.ok()) return std::move(outcome).error();
  const PasskeyDemoOutcome& out = *outcome;
  const bool right = out.answer == out.expected;
  if (!right) set_verdict(1);
  const double speed = static_cast<double>(out.tokens) / std::max(out.seconds, 1e-9);
  if (flags.json) {
    return print_json({{"expected", out.expected},
                       {"answer", out.answer},
                       {"right", right},
                       {"tokens", out.tokens},
                       {"text_bytes", out.text_bytes},
                       {"position", request.position},
                       {"seed", request.seed},
                       {"seconds", out.seconds},
                       {"tokens_per_second", speed},
                       {"state_bytes", out.state_bytes},
                       {"key_value_cache_bytes", cache_bytes}});
  }
  std::string text = "question  What is the pass key?\n";
  text += "answer    " + printable(out.answer) + (right ? "   right\n" : "   wrong: it is " + out.expected + "\n");
  text += text_f("          %s, %s tok/s; the context is %s in memory, as keys and values it would be %s (seed %llu)\n",
                 human_seconds(out.seconds).c_str(), grouped_count(static_cast<int64_t>(speed)).c_str(),
                 human_bytes(static_cast<double>(out.state_bytes)).c_str(),
                 human_bytes(static_cast<double>(cache_bytes)).c_str(), static_cast<unsigned long long>(request.seed));
  return print_text(text);
}

}  // namespace

Action declare_demo(CLI::App& app) {
  auto flags = std::make_shared<DemoFlags>();
  app.add_option("NAME", flags->name, "what to show: passkey");
  app.add_option("--length", flags->length, "tokens of the text, such as 32k or 1M (default 1M)");
  app.add_option("--position", flags->position, "where the key is hidden: 0 start, 1 end (default 0.5)")
      ->check(real_number(0, 1));
  app.add_option("--seed", flags->seed, "of the key and of where the text begins (default: drawn)")->check(whole_number(0));
  app.add_option("--model", flags->model, "a folder of a model trained on this task (default: the one that comes with quipu)");
  app.add_option("-t,--threads", flags->threads, "threads to use (default: one per core)")->check(whole_number(0, 4096));
  app.add_flag("--json", flags->json, "one JSON object on standard output at the end");
  return [flags] { return demo(*flags); };
}

}  // namespace quipu::cli
