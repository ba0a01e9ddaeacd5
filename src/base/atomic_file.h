// AtomicFile: a file that appears whole or not at all. Bytes go to a temporary file beside the target; commit() syncs,
// renames and syncs the folder. Without commit the temporary file is removed and whatever stood at `path` stays.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace quipu {

class AtomicFile {
 public:
  static Result<AtomicFile> create(const std::string& path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  // Appends; an error (disk full, limit) names the path and leaves the old file in place.
  Result<void> write(std::span<const std::byte> bytes);
  Result<void> write(std::string_view text) { return write(std::as_bytes(std::span(text.data(), text.size()))); }
  uint64_t bytes_written() const { return written_; }

  Result<void> commit();

 private:
  AtomicFile(std::string path, std::string temporary, int descriptor)
      : path_(std::move(path)), temporary_(std::move(temporary)), descriptor_(descriptor) {}
  std::string path_, temporary_;
  int descriptor_ = -1;
  uint64_t written_ = 0;
};

}  // namespace quipu
