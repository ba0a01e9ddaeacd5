// The layout of key and value pages: the one place that knows it. It is the same on every machine, so that a saved
// state means the same everywhere.
//
// A page holds kPageRows cache rows of one layer. Keys lie with the row index fastest, so that a vector register holds
// one component of many keys and a dot product needs no sum across lanes; values lie row by row.
//   f32 f16 bf16  key page: [kv_heads][key_dim][64]            value page: [kv_heads][64][value_dim]
//   q8_0          key page: [kv_heads] of { int8 [key_dim/4][64][4], f16 scale [key_dim/32][64] }
//                 value page: [kv_heads] of { int8 [64][value_dim], f16 scale [64][value_dim/32] }
// In q8_0 each run of 32 components of one row has one scale = max|x| / 127, as in tensor/quant_blocks.h.
#pragma once

#include <cstdint>
#include <span>

#include "base/check.h"
#include "tensor/dtype.h"

namespace quipu {

inline constexpr int64_t kPageRows = 64;

struct KvCacheView {
  DType dtype = DType::kF16;                    // kF32, kF16, kBF16 or kQ8_0
  int64_t kv_heads = 0;
  int64_t key_dim = 0;                          // q8_0: multiples of 32
  int64_t value_dim = 0;
  std::span<std::byte* const> key_pages;        // page p holds rows [64 p, 64 p + 64); a ring when ring_pages > 0
  std::span<std::byte* const> value_pages;
  int64_t ring_pages = 0;                       // > 0: absolute page p lies at index p % ring_pages

  int64_t slot(int64_t page) const { return ring_pages > 0 ? page % ring_pages : page; }
  std::byte* key_page(int64_t page) const { return key_pages[static_cast<size_t>(slot(page))]; }
  std::byte* value_page(int64_t page) const { return value_pages[static_cast<size_t>(slot(page))]; }
};

// Bytes of one head's part of a key or value page of `dim` components a row.
inline int64_t kv_head_page_bytes(DType dtype, int64_t dim) { return row_bytes(dtype, dim) * kPageRows; }

inline bool is_kv_dtype(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 || dtype == DType::kQ8_0;
}

// Reads row `row` (0..63) of one head's part of a page into `dim` floats; the portable meaning of the layouts above.
void load_key_row(float* out, DType dtype, const std::byte* head_page, int64_t dim, int64_t row);
void load_value_row(float* out, DType dtype, const std::byte* head_page, int64_t dim, int64_t row);
// Writes them.
void save_key_row(std::byte* head_page, DType dtype, int64_t dim, int64_t row, const float* values);
void save_value_row(std::byte* head_page, DType dtype, int64_t dim, int64_t row, const float* values);

}  // namespace quipu
