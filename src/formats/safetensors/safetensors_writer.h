// Writes safetensors: tensors stream in the order declared; the file appears whole or not at all.
//
// The header is padded so that the data begin at a multiple of 64 bytes. Declare types with wide elements first, as other
// writers do, if readers are to find every tensor aligned.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/atomic_file.h"
#include "base/result.h"
#include "formats/tensor_file.h"

namespace quipu {

// name UTF-8 without control characters, not "__metadata__"; dtype plain (not block-quantised). view.bytes may be empty
// where only the declaration counts.
struct SafetensorsTensor {
  std::string name;
  TensorView view;
};

class SafetensorsWriter {
 public:
  // Starts the file and writes the header for these tensors. Errors (kUsage): a name or type the format does not take, a
  // name twice, a negative dimension, more bytes than 2^62.
  static Result<SafetensorsWriter> create(const std::string& path, std::span<const SafetensorsTensor> tensors,
                                          const TensorFile::TextMap& metadata = {});

  // Appends data of the tensors in order of declaration, in pieces of any size. More than declared is CHECKed.
  Result<void> write(std::span<const std::byte> bytes);

  // Finishes; all declared bytes must have come (CHECKed).
  Result<void> commit();

 private:
  SafetensorsWriter(AtomicFile file, uint64_t bytes) : file_(std::move(file)), left_(bytes) {}
  AtomicFile file_;
  uint64_t left_;
};

// All at once: view.bytes of every tensor must have the size its dtype and shape say (CHECKed).
Result<void> write_safetensors(const std::string& path, std::span<const SafetensorsTensor> tensors,
                               const TensorFile::TextMap& metadata = {});

// The header of such a file, length field included: what create() writes.
Result<std::string> encode_safetensors_header(std::span<const SafetensorsTensor> tensors,
                                              const TensorFile::TextMap& metadata);

}  // namespace quipu
