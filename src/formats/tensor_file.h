// TensorFile: what every reader of model files offers: named tensors over mapped bytes, and metadata as text.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/mapped_file.h"
#include "tensor/view.h"

namespace quipu {

struct NamedTensor {
  std::string name;
  TensorView view;                          // bytes lie inside `file`; safetensors files may leave them unaligned
  std::shared_ptr<const MappedFile> file;   // keeps the bytes alive; null when the caller's memory was read
};

// The tensors of one model, from one or several files. Immutable after loading.
class TensorFile {
 public:
  // The tensor, or nullptr when there is none of that name.
  const NamedTensor* find(std::string_view name) const;
  // All tensors in file order.
  std::span<const NamedTensor> tensors() const { return tensors_; }
  // What to call the file in messages.
  const std::string& display_name() const { return display_name_; }
  // Sum of the tensors' bytes.
  uint64_t tensor_bytes() const;
  // Warnings met while reading (trailing bytes, ignored keys): one line each, to be shown once.
  const std::vector<std::string>& warnings() const { return warnings_; }

  // Free text that came with the tensors (safetensors' __metadata__). GGUF's typed keys are in GgufFile::metadata.
  using TextMap = std::map<std::string, std::string, std::less<>>;
  const TextMap& metadata() const { return metadata_; }

  // For readers: takes the tensors of one loaded file. Names must be unique (checked by the reader).
  TensorFile(std::string display_name, std::vector<NamedTensor> tensors, std::vector<std::string> warnings = {},
             TextMap metadata = {});

 private:
  std::string display_name_;
  std::vector<NamedTensor> tensors_;
  std::map<std::string, size_t, std::less<>> by_name_;
  std::vector<std::string> warnings_;
  TextMap metadata_;
};

}  // namespace quipu
