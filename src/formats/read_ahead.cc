#include "formats/read_ahead.h"

#include <algorithm>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace quipu {

ReadAhead::ReadAhead(const TensorFile& file, uint64_t window) : file_(file), window_(window), thread_([this] { run(); }) {}

ReadAhead::~ReadAhead() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void ReadAhead::took(uint64_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    taken_ += bytes;
  }
  changed_.notify_one();
}

uint64_t ReadAhead::asked() const {
  const std::lock_guard lock(mutex_);
  return asked_;
}

bool ReadAhead::may_ask(uint64_t bytes) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return stop_ || asked_ + bytes <= taken_ + window_; });
  if (!stop_) asked_ += bytes;
  return !stop_;
}

void ReadAhead::run() {
  std::vector<const NamedTensor*> tensors;
  for (const NamedTensor& tensor : file_.tensors()) {
    if (tensor.file != nullptr) tensors.push_back(&tensor);
  }
  // Shards by name, which is the order of the layers, and a file from its beginning.
  const auto place = [](const NamedTensor* tensor) { return std::pair(std::string_view(tensor->file->path()), tensor->view.bytes.data()); };
  std::sort(tensors.begin(), tensors.end(), [&](const NamedTensor* a, const NamedTensor* b) { return place(a) < place(b); });
  for (const NamedTensor* tensor : tensors) {
    const std::span<const std::byte> bytes = tensor->view.bytes;
    for (size_t at = 0; at < bytes.size(); at += kPiece) {
      const std::span<const std::byte> piece = bytes.subspan(at, std::min(kPiece, bytes.size() - at));
      if (!may_ask(piece.size())) return;
      tensor->file->prefetch(piece);
    }
  }
}

}  // namespace quipu
