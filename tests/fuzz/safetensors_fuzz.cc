// Any bytes as a safetensors file: refused with a message, or loaded so that the tensors cover the data exactly.
#include <cstring>

#include "base/check.h"
#include "formats/safetensors/json_cursor.h"
#include "formats/safetensors/safetensors_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quipu;
  const auto bytes = std::as_bytes(std::span(data, size));
  // The same bytes as an index's text: nesting and skipped values are only met there.
  JsonCursor json("fuzz.json", {reinterpret_cast<const char*>(data), size}, 0);
  (void)json.skip_value("value");

  const auto file = read_safetensors_bytes("fuzz.safetensors", bytes);
  if (!file.ok()) {
    CHECK(file.error().error_class == ErrorClass::kBadInput && file.error().message.starts_with("fuzz.safetensors: "))
        << file.error().message;
    return 0;
  }
  uint64_t sum = 0;
  for (const NamedTensor& tensor : file->tensors()) {
    const TensorView& view = tensor.view;
    CHECK(view.bytes.size() == static_cast<uint64_t>(row_bytes(view.dtype, element_count(view.shape)))) << tensor.name;
    CHECK(file->find(tensor.name) == &tensor);
    for (const std::byte b : view.bytes) sum += std::to_integer<uint64_t>(b);
  }
  uint64_t header = 0;
  std::memcpy(&header, data, 8);
  CHECK(8 + header + file->tensor_bytes() == size) << sum;
  return 0;
}
