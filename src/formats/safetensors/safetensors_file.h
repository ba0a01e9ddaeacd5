// Reads safetensors: one file, or the files that an index names, in place.
//
// Format: huggingface/safetensors. A 64-bit header length, a JSON object of name -> {dtype, shape, data_offsets} and
// optionally "__metadata__" (text to text), then the bytes of all tensors without holes. Every rule of the format is
// enforced, and duplicate names, also inside an entry, are refused (parsers differ on which one counts).
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/result.h"
#include "formats/tensor_file.h"

namespace quipu {

// path: a .safetensors file; an index ("....index.json"); or a folder with model.safetensors or
// model.safetensors.index.json (the first that is there). Types F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL. The result's
// metadata() is __metadata__ (of several files: the first one wins for each key). Tensors come in header order, files in
// name order. Data need not be aligned.
//
// An index may only name files beside it. A link must stay in the folder, except for the layout of the Hugging Face
// cache, where <model>/snapshots/<revision>/<file> points into <model>/blobs.
Result<TensorFile> read_safetensors(const std::string& path);

// Reads one file from the caller's memory, which must outlive the result.
Result<TensorFile> read_safetensors_bytes(const std::string& name, std::span<const std::byte> bytes);

struct SafetensorsLimits {
  static constexpr uint64_t kHeaderBytes = 100'000'000;      // the format's own
  static constexpr uint64_t kTensors = 200'000;
  static constexpr uint64_t kMetadataEntries = 65536;
  static constexpr uint64_t kMetadataValueBytes = uint64_t{16} << 20;
  static constexpr uint64_t kNameBytes = 4096;
  static constexpr uint64_t kDimensions = 8;
  static constexpr uint64_t kIndexBytes = uint64_t{100} << 20;
};

}  // namespace quipu
