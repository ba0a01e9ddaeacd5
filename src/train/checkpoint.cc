#include "train/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "base/byte_reader.h"
#include "formats/safetensors/safetensors_file.h"
#include "formats/safetensors/safetensors_writer.h"
#include "formats/state_file/hash128.h"

namespace quipu {
namespace {

namespace fs = std::filesystem;

constexpr char kKind[] = "quipu checkpoint 1";
constexpr char kPrefix[] = "checkpoint-", kSuffix[] = ".safetensors";

struct Part {
  const char* prefix;
  std::span<float> values;  // flat, like the model's weights
};

std::vector<Part> parts_of(const TrainableModel<float>& model, const Optimizer& optimizer) {
  return {{"", model.weights()}, {"optimizer.first.", optimizer.first()}, {"optimizer.second.", optimizer.second()}};
}

std::vector<SafetensorsTensor> tensors_of(const TrainableModel<float>& model, const std::vector<Part>& parts) {
  std::vector<SafetensorsTensor> out;
  for (const Part& part : parts) {
    for (const NamedParameter& p : model.parameters()) {
      const auto values = part.values.subspan(static_cast<size_t>(p.offset), static_cast<size_t>(p.elements));
      out.push_back({part.prefix + p.name, {DType::kF32, p.shape, std::as_bytes(values)}});
    }
  }
  return out;
}

Result<void> make_folder(const std::string& folder) {
  std::error_code code;
  fs::create_directories(folder, code);
  if (code) return failed(printable(folder, 400) + ": cannot make the folder: " + code.message());
  return {};
}

template <class T>
Result<T> number(const TensorFile& file, const std::string& path, const char* key) {
  const auto found = file.metadata().find(key);
  T value{};
  if (found != file.metadata().end()) {
    const std::string& text = found->second;
    const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (code == std::errc() && end == text.data() + text.size() && value >= 0) return value;
  }
  return bad_input(path + ": checkpoint without a valid " + key);
}

std::string text_of(const TensorFile& file, const char* key) {
  const auto found = file.metadata().find(key);
  return found == file.metadata().end() ? std::string() : found->second;
}

}  // namespace

Result<std::string> write_checkpoint(const std::string& folder, const TrainableModel<float>& model,
                                     const Optimizer& optimizer, const CheckpointState& state, int64_t keep) {
  RETURN_IF_ERROR(make_folder(folder));
  const std::vector<Part> parts = parts_of(model, optimizer);
  const std::vector<SafetensorsTensor> tensors = tensors_of(model, parts);
  Hasher128 hash;
  for (const SafetensorsTensor& tensor : tensors) hash.add(tensor.view.bytes);
  char seconds[64];
  std::snprintf(seconds, sizeof seconds, "%.3f", state.seconds);
  const TensorFile::TextMap metadata = {{"kind", kKind},
                                        {"step", std::to_string(state.step)},
                                        {"samples", std::to_string(state.samples)},
                                        {"tokens", std::to_string(state.tokens)},
                                        {"seconds", seconds},
                                        {"seed", std::to_string(state.seed)},
                                        {"model", state.model},
                                        {"data", state.data},
                                        {"hash", hash.result().text()}};
  char name[64];
  std::snprintf(name, sizeof name, "%s%08lld%s", kPrefix, static_cast<long long>(state.step), kSuffix);
  const std::string path = folder + "/" + name;
  RETURN_IF_ERROR(write_safetensors(path, tensors, metadata));
  std::vector<std::string> all = find_checkpoints(folder);
  const size_t kept = static_cast<size_t>(std::max<int64_t>(keep, 1));
  for (size_t i = 0; i + kept < all.size(); ++i) {
    if (all[i] != path) std::remove(all[i].c_str());
  }
  return path;
}

void remove_unfinished(const std::string& folder) {
  std::error_code code;
  std::vector<fs::path> stale;
  for (const auto& entry : fs::recursive_directory_iterator(folder, code)) {
    // AtomicFile's names: "<file>.XXXXXX.tmp".
    const std::string name = entry.path().filename().string();
    if (entry.path().extension() == ".tmp" &&
        (name.starts_with(kPrefix) || name.starts_with("model.safetensors.") || name.starts_with("report.html."))) {
      stale.push_back(entry.path());
    }
  }
  for (const fs::path& path : stale) fs::remove(path, code);
}

std::vector<std::string> find_checkpoints(const std::string& folder) {
  std::vector<std::pair<int64_t, std::string>> found;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(folder, code)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) continue;
    const std::string digits =
        name.substr(std::strlen(kPrefix), name.size() - std::strlen(kPrefix) - std::strlen(kSuffix));
    int64_t step = 0;
    const auto [end, wrong] = std::from_chars(digits.data(), digits.data() + digits.size(), step);
    if (wrong == std::errc() && end == digits.data() + digits.size()) found.emplace_back(step, folder + "/" + name);
  }
  std::sort(found.begin(), found.end());
  std::vector<std::string> paths;
  for (auto& [step, path] : found) paths.push_back(std::move(path));
  return paths;
}

Result<CheckpointState> read_checkpoint(const std::string& path, TrainableModel<float>& model, Optimizer& optimizer) {
  ASSIGN_OR_RETURN(const TensorFile file, read_safetensors(path));
  if (text_of(file, "kind") != kKind)
    return bad_input(path + ": is no checkpoint: its kind is '" + printable(text_of(file, "kind")) + "', expected '" +
                     kKind + "'");
  CheckpointState state;
  ASSIGN_OR_RETURN(state.step, number<int64_t>(file, path, "step"));
  ASSIGN_OR_RETURN(state.samples, number<int64_t>(file, path, "samples"));
  ASSIGN_OR_RETURN(state.tokens, number<int64_t>(file, path, "tokens"));
  ASSIGN_OR_RETURN(state.seconds, number<double>(file, path, "seconds"));
  ASSIGN_OR_RETURN(state.seed, number<int64_t>(file, path, "seed"));
  state.model = text_of(file, "model");
  state.data = text_of(file, "data");

  const std::vector<Part> parts = parts_of(model, optimizer);
  const std::vector<SafetensorsTensor> wanted = tensors_of(model, parts);
  Hasher128 hash;
  for (const SafetensorsTensor& tensor : wanted) {
    const NamedTensor* found = file.find(tensor.name);
    if (found == nullptr) return bad_input(path + ": has no tensor " + tensor.name + "; it belongs to another model");
    if (found->view.dtype != DType::kF32 || found->view.shape != tensor.view.shape) {
      return bad_input(path + ": tensor " + tensor.name + " is " + std::string(dtype_name(found->view.dtype)) + " " +
                       shape_text(found->view.shape) + ", expected f32 " + shape_text(tensor.view.shape));
    }
    hash.add(found->view.bytes);
  }
  if (file.tensors().size() != wanted.size()) {
    return bad_input(path + ": has " + std::to_string(file.tensors().size()) + " tensors, expected " +
                     std::to_string(wanted.size()) + "; it belongs to another model");
  }
  if (hash.result().text() != text_of(file, "hash")) {
    return bad_input(path + ": the checkpoint is damaged: its tensors do not have the hash it was written with");
  }
  for (const Part& part : parts) {
    for (const NamedParameter& p : model.parameters()) {
      const auto bytes = file.find(part.prefix + p.name)->view.bytes;
      std::memcpy(part.values.data() + p.offset, bytes.data(), bytes.size());
    }
  }
  return state;
}

Result<void> write_weights(const std::string& folder, const TrainableModel<float>& model) {
  RETURN_IF_ERROR(make_folder(folder));
  return write_safetensors(folder + "/model.safetensors", tensors_of(model, {{"", model.weights()}}),
                           {{"format", "pt"}});
}

}  // namespace quipu
