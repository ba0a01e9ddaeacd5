// Writes GGUF version 3, tensor by tensor: the header is known once all tensors are declared, so nothing but the header
// is held in memory. The file appears whole or not at all (base/atomic_file.h).
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/atomic_file.h"
#include "base/result.h"
#include "formats/gguf/metadata.h"
#include "tensor/view.h"

namespace quipu {

// Metadata and tensor declarations of a file to be written. Keys keep the order in which they were first set.
class GgufHeader {
 public:
  // Sets a key, replacing its value in place when it is there already. Errors (kUsage): a key or value the format or our
  // reader does not take. "general.alignment" also sets the alignment of the data, if no tensor was declared yet.
  Result<void> set(std::string_view key, const GgufValue& value);
  Result<void> set_string(std::string_view key, std::string_view value);
  Result<void> set_bool(std::string_view key, bool value);
  Result<void> set_u32(std::string_view key, uint32_t value);
  Result<void> set_i32(std::string_view key, int32_t value);
  Result<void> set_u64(std::string_view key, uint64_t value);
  Result<void> set_f32(std::string_view key, float value);
  Result<void> set_strings(std::string_view key, std::span<const std::string_view> values);
  Result<void> set_f32s(std::string_view key, std::span<const float> values);
  Result<void> set_i32s(std::string_view key, std::span<const int32_t> values);

  // Takes over every key of a file that was read, in order.
  Result<void> copy(const GgufMetadata& metadata);

  // Declares the next tensor; shape slowest dimension first. Errors (kUsage): name empty, over 64 bytes or twice; rank
  // not 1 to 4; a dimension below 1; a type GGUF has no number for; rows that are not whole blocks; too many bytes.
  Result<void> add_tensor(std::string_view name, DType dtype, const Shape& shape);

  uint32_t alignment() const { return alignment_; }
  size_t tensor_count() const { return tensors_.size(); }
  const std::string& tensor_name(size_t i) const { return tensors_[i].name; }
  uint64_t tensor_bytes(size_t i) const { return tensors_[i].bytes; }
  // Bytes of the whole file.
  uint64_t file_bytes() const;
  // The bytes before the first tensor, padded to the alignment.
  std::string encode() const;

 private:
  struct Key {
    std::string name, value;   // value as the file holds it, type first
  };
  struct Tensor {
    std::string name;
    DType dtype;
    Shape shape;
    uint64_t offset, bytes;
  };
  uint32_t alignment_ = 32;
  std::vector<Key> keys_;
  std::vector<Tensor> tensors_;
  std::map<std::string, size_t, std::less<>> key_index_;
  std::set<std::string, std::less<>> tensor_names_;
};

class GgufWriter {
 public:
  // Starts the file and writes the header.
  static Result<GgufWriter> create(const std::string& path, GgufHeader header);

  // Appends bytes of tensor data, in the order of declaration; a tensor may come in many pieces and a piece may not reach
  // into the next tensor (CHECKed). Padding is added here.
  Result<void> write(std::span<const std::byte> bytes);

  // Finishes: all declared tensors must be complete (CHECKed).
  Result<void> commit();

 private:
  GgufWriter(AtomicFile file, GgufHeader header) : file_(std::move(file)), header_(std::move(header)) {}
  AtomicFile file_;
  GgufHeader header_;
  size_t tensor_ = 0;      // the one being written
  uint64_t written_ = 0;   // its bytes so far
};

}  // namespace quipu
