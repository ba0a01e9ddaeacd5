// quipu train CONFIG.toml: trains a model; the bar shows loss, speed and time left.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/byte_reader.h"
#include "engine/train.h"
#include "human_text.h"
#include "interrupt.h"
#include "progress_bar.h"
#include "report.h"
#include "verb.h"

namespace quipu::cli {
namespace {

using nlohmann::ordered_json;

struct TrainFlags {
  std::string config, checkpoint, folder;
  int64_t steps = 0, seed = -1;
  std::vector<std::string> settings;
  bool resume = false, fresh = false, json = false, quiet = false;
};

bool is_first_rank() {
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  return rank == nullptr || std::atoi(rank) == 0;
}

class Watcher final : public TrainProgramObserver {
 public:
  explicit Watcher(bool silent) : silent_(silent || !is_first_rank()) {}

  void tokenising(uint64_t done, uint64_t total) override {
    if (bar_ == nullptr) bar_ = make_bar("tokenising", false);
    bar_->update(static_cast<double>(done), static_cast<double>(total));
  }
  void planned(const TrainPlan& plan) override {
    bar_.reset();
    plan_ = plan;
    if (silent_) return;
    const auto line = [](const char* what, const std::string& text) {
      std::fprintf(stderr, "%-9s %s\n", what, text.c_str());
    };
    line("model", human_count(static_cast<double>(plan.parameters)) + " parameters, " + std::to_string(plan.layers) +
                      " layers of " + std::to_string(plan.hidden));
    line("data", plan.data + (plan.held_out.empty() ? "; nothing held out" : "; held out: " + plan.held_out));
    line("machine", plan.products + ", " + std::to_string(plan.threads) + " threads" +
                        (plan.ranks > 1 ? ", " + std::to_string(plan.ranks) + " ranks" : "") + ", products reach " +
                        human_operations(plan.roof_flops) + "/s");
    line("memory", "about " + human_bytes(static_cast<double>(plan.peak_bytes)) + " at most: weights " +
                       human_bytes(static_cast<double>(plan.weight_bytes)) + ", gradients " +
                       human_bytes(static_cast<double>(plan.gradient_bytes)) + ", moments " +
                       human_bytes(static_cast<double>(plan.moment_bytes)) + ", activations " +
                       human_bytes(static_cast<double>(plan.activation_bytes)));
    line("run", std::to_string(plan.steps) + " steps of " + grouped_count(plan.tokens_per_step) + " tokens" +
                    (plan.resumed_from.empty() ? ""
                                               : ", from step " + std::to_string(plan.first_step) + " on (" +
                                                     printable(plan.resumed_from, 300) + ")"));
    line("files", printable(plan.folder, 300) + ": metrics.jsonl, report.html, checkpoints, model/");
    bar_ = make_bar("training", true);
  }
  void stepped(const StepReport& r) override {
    if (bar_ == nullptr) return;
    smooth_ = smooth_ == 0 ? r.loss : 0.95 * smooth_ + 0.05 * r.loss;
    const double first = static_cast<double>(plan_.first_step * plan_.tokens_per_step);
    std::string note = text_f("step %lld  loss %.4f", static_cast<long long>(r.step), smooth_) + held_out_;
    if (r.roof_share > 0) note += text_f("  %.0f %% of roof", 100 * r.roof_share);
    bar_->update(static_cast<double>(r.step * plan_.tokens_per_step) - first,
                 static_cast<double>(r.steps * plan_.tokens_per_step) - first, note);
  }
  void evaluated(int64_t, const Evaluation& e) override {
    held_out_ = text_f("  held out %.4f", e.loss);
    if (e.questions > 0) held_out_ += text_f("  answers %.0f %%", 100 * e.answer_accuracy);
  }
  bool should_stop() override { return interrupted(); }
  void finish() { bar_.reset(); }

 private:
  std::unique_ptr<ProgressBar> make_bar(const std::string& label, bool tokens) const {
    return std::make_unique<ProgressBar>(label, ProgressBar::Style{.tokens = tokens, .keep = true, .silent = silent_});
  }
  bool silent_;
  TrainPlan plan_;
  std::unique_ptr<ProgressBar> bar_;
  double smooth_ = 0;
  std::string held_out_;
};

ordered_json outcome_json(const TrainOutcome& outcome) {
  const TrainSummary& s = outcome.summary;
  ordered_json json = {{"step", s.step},
                       {"tokens", s.tokens},
                       {"loss", s.loss},
                       {"seconds", s.seconds},
                       {"tokens_per_second", s.tokens_per_second},
                       {"stopped_early", s.stopped_early},
                       {"checkpoint", s.checkpoint},
                       {"model", outcome.model_folder},
                       {"parameters", outcome.plan.parameters},
                       {"products", outcome.plan.products},
                       {"threads", outcome.plan.threads},
                       {"ranks", outcome.plan.ranks},
                       {"roof_flops", outcome.plan.roof_flops},
                       {"resumed_from", outcome.plan.resumed_from},
                       {"estimated_peak_bytes", outcome.plan.peak_bytes},
                       {"peak_bytes", outcome.peak_bytes}};
  if (s.evaluation.has_value()) {
    json["held_out"] = {{"loss", s.evaluation->loss}, {"tokens", s.evaluation->tokens}};
    if (s.evaluation->questions > 0) {
      json["held_out"]["questions"] = s.evaluation->questions;
      json["held_out"]["answer_accuracy"] = s.evaluation->answer_accuracy;
      json["held_out"]["exact"] = s.evaluation->exact;
    }
  }
  return json;
}

Result<void> run_training(const TrainFlags& flags) {
  if (flags.config.empty())
    return usage_error("train needs a configuration: quipu train CONFIG.toml; 'quipu help train' shows one");
  if (flags.resume && flags.fresh) return usage_error("--resume and --fresh contradict each other");
  TrainRequest request;
  request.config = flags.config;
  request.resume = flags.resume;
  request.fresh = flags.fresh;
  request.checkpoint = flags.checkpoint;
  if (flags.steps > 0) request.overrides.emplace_back("train.steps", std::to_string(flags.steps));
  if (flags.seed >= 0) request.overrides.emplace_back("train.seed", std::to_string(flags.seed));
  if (!flags.folder.empty()) request.overrides.emplace_back("output.folder", ordered_json(flags.folder).dump());
  for (const std::string& setting : flags.settings) {
    const size_t equals = setting.find('=');
    if (equals == std::string::npos)
      return usage_error("--set: expected SECTION.KEY=VALUE, found " + printable(setting));
    request.overrides.emplace_back(setting.substr(0, equals), setting.substr(equals + 1));
  }
  Watcher watcher(flags.json || flags.quiet);
  Result<TrainOutcome> outcome = train(request, watcher);
  watcher.finish();
  if (!outcome.ok()) return std::move(outcome).error();
  if (outcome->plan.rank != 0) return {};
  if (flags.json) return print_json(outcome_json(*outcome));
  const TrainSummary& s = outcome->summary;
  std::string text = s.stopped_early
                         ? "stopped after step " + std::to_string(s.step) + ", everything is saved; --resume goes on\n"
                         : "";
  text += text_f("%lld steps, %s tokens in %s, %.4g tok/s | loss %.4f", static_cast<long long>(s.step),
                 grouped_count(s.tokens).c_str(), human_seconds(s.seconds).c_str(), s.tokens_per_second, s.loss);
  if (s.evaluation.has_value()) text += text_f(", held out %.4f", s.evaluation->loss);
  if (s.evaluation.has_value() && s.evaluation->questions > 0) {
    text += text_f(", answers %.1f %% of tokens, %.1f %% whole", 100 * s.evaluation->answer_accuracy,
                   100 * s.evaluation->exact);
  }
  text += " | peak memory " + human_bytes(static_cast<double>(outcome->peak_bytes)) + " (estimate " +
          human_bytes(static_cast<double>(outcome->plan.peak_bytes)) + ")\n";
  text += "model: " + printable(outcome->model_folder, 400) + "   try: quipu run " +
          printable(outcome->model_folder, 400) + " --raw -p \"...\"\n";
  return print_text(text);
}

}  // namespace

Action declare_train(CLI::App& app) {
  auto flags = std::make_shared<TrainFlags>();
  app.add_option("CONFIG", flags->config,
                 "the TOML file that says what to train, on what and how; see docs/training.md");
  app.add_flag("--resume", flags->resume, "continue from the newest checkpoint, bit for bit");
  app.add_option("--checkpoint", flags->checkpoint, "continue from this checkpoint");
  app.add_flag("--fresh", flags->fresh, "start over, removing the checkpoints of an earlier run");
  app.add_option("--steps", flags->steps, "instead of train.steps")->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  app.add_option("--seed", flags->seed, "instead of train.seed")->check(CLI::Range(int64_t{0}, INT64_MAX));
  app.add_option("-o,--out", flags->folder, "instead of output.folder");
  app.add_option("--set", flags->settings, "SECTION.KEY=VALUE: any other key of the file, again and again")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->expected(1)
      ->allow_extra_args(false);
  app.add_flag("--quiet", flags->quiet, "no bar");
  app.add_flag("--json", flags->json, "one JSON object on standard output at the end");
  return [flags] { return run_training(*flags); };
}

}  // namespace quipu::cli
