// quipu verify-room FILE...
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/byte_reader.h"
#include "engine/verify_room.h"
#include "human_text.h"
#include "interrupt.h"
#include "report.h"
#include "verb.h"

namespace quipu::cli {
namespace {

struct VerifyFlags {
  std::vector<std::string> files;
  bool json = false;
};

std::string error_text(double error) { return text_f("%.1e", error); }

std::string report_text(const RoomReport& report) {
  std::string text = printable(report.file, 400) + ": " + report.room + ", " +
                     grouped_count(report.tokens) + " tokens of " + grouped_count(report.hidden);
  if (!report.source.empty()) text += ", by " + printable(report.source, 200);
  text += "\n";
  for (const std::string& note : report.notes) text += "note: " + note + "\n";
  std::vector<std::vector<std::string>> rows = {{"room", "back end", "path", "quantity", "largest error", ""}};
  for (const RoomRun& run : report.runs) {
    rows.push_back({report.room, run.backend, run.path, run.quantity, error_text(run.error), run.passed ? "pass" : "FAIL"});
  }
  return text + aligned_table(rows, {false, false, false, false, true, false}) + "\n";
}

void append_json(nlohmann::ordered_json& list, const RoomReport& report, double limit) {
  for (const RoomRun& run : report.runs) {
    list.push_back({{"file", report.file},
                    {"room", report.room},
                    {"backend", run.backend},
                    {"path", run.path},
                    {"quantity", run.quantity},
                    {"largest_relative_error", run.error},   // null where something was no number
                    {"limit", limit},
                    {"passed", run.passed}});
  }
}

Result<void> verify(const VerifyFlags& flags) {
  if (flags.files.empty()) return usage_error("verify-room needs a file: quipu verify-room FILE...");
  const VerifyOptions options;
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  int64_t runs = 0, failures = 0;
  double largest = 0;
  for (const std::string& file : flags.files) {
    if (interrupted()) return failed("interrupted");
    ASSIGN_OR_RETURN(const RoomReport report, verify_room(file, options));
    runs += static_cast<int64_t>(report.runs.size());
    failures += report.failures();
    largest = std::max(largest, report.largest());
    if (flags.json) append_json(list, report, options.limit);
    else RETURN_IF_ERROR(print_text(report_text(report)));
  }
  if (flags.json) {
    RETURN_IF_ERROR(print_json(list));
  } else {
    RETURN_IF_ERROR(print_text(text_f("%zu %s, %s comparisons: largest relative error %s, limit %s: %s\n",
                                      flags.files.size(), flags.files.size() == 1 ? "file" : "files",
                                      grouped_count(runs).c_str(), error_text(largest).c_str(),
                                      error_text(options.limit).c_str(), failures == 0 ? "all pass" : "FAILED")));
  }
  if (failures > 0) {
    // Not an Error: the question was answered, and on stdout there is one JSON value already.
    std::fprintf(stderr, "quipu: %s of %s comparisons are above %s\n", grouped_count(failures).c_str(),
                 grouped_count(runs).c_str(), error_text(options.limit).c_str());
    set_verdict(1);
  }
  return {};
}

}  // namespace

Action declare_verify_room(CLI::App& app) {
  auto flags = std::make_shared<VerifyFlags>();
  app.add_option("FILE", flags->files, "golden files: safetensors whose metadata names a room")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_flag("--json", flags->json, "a list of comparisons on standard output");
  return [flags] { return verify(*flags); };
}

}  // namespace quipu::cli
