// quipu inspect MODEL: what the file holds, and what N tokens of context would cost.
#include <CLI/CLI.hpp>
#include <array>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/byte_reader.h"
#include "engine/engine.h"
#include "human_text.h"
#include "model_flags.h"
#include "report.h"
#include "verb.h"

namespace quipu::cli {
namespace {

constexpr std::array<int64_t, 6> kCostedContexts = {1 << 10, 1 << 12, 1 << 14, 1 << 15, 1 << 17, 1 << 20};

struct InspectFlags {
  ModelFlags model;
  bool tensors = false;
  bool json = false;
};

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

// "blk.17.attn_q.weight" and its siblings of other layers become one line "blk.*.attn_q.weight".
std::string without_layer_number(const std::string& name) {
  std::string text;
  for (size_t i = 0; i < name.size();) {
    const bool starts_part = i == 0 || name[i - 1] == '.';
    size_t end = i;
    while (starts_part && end < name.size() && name[end] >= '0' && name[end] <= '9') ++end;
    if (end > i && (end == name.size() || name[end] == '.')) {
      text += '*';
      i = end;
    } else {
      text += name[i++];
    }
  }
  return text;
}

std::string tensor_table(const ModelFacts& facts, bool each) {
  struct Group {
    std::string name, dtype, shape;
    int64_t count = 0;
    uint64_t bytes = 0;
  };
  std::vector<Group> groups;
  std::map<std::string, size_t> index;
  for (const TensorFacts& tensor : facts.tensors) {
    const std::string name = each ? tensor.name : without_layer_number(tensor.name);
    const std::string shape = shape_text(tensor.shape);
    const auto [at, added] = index.try_emplace(name + '\n' + tensor.dtype + shape, groups.size());
    if (added) {
      groups.push_back({name, tensor.dtype, shape});
    }
    ++groups[at->second].count;
    groups[at->second].bytes += tensor.bytes;
  }
  std::vector<std::vector<std::string>> rows = {{"tensor", "number", "type", "shape", "bytes"}};
  for (const Group& group : groups) {
    rows.push_back({printable(group.name), std::to_string(group.count), group.dtype, group.shape,
                    human_bytes(static_cast<double>(group.bytes))});
  }
  return aligned_table(rows, {false, true, false, false, true});
}

// "16 x grouped_query (heads 9, kv_heads 3)", one line for every run of layers that are alike.
std::vector<std::string> room_lines(const ModelFacts& facts) {
  std::vector<std::string> lines;
  for (size_t i = 0; i < facts.layer_rooms.size();) {
    size_t end = i;
    while (end < facts.layer_rooms.size() && facts.layer_rooms[end] == facts.layer_rooms[i] &&
           facts.layer_settings[end] == facts.layer_settings[i]) {
      ++end;
    }
    const std::string layers = i == 0 && end == facts.layer_rooms.size() ? std::to_string(end) + " x "
                               : end == i + 1 ? "layer " + std::to_string(i) + ": "
                                              : "layers " + std::to_string(i) + " to " + std::to_string(end - 1) + ": ";
    lines.push_back(layers + facts.layer_rooms[i] + " (" + facts.layer_settings[i] + ")");
    i = end;
  }
  return lines;
}

std::string facts_text(const ModelFacts& facts, DType cache) {
  const auto line = [](std::string_view label, const std::string& value) {
    return text_f("%-14s %s\n", std::string(label).c_str(), value.c_str());
  };
  std::string text = line("model", printable(facts.name));
  text += line("file", printable(facts.path, 400) + " (" + facts.file_format + ")");
  text += line("architecture", printable(facts.architecture) + ", " +
                                   human_count(static_cast<double>(facts.parameters)) + " parameters");
  std::string heads = text_f("%lld query heads", static_cast<long long>(facts.heads));
  if (facts.kv_heads > 0) heads += text_f(" and %lld key heads", static_cast<long long>(facts.kv_heads));
  if (facts.head_dim > 0) heads += text_f(" of %lld", static_cast<long long>(facts.head_dim));
  text += line("shape", text_f("%lld layers, width %lld, ", static_cast<long long>(facts.layers),
                               static_cast<long long>(facts.hidden)) +
                            heads + text_f(", feed-forward %lld", static_cast<long long>(facts.feed_forward)));
  const std::vector<std::string> rooms = room_lines(facts);
  for (size_t i = 0; i < rooms.size(); ++i) text += line(i == 0 ? "attention" : "", printable(rooms[i], 400));
  text += line("weights", facts.quantisation + ", " + human_bytes(static_cast<double>(facts.weight_bytes)) + " in " +
                              std::to_string(facts.tensors.size()) + " tensors");
  text += line("tokenizer", printable(facts.tokenizer, 200));
  text += line("chat template", facts.has_chat_template ? "yes" : "none (run uses the prompt as it is)");
  text += line("trained for", grouped_count(facts.trained_context) + " tokens of context");
  text += line("memory", human_bytes(facts.state_bytes_per_token) + " of state per token (" +
                             std::string(dtype_name(cache)) + ")");
  for (const std::string& warning : facts.warnings) text += line("warning", printable(warning, 400));
  return text;
}

std::string cost_table(const std::vector<ContextCost>& costs, const ModelFacts& facts) {
  std::vector<std::vector<std::string>> rows = {
      {"context", "state", "weights + state", "read per token", "compute per token"}};
  bool beyond = false;
  for (const ContextCost& cost : costs) {
    const bool over = facts.trained_context > 0 && cost.tokens > facts.trained_context;
    beyond = beyond || over;
    rows.push_back({human_tokens(cost.tokens) + (over ? " *" : ""), human_bytes(static_cast<double>(cost.state_bytes)),
                    human_bytes(static_cast<double>(cost.state_bytes + facts.weight_bytes)),
                    human_bytes(cost.bytes_read_per_token), human_operations(cost.flops_per_token)});
  }
  return "what N tokens of context cost\n" + aligned_table(rows, {false, true, true, true, true}) +
         (beyond ? "* longer than the model was trained for\n" : "");
}

nlohmann::ordered_json inspect_json(const ModelFacts& facts, const std::vector<ContextCost>& costs, DType cache) {
  nlohmann::ordered_json json = {{"path", facts.path},
                                 {"name", facts.name},
                                 {"architecture", facts.architecture},
                                 {"file_format", facts.file_format},
                                 {"quantisation", facts.quantisation},
                                 {"parameters", facts.parameters},
                                 {"weight_bytes", facts.weight_bytes},
                                 {"layers", facts.layers},
                                 {"hidden", facts.hidden},
                                 {"heads", facts.heads},
                                 {"kv_heads", facts.kv_heads},
                                 {"head_dim", facts.head_dim},
                                 {"layer_settings", facts.layer_settings},
                                 {"feed_forward", facts.feed_forward},
                                 {"vocabulary", facts.vocabulary},
                                 {"trained_context", facts.trained_context},
                                 {"layer_rooms", facts.layer_rooms},
                                 {"cache_type", dtype_name(cache)},
                                 {"state_bytes_per_token", facts.state_bytes_per_token},
                                 {"tokenizer", facts.tokenizer},
                                 {"has_chat_template", facts.has_chat_template},
                                 {"warnings", facts.warnings}};
  json["costs"] = nlohmann::ordered_json::array();
  for (const ContextCost& cost : costs) {
    json["costs"].push_back({{"tokens", cost.tokens},
                             {"state_bytes", cost.state_bytes},
                             {"state_bytes_allocated", cost.state_bytes_allocated},
                             {"flops_per_token", cost.flops_per_token},
                             {"bytes_read_per_token", cost.bytes_read_per_token}});
  }
  json["tensors"] = nlohmann::ordered_json::array();
  for (const TensorFacts& tensor : facts.tensors) {
    json["tensors"].push_back(
        {{"name", tensor.name}, {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"bytes", tensor.bytes}});
  }
  return json;
}

Result<void> inspect(const InspectFlags& flags) {
  ASSIGN_OR_RETURN(const std::string path, resolve_model(flags.model.model));
  ASSIGN_OR_RETURN(const DType cache, cache_type(flags.model));
  ASSIGN_OR_RETURN(const ModelFacts facts, Engine::inspect(path, cache));
  ASSIGN_OR_RETURN(const std::vector<ContextCost> costs, Engine::cost(path, kCostedContexts, cache));
  if (flags.json) return print_json(inspect_json(facts, costs, cache));
  return print_text(facts_text(facts, cache) + "\n" + tensor_table(facts, flags.tensors) + "\n" +
                    cost_table(costs, facts));
}

}  // namespace

Action declare_inspect(CLI::App& app) {
  auto flags = std::make_shared<InspectFlags>();
  add_model_word(app, flags->model);
  add_cache_flag(app, flags->model);
  app.add_flag("--tensors", flags->tensors, "list every tensor (else the layers are folded together)");
  app.add_flag("--json", flags->json, "one JSON object on standard output, every tensor included");
  return [flags] { return inspect(*flags); };
}

}  // namespace quipu::cli
