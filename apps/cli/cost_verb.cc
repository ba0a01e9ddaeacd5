// quipu cost CONFIG|MODEL: bytes and operations of this model and of the same model with every other memory.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <memory>
#include <nlohmann/json.hpp>

#include "arguments.h"
#include "base/byte_reader.h"
#include "engine/cost_table.h"
#include "human_text.h"
#include "line_plot.h"
#include "model_flags.h"
#include "report.h"
#include "room_colours.h"
#include "verb.h"

namespace quipu::cli {
namespace {

struct CostFlags {
  ModelFlags model;
  std::string contexts = "4k,32k,1M";
  int64_t segment_tokens = 2048;
  double capacity = 0.125;
  std::string plot;
  bool json = false;
};

// "1x", "4.3x", "0.91x"; below a half as a fraction, "1/482".
std::string ratio_text(double value, double reference) {
  if (!(value > 0 && reference > 0)) return "";
  if (value < 0.995 * reference && value > 0.5 * reference) return text_f("%.2fx", value / reference);
  const bool less = value <= 0.5 * reference;
  const double ratio = less ? reference / value : value / reference;
  const std::string number = ratio >= 9.95 ? text_f("%.0f", ratio) : text_f("%.2g", ratio);
  return less ? "1/" + number : number + "x";
}

std::string operations_text(double count) {
  static constexpr std::array<const char*, 7> kScale = {"", "k", "M", "G", "T", "P", "E"};
  size_t scale = 0;
  while (scale + 1 < kScale.size() && count >= 999.5) {
    count /= 1000;
    ++scale;
  }
  return text_f(count >= 99.5 ? "%.0f %s" : "%.1f %s", count, kScale[scale]);
}

const RoomCosts* reference_of(const CostTable& table) {
  for (const RoomCosts& room : table.rooms) {
    if (room.name == "MHA") return &room;
  }
  return nullptr;
}

std::string context_table(const CostTable& table, size_t context) {
  std::vector<std::vector<std::string>> rows = {
      {"memory of the context", "state", "", "FLOP/tok", "", "read/tok", "", "prompt", ""}};
  const RoomCosts* reference = reference_of(table);
  bool depths = false;
  for (const RoomCosts& room : table.rooms) {
    if (room.depths && !depths) rows.push_back({"with Mixture-of-Depths:"});
    depths = room.depths;
    const RoomCost& cost = room.at[context];
    std::string name = room.name;
    if (depths) name = "  " + name.substr(0, name.rfind(" + MoD"));
    if (room.own) name += " (this model)";
    const RoomCost none;
    const RoomCost& base = reference == nullptr ? none : reference->at[context];
    rows.push_back({name, human_bytes(static_cast<double>(cost.state_bytes)),
                    ratio_text(static_cast<double>(cost.state_bytes), static_cast<double>(base.state_bytes)),
                    operations_text(cost.decode_flops), ratio_text(cost.decode_flops, base.decode_flops),
                    human_bytes(cost.decode_bytes), ratio_text(cost.decode_bytes, base.decode_bytes),
                    operations_text(cost.prefill_flops), ratio_text(cost.prefill_flops, base.prefill_flops)});
  }
  return human_tokens(table.rooms.front().at[context].tokens) + " tokens of context\n" +
         aligned_table(rows, {false, true, true, true, true, true, true, true, true}) + "\n";
}

// What Infini keeps of closed segments and of the open one: the paper counts the first only.
std::string memory_note(const CostTable& table) {
  for (const RoomCosts& room : table.rooms) {
    uint64_t memory = 0, all = 0;
    for (const RegionCost& region : room.at.back().regions) {
      if (region.name == "memory" || region.name == "norm") memory += region.bytes;
      all += region.bytes;
    }
    if (memory == 0 || room.depths) continue;
    return "Of the state of " + room.name + ", " + human_bytes(static_cast<double>(memory)) +
           " are the memory of closed segments, which is what the paper counts; the other " +
           human_bytes(static_cast<double>(all - memory)) + " are the open segment.\n";
  }
  return "";
}

std::string cost_text(const CostTable& table, DType cache) {
  constexpr size_t kTextColumns = 100;
  std::string text = printable(table.name) + ", " + printable(table.architecture) +
                     text_f(", %lld layers of width %lld, ", static_cast<long long>(table.layers),
                            static_cast<long long>(table.hidden)) +
                     human_count(static_cast<double>(table.rooms.front().parameters)) + " parameters; cache " +
                     std::string(dtype_name(cache)) +
                     text_f(", weights at %.1f bits%s", table.bits_per_weight,
                            table.weights_seen ? "" : " (assumed: no weights there)");
  text = wrapped(text, kTextColumns) + "\n\n";
  for (size_t i = 0; i < table.rooms.front().at.size(); ++i) text += context_table(table, i);
  text += wrapped(
              "Beside each number: its ratio to MHA. FLOP/tok and read/tok: operations, and bytes of weights and "
              "state, of one "
              "more token at that depth. prompt: operations of reading the whole context.",
              kTextColumns) +
          "\n";
  for (const std::string& rule : table.rules) text += wrapped(rule, kTextColumns) + "\n";
  return text + wrapped(memory_note(table), kTextColumns) + "\n";
}

nlohmann::ordered_json cost_json(const CostTable& table, DType cache) {
  nlohmann::ordered_json json = {{"path", table.path},
                                 {"name", table.name},
                                 {"architecture", table.architecture},
                                 {"layers", table.layers},
                                 {"hidden", table.hidden},
                                 {"vocabulary", table.vocabulary},
                                 {"cache_type", dtype_name(cache)},
                                 {"bits_per_weight", table.bits_per_weight},
                                 {"weights_seen", table.weights_seen},
                                 {"rules", table.rules}};
  json["rooms"] = nlohmann::ordered_json::array();
  for (const RoomCosts& room : table.rooms) {
    nlohmann::ordered_json entry = {{"name", room.name},
                                    {"key", room.key},
                                    {"own", room.own},
                                    {"mixture_of_depths", room.depths},
                                    {"parameters", room.parameters}};
    entry["costs"] = nlohmann::ordered_json::array();
    for (const RoomCost& cost : room.at) {
      nlohmann::ordered_json regions = nlohmann::ordered_json::array();
      for (const RegionCost& region : cost.regions) {
        regions.push_back(
            {{"name", region.name}, {"grows", region.grows}, {"bytes", region.bytes}, {"elements", region.elements}});
      }
      entry["costs"].push_back({{"tokens", cost.tokens},
                                {"state_bytes", cost.state_bytes},
                                {"decode_flops", cost.decode_flops},
                                {"decode_context_flops", cost.decode_context_flops},
                                {"decode_bytes", cost.decode_bytes},
                                {"prefill_flops", cost.prefill_flops},
                                {"prefill_context_flops", cost.prefill_context_flops},
                                {"regions", std::move(regions)}});
    }
    json["rooms"].push_back(std::move(entry));
  }
  return json;
}

LinePlot cost_plot(const CostTable& table) {
  using Unit = PlotAxis::Unit;
  struct Quantity {
    const char* title;
    const char* label;
    Unit unit;
    double (*of)(const RoomCost&);
  };
  static constexpr std::array<Quantity, 4> kQuantities = {{
      {"State of one sequence", "bytes", Unit::kBytes,
       [](const RoomCost& c) { return static_cast<double>(c.state_bytes); }},
      {"Decode: bytes moved per token", "bytes", Unit::kBytes, [](const RoomCost& c) { return c.decode_bytes; }},
      {"Decode: operations per token", "operations", Unit::kOperations,
       [](const RoomCost& c) { return c.decode_flops; }},
      {"Prompt: operations", "operations", Unit::kOperations, [](const RoomCost& c) { return c.prefill_flops; }},
  }};
  LinePlot plot;
  plot.title = "What a context costs: " + printable(table.name) + " and its memory substituted";
  for (const Quantity& quantity : kQuantities) {
    PlotPanel panel{quantity.title, {"tokens of context", Unit::kTokens}, {quantity.label, quantity.unit}, {}};
    for (const RoomCosts& room : table.rooms) {
      // The three rules differ by less than a line is wide.
      if (!room.own && room.key.find("infini-delta") == 0) continue;
      PlotLine line{room.name + (room.own ? " (this model)" : ""), room_colour(room.name), room.depths, {}};
      for (const RoomCost& cost : room.at)
        line.points.emplace_back(static_cast<double>(cost.tokens), quantity.of(cost));
      panel.lines.push_back(std::move(line));
    }
    plot.panels.push_back(std::move(panel));
  }
  for (const std::string& rule : table.rules) plot.note += rule + "\n";
  plot.note += "Infini: the delta rules cost less than 1 % more than the linear one and are not drawn.";
  return plot;
}

Result<void> cost(const CostFlags& flags) {
  ASSIGN_OR_RETURN(const std::string path, resolve_model(flags.model.model));
  ASSIGN_OR_RETURN(const DType cache, cache_type(flags.model));
  if (!flags.plot.empty()) RETURN_IF_ERROR(check_plot_path(flags.plot));
  CostTableOptions options;
  ASSIGN_OR_RETURN(options.contexts, parse_counts(flags.contexts, "--context", 1, kMostCostedTokens));
  options.cache_dtype = cache;
  options.segment_tokens = flags.segment_tokens;
  options.capacity = flags.capacity;
  ASSIGN_OR_RETURN(const CostTable table, cost_table(path, options));
  if (!flags.plot.empty()) {
    // A line needs more points than a table needs columns.
    CostTableOptions dense = options;
    const auto [low, high] = std::minmax_element(options.contexts.begin(), options.contexts.end());
    if (options.contexts.size() < 6 && *low < *high) {
      for (int64_t tokens = *low * 2; tokens < *high; tokens *= 2) dense.contexts.push_back(tokens);
      std::sort(dense.contexts.begin(), dense.contexts.end());
      dense.contexts.erase(std::unique(dense.contexts.begin(), dense.contexts.end()), dense.contexts.end());
    }
    ASSIGN_OR_RETURN(const CostTable plotted, cost_table(path, dense));
    RETURN_IF_ERROR(write_plot(flags.plot, cost_plot(plotted)));
  }
  if (flags.json) return print_json(cost_json(table, cache));
  return print_text(cost_text(table, cache));
}

}  // namespace

Action declare_cost(CLI::App& app) {
  auto flags = std::make_shared<CostFlags>();
  add_model_word(app, flags->model);
  add_cache_flag(app, flags->model);
  app.add_option("-c,--context,--contexts", flags->contexts,
                 "tokens of context, several with commas (default 4k,32k,1M)");
  app.add_option("--segment", flags->segment_tokens, "tokens of a segment of Infini-attention (default 2048)")
      ->check(whole_number(1, 1 << 20));
  app.add_option("--capacity", flags->capacity, "share of tokens of a layer with Mixture-of-Depths (default 0.125)")
      ->check(real_number(0.001, 1));
  app.add_option("--plot", flags->plot, "draw the table into this .svg or .png file");
  app.add_flag("--json", flags->json, "one JSON object on standard output");
  return [flags] { return cost(*flags); };
}

}  // namespace quipu::cli
