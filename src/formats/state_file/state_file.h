// State files: saved contexts. A container of named, typed sections with fingerprints of what they belong to; what the
// sections mean is the business of those who write them.
//
// A saved context is input from outside like any other: every length is checked against the file's before it is used, the
// header and each section carry an XXH3-128 checksum that is verified before anything is handed out, and every byte of
// the file is accounted for, so that no changed byte goes unnoticed. (A forger can compute checksums: readers of sections
// still check what they find in them.)
//
// Layout, version 1, little endian:
//     0  magic "QUIPUCTX"
//     8  u32 version, u32 section count
//    16  u64 bytes of the file, u64 bytes of the header (checksum included), u64 token count
//    40  u128 model, u128 layout, u128 tokenizer
//    88  for each section: u8 length and name, u8 length and dtype name, u64 rows, u64 elements of a row, u64 offset in
//        the file, u64 bytes, u128 checksum
//        u128 checksum of the header up to here
//     .  sections, each at the next multiple of 64, with zeros between; the file ends with the last section
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/mapped_file.h"
#include "base/result.h"
#include "formats/state_file/hash128.h"
#include "tensor/dtype.h"

namespace quipu {

struct StateFileHeader {
  Hash128 model;       // of the weights and configuration the state was made with
  Hash128 layout;      // of the state's declared regions and their types
  Hash128 tokenizer;
  uint64_t tokens = 0; // length of the context
};

// A section to write: the parts, one after the other, are `rows` rows of `row_elements` elements. A row of a
// block-quantised dtype is a whole number of blocks.
struct StateSectionSource {
  std::string name;    // 1 to 255 bytes, unique in the file
  DType dtype = DType::kU8;
  int64_t rows = 0;
  int64_t row_elements = 1;
  std::vector<std::span<const std::byte>> parts;
};

struct StateSection {
  std::string name;
  DType dtype;
  int64_t rows;
  int64_t row_elements;
  std::span<const std::byte> bytes;   // 64-byte aligned when the file was mapped
};

struct StateFile {
  StateFileHeader header;
  std::vector<StateSection> sections;
  std::shared_ptr<const MappedFile> file;   // keeps the bytes alive; null when the caller's memory was read
  std::string name;                         // for messages

  const StateSection* find(std::string_view section) const;                       // nullptr when absent
  // The section, which must have this type and these sizes. Errors (kBadInput) say what was found.
  Result<StateSection> require(std::string_view section, DType dtype, int64_t rows, int64_t row_elements) const;
};

// Writes the file, whole or not at all. Parts whose sizes do not add up to the declaration are CHECKed.
Result<void> write_state_file(const std::string& path, const StateFileHeader& header,
                              std::span<const StateSectionSource> sections);

// Reads and verifies everything. Errors are kBadInput.
Result<StateFile> read_state_file(const std::string& path);
Result<StateFile> read_state_file_bytes(const std::string& name, std::span<const std::byte> bytes);

// An error that says which one differs, unless `file` was saved with this model, layout and tokenizer. `tokens` of
// `expected` is not compared.
Result<void> require_same_origin(const StateFile& file, const StateFileHeader& expected);

struct StateFileLimits {
  static constexpr uint32_t kVersion = 1;
  static constexpr uint32_t kSections = 65536;
  static constexpr uint64_t kNameBytes = 255;
  static constexpr uint64_t kAlignment = 64;
};

}  // namespace quipu
