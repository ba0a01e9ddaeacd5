// ReadAhead: asks the kernel for a model's bytes while the ones before them are worked on, so that loading from a disk takes
// about as long as reading does.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "formats/tensor_file.h"

namespace quipu {

class ReadAhead {
 public:
  // What may have been asked for and not yet been taken, in bytes: more than a large vocabulary's embeddings, which can lie first
  // and be taken last.
  static constexpr uint64_t kWindow = uint64_t{512} << 20;

  // Starts a thread that goes through the tensors as they lie in `file`, which must outlive this.
  explicit ReadAhead(const TensorFile& file, uint64_t window = kWindow);
  ~ReadAhead();
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  // So many more bytes of the file have been taken, whichever they were.
  void took(uint64_t bytes);
  // Bytes asked for so far.
  uint64_t asked() const;

 private:
  static constexpr size_t kPiece = size_t{1} << 20;   // Linux reads no more of one request than the disk takes at once

  void run();
  // Waits until so many more bytes are within the window; false: stop.
  bool may_ask(uint64_t bytes);

  const TensorFile& file_;
  const uint64_t window_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t taken_ = 0, asked_ = 0;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace quipu
