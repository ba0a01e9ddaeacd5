#include "tensor/buffer.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

namespace quipu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

size_t Buffer::footprint(size_t bytes) {
  const size_t unit = bytes < kHugePage ? 64 : kHugePage;
  return (bytes + unit - 1) / unit * unit;
}

Result<Buffer> Buffer::allocate(size_t bytes) {
  Buffer buffer;
  if (bytes == 0) return buffer;
  const size_t rounded = footprint(bytes);
  if (bytes < kHugePage) {
    buffer.data_ = static_cast<std::byte*>(std::aligned_alloc(64, rounded));
    if (buffer.data_ == nullptr) return failed("cannot allocate " + std::to_string(bytes) + " bytes of memory");
    std::memset(buffer.data_, 0, rounded);
    buffer.size_ = bytes;
    return buffer;
  }
  // Map with room to align to a huge page, then give the ends back.
  void* address = mmap(nullptr, rounded + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) {
    return failed("cannot allocate " + std::to_string(bytes) + " bytes of memory: " + std::strerror(errno));
  }
  const uintptr_t start = reinterpret_cast<uintptr_t>(address);
  const uintptr_t aligned = (start + kHugePage - 1) / kHugePage * kHugePage;
  if (aligned > start) munmap(address, aligned - start);
  const uintptr_t end = start + rounded + kHugePage;
  if (end > aligned + rounded) munmap(reinterpret_cast<void*>(aligned + rounded), end - aligned - rounded);
  buffer.data_ = reinterpret_cast<std::byte*>(aligned);
  buffer.size_ = bytes;
  buffer.mapped_ = rounded;
  madvise(buffer.data_, rounded, MADV_HUGEPAGE);
  return buffer;
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (mapped_ != 0) {
    munmap(data_, mapped_);
  } else {
    std::free(data_);
  }
}

Result<void> Arena::reserve(size_t bytes) {
  used_ = 0;
  if (bytes <= buffer_.size()) return {};
  ASSIGN_OR_RETURN(buffer_, Buffer::allocate(bytes));
  return {};
}

}  // namespace quipu
