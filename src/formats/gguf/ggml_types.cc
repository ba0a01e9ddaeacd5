#include "formats/gguf/ggml_types.h"

namespace quipu {
namespace {

struct GgmlType {
  std::string_view name;
  std::optional<DType> dtype = std::nullopt;
};

// Indexed by the number in the file.
constexpr GgmlType kTypes[] = {
    {"F32", DType::kF32},
    {"F16", DType::kF16},
    {"Q4_0", DType::kQ4_0},
    {"Q4_1", DType::kQ4_1},
    {"Q4_2 (removed)"},
    {"Q4_3 (removed)"},
    {"Q5_0", DType::kQ5_0},
    {"Q5_1", DType::kQ5_1},
    {"Q8_0", DType::kQ8_0},
    {"Q8_1"},
    {"Q2_K", DType::kQ2_K},
    {"Q3_K", DType::kQ3_K},
    {"Q4_K", DType::kQ4_K},
    {"Q5_K", DType::kQ5_K},
    {"Q6_K", DType::kQ6_K},
    {"Q8_K"},
    {"IQ2_XXS"},
    {"IQ2_XS"},
    {"IQ3_XXS"},
    {"IQ1_S"},
    {"IQ4_NL", DType::kIQ4_NL},
    {"IQ3_S"},
    {"IQ2_S"},
    {"IQ4_XS"},
    {"I8", DType::kI8},
    {"I16", DType::kI16},
    {"I32", DType::kI32},
    {"I64", DType::kI64},
    {"F64", DType::kF64},
    {"IQ1_M"},
    {"BF16", DType::kBF16},
    {"Q4_0_4_4 (removed)"},
    {"Q4_0_4_8 (removed)"},
    {"Q4_0_8_8 (removed)"},
    {"TQ1_0"},
    {"TQ2_0"},
    {"IQ4_NL_4_4 (removed)"},
    {"IQ4_NL_4_8 (removed)"},
    {"IQ4_NL_8_8 (removed)"},
    {"MXFP4"},
    {"NVFP4"},
};
constexpr uint32_t kTypeCount = sizeof(kTypes) / sizeof(kTypes[0]);

}  // namespace

std::optional<DType> dtype_from_ggml(uint32_t id) { return id < kTypeCount ? kTypes[id].dtype : std::nullopt; }

std::optional<uint32_t> ggml_from_dtype(DType dtype) {
  for (uint32_t id = 0; id < kTypeCount; ++id) {
    if (kTypes[id].dtype == dtype) return id;
  }
  return std::nullopt;
}

std::string_view ggml_type_name(uint32_t id) { return id < kTypeCount ? kTypes[id].name : std::string_view(); }

}  // namespace quipu
