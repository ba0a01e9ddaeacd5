#include <algorithm>

#include "model/model.h"

namespace quipu {

Hash128 model_hash(const ModelConfig& config, const TensorFile& file) {
  constexpr size_t kSample = 4096;
  Hasher128 hasher;
  hasher.add(config_text(config));
  for (const NamedTensor& tensor : file.tensors()) {
    hasher.add(tensor.name + '\0' + std::string(dtype_name(tensor.view.dtype)) + shape_text(tensor.view.shape));
    const std::span<const std::byte> bytes = tensor.view.bytes;
    const size_t head = std::min(bytes.size(), kSample);
    hasher.add(bytes.first(head));
    hasher.add(bytes.last(std::min(bytes.size() - head, kSample)));
  }
  return hasher.result();
}

}  // namespace quipu
