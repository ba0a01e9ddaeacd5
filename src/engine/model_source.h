// ModelSource: a model on disk, opened but not loaded: its tensors, checked configuration, and where its tokenizer is.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "formats/gguf/gguf_file.h"
#include "formats/tensor_file.h"
#include "model/config.h"
#include "model/model.h"
#include "model/names.h"
#include "text/tokenizer.h"

namespace quipu {

struct ModelSource {
  std::string path;                    // as given
  std::string folder;                  // Hugging Face layout: holds config.json; empty for GGUF
  std::string format;                  // "GGUF v3", "safetensors"
  std::optional<GgufFile> gguf;
  std::optional<TensorFile> safetensors;
  ModelConfig config;
  std::string tokenizer_kind;          // "byte-level BPE (smollm)"; filled by load_tokenizer
  std::vector<std::string> warnings;

  const TensorFile& tensors() const { return gguf.has_value() ? gguf->tensors : *safetensors; }
  NameStyle style() const { return gguf.has_value() ? NameStyle::kGguf : folder_names(config); }
};

// path: a GGUF file, a folder in Hugging Face layout, or a file in it. Errors name what was expected there.
Result<ModelSource> open_model(const std::string& path);
// The same without reading configuration or tensors of a safetensors folder: enough for its tokenizer.
Result<ModelSource> open_for_tokenizer(const std::string& path);

// Whether there are files of a tokenizer at all, good or bad.
bool has_tokenizer(const ModelSource& source);
// kBadInput, too, when there is none.
Result<std::shared_ptr<const Tokenizer>> load_tokenizer(ModelSource& source);
// The source of the model's chat template, if it has one.
Result<std::optional<std::string>> chat_template_text(const ModelSource& source);

// The model with shapes and costs but no weights, which must not outlive `plan`.
Result<std::unique_ptr<Model>> plan_model(const ModelSource& source, Backend& plan);

}  // namespace quipu
