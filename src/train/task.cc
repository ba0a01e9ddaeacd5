#include "train/task.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/byte_reader.h"
#include "base/utf8.h"
#include "text/byte_alphabet.h"
#include "train/copy_task.h"
#include "train/passkey_task.h"

namespace quipu {
namespace {

using nlohmann::ordered_json;
using Make = Result<std::unique_ptr<Task>> (*)(SettingsReader settings, const TaskOptions& options);

struct Entry {
  const char* name;
  Make make;
};
constexpr Entry kTasks[] = {
    {"copy", make_copy_task},
    {"passkey", make_passkey_task},
};

}  // namespace

const TaskSettings::Value* SettingsReader::find(const std::string& key) {
  known_.push_back(key);
  const auto found = settings_.values.find(key);
  return found == settings_.values.end() ? nullptr : &found->second;
}

Error SettingsReader::wrong(const std::string& key, const std::string& what) const {
  const auto found = settings_.values.find(key);
  return bad_input(file_ + (found == settings_.values.end() ? "" : ":" + std::to_string(found->second.line)) +
                   ": data." + task_ + "." + printable(key) + " " + what);
}

Result<void> SettingsReader::whole(int64_t& out, const std::string& key, int64_t low, int64_t high) {
  const TaskSettings::Value* value = find(key);
  if (value == nullptr) return {};
  const int64_t* number = std::get_if<int64_t>(&value->value);
  if (number == nullptr || *number < low || *number > high) {
    return wrong(key, "expected a whole number from " + std::to_string(low) + " to " + std::to_string(high));
  }
  out = *number;
  return {};
}

Result<void> SettingsReader::real(double& out, const std::string& key, double low, double high) {
  const TaskSettings::Value* value = find(key);
  if (value == nullptr) return {};
  const int64_t* number = std::get_if<int64_t>(&value->value);
  const double* fraction = std::get_if<double>(&value->value);
  const double given = number != nullptr ? static_cast<double>(*number) : fraction != nullptr ? *fraction : low - 1;
  if (!(given >= low && given <= high)) {
    std::ostringstream text;
    text << "expected a number from " << low << " to " << high;
    return wrong(key, text.str());
  }
  out = given;
  return {};
}

Result<void> SettingsReader::flag(bool& out, const std::string& key) {
  const TaskSettings::Value* value = find(key);
  if (value == nullptr) return {};
  const bool* given = std::get_if<bool>(&value->value);
  if (given == nullptr) return wrong(key, "expected true or false");
  out = *given;
  return {};
}

Result<void> SettingsReader::choice(std::string& out, const std::string& key, const std::vector<std::string>& words) {
  const TaskSettings::Value* value = find(key);
  if (value == nullptr) return {};
  const std::string* given = std::get_if<std::string>(&value->value);
  if (given == nullptr || std::find(words.begin(), words.end(), *given) == words.end()) {
    std::string list;
    for (const std::string& word : words) list += (list.empty() ? "\"" : ", \"") + word + "\"";
    return wrong(key, "expected one of " + list);
  }
  out = *given;
  return {};
}

Result<void> SettingsReader::nothing_else() const {
  for (const auto& [key, value] : settings_.values) {
    if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
    std::string list;
    for (const std::string& known : known_) list += (list.empty() ? "" : ", ") + known;
    return wrong(key, "is unknown; known here: " + list);
  }
  return {};
}

Result<std::unique_ptr<Task>> make_task(const std::string& name, const TaskSettings& settings,
                                        const TaskOptions& options) {
  std::string list;
  for (const Entry& entry : kTasks) {
    if (name == entry.name) return entry.make(SettingsReader(name, settings, options.file), options);
    list += (list.empty() ? "" : ", ") + std::string(entry.name);
  }
  return usage_error(options.file + ": data.task: there is no task " + printable(name) + "; there are " + list);
}

std::string word_tokenizer_json(const std::vector<std::string>& words) {
  const auto& alphabet = byte_alphabet();
  const auto written = [&](std::string_view bytes) {
    std::string text;
    for (const char byte : bytes) utf8_append(text, alphabet[static_cast<unsigned char>(byte)]);
    return text;
  };
  constexpr char kPattern[] = R"(\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]|\s)";
  constexpr char kEnd[] = "<|endoftext|>";
  ordered_json vocab = ordered_json::object();
  int id = 0;
  for (; id < 256; ++id) vocab[written(std::string(1, static_cast<char>(id)))] = id;
  for (const std::string& word : words) vocab[written(word)] = id++;
  vocab[kEnd] = id;
  const ordered_json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  const ordered_json split = {
      {"type", "Split"}, {"pattern", {{"Regex", kPattern}}}, {"behavior", "Isolated"}, {"invert", false}};
  const ordered_json model = {{"type", "BPE"},
                              {"dropout", nullptr},
                              {"unk_token", nullptr},
                              {"continuing_subword_prefix", nullptr},
                              {"end_of_word_suffix", nullptr},
                              {"fuse_unk", false},
                              {"byte_fallback", false},
                              {"ignore_merges", true},
                              {"vocab", vocab},
                              {"merges", ordered_json::array()}};
  const ordered_json end = {{"id", id},        {"content", kEnd},     {"single_word", false}, {"lstrip", false},
                            {"rstrip", false}, {"normalized", false}, {"special", true}};
  const ordered_json root = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", ordered_json::array({end})},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", ordered_json::array({split, byte_level})}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
      {"model", model}};
  return root.dump(1) + "\n";
}

}  // namespace quipu
