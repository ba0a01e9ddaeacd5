// Names that safetensors files use for element types.
#pragma once

#include <optional>
#include <string_view>

#include "tensor/dtype.h"

namespace quipu {

// Exact, upper case: "BF16". Nothing for types quipu does not read.
std::optional<DType> dtype_from_safetensors(std::string_view name);
// "" for block-quantised types, which safetensors cannot hold.
std::string_view safetensors_name(DType dtype);
// Whether the format knows the name although quipu does not read it ("F8_E4M3").
bool safetensors_knows(std::string_view name);

}  // namespace quipu
