// MappedFile: a regular file mapped read-only. The length is taken once, at open.
//
// A file that shrinks while mapped raises SIGBUS on access; install_mapped_file_guard() turns that into a message and
// exit code 70 instead of silent garbage.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "base/result.h"

namespace quipu {

class MappedFile {
 public:
  // Refuses directories, FIFOs, devices and unreadable paths, each with its own message (kBadInput).
  static Result<std::shared_ptr<const MappedFile>> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // Asks the kernel to read `part` (inside bytes()) now, or to drop its pages from this process. Hints: no errors.
  void prefetch(std::span<const std::byte> part) const;
  void drop(std::span<const std::byte> part) const;

 private:
  MappedFile(std::string path, const std::byte* data, size_t size) : path_(std::move(path)), data_(data), size_(size) {}
  std::string path_;
  const std::byte* data_;
  size_t size_;
};

// Installs the SIGBUS handler described above; call once at program start.
void install_mapped_file_guard();

}  // namespace quipu
