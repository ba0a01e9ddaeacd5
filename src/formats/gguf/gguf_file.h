// Reads GGUF, versions 2 and 3 (little endian), in place: typed metadata and named tensors over the mapped file.
//
// Everything the header claims is checked against the file's size before it is used or allocated for. Format: the GGUF
// specification in the ggml project's docs. Stricter than it where looseness has cost others: keys and tensor names are
// UTF-8 without control characters, no zero dimensions, no nested arrays, tensors must not overlap.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "base/result.h"
#include "formats/gguf/metadata.h"
#include "formats/tensor_file.h"

namespace quipu {

struct GgufFile {
  uint32_t version;
  uint32_t alignment;        // of tensor data, bytes: a power of two, 8 to 65536
  GgufMetadata metadata;     // of a set of split files: that of the first part
  TensorFile tensors;        // shapes slowest dimension first (GGUF's ne reversed), in file order, parts in order
  std::vector<std::shared_ptr<const MappedFile>> files;   // what metadata and tensors point into
};

// Reads a file. When its metadata says it is one part of a set ("model-00002-of-00003.gguf", keys split.*), all parts
// are read from the same folder, whichever part was named.
Result<GgufFile> read_gguf(const std::string& path);

// Reads one file from the caller's memory, which must outlive the result; split.* keys are not followed.
Result<GgufFile> read_gguf_bytes(const std::string& name, std::span<const std::byte> bytes);

struct GgufLimits {
  static constexpr uint64_t kKeys = 65536;
  static constexpr uint64_t kTensors = 131072;
  static constexpr uint64_t kKeyBytes = 65535;
  static constexpr uint64_t kTensorNameBytes = 64;
  static constexpr uint32_t kDimensions = 4;
  static constexpr uint32_t kMinAlignment = 8, kDefaultAlignment = 32, kMaxAlignment = 65536;
};

}  // namespace quipu
