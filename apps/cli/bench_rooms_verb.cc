// quipu bench-rooms: every kind of memory at every depth and batch, measured here.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "arguments.h"
#include "base/byte_reader.h"
#include "base/cpu_features.h"
#include "base/text_file.h"
#include "engine/reproduce.h"
#include "engine/room_bench_sweep.h"
#include "human_text.h"
#include "interrupt.h"
#include "line_plot.h"
#include "model_flags.h"
#include "progress_bar.h"
#include "report.h"
#include "room_colours.h"
#include "verb.h"

namespace quipu::cli {
namespace {

struct BenchRoomsFlags {
  ModelFlags model;  // cache type only
  std::string shape = "mtla", contexts = "1k,4k,16k", batches = "1,8", rooms, memory, prompt = "2k";
  int64_t budget = 600, threads = 0, segment_tokens = 2048;
  bool no_depths = false, json = false, add = false;
  std::string json_file, svg_file, png_file;
};

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    if (end > at) words.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return words;
}

std::string rate_text(double rate) { return text_f(rate >= 99.5 ? "%.0f" : "%.1f", rate); }

// The case that others are compared with: MHA without routing at the same depth and batch.
const SweepCase* reference_of(const SweepReport& report, const SweepCase& one) {
  for (const SweepCase& other : report.cases) {
    if (other.key == "mha" && other.context == one.context && other.batch == one.batch && other.skipped.empty())
      return &other;
  }
  return nullptr;
}

std::string sweep_text(const SweepReport& report, DType cache) {
  std::string text = wrapped(printable(report.shape.substr(report.shape.rfind('/') + 1)) + ": " + report.shape_text +
                                 " | " + report.backend + text_f(", %d threads, cache ", report.threads) +
                                 std::string(dtype_name(cache)) + ", weights bf16, random",
                             100) +
                     "\n";
  std::vector<SweepCase> cases = report.cases;
  const auto before = [](const SweepCase& a, const SweepCase& b) {
    return std::pair(a.batch, a.context) < std::pair(b.batch, b.context);
  };
  std::stable_sort(cases.begin(), cases.end(), before);
  for (size_t i = 0; i < cases.size();) {
    text +=
        "\n" + human_tokens(cases[i].context) + " tokens of context, batch " + std::to_string(cases[i].batch) + "\n";
    std::vector<std::vector<std::string>> rows = {
        {"memory", "tok/s", "+-", "of MHA", "prompt", "state", "peak", "filled by"}};
    std::string skipped;
    size_t end = i;
    for (; end < cases.size() && !before(cases[i], cases[end]); ++end) {
      const SweepCase& one = cases[end];
      if (!one.skipped.empty()) {
        skipped += "left out: " + one.name + ": " + one.skipped + "\n";
        continue;
      }
      const SweepCase* mha = reference_of(report, one);
      rows.push_back(
          {one.name, rate_text(one.decode_tokens_per_second),
           text_f("%.0f %%", 50 * (one.decode_high - one.decode_low) / one.decode_tokens_per_second),
           mha == nullptr ? "" : text_f("%.2fx", one.decode_tokens_per_second / mha->decode_tokens_per_second),
           rate_text(one.prompt_tokens_per_second), human_bytes(static_cast<double>(one.state_bytes)),
           human_bytes(static_cast<double>(one.peak_bytes)), one.filled});
    }
    if (rows.size() > 1) text += aligned_table(rows, {false, true, true, true, true, true, true, false});
    text += skipped;
    i = end;
  }
  text +=
      "\n" +
      wrapped(
          "tok/s: one token more in every sequence, all sequences together; +-: half the spread of groups of steps. "
          "prompt: tokens a second of a prompt from the start. state: of one sequence. peak: of the process, weights "
          "included" +
              std::string(report.peak_per_case ? "" : ", since its start (this system does not let it be reset)") + ".",
          100) +
      "\n";
  for (const std::string& rule : report.rules) text += wrapped(rule, 100) + "\n";
  return text + (report.interrupted ? "Interrupted: what was measured until then.\n" : "");
}

nlohmann::ordered_json case_json(const SweepCase& one) {
  nlohmann::ordered_json json = {{"room", one.name},
                                 {"key", one.key},
                                 {"mixture_of_depths", one.depths},
                                 {"context", one.context},
                                 {"batch", one.batch}};
  if (!one.skipped.empty()) {
    json["skipped"] = one.skipped;
    return json;
  }
  json["prompt_tokens"] = one.prompt_tokens;
  json["prompt_tokens_per_second"] = one.prompt_tokens_per_second;
  json["decode_tokens_per_second"] = {
      {"median", one.decode_tokens_per_second}, {"min", one.decode_low}, {"max", one.decode_high}};
  json["decode_steps"] = one.decode_steps;
  json["filled"] = one.filled;
  json["state_bytes"] = one.state_bytes;
  json["held_bytes"] = one.held_bytes;
  json["peak_bytes"] = one.peak_bytes;
  json["routed_share"] = one.routed_share;
  return json;
}

// The other way round, of a file this program wrote. Throws what nlohmann::json throws when it did not.
SweepCase case_of(const nlohmann::ordered_json& json) {
  SweepCase one;
  one.name = json.at("room");
  one.key = json.at("key");
  one.depths = json.at("mixture_of_depths");
  one.context = json.at("context");
  one.batch = json.at("batch");
  one.skipped = json.value("skipped", "");
  if (!one.skipped.empty()) return one;
  one.prompt_tokens = json.at("prompt_tokens");
  one.prompt_tokens_per_second = json.at("prompt_tokens_per_second");
  const auto& decode = json.at("decode_tokens_per_second");
  one.decode_tokens_per_second = decode.at("median");
  one.decode_low = decode.at("min");
  one.decode_high = decode.at("max");
  one.decode_steps = json.at("decode_steps");
  one.filled = json.at("filled");
  one.state_bytes = json.at("state_bytes");
  one.held_bytes = json.at("held_bytes");
  one.peak_bytes = json.at("peak_bytes");
  one.routed_share = json.at("routed_share");
  return one;
}

// What a file of an earlier run says, for runs in parts.
struct EarlierSweep {
  std::string path;
  std::map<std::string, std::string> facts;   // by kEqualFacts
  std::vector<SweepCase> cases;
};
constexpr const char* kEqualFacts[] = {"shape", "backend", "processor", "cache_type"};

Result<EarlierSweep> read_earlier(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, read_text(path));
  EarlierSweep earlier;
  earlier.path = path;
  try {
    const auto json = nlohmann::ordered_json::parse(text);
    for (const char* key : kEqualFacts) earlier.facts[key] = json.at(key);
    for (const auto& entry : json.at("cases")) earlier.cases.push_back(case_of(entry));
  } catch (const nlohmann::json::parse_error& error) {
    return bad_input("--add: " + path + ": no JSON at byte " + std::to_string(error.byte) + ", expected what bench-rooms --json wrote");
  } catch (const nlohmann::json::exception&) {
    return bad_input("--add: " + path + ": its fields are not those that bench-rooms --json writes");
  }
  return earlier;
}

// Puts an earlier run's cases before those of this one, except what was measured again.
Result<void> add_earlier(SweepReport& report, EarlierSweep earlier, DType cache) {
  const std::string values[] = {report.shape, report.backend, cpu_model_name(), std::string(dtype_name(cache))};
  for (size_t i = 0; i < std::size(kEqualFacts); ++i) {
    const std::string& before = earlier.facts[kEqualFacts[i]];
    if (before == values[i]) continue;
    return usage_error("--add: " + earlier.path + " is of " + kEqualFacts[i] + " " + printable(before) + ", this run of " + values[i]);
  }
  std::erase_if(earlier.cases, [&](const SweepCase& one) {
    return std::any_of(report.cases.begin(), report.cases.end(), [&](const SweepCase& other) {
      return other.key == one.key && other.context == one.context && other.batch == one.batch;
    });
  });
  report.cases.insert(report.cases.begin(), std::make_move_iterator(earlier.cases.begin()), std::make_move_iterator(earlier.cases.end()));
  return {};
}

nlohmann::ordered_json sweep_json(const SweepReport& report, DType cache) {
  nlohmann::ordered_json json = {{"shape", report.shape},
                                 {"shape_text", report.shape_text},
                                 {"backend", report.backend},
                                 {"threads", report.threads},
                                 {"processor", cpu_model_name()},
                                 {"commit", build_commit()},
                                 {"cache_type", dtype_name(cache)},
                                 {"memory_limit", report.memory_limit},
                                 {"peak_per_case", report.peak_per_case},
                                 {"interrupted", report.interrupted},
                                 {"rules", report.rules}};
  json["cases"] = nlohmann::ordered_json::array();
  for (const SweepCase& one : report.cases) json["cases"].push_back(case_json(one));
  return json;
}

// One line a room: `value` of its cases with that batch.
PlotPanel panel_of(const SweepReport& report, std::string title, PlotAxis y, int64_t batch,
                   const std::function<double(const SweepCase&)>& value) {
  PlotPanel panel{std::move(title), {"tokens of context", PlotAxis::Unit::kTokens}, std::move(y), {}};
  for (const SweepCase& one : report.cases) {
    if (one.batch != batch || !one.skipped.empty()) continue;
    const auto same = [&](const PlotLine& line) { return line.label == one.name; };
    auto line = std::find_if(panel.lines.begin(), panel.lines.end(), same);
    if (line == panel.lines.end()) {
      line = panel.lines.insert(panel.lines.end(), {one.name, room_colour(one.name), one.depths, {}});
    }
    line->points.emplace_back(static_cast<double>(one.context), value(one));
  }
  for (PlotLine& line : panel.lines) std::sort(line.points.begin(), line.points.end());
  return panel;
}

LinePlot sweep_plot(const SweepReport& report, DType cache) {
  using Unit = PlotAxis::Unit;
  LinePlot plot;
  plot.title = "Speed and memory of every kind of memory: " + printable(report.shape);
  std::vector<int64_t> batches;
  for (const SweepCase& one : report.cases) {
    if (std::find(batches.begin(), batches.end(), one.batch) == batches.end()) batches.push_back(one.batch);
  }
  for (const int64_t batch : batches) {
    plot.panels.push_back(panel_of(report, "Decode, batch " + std::to_string(batch),
                                   {"tokens a second, all sequences", Unit::kPlain}, batch,
                                   [](const SweepCase& one) { return one.decode_tokens_per_second; }));
  }
  plot.panels.push_back(panel_of(report, "Prompt (as far as it was measured)", {"tokens a second", Unit::kPlain},
                                 batches.front(), [](const SweepCase& one) { return one.prompt_tokens_per_second; }));
  plot.panels.push_back(panel_of(report, "State of one sequence", {"bytes", Unit::kBytes}, batches.front(),
                                 [](const SweepCase& one) { return static_cast<double>(one.state_bytes); }));
  plot.panels.push_back(panel_of(report, "Peak memory, batch " + std::to_string(batches.back()),
                                 {"bytes, weights included", Unit::kBytes}, batches.back(),
                                 [](const SweepCase& one) { return static_cast<double>(one.peak_bytes); }));
  plot.note = report.shape_text + " | " + report.backend + ", " + std::to_string(report.threads) + " threads, " +
              cpu_model_name() + " | cache " + std::string(dtype_name(cache)) + ", weights bf16 | commit " +
              build_commit() + "\n";
  for (const std::string& rule : report.rules) plot.note += rule + "\n";
  return plot;
}

Result<void> write_json_file(const std::string& path, const nlohmann::ordered_json& json) {
  return write_text_file(path, json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

Result<SweepOptions> sweep_options(const BenchRoomsFlags& flags) {
  SweepOptions options;
  options.shape = flags.shape;
  ASSIGN_OR_RETURN(options.contexts, parse_counts(flags.contexts, "--context", 1, int64_t{1} << 24));
  ASSIGN_OR_RETURN(options.batches, parse_counts(flags.batches, "--batch", 1, 4096));
  ASSIGN_OR_RETURN(options.prompt_tokens, parse_count(flags.prompt, "--prompt"));
  if (options.prompt_tokens < 1) return usage_error("--prompt: 0, expected 1 or more");
  if (!flags.memory.empty()) {
    ASSIGN_OR_RETURN(const int64_t mebibytes, parse_count(flags.memory, "--memory"));
    if (mebibytes < 1 || mebibytes > (int64_t{1} << 30)) return usage_error("--memory: expected 1 to 1G of MiB");
    options.memory_limit = static_cast<uint64_t>(mebibytes) << 20;
  }
  std::sort(options.contexts.begin(), options.contexts.end());
  options.rooms = words_of(flags.rooms);
  options.depths = !flags.no_depths;
  ASSIGN_OR_RETURN(options.cache_dtype, cache_type(flags.model));
  options.threads = static_cast<int>(flags.threads);
  options.segment_tokens = flags.segment_tokens;
  options.budget_seconds = static_cast<double>(flags.budget);
  options.interrupted = interrupt_flag();
  return options;
}

Result<void> bench_rooms(const BenchRoomsFlags& flags) {
  ASSIGN_OR_RETURN(SweepOptions options, sweep_options(flags));
  for (const std::string& path : {flags.svg_file, flags.png_file}) {
    if (!path.empty()) RETURN_IF_ERROR(check_plot_path(path));
  }
  if (flags.add && flags.json_file.empty()) return usage_error("--add: to which file? give it with --json FILE");
  std::optional<EarlierSweep> earlier;
  if (flags.add && std::filesystem::exists(flags.json_file)) {
    ASSIGN_OR_RETURN(earlier, read_earlier(flags.json_file));
  }
  ProgressBar bar("bench-rooms", {.share = true});
  options.on_progress = [&bar](double done, double total, const std::string& next) { bar.update(done, total, next); };
  auto measured = sweep_rooms(options);
  bar.finish();
  if (!measured.ok()) return std::move(measured).error();
  SweepReport& report = *measured;
  if (earlier.has_value()) RETURN_IF_ERROR(add_earlier(report, *std::move(earlier), options.cache_dtype));
  if (!flags.json_file.empty())
    RETURN_IF_ERROR(write_json_file(flags.json_file, sweep_json(report, options.cache_dtype)));
  if (!report.cases.empty()) {
    for (const std::string& path : {flags.svg_file, flags.png_file}) {
      if (!path.empty()) RETURN_IF_ERROR(write_plot(path, sweep_plot(report, options.cache_dtype)));
    }
  }
  if (flags.json)
    RETURN_IF_ERROR(print_json(sweep_json(report, options.cache_dtype)));
  else
    RETURN_IF_ERROR(print_text(sweep_text(report, options.cache_dtype)));
  if (!report.interrupted) return {};
  std::fprintf(stderr, "quipu: interrupted; what was measured until then was kept\n");
  set_verdict(1);
  return {};
}

}  // namespace

Action declare_bench_rooms(CLI::App& app) {
  auto flags = std::make_shared<BenchRoomsFlags>();
  app.add_option("--shape,-m,--model", flags->shape,
                 "mtla, smollm2, gqa-1b, infini; or a config.json, model folder or GGUF file (default mtla)");
  app.add_option("-c,--context,--contexts,-d,--depth", flags->contexts, "depths, with commas (default 1k,4k,16k)");
  app.add_option("-b,--batch", flags->batches, "sequences decoded together, with commas (default 1,8)");
  app.add_option("--rooms", flags->rooms,
                 "only these, with commas: " + sweep_room_keys() + " (default: all without windows)");
  app.add_flag("--no-depths", flags->no_depths, "leave out the forms with Mixture-of-Depths");
  app.add_option("-p,--prompt", flags->prompt, "longest prompt that is measured (default 2k)");
  app.add_option("--segment", flags->segment_tokens, "tokens of a segment of Infini-attention (default 2048)")
      ->check(whole_number(1, 1 << 20));
  app.add_option("--budget", flags->budget, "seconds after which the rest is left out (default 600)")
      ->check(whole_number(1));
  app.add_option("--memory", flags->memory,
                 "MiB that a case may take (default: two thirds of what is free, at most 8 GiB)");
  add_cache_flag(app, flags->model);
  app.add_option("-t,--threads", flags->threads, "threads to use (default: one per core)")
      ->check(whole_number(0, 4096));
  app.add_option("--plot,--svg", flags->svg_file, "draw the results into this .svg (or .png) file");
  app.add_option("--png", flags->png_file, "draw the results into this .png file");
  app.add_flag("--add", flags->add, "add to what the --json file has already: a sweep in parts");
  const CLI::Option* json =
      app.add_option("--json", flags->json_file, "one JSON object on standard output, or into this file")
          ->expected(0, 1);
  return [flags, json] {
    flags->json = json->count() > 0 && flags->json_file.empty();
    return bench_rooms(*flags);
  };
}

}  // namespace quipu::cli
