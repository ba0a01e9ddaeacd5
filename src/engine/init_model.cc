#include "engine/init_model.h"

#include <dirent.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numbers>

#include "base/byte_reader.h"
#include "base/random.h"
#include "base/text_file.h"
#include "base/thread_pool.h"
#include "formats/safetensors/safetensors_writer.h"
#include "formats/state_file/hash128.h"
#include "model/config.h"
#include "model/tensor_list.h"
#include "tensor/quant_blocks.h"

namespace quipu {
namespace {

constexpr int64_t kChunkElements = int64_t{1} << 22;  // made, encoded and written at a time
constexpr int64_t kTaskElements = int64_t{1} << 14;   // even: pairs of normals stay together
constexpr const char* kTokenizerFiles[] = {"tokenizer.json",          "tokenizer.model",     "tokenizer_config.json",
                                           "special_tokens_map.json", "chat_template.jinja", "generation_config.json"};

bool is_folder(const std::string& path) {
  struct stat facts {};
  return stat(path.c_str(), &facts) == 0 && S_ISDIR(facts.st_mode);
}

bool is_file(const std::string& path) {
  struct stat facts {};
  return stat(path.c_str(), &facts) == 0 && S_ISREG(facts.st_mode);
}

bool exists(const std::string& path) {
  struct stat facts {};
  return lstat(path.c_str(), &facts) == 0;
}

Result<std::vector<std::string>> names_in(const std::string& folder) {
  DIR* entries = opendir(folder.c_str());
  if (entries == nullptr) return failed(folder + ": " + std::strerror(errno));
  std::vector<std::string> names;
  while (const dirent* entry = readdir(entries)) {
    if (std::string_view(entry->d_name) != "." && std::string_view(entry->d_name) != "..")
      names.emplace_back(entry->d_name);
  }
  closedir(entries);
  return names;
}

bool is_model_file(const std::string& name) {
  return name == "model.safetensors" || name == "model.safetensors.index.json" ||
         (name.starts_with("model-") && name.ends_with(".safetensors"));
}

// How the elements of one tensor are drawn.
struct Rule {
  enum class Kind { kNormal, kConstant, kRamp } kind = Kind::kNormal;
  double value = 0;  // spread, the constant, or the ends -value .. value of a ramp
};

Rule rule_for(const ModelTensor& tensor, const ModelConfig& config) {
  const std::string_view role = tensor.role;
  const double columns = static_cast<double>(tensor.shape.back());
  const double by_columns = 1.0 / std::sqrt(columns);
  // As torch's Linear, which the published module uses: uniform within 1 / sqrt(columns), biases too. A wider network
  // would saturate the merge weights.
  if (role.starts_with("hypernet_")) return {Rule::Kind::kNormal, by_columns / std::sqrt(3.0)};
  // Heads start with different shares of memory, so that some learn to use it.
  if (role == "memory_gate") return {Rule::Kind::kRamp, 2.0};
  if (role.ends_with("_norm")) return {Rule::Kind::kConstant, 1.0 - config.norm_weight_offset};
  if (tensor.shape.size() < 2) return {Rule::Kind::kConstant, 0.0};
  if (role == "token_embedding" || role == "logits" || role.ends_with("router")) return {Rule::Kind::kNormal, 0.02};
  if (role == "output" || (role.ends_with("down") && role.find("_down") == std::string_view::npos)) {
    return {Rule::Kind::kNormal, by_columns / std::sqrt(2.0 * static_cast<double>(config.layers.size()))};
  }
  return {Rule::Kind::kNormal, by_columns};
}

// values[i] = element begin + i of the tensor. begin even.
void draw(float* values, int64_t begin, int64_t count, int64_t length, const Rule& rule, RandomStream random) {
  if (rule.kind == Rule::Kind::kConstant) {
    std::fill_n(values, count, static_cast<float>(rule.value));
    return;
  }
  if (rule.kind == Rule::Kind::kRamp) {
    for (int64_t i = 0; i < count; ++i) {
      const double place =
          length > 1 ? 2.0 * static_cast<double>(begin + i) / static_cast<double>(length - 1) - 1.0 : 0.0;
      values[i] = static_cast<float>(rule.value * place);
    }
    return;
  }
  random.seek(static_cast<uint64_t>(begin));
  for (int64_t i = 0; i < count; i += 2) {  // both numbers of each Box-Muller pair
    const double radius = rule.value * std::sqrt(-2.0 * std::log(1.0 - random.uniform()));
    const double angle = 2.0 * std::numbers::pi * random.uniform();
    values[i] = static_cast<float>(radius * std::cos(angle));
    if (i + 1 < count) values[i + 1] = static_cast<float>(radius * std::sin(angle));
  }
}

class TensorMaker {
 public:
  TensorMaker(const ModelConfig& config, const InitOptions& options)
      : config_(config), options_(options), pool_(options.threads) {}

  DType dtype_of(const ModelTensor& tensor) const { return tensor.shape.size() < 2 ? DType::kF32 : options_.dtype; }
  uint64_t bytes_of(const ModelTensor& tensor) const {
    return static_cast<uint64_t>(row_bytes(dtype_of(tensor), 1)) * static_cast<uint64_t>(element_count(tensor.shape));
  }

  Result<void> write(SafetensorsWriter& writer, const ModelTensor& tensor, uint64_t& done, uint64_t total) {
    const Rule rule = rule_for(tensor, config_);
    const Hash128 name = hash128(tensor.name);
    const RandomStream random(options_.seed, name.low ^ name.high);
    const DType dtype = dtype_of(tensor);
    const int64_t length = element_count(tensor.shape), width = row_bytes(dtype, 1);
    for (int64_t begin = 0; begin < length; begin += kChunkElements) {
      const int64_t count = std::min(kChunkElements, length - begin);
      floats_.resize(static_cast<size_t>(count));
      bytes_.resize(static_cast<size_t>(count * width));
      pool_.parallel_for((count + kTaskElements - 1) / kTaskElements, [&](int64_t task) {
        const int64_t at = task * kTaskElements, some = std::min(kTaskElements, count - at);
        draw(floats_.data() + at, begin + at, some, length, rule, random);
        quantise_row(bytes_.data() + at * width, dtype, floats_.data() + at, some);
      });
      RETURN_IF_ERROR(writer.write(bytes_));
      done += bytes_.size();
      if (options_.on_progress) options_.on_progress(done, total);
    }
    return {};
  }

 private:
  const ModelConfig& config_;
  const InitOptions& options_;
  ThreadPool pool_;
  std::vector<float> floats_;
  std::vector<std::byte> bytes_;
};

// Writes the weights of one model into a folder.
class WeightFiles {
 public:
  WeightFiles(const ModelConfig& config, const InitOptions& options, std::vector<ModelTensor> tensors)
      : options_(options), maker_(config, options), tensors_(std::move(tensors)) {
    // f32 vectors before narrower matrices keeps every tensor aligned.
    std::stable_partition(tensors_.begin(), tensors_.end(), [](const ModelTensor& t) { return t.shape.size() < 2; });
    for (const ModelTensor& tensor : tensors_) total_ += maker_.bytes_of(tensor);
  }

  uint64_t total() const { return total_; }

  Result<std::vector<std::string>> write(const std::string& folder) {
    const std::vector<size_t> ends = shard_ends();
    std::vector<std::string> names;
    nlohmann::ordered_json map = nlohmann::ordered_json::object();
    size_t begin = 0;
    for (size_t shard = 0; shard < ends.size(); ++shard) {
      const std::string name = ends.size() == 1 ? "model.safetensors" : shard_name(shard, ends.size());
      RETURN_IF_ERROR(write_shard(folder + "/" + name, begin, ends[shard]));
      for (size_t i = begin; i < ends[shard]; ++i) map[tensors_[i].name] = name;
      names.push_back(name);
      begin = ends[shard];
    }
    if (ends.size() > 1) {
      const nlohmann::ordered_json index = {{"metadata", {{"total_size", total_}}}, {"weight_map", map}};
      names.emplace_back("model.safetensors.index.json");
      RETURN_IF_ERROR(write_text_file(folder + "/" + names.back(), index.dump(2) + "\n"));
    }
    return names;
  }

 private:
  std::vector<size_t> shard_ends() const {
    std::vector<size_t> ends;
    uint64_t bytes = 0;
    for (size_t i = 0; i < tensors_.size(); ++i) {
      const uint64_t more = maker_.bytes_of(tensors_[i]);
      if (bytes > 0 && bytes + more > options_.shard_bytes) {
        ends.push_back(i);
        bytes = 0;
      }
      bytes += more;
    }
    ends.push_back(tensors_.size());
    return ends;
  }
  static std::string shard_name(size_t shard, size_t shards) {
    char name[64];
    std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", shard + 1, shards);
    return name;
  }
  Result<void> write_shard(const std::string& path, size_t begin, size_t end) {
    std::vector<SafetensorsTensor> declared;
    for (size_t i = begin; i < end; ++i)
      declared.push_back({tensors_[i].name, {maker_.dtype_of(tensors_[i]), tensors_[i].shape, {}}});
    ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::create(path, declared, {{"format", "pt"}}));
    for (size_t i = begin; i < end; ++i) RETURN_IF_ERROR(maker_.write(writer, tensors_[i], done_, total_));
    return writer.commit();
  }

  const InitOptions& options_;
  TensorMaker maker_;
  std::vector<ModelTensor> tensors_;
  uint64_t total_ = 0, done_ = 0;
};

// A new folder beside or inside the target; what is left of it goes when this does.
class BuildFolder {
 public:
  explicit BuildFolder(std::string path) : path_(std::move(path)) {}
  ~BuildFolder() {
    if (path_.empty()) return;
    if (const auto names = names_in(path_); names.ok()) {
      for (const std::string& name : *names) unlink((path_ + "/" + name).c_str());
    }
    rmdir(path_.c_str());
  }
  BuildFolder(const BuildFolder&) = delete;
  BuildFolder& operator=(const BuildFolder&) = delete;
  Result<void> make() const {
    if (mkdir(path_.c_str(), 0777) == 0) return {};
    return failed(path_ + ": cannot make this folder: " + std::strerror(errno));
  }
  const std::string& path() const { return path_; }
  // The folder became the model.
  Result<void> become(const std::string& target) {
    if (rename(path_.c_str(), target.c_str()) != 0)
      return failed(target + ": cannot be put in place: " + std::strerror(errno));
    path_.clear();
    return {};
  }

 private:
  std::string path_;
};

// Takes the new files into a folder that holds a model. Between the first and the last step there is no config.json, so
// that nobody loads half of each.
Result<void> take_place(const std::string& from, const std::string& target) {
  const auto move_in = [&](const std::string& name) -> Result<void> {
    if (rename((from + "/" + name).c_str(), (target + "/" + name).c_str()) == 0) return {};
    return failed(target + "/" + name + ": cannot be put in place: " + std::strerror(errno));
  };
  unlink((target + "/config.json").c_str());
  ASSIGN_OR_RETURN(const std::vector<std::string> old_names, names_in(target));
  for (const std::string& name : old_names) {
    if (is_model_file(name)) unlink((target + "/" + name).c_str());
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> new_names, names_in(from));
  for (const std::string& name : new_names) {
    if (name != "config.json") RETURN_IF_ERROR(move_in(name));
  }
  return move_in("config.json");
}

// Whether there is a model to replace.
Result<bool> check_target(const std::string& out, bool replace) {
  if (!exists(out)) return false;
  if (!is_folder(out)) return usage_error(printable(out, 400) + ": is no folder; the model is written as a folder");
  ASSIGN_OR_RETURN(const std::vector<std::string> names, names_in(out));
  if (names.empty()) return false;
  if (!replace) return usage_error(printable(out, 400) + ": exists already; --force replaces the model in it");
  if (!is_file(out + "/config.json")) {
    return usage_error(printable(out, 400) + ": holds files but no model (no config.json); choose another folder");
  }
  return true;
}

Result<void> check_space(const std::string& beside, uint64_t bytes) {
  struct statvfs facts {};
  if (statvfs(beside.c_str(), &facts) != 0) return {};  // writing will tell
  const uint64_t left = static_cast<uint64_t>(facts.f_bavail) * facts.f_frsize;
  if (bytes <= left) return {};
  return failed(beside + ": the weights take " + std::to_string(bytes >> 20) + " MiB, only " +
                std::to_string(left >> 20) + " MiB are free here");
}

Result<std::vector<std::string>> copy_tokenizer(const std::string& from, const std::string& to) {
  std::vector<std::string> copied;
  for (const char* name : kTokenizerFiles) {
    if (!is_file(from + "/" + name)) continue;
    ASSIGN_OR_RETURN(const std::string text, read_text_file(from + "/" + name));
    RETURN_IF_ERROR(write_text_file(to + "/" + name, text));
    copied.emplace_back(name);
  }
  return copied;
}

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

Result<InitReport> init_model(const std::string& config_path, const std::string& out, const InitOptions& options) {
  if (options.dtype != DType::kF32 && options.dtype != DType::kF16 && options.dtype != DType::kBF16) {
    return usage_error("weights as " + std::string(dtype_name(options.dtype)) + ", expected f32, f16 or bf16");
  }
  std::string target = out;
  while (target.size() > 1 && target.back() == '/') target.pop_back();
  const std::string file = is_folder(config_path) ? config_path + "/config.json" : config_path;
  ASSIGN_OR_RETURN(const std::string text, read_text_file(file));
  ASSIGN_OR_RETURN(const ModelConfig config, read_hf_config(file, text));
  ASSIGN_OR_RETURN(const bool replaces, check_target(target, options.replace));
  const std::string tokenizer = options.tokenizer.empty() ? folder_of(file) : options.tokenizer;
  if (!options.tokenizer.empty() && !is_file(tokenizer + "/tokenizer.json")) {
    return bad_input(printable(tokenizer, 400) + ": holds no tokenizer.json");
  }
  ASSIGN_OR_RETURN(std::vector<ModelTensor> tensors, model_tensors(config, folder_names(config)));
  InitReport report;
  report.folder = target;
  report.architecture = config.architecture;
  report.tensors = static_cast<int64_t>(tensors.size());
  for (const ModelTensor& tensor : tensors) report.parameters += element_count(tensor.shape);
  WeightFiles weights(config, options, std::move(tensors));
  report.weight_bytes = weights.total();
  RETURN_IF_ERROR(check_space(folder_of(target), weights.total()));

  BuildFolder build(replaces ? target + "/.init-" + std::to_string(getpid())
                             : target + ".init-" + std::to_string(getpid()));
  RETURN_IF_ERROR(build.make());
  ASSIGN_OR_RETURN(report.files, weights.write(build.path()));
  ASSIGN_OR_RETURN(const std::vector<std::string> copied, copy_tokenizer(tokenizer, build.path()));
  report.has_tokenizer = is_file(build.path() + "/tokenizer.json") || (replaces && is_file(target + "/tokenizer.json"));
  report.files.insert(report.files.end(), copied.begin(), copied.end());
  RETURN_IF_ERROR(write_text_file(build.path() + "/config.json", text));
  report.files.emplace_back("config.json");
  RETURN_IF_ERROR(replaces ? take_place(build.path(), target) : build.become(target));
  return report;
}

}  // namespace quipu
