#include "tensor/dtype.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <string>

#include "base/check.h"

namespace quipu {
namespace {

constexpr std::array<DTypeTraits, kDTypeCount> kTraits = {{
    {"f32", 1, 4, false},   {"f16", 1, 2, false},   {"bf16", 1, 2, false},   {"f64", 1, 8, false},
    {"i8", 1, 1, false},    {"i16", 1, 2, false},   {"i32", 1, 4, false},    {"i64", 1, 8, false},
    {"u8", 1, 1, false},    {"bool", 1, 1, false},
    {"q4_0", 32, 18, true}, {"q4_1", 32, 20, true}, {"q5_0", 32, 22, true},  {"q5_1", 32, 24, true},
    {"q8_0", 32, 34, true}, {"q2_k", 256, 84, true}, {"q3_k", 256, 110, true}, {"q4_k", 256, 144, true},
    {"q5_k", 256, 176, true}, {"q6_k", 256, 210, true}, {"iq4_nl", 32, 18, true},
}};

}  // namespace

const DTypeTraits& traits(DType dtype) { return kTraits[static_cast<size_t>(dtype)]; }

std::optional<DType> dtype_from_name(std::string_view name) {
  std::string lower(name);
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  for (size_t i = 0; i < kTraits.size(); ++i) {
    if (kTraits[i].name == lower) return static_cast<DType>(i);
  }
  return std::nullopt;
}

int64_t row_bytes(DType dtype, int64_t elements) {
  const DTypeTraits& t = traits(dtype);
  CHECK(elements >= 0 && elements % t.block_elements == 0) << t.name << " row of " << elements;
  return elements / t.block_elements * t.block_bytes;
}

std::optional<uint64_t> checked_row_bytes(DType dtype, uint64_t elements) {
  const DTypeTraits& t = traits(dtype);
  if (elements % static_cast<uint64_t>(t.block_elements) != 0) return std::nullopt;
  return (CheckedSize(elements / static_cast<uint64_t>(t.block_elements)) *
          CheckedSize(static_cast<uint64_t>(t.block_bytes))).value();
}

}  // namespace quipu
