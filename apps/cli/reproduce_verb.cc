// quipu reproduce [--list] NAME [--quick] [--json]: published figures beside ours.
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "arguments.h"
#include "base/byte_reader.h"
#include "base/cpu_features.h"
#include "base/near_word.h"
#include "base/wall_clock.h"
#include "engine/reproduce.h"
#include "human_text.h"
#include "interrupt.h"
#include "line_plot.h"
#include "progress_bar.h"
#include "report.h"
#include "verb.h"

namespace quipu::cli {
namespace {

struct ReproduceFlags {
  std::string name, work, corpus;
  std::vector<std::string> only;
  int64_t threads = 0, steps = 0;
  bool list = false, quick = false, json = false;
};

std::string command_of(const ReproduceFlags& flags) {
  std::string only;
  for (const std::string& part : flags.only) only += (only.empty() ? " --only " : ",") + part;
  return "quipu reproduce " + flags.name + (flags.quick ? " --quick" : "") + (flags.steps > 0 ? " --steps " + std::to_string(flags.steps) : "") + only;
}

// Four digits, or all of a whole number.
std::string figure(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15) return grouped_count(static_cast<int64_t>(value));
  return text_f("%.4g", value);
}

nlohmann::ordered_json claims_json(const std::vector<Claim>& claims, const ReproduceFlags& flags) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Claim& claim : claims) {
    list.push_back({{"claim", claim.claim},
                    {"published", claim.published},
                    {"ours", claim.ours},
                    {"unit", claim.unit},
                    {"holds", claim.holds},
                    {"command", command_of(flags)},
                    {"commit", build_commit()},
                    {"date", utc_now().substr(0, 10)},
                    {"machine", cpu_model_name()},
                    {"note", claim.note}});
  }
  return list;
}

std::string with_unit(double value, const std::string& unit) {
  return figure(value) + (unit == "x" || unit == "%" ? unit : " " + unit);
}

// The verdict on a claim and its two figures.
std::string claim_text(const Claim& claim, const std::string& aside) {
  return std::string(claim.holds ? "holds  " : "FAILS  ") + wrapped(claim.claim, 100, 7) + "\n       " +
         wrapped("published " + with_unit(claim.published, claim.unit) + ", ours " + with_unit(claim.ours, claim.unit) +
                     (aside.empty() ? "" : " (" + aside + ")"), 100, 7) + "\n";
}

std::string claims_text(const std::vector<Claim>& claims, const ReproduceFlags& flags) {
  std::string text;
  int64_t holding = 0;
  for (const Claim& claim : claims) {
    holding += claim.holds;
    text += claim_text(claim, claim.note);
  }
  text += text_f("\n%lld of %zu figures hold. %s, %s, commit %s\n", static_cast<long long>(holding), claims.size(),
                 command_of(flags).c_str(), cpu_model_name().c_str(), build_commit().c_str());
  return text;
}

// The figures of the last full run; an empty list where none is recorded.
nlohmann::ordered_json recorded(const Reproduction& one) {
  const std::string_view text = recorded_claims(one.name);
  return text.empty() ? nlohmann::ordered_json::array() : nlohmann::ordered_json::parse(text);
}

Result<void> print_list(bool json) {
  if (json) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const Reproduction& one : all_reproductions()) list.push_back({{"name", one.name}, {"summary", one.summary}, {"figures", recorded(one)}});
    return print_json(list);
  }
  std::string text;
  for (const Reproduction& one : all_reproductions()) {
    const nlohmann::ordered_json figures = recorded(one);
    text += (text.empty() ? "" : "\n") + std::string(one.name) + ": " + std::string(one.summary) + "\n";
    if (figures.empty()) text += "       no full run is recorded\n";
    int64_t holding = 0;
    for (const auto& each : figures) {
      const Claim claim{each.value("claim", ""), each.value("published", 0.0), each.value("ours", 0.0), each.value("unit", ""), each.value("holds", false), ""};
      holding += claim.holds;
      text += claim_text(claim, each.value("date", "no date"));
    }
    if (!figures.empty()) {
      const auto& last = figures.back();
      text += text_f("       %lld of %zu hold: %s, %s, commit %s\n", static_cast<long long>(holding), figures.size(), last.value("command", "").c_str(),
                     last.value("machine", "").c_str(), last.value("commit", "").c_str());
    }
  }
  return print_text(text);
}

Result<void> reproduce(const ReproduceFlags& flags) {
  if (flags.list) return print_list(flags.json);
  const Reproduction* chosen = nullptr;
  std::vector<std::string> names;
  for (const Reproduction& one : all_reproductions()) {
    names.emplace_back(one.name);
    if (one.name == flags.name) chosen = &one;
  }
  if (flags.name.empty()) return usage_error("nothing named: quipu reproduce NAME; --list names what there is");
  if (chosen == nullptr) {
    const std::string near = nearest_word(flags.name, names);
    return usage_error(
        "no reproduction named " + printable(flags.name) +
        (near.empty() ? "; quipu reproduce --list names what there is" : "; did you mean " + near + "?"));
  }
  ReproduceOptions options;
  options.quick = flags.quick;
  options.threads = static_cast<int>(flags.threads);
  options.work = (flags.work.empty() ? "reproduce-" + flags.name : flags.work) + (flags.quick ? "-quick" : "");
  options.only = flags.only;
  options.corpus = flags.corpus;
  options.steps = flags.steps;
  options.interrupted = interrupt_flag();
  ProgressBar bar("reproduce " + flags.name, {.share = true});
  options.on_progress = [&bar](const std::string& what, double share) { bar.update(100 * share, 100, what); };
  auto claims = chosen->run(options);
  bar.finish();
  if (!claims.ok()) return std::move(claims).error();
  // The picture some leave in their folder, for those who cannot look at SVG.
  const std::string picture = options.work + "/" + flags.name;
  if (std::filesystem::exists(picture + ".svg")) {
    if (const Result<void> png = convert_to_png(picture + ".svg", picture + ".png"); !png.ok()) {
      std::fprintf(stderr, "quipu: no PNG beside %s.svg: %s\n", picture.c_str(), png.error().message.c_str());
    }
  }
  int64_t failing = 0;
  for (const Claim& claim : *claims) failing += !claim.holds;
  if (failing > 0) {
    std::fprintf(stderr, "quipu: %lld of %zu figures do not hold\n", static_cast<long long>(failing), claims->size());
    set_verdict(1);
  }
  if (flags.json) return print_json(claims_json(*claims, flags));
  return print_text(claims_text(*claims, flags));
}

}  // namespace

Action declare_reproduce(CLI::App& app) {
  auto flags = std::make_shared<ReproduceFlags>();
  app.add_option("NAME", flags->name, "what to reproduce, such as costs");
  app.add_flag("--list", flags->list, "name everything that can be reproduced, with the figures of the last full runs");
  app.add_flag("--quick", flags->quick, "fewer sizes and repetitions");
  app.add_option("--work", flags->work, "folder of trained models and finished parts; the same command goes on from there "
                                        "(default: reproduce-NAME here; with --quick, -quick is added)");
  app.add_option("--only", flags->only, "these models alone, such as mha,mtla2")->delimiter(',');
  app.add_option("--steps", flags->steps, "variants, depths: steps of training (default: those of the recorded run)")
      ->check(CLI::Range(int64_t{100}, int64_t{1000000}));
  app.add_option("--corpus", flags->corpus, "variants, depths: folder with train/ and held_out/ (default: what tools/fetch_corpus made)");
  app.add_option("-t,--threads", flags->threads, "threads to use (default: one per core)")
      ->check(whole_number(0, 4096));
  app.add_flag("--json", flags->json, "a list of figures on standard output");
  return [flags] { return reproduce(*flags); };
}

}  // namespace quipu::cli
