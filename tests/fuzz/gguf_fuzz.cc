// Any bytes as a GGUF file: refused with a message, or loaded so that all of it can be used.
#include <algorithm>
#include <vector>

#include "base/check.h"
#include "formats/gguf/gguf_file.h"
#include "tensor/quant_blocks.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quipu;
  const auto file = read_gguf_bytes("fuzz.gguf", std::as_bytes(std::span(data, size)));
  if (!file.ok()) {
    CHECK(file.error().error_class == ErrorClass::kBadInput && file.error().message.starts_with("fuzz.gguf: "))
        << file.error().message;
    return 0;
  }
  for (const auto& [key, value] : file->metadata.entries()) {
    CHECK(file->metadata.find(key) != nullptr);
    value.text();
    (void)file->metadata.optional_i64(key);
    (void)file->metadata.optional_f32(key);
    (void)file->metadata.optional_string(key);
    if (const auto strings = file->metadata.optional_strings(key); strings.ok() && *strings) {
      CHECK((*strings)->to_vector().size() == (*strings)->size());
    }
    if (const auto numbers = file->metadata.optional_integers(key); numbers.ok() && *numbers) {
      for (uint64_t i = 0; i < (*numbers)->size(); ++i) (void)(*numbers)->integer(i);
    }
  }
  std::vector<float> row;
  for (const NamedTensor& tensor : file->tensors.tensors()) {
    const TensorView& view = tensor.view;
    CHECK(view.bytes.size() == static_cast<uint64_t>(row_bytes(view.dtype, element_count(view.shape)))) << tensor.name;
    const int64_t columns = view.shape.back();
    const bool real = traits(view.dtype).quantised || view.dtype <= DType::kF64;
    if (!real || columns > 65536) continue;
    row.resize(static_cast<size_t>(columns));
    dequantise_row(row.data(), view.dtype, view.bytes.data(), columns);
  }
  return 0;
}
