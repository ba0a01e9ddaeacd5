#include "engine/model_source.h"

#include <sys/stat.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/byte_reader.h"
#include "base/mapped_file.h"
#include "formats/recognise.h"
#include "formats/safetensors/safetensors_file.h"
#include "model/bounded_json.h"
#include "tensor/quant_blocks.h"
#include "text/gguf_vocabulary.h"
#include "text/tokenizer_json.h"

namespace quipu {
namespace {

using nlohmann::json;

bool is_folder(const std::string& path) {
  struct stat facts{};
  return stat(path.c_str(), &facts) == 0 && S_ISDIR(facts.st_mode);
}

bool is_file(const std::string& path) {
  struct stat facts{};
  return stat(path.c_str(), &facts) == 0 && S_ISREG(facts.st_mode);
}

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

// The JSON object in a file; nothing when there is no such file.
Result<std::optional<json>> optional_json(const std::string& path) {
  if (!is_file(path)) return std::optional<json>();
  ASSIGN_OR_RETURN(const auto file, MappedFile::open(path));
  ASSIGN_OR_RETURN(json root, parse_bounded_json(path, text_of(*file)));
  return std::optional<json>(std::move(root));
}

// GGUF file, or folder in Hugging Face layout.
Result<std::string> hugging_face_folder(const std::string& path) {
  if (is_folder(path)) {
    if (is_file(path + "/config.json")) return path;
    return bad_input(path + ": the folder has no config.json; expected a model folder in Hugging Face layout, or a GGUF file");
  }
  ASSIGN_OR_RETURN(const auto file, MappedFile::open(path));
  const auto bytes = file->bytes();
  if (bytes.size() >= 4 && text_of(*file).substr(0, 4) == "GGUF") return std::string();
  if (path.ends_with(".safetensors") || path.ends_with(".json")) {
    const std::string folder = folder_of(path);
    if (is_file(folder + "/config.json")) return folder;
    return bad_input(path + ": no config.json beside it; expected a model folder in Hugging Face layout");
  }
  if (path.ends_with(".gguf")) return std::string();   // its reader says what is wrong with it
  return bad_input(path + ": neither a GGUF file nor part of a model folder in Hugging Face layout" + looks_like(bytes));
}

std::vector<double> decoded(const NamedTensor& tensor) {
  const int64_t count = element_count(tensor.view.shape);
  std::vector<float> values(static_cast<size_t>(count));
  dequantise_row(values.data(), tensor.view.dtype, tensor.view.bytes.data(), count);
  return {values.begin(), values.end()};
}

Result<GgufModelFacts> gguf_facts(const GgufFile& file) {
  GgufModelFacts facts;
  const std::string& name = file.tensors.display_name();
  const NamedTensor* embedding = file.tensors.find("token_embd.weight");
  // The architecture is checked first: a file of another kind should hear that, not which tensor it lacks.
  if (embedding != nullptr && embedding->view.shape.size() != 2) {
    return bad_input(name + ": tensor token_embd.weight is " + shape_text(embedding->view.shape) + ", expected a matrix");
  }
  if (embedding != nullptr) facts.embedding_rows = embedding->view.shape[0];
  facts.has_output = file.tensors.find("output.weight") != nullptr;
  facts.has_expert_correction = std::ranges::any_of(
      file.tensors.tensors(), [](const NamedTensor& tensor) { return tensor.name.ends_with(".exp_probs_b.bias"); });
  if (const NamedTensor* divisors = file.tensors.find("rope_freqs.weight"); divisors != nullptr) {
    if (divisors->view.dtype != DType::kF32 || divisors->view.shape.size() != 1) {
      return bad_input(name + ": tensor rope_freqs.weight is " + std::string(dtype_name(divisors->view.dtype)) + " " +
                       shape_text(divisors->view.shape) + ", expected a row of f32");
    }
    facts.frequency_divisors = decoded(*divisors);
  }
  return facts;
}

Result<void> add_end_ids(std::vector<int32_t>& ids, const std::string& path) {
  ASSIGN_OR_RETURN(const std::optional<json> root, optional_json(path));
  if (!root.has_value()) return {};
  const auto found = root->find("eos_token_id");
  if (found == root->end() || found->is_null()) return {};
  const auto add = [&](const json& value) {
    if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() >= kMaxVocabulary) return false;
    ids.push_back(value.get<int32_t>());
    return true;
  };
  bool good = true;
  if (found->is_array()) {
    for (const json& value : *found) good = good && add(value);
  } else {
    good = add(*found);
  }
  if (good) return {};
  return bad_input(path + ": eos_token_id is not a token id or a list of them");
}

template <class T>
std::optional<int64_t> widened(const std::optional<T>& value) {
  return value.has_value() ? std::optional<int64_t>(*value) : std::nullopt;
}

Result<std::shared_ptr<const Tokenizer>> gguf_tokenizer(ModelSource& source) {
  const GgufMetadata& metadata = source.gguf->metadata;
  GgufVocabulary vocabulary;
  vocabulary.file = metadata.file();
  ASSIGN_OR_RETURN(const std::string_view model, metadata.require_string("tokenizer.ggml.model", 256));
  vocabulary.model = std::string(model);
  ASSIGN_OR_RETURN(const auto pre, metadata.optional_string("tokenizer.ggml.pre", 256));
  vocabulary.pre = std::string(pre.value_or(""));
  ASSIGN_OR_RETURN(const GgufStrings tokens, metadata.require_strings("tokenizer.ggml.tokens"));
  vocabulary.tokens = tokens.to_vector();
  ASSIGN_OR_RETURN(const auto merges, metadata.optional_strings("tokenizer.ggml.merges"));
  if (merges.has_value()) vocabulary.merges = merges->to_vector();
  ASSIGN_OR_RETURN(const auto scores, metadata.optional_floats("tokenizer.ggml.scores"));
  if (scores.has_value()) {
    for (uint64_t i = 0; i < scores->size(); ++i) vocabulary.scores.push_back(static_cast<float>(scores->real(i)));
  }
  ASSIGN_OR_RETURN(const auto types, metadata.optional_integers("tokenizer.ggml.token_type"));
  if (types.has_value()) {
    for (uint64_t i = 0; i < types->size(); ++i) {
      vocabulary.types.push_back(static_cast<int32_t>(std::clamp<int64_t>(types->integer(i), INT32_MIN, INT32_MAX)));
    }
  }
  ASSIGN_OR_RETURN(vocabulary.bos, metadata.optional_i64("tokenizer.ggml.bos_token_id"));
  ASSIGN_OR_RETURN(vocabulary.eos, metadata.optional_i64("tokenizer.ggml.eos_token_id"));
  ASSIGN_OR_RETURN(vocabulary.unknown, metadata.optional_i64("tokenizer.ggml.unknown_token_id"));
  ASSIGN_OR_RETURN(vocabulary.padding, metadata.optional_i64("tokenizer.ggml.padding_token_id"));
  for (const char* key : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    ASSIGN_OR_RETURN(const auto id, metadata.optional_i64(key));
    if (id.has_value()) vocabulary.end_ids.push_back(*id);
  }
  ASSIGN_OR_RETURN(vocabulary.add_bos, metadata.optional_bool("tokenizer.ggml.add_bos_token"));
  ASSIGN_OR_RETURN(vocabulary.add_eos, metadata.optional_bool("tokenizer.ggml.add_eos_token"));
  ASSIGN_OR_RETURN(vocabulary.add_space_prefix, metadata.optional_bool("tokenizer.ggml.add_space_prefix"));
  source.tokenizer_kind = vocabulary.model == "gpt2" ? "byte-level BPE" : vocabulary.model == "llama" ? "SentencePiece BPE"
                                                                                                     : printable(model);
  if (!vocabulary.pre.empty()) source.tokenizer_kind += " (" + printable(vocabulary.pre) + ")";
  return tokenizer_from_gguf(vocabulary);
}

Result<std::shared_ptr<const Tokenizer>> folder_tokenizer(ModelSource& source) {
  std::vector<int32_t> end_ids;
  RETURN_IF_ERROR(add_end_ids(end_ids, source.folder + "/config.json"));
  RETURN_IF_ERROR(add_end_ids(end_ids, source.folder + "/generation_config.json"));
  source.tokenizer_kind = "tokenizer.json";
  return load_tokenizer_json(source.folder, std::move(end_ids));
}

// "chat_template": a text, or a list of {"name", "template"} of which "default" counts.
std::optional<std::string> template_in(const json& root) {
  const auto found = root.find("chat_template");
  if (found == root.end()) return std::nullopt;
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_array()) return std::nullopt;
  for (const json& entry : *found) {
    if (!entry.is_object()) continue;
    const auto name = entry.find("name");
    const auto text = entry.find("template");
    if (name != entry.end() && *name == "default" && text != entry.end() && text->is_string()) return text->get<std::string>();
  }
  return std::nullopt;
}

}  // namespace

Result<ModelSource> open_for_tokenizer(const std::string& path) {
  ModelSource source;
  source.path = path;
  ASSIGN_OR_RETURN(source.folder, hugging_face_folder(path));
  if (source.folder.empty()) {
    ASSIGN_OR_RETURN(source.gguf, read_gguf(path));
    source.format = "GGUF v" + std::to_string(source.gguf->version);
  } else {
    source.format = "safetensors";
  }
  return source;
}

Result<ModelSource> open_model(const std::string& path) {
  ASSIGN_OR_RETURN(ModelSource source, open_for_tokenizer(path));
  if (source.gguf.has_value()) {
    ASSIGN_OR_RETURN(const GgufModelFacts facts, gguf_facts(*source.gguf));
    ASSIGN_OR_RETURN(source.config, read_gguf_config(source.gguf->metadata, facts));
  } else {
    const std::string config = source.folder + "/config.json";
    ASSIGN_OR_RETURN(const auto file, MappedFile::open(config));
    ASSIGN_OR_RETURN(source.config, read_hf_config(config, text_of(*file)));
    ASSIGN_OR_RETURN(source.safetensors, read_safetensors(source.folder));
  }
  const auto& warnings = source.tensors().warnings();
  source.warnings.insert(source.warnings.end(), warnings.begin(), warnings.end());
  source.warnings.insert(source.warnings.end(), source.config.warnings.begin(), source.config.warnings.end());
  return source;
}

bool has_tokenizer(const ModelSource& source) {
  if (source.gguf.has_value()) return source.gguf->metadata.has("tokenizer.ggml.model");
  return is_file(source.folder + "/tokenizer.json") || is_file(source.folder + "/tokenizer.model");
}

Result<std::shared_ptr<const Tokenizer>> load_tokenizer(ModelSource& source) {
  if (!has_tokenizer(source)) {
    return bad_input(printable(source.path, 400) + ": the model has no tokenizer (" +
                     (source.gguf.has_value() ? "no tokenizer.ggml.model" : "no tokenizer.json") + "), so text cannot become tokens");
  }
  return source.gguf.has_value() ? gguf_tokenizer(source) : folder_tokenizer(source);
}

Result<std::optional<std::string>> chat_template_text(const ModelSource& source) {
  if (source.gguf.has_value()) {
    ASSIGN_OR_RETURN(const auto text, source.gguf->metadata.optional_string("tokenizer.chat_template"));
    return text.has_value() ? std::optional<std::string>(std::string(*text)) : std::nullopt;
  }
  if (const std::string path = source.folder + "/chat_template.jinja"; is_file(path)) {
    ASSIGN_OR_RETURN(const auto file, MappedFile::open(path));
    return std::optional<std::string>(std::string(text_of(*file)));
  }
  for (const char* name : {"/chat_template.json", "/tokenizer_config.json"}) {
    ASSIGN_OR_RETURN(const auto root, optional_json(source.folder + name));
    if (!root.has_value()) continue;
    if (auto text = template_in(*root); text.has_value()) return text;
  }
  return std::optional<std::string>();
}

Result<std::unique_ptr<Model>> plan_model(const ModelSource& source, Backend& plan) {
  return Model::load(source.config, source.tensors(), source.style(), plan, {.on_progress = {}, .read_ahead = false});
}

}  // namespace quipu
