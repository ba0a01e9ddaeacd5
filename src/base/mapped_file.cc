#include "base/mapped_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "base/byte_reader.h"

namespace quipu {
namespace {

// Whole pages inside `part`: advice about a page shared with a neighbour would touch the neighbour.
std::pair<void*, size_t> whole_pages(std::span<const std::byte> part) {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(part.data()) + page - 1) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(part.data() + part.size()) / page * page;
  return {reinterpret_cast<void*>(begin), end > begin ? end - begin : 0};
}

void on_sigbus(int) {
  static constexpr char kMessage[] = "quipu: a mapped file became shorter while it was in use; stopping\n";
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1);
  _exit(70);
}

}  // namespace

Result<std::shared_ptr<const MappedFile>> MappedFile::open(const std::string& path) {
  const std::string name = printable(path, 400);
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return bad_input(name + ": cannot open: " + std::strerror(errno));
  struct stat info {};
  if (fstat(descriptor, &info) != 0) {
    const int code = errno;
    close(descriptor);
    return bad_input(name + ": cannot read its size: " + std::strerror(code));
  }
  if (!S_ISREG(info.st_mode)) {
    close(descriptor);
    return bad_input(name + ": is " + (S_ISDIR(info.st_mode) ? "a directory" : "not a regular file") +
                     ", expected a file");
  }
  const size_t size = static_cast<size_t>(info.st_size);
  const std::byte* data = nullptr;
  if (size > 0) {
    void* address = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (address == MAP_FAILED) {
      const int code = errno;
      close(descriptor);
      return failed(name + ": cannot map " + std::to_string(size) + " bytes: " + std::strerror(code));
    }
    data = static_cast<const std::byte*>(address);
  }
  close(descriptor);
  return std::shared_ptr<const MappedFile>(new MappedFile(path, data, size));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::prefetch(std::span<const std::byte> part) const {
  const auto [begin, length] = whole_pages(part);
  if (length > 0) madvise(begin, length, MADV_WILLNEED);
}

void MappedFile::drop(std::span<const std::byte> part) const {
  const auto [begin, length] = whole_pages(part);
  if (length > 0) madvise(begin, length, MADV_DONTNEED);
}

void install_mapped_file_guard() {
  struct sigaction action {};
  action.sa_handler = on_sigbus;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace quipu
