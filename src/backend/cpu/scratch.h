// Growing scratch memory: contents are lost when it grows.
#pragma once

#include "tensor/buffer.h"

namespace quipu::cpu {

// Memory for `bytes` more of scratch is something the engine cannot go on without; the memory plan is checked at load.
inline void grow(Buffer& buffer, int64_t bytes) {
  if (static_cast<int64_t>(buffer.size()) >= bytes) return;
  buffer = Buffer();
  auto larger = Buffer::allocate(static_cast<size_t>(bytes));
  CHECK(larger.ok()) << larger.error().message;
  buffer = std::move(larger).value();
}

}  // namespace quipu::cpu
