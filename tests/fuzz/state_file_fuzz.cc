// Any bytes as a saved context: as they are, and with the length and checksum of the header made right, because a fuzzer
// cannot guess those and a forger can compute them.
#include <cstring>
#include <string>

#include "base/check.h"
#include "formats/state_file/state_file.h"

namespace {

void read(std::span<const std::byte> bytes) {
  using namespace quipu;
  const auto file = read_state_file_bytes("fuzz.state", bytes);
  if (!file.ok()) {
    CHECK(file.error().error_class == ErrorClass::kBadInput && file.error().message.starts_with("fuzz.state: "))
        << file.error().message;
    return;
  }
  for (const StateSection& section : file->sections) {
    CHECK(section.rows >= 0 && section.row_elements >= 0);
    CHECK(section.bytes.data() >= bytes.data() && section.bytes.data() + section.bytes.size() <= bytes.data() + bytes.size());
    CHECK(hash128(section.bytes) == hash128(file->find(section.name)->bytes));
    CHECK(file->require(section.name, section.dtype, section.rows, section.row_elements).ok());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  read(bytes);
  if (size < 104) return 0;
  std::string forged(reinterpret_cast<const char*>(data), size);
  std::memcpy(forged.data(), "QUIPUCTX\1\0\0\0", 12);
  const uint64_t file_bytes = size;
  std::memcpy(forged.data() + 16, &file_bytes, 8);
  uint64_t header_bytes;
  std::memcpy(&header_bytes, forged.data() + 24, 8);
  if (header_bytes < 104 || header_bytes > size) return 0;
  const quipu::Hash128 hash = quipu::hash128(std::string_view(forged).substr(0, header_bytes - 16));
  std::memcpy(forged.data() + header_bytes - 16, &hash.low, 8);
  std::memcpy(forged.data() + header_bytes - 8, &hash.high, 8);
  read(std::as_bytes(std::span(forged.data(), forged.size())));
  return 0;
}
