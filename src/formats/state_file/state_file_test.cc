#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "formats/sample_files.h"
#include "formats/state_file/state_file.h"

namespace quipu {
namespace {

using sample::bytes_of;
using sample::Folder;

const StateFileHeader kHeader = {.model = {1, 2}, .layout = {3, 4}, .tokenizer = {5, 6}, .tokens = 77};

// A valid file of about 4 KB: a section in two parts, a quantised one, an empty one, a long one.
std::string saved_bytes(const Folder& folder) {
  std::string data(3600, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 37);
  const auto bytes = bytes_of(data);
  const StateSectionSource sections[] = {
      {"layer0.keys", DType::kF16, 5, 6, {bytes.first(24), bytes.subspan(24, 36)}},
      {"layer0.values", DType::kQ8_0, 3, 64, {bytes.first(204)}},
      {"empty", DType::kF32, 0, 9, {}},
      {"session", DType::kU8, 3300, 1, {bytes.first(3300)}},
  };
  EXPECT_TRUE(write_state_file(folder.path("s.state"), kHeader, sections).ok());
  return sample::read_all(folder.path("s.state"));
}

std::string error_of(const std::string& bytes) {
  const auto file = read_state_file_bytes("s.state", bytes_of(bytes));
  if (file.ok()) return "(it loads)";
  EXPECT_EQ(file.error().error_class, ErrorClass::kBadInput);
  return file.error().message;
}

void expect_refused(const std::string& bytes, const std::string& wanted) {
  const std::string message = error_of(bytes);
  EXPECT_NE(message.find(wanted), std::string::npos) << message;
}

// Puts a value at an offset and makes the header's checksum right again: what a forger can do.
template <class T>
std::string forged(std::string bytes, size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof(value));
  uint64_t header_bytes;
  std::memcpy(&header_bytes, bytes.data() + 24, 8);
  if (header_bytes < 16 || header_bytes > bytes.size()) return bytes;
  const Hash128 hash = hash128(bytes_of(bytes).first(header_bytes - 16));
  std::memcpy(bytes.data() + header_bytes - 16, &hash.low, 8);
  std::memcpy(bytes.data() + header_bytes - 8, &hash.high, 8);
  return bytes;
}

TEST(StateFile, RoundTrips) {
  const Folder folder("state");
  saved_bytes(folder);
  const auto file = read_state_file(folder.path("s.state"));
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(file->header.tokens, 77u);
  EXPECT_EQ(file->header.layout, kHeader.layout);
  ASSERT_EQ(file->sections.size(), 4u);
  const StateSection* values = file->find("layer0.values");
  ASSERT_NE(values, nullptr);
  EXPECT_EQ(values->dtype, DType::kQ8_0);
  EXPECT_EQ(values->rows, 3);
  EXPECT_EQ(values->bytes.size(), 204u);
  EXPECT_EQ(static_cast<unsigned char>(values->bytes[1]), 37);
  EXPECT_EQ(static_cast<unsigned char>(file->find("layer0.keys")->bytes[59]), (59 * 37) & 255) << "parts joined in order";
  for (const StateSection& section : file->sections) EXPECT_EQ(reinterpret_cast<uintptr_t>(section.bytes.data()) % 64, 0u);
  EXPECT_EQ(file->find("nothing"), nullptr);
}

TEST(StateFile, RequiresSectionsOfTheExpectedShape) {
  const Folder folder("state_require");
  const std::string bytes = saved_bytes(folder);
  const auto file = read_state_file_bytes("s.state", bytes_of(bytes));
  EXPECT_TRUE(file->require("layer0.keys", DType::kF16, 5, 6).ok());
  EXPECT_EQ(file->require("layer0.keys", DType::kF16, 5, 7).error().message,
            "s.state: section layer0.keys has 5 rows of 6 f16, expected 5 rows of 7 f16");
  EXPECT_EQ(file->require("layer1.keys", DType::kF16, 5, 6).error().message, "s.state: section layer1.keys is missing");
}

TEST(StateFile, SaysWhatItWasSavedWith) {
  const Folder folder("state_origin");
  const std::string bytes = saved_bytes(folder);
  const auto file = read_state_file_bytes("s.state", bytes_of(bytes));
  EXPECT_TRUE(require_same_origin(*file, kHeader).ok());
  StateFileHeader other = kHeader;
  other.model.low = 9;
  EXPECT_EQ(require_same_origin(*file, other).error().message,
            "s.state: was saved with another model (00000000000000020000000000000001, this one is "
            "00000000000000020000000000000009)");
  other = kHeader;
  other.layout.high = 9;
  EXPECT_NE(require_same_origin(*file, other).error().message.find("another state layout"), std::string::npos);
  other = kHeader;
  other.tokenizer.high = 9;
  EXPECT_NE(require_same_origin(*file, other).error().message.find("another tokenizer"), std::string::npos);
}

TEST(StateFile, NoticesEveryChangedBit) {
  const Folder folder("state_bits");
  const std::string good = saved_bytes(folder);
  ASSERT_GT(good.size(), 4000u);
  std::string bytes = good;
  for (size_t at = 0; at < bytes.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      bytes[at] = static_cast<char>(good[at] ^ (1 << bit));
      ASSERT_FALSE(read_state_file_bytes("f", bytes_of(bytes)).ok()) << "byte " << at << " bit " << bit;
    }
    bytes[at] = good[at];
  }
}

TEST(StateFile, NoticesEveryTruncationAndExtension) {
  const Folder folder("state_cut");
  const std::string good = saved_bytes(folder);
  for (size_t size = 0; size < good.size(); ++size) {
    const std::string cut = good.substr(0, size);   // its own allocation, so that reading past the end is seen
    ASSERT_FALSE(read_state_file_bytes("f", bytes_of(cut)).ok()) << size;
  }
  expect_refused(good + '\0', "but the file has");
}

TEST(StateFile, F65RefusesForgedHeadersWithAReason) {
  const Folder folder("state_forged");
  const std::string good = saved_bytes(folder);
  EXPECT_EQ(error_of(forged(good, 32, uint64_t{78})), "(it loads)") << "forging works";
  expect_refused("", "not a saved context");
  expect_refused("GGUF and more", "not a saved context: it looks like a GGUF file");
  expect_refused(forged(good, 8, uint32_t{99}), "version at byte 8: is 99, version 1 is supported");
  expect_refused(good.substr(0, good.size() - 1), "(truncated?)");
  for (const uint64_t value : {uint64_t{good.size() - 1}, uint64_t{good.size() + 1}, ~uint64_t{0}, uint64_t{0}}) {
    expect_refused(forged(good, 16, value), "file bytes at byte 16: is ");
  }
  uint64_t header_bytes;
  std::memcpy(&header_bytes, good.data() + 24, 8);
  expect_refused(forged(good, 24, header_bytes - 1), "at byte ");
  expect_refused(forged(good, 24, header_bytes + 1), "at byte ");
  expect_refused(forged(good, 24, ~uint64_t{0}), "header bytes at byte 24: is 18446744073709551615");
  expect_refused(forged(good, 24, uint64_t{0}), "header bytes at byte 24: is 0");
  expect_refused(forged(good, 12, uint32_t{3}), "the sections end here, but the header says");
  expect_refused(forged(good, 12, uint32_t{5}), "section count at byte 12: is 5, but the header has room for at most 4");
  expect_refused(forged(good + "more", 16, uint64_t{good.size() + 4}), "the sections end here, but the file has");
  expect_refused(forged(good, 12, ~uint32_t{0}), "section count at byte 12: is 4294967295");
  expect_refused(forged(good, 32, ~uint64_t{0}), "token count at byte 32");
}

// The first entry: name "layer0.keys" at 88, dtype "f16" at 100, rows, row elements, offset, bytes, checksum.
TEST(StateFile, F65RefusesForgedSectionsWithAReason) {
  const Folder folder("state_sections");
  const std::string good = saved_bytes(folder);
  ASSERT_EQ(good.substr(89, 11), "layer0.keys");
  constexpr size_t kType = 101, kRows = 104, kRowElements = 112, kOffset = 120, kBytes = 128, kChecksum = 136;
  for (const uint64_t value : {uint64_t{4}, uint64_t{6}, ~uint64_t{0}, uint64_t{1} << 63}) {
    expect_refused(forged(good, kRows, value), "bytes, 60 are stated");
    expect_refused(forged(good, kRowElements, value + 1), "bytes, 60 are stated");
  }
  for (const uint64_t value : {uint64_t{59}, uint64_t{61}, uint64_t{0}, ~uint64_t{0}}) {
    expect_refused(forged(good, kBytes, value), " are stated");
  }
  uint64_t offset;
  std::memcpy(&offset, good.data() + kOffset, 8);
  for (const uint64_t value : {offset - 1, offset + 1, offset + 64, ~uint64_t{0}, uint64_t{0}}) {
    expect_refused(forged(good, kOffset, value), "starts at byte ");
  }
  expect_refused(forged(forged(good, kRows, uint64_t{1} << 40), kBytes, uint64_t{12} << 40), "pass the file's end");
  expect_refused(forged(good, kChecksum, uint64_t{1}), "section layer0.keys at byte " + std::to_string(offset) + ": the checksum");
  expect_refused(forged(good, kType, 'F'), "element type \"F16\" is unknown");
  expect_refused(forged(good, 89, '\n'), "is not plain UTF-8 text");
  expect_refused(forged(good, 88, uint8_t{0}), "is not plain UTF-8 text");
  expect_refused(forged(good, 88, uint8_t{255}), "section 1 of 4");
  std::string damaged = good;
  damaged[offset + 60] = 1;
  expect_refused(damaged, "the padding before it is not zero");
}

TEST(StateFile, RefusesTheSameNameTwice) {
  const Folder folder("state_twice");
  const std::string x = "x";
  const StateSectionSource sections[] = {{"a1", DType::kU8, 1, 1, {bytes_of(x)}}, {"a2", DType::kU8, 1, 1, {bytes_of(x)}}};
  ASSERT_TRUE(write_state_file(folder.path("t"), kHeader, sections).ok());
  std::string bytes = sample::read_all(folder.path("t"));
  const size_t at = bytes.find("a2");
  expect_refused(forged(bytes, at + 1, '1'), "section a1 at byte");
}

TEST(StateFile, KeepsTheOldFileWhenWritingFails) {
  const Folder folder("state_old");
  const std::string good = saved_bytes(folder);
  EXPECT_FALSE(write_state_file(folder.path("missing/s.state"), kHeader, {}).ok());
  EXPECT_EQ(sample::read_all(folder.path("s.state")), good);
}

// Test values of the xxHash project: XXH3-128 of the empty input, and the same bytes in any pieces.
TEST(Hash128, AgreesWithXxHashAndDoesNotDependOnPieces) {
  EXPECT_EQ(hash128(std::string_view()).text(), "99aa06d3014798d86001c324468d497f");
  const std::string text(1000, 'q');
  for (const size_t cut : {size_t{0}, size_t{1}, size_t{16}, size_t{241}, size_t{999}}) {
    Hasher128 hasher;
    hasher.add(std::string_view(text).substr(0, cut));
    hasher.add(std::string_view(text).substr(cut));
    EXPECT_EQ(hasher.result(), hash128(text));
  }
}

}  // namespace
}  // namespace quipu
