// Buffer: owned, zeroed, 64-byte aligned memory (2 MiB aligned, with huge pages asked for, when it is large).
// Arena: a planned stretch of memory handed out by bumping a pointer and taken back all at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "base/check.h"
#include "base/result.h"
#include "tensor/view.h"

namespace quipu {

class Buffer {
 public:
  Buffer() = default;
  // Fresh pages come from the system on first touch, so reserving is cheap. An error (kFailed) when memory is refused.
  static Result<Buffer> allocate(size_t bytes);
  // What a buffer of `bytes` takes of memory once all of it was touched.
  static size_t footprint(size_t bytes);
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept { swap(other); return *this; }
  ~Buffer();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  template <class T>
  T* as() const { return reinterpret_cast<T*>(data_); }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(mapped_, other.mapped_);
  }
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  size_t mapped_ = 0;   // bytes mapped by the system (0 when the heap was used)
};

// Scratch for one step. reserve() may allocate; take() never does and CHECKs the plan.
class Arena {
 public:
  // Makes room for at least `bytes`, keeping a larger buffer it already has. All earlier memory from it is invalid.
  Result<void> reserve(size_t bytes);
  void reset() { used_ = 0; }
  size_t used() const { return used_; }
  size_t capacity() const { return buffer_.size(); }

  // `count` elements, 64-byte aligned, not cleared.
  template <class T>
  T* take(int64_t count) {
    CHECK(count >= 0) << count;
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    CHECK(used_ + bytes <= buffer_.size()) << "arena of " << buffer_.size() << " bytes, " << used_ << " used, " << bytes
                                           << " wanted: the plan was too small";
    T* result = reinterpret_cast<T*>(buffer_.data() + used_);
    used_ += bytes;
    return result;
  }
  MatrixView<float> matrix(int64_t rows, int64_t cols) { return {take<float>(rows * cols), rows, cols}; }

  // Bytes that take<T>(count) uses: what a plan adds up.
  template <class T>
  static constexpr int64_t planned(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }

 private:
  friend class ArenaMark;
  Buffer buffer_;
  size_t used_ = 0;
};

// Gives back, at the end of a scope, what was taken since its start.
class ArenaMark {
 public:
  explicit ArenaMark(Arena& arena) : arena_(arena), used_(arena.used_) {}
  ~ArenaMark() { arena_.used_ = used_; }
  ArenaMark(const ArenaMark&) = delete;
  ArenaMark& operator=(const ArenaMark&) = delete;

 private:
  Arena& arena_;
  size_t used_;
};

}  // namespace quipu
