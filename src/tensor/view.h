// Views name memory and never own it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"
#include "tensor/dtype.h"

namespace quipu {

// A matrix of T: row r starts at data + r * stride. Copying a view copies the pointer.
template <class T>
struct MatrixView {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;   // elements between rows, >= cols

  MatrixView() = default;
  MatrixView(T* data_in, int64_t rows_in, int64_t cols_in) : MatrixView(data_in, rows_in, cols_in, cols_in) {}
  MatrixView(T* data_in, int64_t rows_in, int64_t cols_in, int64_t stride_in)
      : data(data_in), rows(rows_in), cols(cols_in), stride(stride_in) {}
  operator MatrixView<const T>() const { return {data, rows, cols, stride}; }   // NOLINT(google-explicit-constructor)

  T* row(int64_t r) const { return data + r * stride; }
  T& operator()(int64_t r, int64_t c) const { return data[r * stride + c]; }
  MatrixView rows_from(int64_t begin, int64_t count) const {
    CHECK(begin >= 0 && count >= 0 && begin + count <= rows) << begin << "+" << count << " of " << rows;
    return {data + begin * stride, count, cols, stride};
  }
  MatrixView cols_from(int64_t begin, int64_t count) const {
    CHECK(begin >= 0 && count >= 0 && begin + count <= cols) << begin << "+" << count << " of " << cols;
    return {data + begin, rows, count, stride};
  }
};

// Dimensions, slowest first (row-major), as in safetensors; GGUF's fastest-first order is reversed by its reader.
using Shape = std::vector<int64_t>;
std::string shape_text(const Shape& shape);          // "[512, 2048]"
int64_t element_count(const Shape& shape);           // 1 for rank 0

// A tensor in a file or in memory: dtype, shape and its bytes, rows contiguous. The bytes are not owned.
struct TensorView {
  DType dtype = DType::kF32;
  Shape shape;
  std::span<const std::byte> bytes;
};

}  // namespace quipu
