// Carver: cuts a stretch of memory into the same pieces each time it is walked in the same order.
//
// What a forward pass saves for its backward is a struct of views made by one function that takes a Carver. Walked over
// nothing it measures; in forward and in backward it gives the same views of the same memory. So the layout is written once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/check.h"
#include "tensor/view.h"

namespace quipu {

class Carver {
 public:
  Carver() = default;                                                            // measures
  // bytes: 64-byte aligned, as Arena::take and Buffer give it.
  explicit Carver(std::span<std::byte> bytes) : base_(bytes.data()), limit_(bytes.size()) {}

  // `count` elements, 64-byte aligned, not cleared. Null while measuring.
  template <class T>
  T* take(int64_t count) {
    CHECK(count >= 0) << count;
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    T* result = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += bytes;
    CHECK(base_ == nullptr || used_ <= limit_) << "carved " << used_ << " of " << limit_ << " bytes";
    if (used_ > peak_) peak_ = used_;
    return result;
  }
  template <class T>
  std::span<T> span(int64_t count) { return {take<T>(count), base_ == nullptr ? size_t{0} : static_cast<size_t>(count)}; }
  template <class T>
  MatrixView<T> matrix(int64_t rows, int64_t cols) { return {take<T>(rows * cols), rows, cols}; }
  // The next `bytes` bytes, for a part that carves them itself.
  std::span<std::byte> part(int64_t bytes) { return {take<std::byte>(bytes), base_ == nullptr ? size_t{0} : static_cast<size_t>(bytes)}; }

  // What was handed out after a mark may be taken again: scratch. bytes() counts the most ever held at once.
  size_t mark() const { return used_; }
  void rewind(size_t mark) { used_ = mark; }
  int64_t bytes() const { return static_cast<int64_t>(peak_); }

 private:
  std::byte* base_ = nullptr;
  size_t limit_ = 0, used_ = 0, peak_ = 0;
};

}  // namespace quipu
