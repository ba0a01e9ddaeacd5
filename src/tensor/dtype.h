// Element types of tensors in files and in memory, block-quantised ones included.
//
// A block format stores `block_elements` numbers in `block_bytes`; a row is a whole number of blocks. The formats are
// GGML's, as files carry them; tensor/quant_blocks.h says what the bytes mean.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "base/checked.h"

namespace quipu {

enum class DType : uint8_t {
  kF32, kF16, kBF16, kF64, kI8, kI16, kI32, kI64, kU8, kBool,
  kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ8_0, kQ2_K, kQ3_K, kQ4_K, kQ5_K, kQ6_K, kIQ4_NL,
};
inline constexpr int kDTypeCount = static_cast<int>(DType::kIQ4_NL) + 1;

struct DTypeTraits {
  std::string_view name;   // lower case, as on the command line: "f16", "q4_k"
  int block_elements;      // 1 for plain types
  int block_bytes;
  bool quantised;
};

const DTypeTraits& traits(DType dtype);
inline std::string_view dtype_name(DType dtype) { return traits(dtype).name; }
std::optional<DType> dtype_from_name(std::string_view name);   // accepts upper and lower case

// Bytes of `elements` consecutive elements; elements must be a multiple of the block size.
int64_t row_bytes(DType dtype, int64_t elements);
// The same for sizes from outside: not ok() on overflow or when the block size does not divide `elements`.
std::optional<uint64_t> checked_row_bytes(DType dtype, uint64_t elements);

}  // namespace quipu
