#include "train/run_config.h"

#include <toml++/toml.h>

#include <cmath>
#include <set>
#include <sstream>

#include "base/byte_reader.h"
#include "base/mapped_file.h"

namespace quipu {
namespace {

constexpr size_t kMaxFileBytes = size_t{1} << 20;

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? std::string() : path.substr(0, slash + 1);
}

// One table of the file: hands out typed values and remembers which keys were asked for, so that the rest is unknown.
class Table {
 public:
  Table(const std::string& file, std::string name, const toml::table* table)
      : file_(file), name_(std::move(name)), table_(table) {}

  bool has(std::string_view key) {
    known_.insert(std::string(key));
    return table_ != nullptr && table_->contains(key);
  }
  int64_t line(std::string_view key) const {
    const toml::node* node = table_ == nullptr ? nullptr : table_->get(key);
    return node == nullptr ? 0 : static_cast<int64_t>(node->source().begin.line);
  }
  Error wrong(std::string_view key, const std::string& what) const {
    const int64_t at = line(key);
    return bad_input(file_ + (at > 0 ? ":" + std::to_string(at) : "") + ": " + full(key) + " " + what);
  }
  const toml::node* node(std::string_view key) { return has(key) ? table_->get(key) : nullptr; }

  Result<void> text(std::string& out, std::string_view key) {
    const toml::node* found = node(key);
    if (found == nullptr) return {};
    const auto value = found->value_exact<std::string>();
    if (!value) return wrong(key, "is " + kind(*found) + ", expected a text in quotes");
    if (value->find('\0') != std::string::npos) return wrong(key, "holds a zero byte");
    out = *value;
    return {};
  }
  Result<void> path(std::string& out, std::string_view key) {
    if (!has(key)) return {};
    RETURN_IF_ERROR(text(out, key));
    if (out.empty()) return wrong(key, "is empty, expected a path");
    out = resolved(out);
    return {};
  }
  std::string resolved(const std::string& given) const {
    return given.starts_with('/') ? given : folder_of(file_) + given;
  }

  Result<void> texts(std::vector<std::string>& out, std::string_view key, bool paths) {
    const toml::node* found = node(key);
    if (found == nullptr) return {};
    out.clear();
    const auto add = [&](const toml::node& entry) -> Result<void> {
      const auto value = entry.value_exact<std::string>();
      if (!value || value->empty()) return wrong(key, "expected a text or a list of texts, none empty");
      out.push_back(paths ? resolved(*value) : *value);
      return {};
    };
    if (!found->is_array()) return add(*found);
    for (const toml::node& entry : *found->as_array()) RETURN_IF_ERROR(add(entry));
    if (out.empty()) return wrong(key, "is an empty list");
    return {};
  }
  Result<void> flag(bool& out, std::string_view key) {
    const toml::node* found = node(key);
    if (found == nullptr) return {};
    const auto value = found->value_exact<bool>();
    if (!value) return wrong(key, "is " + kind(*found) + ", expected true or false");
    out = *value;
    return {};
  }
  Result<void> whole(int64_t& out, std::string_view key, int64_t low, int64_t high) {
    const toml::node* found = node(key);
    if (found == nullptr) return {};
    const auto value = found->value_exact<int64_t>();
    if (!value) return wrong(key, "is " + kind(*found) + ", expected a whole number");
    if (*value < low || *value > high) {
      return wrong(
          key, "is " + std::to_string(*value) + ", expected " + std::to_string(low) + " to " + std::to_string(high));
    }
    out = *value;
    return {};
  }
  // low <= value < high.
  Result<void> real(double& out, std::string_view key, double low, double high) {
    const toml::node* found = node(key);
    if (found == nullptr) return {};
    if (!found->is_number()) return wrong(key, "is " + kind(*found) + ", expected a number");
    const double value =
        found->is_integer() ? static_cast<double>(*found->value_exact<int64_t>()) : *found->value_exact<double>();
    if (!(value >= low && value < high)) {
      std::ostringstream range;
      range << "is " << value << ", expected " << low << " or more and less than " << high;
      return wrong(key, range.str());
    }
    out = value;
    return {};
  }
  // One of `words`, as its place in the list.
  Result<void> choice(size_t& out, std::string_view key, const std::vector<std::string>& words) {
    std::string value;
    if (!has(key)) return {};
    RETURN_IF_ERROR(text(value, key));
    std::string list;
    for (size_t i = 0; i < words.size(); ++i) {
      if (words[i] == value) {
        out = i;
        return {};
      }
      list += (i == 0 ? "" : ", ") + words[i];
    }
    return wrong(key, "is '" + printable(value) + "', expected one of " + list);
  }

  // Any key that was never asked for.
  Result<void> nothing_else() const {
    if (table_ == nullptr) return {};
    for (const auto& [key, value] : *table_) {
      const std::string name(key.str());
      if (known_.contains(name)) continue;
      std::string list;
      for (const std::string& known : known_) list += (list.empty() ? "" : ", ") + known;
      return bad_input(file_ + ":" + std::to_string(value.source().begin.line) + ": unknown key " +
                       printable(full(name)) + "; known here: " + list);
    }
    return {};
  }

  static std::string kind(const toml::node& node) {
    switch (node.type()) {
      case toml::node_type::table: return "a table";
      case toml::node_type::array: return "a list";
      case toml::node_type::string: return "a text";
      case toml::node_type::integer: return "a whole number";
      case toml::node_type::floating_point: return "a fraction";
      case toml::node_type::boolean: return "true or false";
      default: return "a date or time";
    }
  }

 private:
  std::string full(std::string_view key) const {
    return name_.empty() ? std::string(key) : name_ + "." + std::string(key);
  }
  std::string file_, name_;
  const toml::table* table_;
  std::set<std::string> known_;
};

Result<Table> section(const std::string& file, Table& root, const toml::table& document, std::string_view name) {
  const toml::node* node = root.node(name);
  if (node != nullptr && !node->is_table())
    return root.wrong(name, "is " + Table::kind(*node) + ", expected a section [" + std::string(name) + "]");
  return Table(file, std::string(name), document.get_as<toml::table>(name));
}

Result<void> read_model(ModelSection& out, Table t) {
  const toml::node* config = t.node("config");
  const toml::table* inline_config = config == nullptr ? nullptr : config->as_table();
  if (inline_config != nullptr) {
    std::ostringstream json;
    json << toml::json_formatter(*inline_config);
    out.config_json = json.str();
  } else {
    RETURN_IF_ERROR(t.path(out.config, "config"));
  }
  RETURN_IF_ERROR(t.path(out.init, "init"));
  RETURN_IF_ERROR(t.whole(out.seed, "seed", 0, INT64_MAX));
  RETURN_IF_ERROR(t.real(out.deviation, "deviation", 1e-6, 10));
  for (const char* key : {"seed", "deviation"}) {
    if (!out.init.empty() && t.has(key))
      return t.wrong(key, "contradicts model.init: weights that are read are not drawn");
  }
  RETURN_IF_ERROR(t.nothing_else());  // first: a missing key may be a misspelt one
  if (config == nullptr) return t.wrong("config", "is missing: the path of a config.json, or a table [model.config]");
  return {};
}

Result<void> read_task_settings(TaskSettings& out, const std::string& file, Table& data, const std::string& task) {
  const toml::node* node = data.node(task);
  if (node == nullptr) return {};
  const toml::table* table = node->as_table();
  if (table == nullptr)
    return data.wrong(task, "is " + Table::kind(*node) + ", expected a section [data." + task + "]");
  for (const auto& [key, value] : *table) {
    TaskSettings::Value setting;
    setting.line = static_cast<int64_t>(value.source().begin.line);
    if (const auto v = value.value_exact<bool>())
      setting.value = *v;
    else if (const auto i = value.value_exact<int64_t>())
      setting.value = *i;
    else if (const auto d = value.value_exact<double>())
      setting.value = *d;
    else if (const auto s = value.value_exact<std::string>())
      setting.value = *s;
    else
      return bad_input(file + ":" + std::to_string(setting.line) + ": data." + task + "." + std::string(key.str()) +
                       " is " + Table::kind(value) + ", expected a number, a text, or true or false");
    out.values.emplace(std::string(key.str()), std::move(setting));
  }
  return {};
}

Result<void> read_data(DataSection& out, const std::string& file, Table t) {
  RETURN_IF_ERROR(t.texts(out.train, "train", true));
  RETURN_IF_ERROR(t.texts(out.held_out, "held_out", true));
  RETURN_IF_ERROR(t.real(out.held_out_fraction, "held_out_fraction", 0, 1));
  RETURN_IF_ERROR(t.text(out.tokenizer, "tokenizer"));
  if (!out.tokenizer.empty() && out.tokenizer != "bytes") out.tokenizer = t.resolved(out.tokenizer);
  RETURN_IF_ERROR(t.path(out.cache, "cache"));
  RETURN_IF_ERROR(t.text(out.document_separator, "document_separator"));
  RETURN_IF_ERROR(t.texts(out.extensions, "extensions", false));
  out.end_token_given = t.has("end_token");
  RETURN_IF_ERROR(t.text(out.end_token, "end_token"));
  RETURN_IF_ERROR(t.text(out.task, "task"));
  if (out.task.empty() && out.train.empty()) {
    RETURN_IF_ERROR(t.nothing_else());
    return t.wrong("train", "is missing: say what to train on, or name a data.task");
  }
  if (!out.task.empty() && !out.train.empty()) return t.wrong("task", "contradicts data.train: give one of the two");
  if (!out.task.empty()) {
    for (const char* key :
         {"held_out", "held_out_fraction", "tokenizer", "cache", "document_separator", "extensions", "end_token"}) {
      if (t.has(key)) return t.wrong(key, "contradicts data.task: a task makes its own data");
    }
    RETURN_IF_ERROR(read_task_settings(out.task_settings, file, t, out.task));
  }
  if (!out.held_out.empty() && t.has("held_out_fraction")) {
    return t.wrong("held_out_fraction", "contradicts data.held_out: give one of the two");
  }
  return t.nothing_else();
}

Result<void> read_train(TrainSection& out, Table t) {
  RETURN_IF_ERROR(t.whole(out.steps, "steps", 1, int64_t{1} << 40));
  RETURN_IF_ERROR(t.whole(out.sequence, "sequence", 2, int64_t{1} << 24));
  RETURN_IF_ERROR(t.whole(out.batch, "batch", 1, 1 << 20));
  RETURN_IF_ERROR(t.whole(out.micro_batch, "micro_batch", 1, 1 << 20));
  RETURN_IF_ERROR(t.whole(out.seed, "seed", 0, INT64_MAX));
  size_t precision = 0;
  RETURN_IF_ERROR(t.choice(precision, "precision", {"fp32", "bf16"}));
  out.bfloat16 = precision == 1;
  RETURN_IF_ERROR(t.flag(out.recompute, "recompute"));
  RETURN_IF_ERROR(t.real(out.z_loss, "z_loss", 0, 1));
  RETURN_IF_ERROR(t.real(out.write_penalty, "write_penalty", 0, 100));
  RETURN_IF_ERROR(t.real(out.write_penalty_start, "write_penalty_start", 0, 1));
  RETURN_IF_ERROR(t.real(out.router_loss, "router_loss", 0, 100));
  RETURN_IF_ERROR(t.whole(out.threads, "threads", 0, 4096));
  if (out.micro_batch > 0 && out.batch % out.micro_batch != 0) {
    return t.wrong("micro_batch", "is " + std::to_string(out.micro_batch) + ", expected a divisor of train.batch, " +
                                      std::to_string(out.batch));
  }
  RETURN_IF_ERROR(t.nothing_else());
  if (!t.has("steps")) return t.wrong("steps", "is missing: how many steps to train");
  return {};
}

Result<void> read_optimizer(OptimizerSection& out, Table t, int64_t steps) {
  RETURN_IF_ERROR(t.real(out.learning_rate, "learning_rate", 1e-12, 100));
  RETURN_IF_ERROR(t.real(out.gate_learning_rate, "gate_learning_rate", 1e-12, 100));
  if (!t.has("gate_learning_rate")) out.gate_learning_rate = 10 * out.learning_rate;
  if (const toml::node* betas = t.node("betas"); betas != nullptr) {
    const toml::array* list = betas->as_array();
    const bool numbers = list != nullptr && list->size() == 2 && list->get(0)->is_number() && list->get(1)->is_number();
    if (numbers) {
      out.beta1 = list->get(0)->value<double>().value_or(-1);
      out.beta2 = list->get(1)->value<double>().value_or(-1);
    }
    if (!numbers || !(out.beta1 >= 0 && out.beta1 < 1 && out.beta2 >= 0 && out.beta2 < 1)) {
      return t.wrong("betas", "expected two numbers of 0 or more and less than 1, such as [0.9, 0.95]");
    }
  }
  RETURN_IF_ERROR(t.real(out.epsilon, "epsilon", 1e-30, 1));
  RETURN_IF_ERROR(t.real(out.weight_decay, "weight_decay", 0, 10));
  RETURN_IF_ERROR(t.real(out.clip, "clip", 0, 1e9));
  size_t kind = 1;
  RETURN_IF_ERROR(t.choice(kind, "schedule", {"constant", "cosine", "wsd"}));
  out.schedule = static_cast<ScheduleKind>(kind);
  RETURN_IF_ERROR(t.whole(out.warmup_steps, "warmup_steps", 0, int64_t{1} << 40));
  RETURN_IF_ERROR(t.whole(out.decay_steps, "decay_steps", 1, int64_t{1} << 40));
  RETURN_IF_ERROR(t.real(out.final_fraction, "final_fraction", 0, 1.0000001));
  if (out.schedule != ScheduleKind::kWsd && t.has("decay_steps")) {
    return t.wrong("decay_steps", "needs optimizer.schedule = \"wsd\"");
  }
  if (out.schedule == ScheduleKind::kConstant && t.has("final_fraction")) {
    return t.wrong("final_fraction", "contradicts optimizer.schedule = \"constant\"");
  }
  if (out.schedule == ScheduleKind::kWsd) {
    if (!t.has("decay_steps")) out.decay_steps = std::max<int64_t>(steps / 5, 1);
    if (!t.has("final_fraction")) out.final_fraction = 0;
  }
  if (out.warmup_steps > steps) {
    return t.wrong("warmup_steps",
                   "is " + std::to_string(out.warmup_steps) + ", more than train.steps, " + std::to_string(steps));
  }
  if (out.warmup_steps + out.decay_steps > steps) {
    return t.wrong("decay_steps", "and warmup_steps are " + std::to_string(out.warmup_steps + out.decay_steps) +
                                      " together, more than train.steps, " + std::to_string(steps));
  }
  return t.nothing_else();
}

Result<void> read_output(OutputSection& out, Table t) {
  RETURN_IF_ERROR(t.path(out.folder, "folder"));
  RETURN_IF_ERROR(t.real(out.checkpoint_minutes, "checkpoint_minutes", 0, 1e6));
  RETURN_IF_ERROR(t.whole(out.checkpoint_steps, "checkpoint_steps", 1, int64_t{1} << 40));
  RETURN_IF_ERROR(t.whole(out.keep, "keep", 1, 1000000));
  RETURN_IF_ERROR(t.whole(out.log_steps, "log_steps", 1, 1000000));
  RETURN_IF_ERROR(t.flag(out.tensorboard, "tensorboard"));
  RETURN_IF_ERROR(t.flag(out.report, "report"));
  RETURN_IF_ERROR(t.nothing_else());
  if (!t.has("folder")) return t.wrong("folder", "is missing: where weights, checkpoints and curves go");
  return {};
}

// "train.steps" = "200" into the document; the value is read as TOML, or as a text when it is none.
Result<void> apply(toml::table& document, const std::string& key, const std::string& value) {
  const size_t dot = key.find('.');
  if (dot == std::string::npos || dot == 0 || dot + 1 == key.size()) {
    return usage_error("an override names a section and a key, such as train.steps=200; found " + printable(key));
  }
  const std::string name = key.substr(0, dot), leaf = key.substr(dot + 1);
  if (!document.contains(name)) document.insert(name, toml::table{});
  toml::table* table = document.get_as<toml::table>(name);
  if (table == nullptr || leaf.find('.') != std::string::npos)
    return usage_error("override " + printable(key) + ": no such section");
  try {
    toml::table parsed = toml::parse("value = " + value);
    if (parsed.size() == 1) {
      table->insert_or_assign(leaf, std::move(*parsed.get("value")));
      return {};
    }
  } catch (const toml::parse_error&) {  // a word without quotes
  }
  table->insert_or_assign(leaf, value);
  return {};
}

}  // namespace

Result<RunConfig> parse_run_config(const std::string& file, std::string_view text, const ConfigOverrides& overrides) {
  RunConfig config;
  config.file = file;
  config.text = std::string(text);
  toml::table document;
  try {
    document = toml::parse(text, file);
  } catch (const toml::parse_error& error) {
    return bad_input(file + ":" + std::to_string(error.source().begin.line) +
                     ": not TOML: " + printable(error.description(), 200));
  }
  for (const auto& [key, value] : overrides) {
    RETURN_IF_ERROR(apply(document, key, value));
    config.text += "\n# " + key + " = " + value;
  }
  Table root(file, "", &document);
  ASSIGN_OR_RETURN(Table model, section(file, root, document, "model"));
  ASSIGN_OR_RETURN(Table data, section(file, root, document, "data"));
  ASSIGN_OR_RETURN(Table train, section(file, root, document, "train"));
  ASSIGN_OR_RETURN(Table optimizer, section(file, root, document, "optimizer"));
  ASSIGN_OR_RETURN(Table evaluate, section(file, root, document, "evaluate"));
  ASSIGN_OR_RETURN(Table output, section(file, root, document, "output"));
  RETURN_IF_ERROR(root.nothing_else());
  RETURN_IF_ERROR(read_train(config.train, std::move(train)));
  config.model.seed = config.train.seed;
  RETURN_IF_ERROR(read_model(config.model, std::move(model)));
  RETURN_IF_ERROR(read_data(config.data, file, std::move(data)));
  RETURN_IF_ERROR(read_optimizer(config.optimizer, std::move(optimizer), config.train.steps));
  RETURN_IF_ERROR(evaluate.whole(config.evaluate.every, "every", 1, int64_t{1} << 40));
  RETURN_IF_ERROR(evaluate.whole(config.evaluate.sequences, "sequences", 1, 1 << 24));
  const bool has_held_out =
      !config.data.task.empty() || !config.data.held_out.empty() || config.data.held_out_fraction > 0;
  if (evaluate.has("every") && !has_held_out) {
    return evaluate.wrong("every", "needs something held out: data.held_out or data.held_out_fraction");
  }
  RETURN_IF_ERROR(evaluate.nothing_else());
  RETURN_IF_ERROR(read_output(config.output, std::move(output)));
  if (config.data.cache.empty()) config.data.cache = config.output.folder + "/cache";
  return config;
}

Result<RunConfig> read_run_config(const std::string& path, const ConfigOverrides& overrides) {
  ASSIGN_OR_RETURN(const auto file, MappedFile::open(path));
  const auto bytes = file->bytes();
  if (bytes.size() > kMaxFileBytes) {
    return bad_input(path + ": " + std::to_string(bytes.size()) + " bytes, expected at most " +
                     std::to_string(kMaxFileBytes));
  }
  return parse_run_config(path, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}, overrides);
}

}  // namespace quipu
