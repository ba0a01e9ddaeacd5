#include "base/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/byte_reader.h"

namespace quipu {
namespace {

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

Error io_error(const std::string& path, const char* what, int code) {
  return failed(printable(path, 400) + ": " + what + ": " + std::strerror(code) + "; nothing that was there is lost");
}

}  // namespace

Result<AtomicFile> AtomicFile::create(const std::string& path) {
  std::string temporary = path + ".XXXXXX.tmp";
  const int descriptor = mkostemps(temporary.data(), 4, O_CLOEXEC);
  if (descriptor < 0) return io_error(path, "cannot create a temporary file beside it", errno);
  // mkstemp makes the file private; give it the permissions a plain open would have given.
  const mode_t mask = umask(0);
  umask(mask);
  fchmod(descriptor, 0666 & ~mask);
  return AtomicFile(path, std::move(temporary), descriptor);
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      written_(other.written_) {}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  close(descriptor_);
  unlink(temporary_.c_str());
}

Result<void> AtomicFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(descriptor_, bytes.data(), std::min<size_t>(bytes.size(), size_t{1} << 30));
    if (count < 0) {
      if (errno == EINTR) continue;
      return io_error(path_, "cannot write", errno);
    }
    bytes = bytes.subspan(static_cast<size_t>(count));
    written_ += static_cast<uint64_t>(count);
  }
  return {};
}

Result<void> AtomicFile::commit() {
  if (fsync(descriptor_) != 0) return io_error(path_, "cannot sync", errno);
  if (close(std::exchange(descriptor_, -1)) != 0) {
    const int code = errno;
    unlink(temporary_.c_str());
    return io_error(path_, "cannot close", code);
  }
  if (rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int code = errno;
    unlink(temporary_.c_str());
    return io_error(path_, "cannot rename the finished file into place", code);
  }
  const int folder = open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder >= 0) {
    fsync(folder);  // some file systems refuse to sync a folder; the rename itself has happened
    close(folder);
  }
  return {};
}

}  // namespace quipu
