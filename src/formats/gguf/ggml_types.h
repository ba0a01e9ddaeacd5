// Numbers that GGUF files use for the element types of tensors.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "tensor/dtype.h"

namespace quipu {

// The type of this number that quipu reads, or nothing.
std::optional<DType> dtype_from_ggml(uint32_t id);

// The file's number of a type; nothing for kU8 and kBool, which GGUF has no number for.
std::optional<uint32_t> ggml_from_dtype(DType dtype);

// Name of a number GGML has given out, whether quipu reads it or not ("IQ2_XXS", "Q4_2 (removed)"); "" when unknown.
std::string_view ggml_type_name(uint32_t id);

}  // namespace quipu
