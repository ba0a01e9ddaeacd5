#include "formats/tensor_file.h"

#include "base/check.h"

namespace quipu {

TensorFile::TensorFile(std::string display_name, std::vector<NamedTensor> tensors, std::vector<std::string> warnings,
                       TextMap metadata)
    : display_name_(std::move(display_name)),
      tensors_(std::move(tensors)),
      warnings_(std::move(warnings)),
      metadata_(std::move(metadata)) {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const bool inserted = by_name_.emplace(tensors_[i].name, i).second;
    CHECK(inserted) << "tensor name twice: " << tensors_[i].name;
  }
}

const NamedTensor* TensorFile::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

uint64_t TensorFile::tensor_bytes() const {
  uint64_t total = 0;
  for (const NamedTensor& tensor : tensors_) total += tensor.view.bytes.size();
  return total;
}

}  // namespace quipu
