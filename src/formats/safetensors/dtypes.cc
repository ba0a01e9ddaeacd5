#include "formats/safetensors/dtypes.h"

#include <algorithm>
#include <utility>

namespace quipu {
namespace {

constexpr std::pair<std::string_view, DType> kRead[] = {
    {"F64", DType::kF64}, {"F32", DType::kF32}, {"F16", DType::kF16}, {"BF16", DType::kBF16}, {"I64", DType::kI64},
    {"I32", DType::kI32}, {"I16", DType::kI16}, {"I8", DType::kI8},   {"U8", DType::kU8},     {"BOOL", DType::kBool},
};
constexpr std::string_view kOnlyKnown[] = {"U16",     "U32",     "U64",     "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ",
                                           "F8_E5M2FNUZ", "F4", "F6_E2M3", "F6_E3M2", "C64"};

}  // namespace

std::optional<DType> dtype_from_safetensors(std::string_view name) {
  for (const auto& [text, dtype] : kRead) {
    if (text == name) return dtype;
  }
  return std::nullopt;
}

std::string_view safetensors_name(DType dtype) {
  for (const auto& [text, candidate] : kRead) {
    if (candidate == dtype) return text;
  }
  return "";
}

bool safetensors_knows(std::string_view name) {
  return dtype_from_safetensors(name) || std::ranges::find(kOnlyKnown, name) != std::end(kOnlyKnown);
}

}  // namespace quipu
