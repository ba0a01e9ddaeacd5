// The typed keys and values of a GGUF file, read in place.
//
// Nothing is copied: values point into the file, and a tokenizer's arrays of 150 000 entries are walked where they lie.
// The file was checked as a whole when it was read, so walking a value cannot leave it. What a key means is not known here.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace quipu {

// As numbered in the file.
enum class GgufType : uint32_t {
  kU8 = 0, kI8 = 1, kU16 = 2, kI16 = 3, kU32 = 4, kI32 = 5, kF32 = 6, kBool = 7, kString = 8, kArray = 9,
  kU64 = 10, kI64 = 11, kF64 = 12,
};
inline constexpr uint32_t kGgufTypeCount = 13;

std::string_view gguf_type_name(GgufType type);          // "u8", "string", "array"
size_t gguf_type_bytes(GgufType type);                   // of a number or bool; 0 for string and array
constexpr bool gguf_is_float(GgufType type) { return type == GgufType::kF32 || type == GgufType::kF64; }
constexpr bool gguf_is_integer(GgufType type) {
  return !gguf_is_float(type) && type != GgufType::kBool && type != GgufType::kString && type != GgufType::kArray;
}

struct GgufValue {
  GgufType type = GgufType::kU8;
  GgufType element_type = GgufType::kU8;   // of an array; never kArray
  uint64_t count = 1;                      // elements of an array
  // Number or bool: its bytes, little endian, unaligned. String: its text. Array of numbers or bools: the elements,
  // packed. Array of strings: for each a 64-bit length and the text.
  std::span<const std::byte> bytes;

  bool is_array() const { return type == GgufType::kArray; }
  std::string type_text() const;           // "u32", "array of string"
  std::string text(size_t limit = 80) const;   // for a person: "12", "[0.5, 1, ... 49152 of f32]", "llama"
};

// The strings of an array, in order. Any bytes: not necessarily UTF-8.
class GgufStrings {
 public:
  class Iterator {
   public:
    using value_type = std::string_view;
    using difference_type = std::ptrdiff_t;
    Iterator() = default;
    explicit Iterator(const std::byte* at) : at_(at) {}
    std::string_view operator*() const { return {reinterpret_cast<const char*>(at_ + 8), length()}; }
    Iterator& operator++() { at_ += 8 + length(); return *this; }
    Iterator operator++(int) { Iterator old = *this; ++*this; return old; }
    bool operator==(const Iterator&) const = default;

   private:
    uint64_t length() const { uint64_t n; std::memcpy(&n, at_, 8); return n; }
    const std::byte* at_ = nullptr;
  };

  GgufStrings() = default;
  GgufStrings(std::span<const std::byte> bytes, uint64_t count) : bytes_(bytes), count_(count) {}
  uint64_t size() const { return count_; }
  Iterator begin() const { return Iterator(bytes_.data()); }
  Iterator end() const { return Iterator(bytes_.data() + bytes_.size()); }
  // All of them at once, for access by index; the texts still lie in the file.
  std::vector<std::string_view> to_vector() const { return {begin(), end()}; }

 private:
  std::span<const std::byte> bytes_;
  uint64_t count_ = 0;
};

// The numbers (or bools, as 0 and 1) of an array, converted on access. i < size().
class GgufNumbers {
 public:
  GgufNumbers() = default;
  GgufNumbers(GgufType type, std::span<const std::byte> bytes, uint64_t count)
      : type_(type), bytes_(bytes), count_(count) {}
  uint64_t size() const { return count_; }
  GgufType type() const { return type_; }
  bool is_float() const { return gguf_is_float(type_); }
  // Integers above 2^63-1 come out as 2^63-1; floats are cut towards zero within that range, NaN gives 0.
  int64_t integer(uint64_t i) const;
  double real(uint64_t i) const;

 private:
  GgufType type_ = GgufType::kU8;
  std::span<const std::byte> bytes_;
  uint64_t count_ = 0;
};

class GgufMetadata {
 public:
  struct Entry {
    std::string_view key;
    GgufValue value;
  };

  GgufMetadata() = default;
  // file: name used in messages. Keys must be unique (checked by the reader).
  GgufMetadata(std::string file, std::vector<Entry> entries);

  std::span<const Entry> entries() const { return entries_; }    // in file order
  const std::string& file() const { return file_; }
  const GgufValue* find(std::string_view key) const;             // nullptr when absent
  bool has(std::string_view key) const { return find(key) != nullptr; }

  // The value of a key. Errors (kBadInput) name the file and the key: absent, of another kind, or out of range. Integers
  // may be stored in any integer type, floats in f32 or f64. optional_* give nothing for an absent key.
  Result<uint32_t> require_u32(std::string_view key) const;
  Result<int64_t> require_i64(std::string_view key) const;
  Result<float> require_f32(std::string_view key) const;
  Result<bool> require_bool(std::string_view key) const;
  Result<std::string_view> require_string(std::string_view key, uint64_t limit = kStringLimit) const;
  Result<GgufStrings> require_strings(std::string_view key) const;
  Result<GgufNumbers> require_integers(std::string_view key) const;   // an array of integers or bools
  Result<GgufNumbers> require_floats(std::string_view key) const;     // an array of f32 or f64

  Result<std::optional<uint32_t>> optional_u32(std::string_view key) const;
  Result<std::optional<int64_t>> optional_i64(std::string_view key) const;
  Result<std::optional<float>> optional_f32(std::string_view key) const;
  Result<std::optional<bool>> optional_bool(std::string_view key) const;
  Result<std::optional<std::string_view>> optional_string(std::string_view key, uint64_t limit = kStringLimit) const;
  Result<std::optional<GgufStrings>> optional_strings(std::string_view key) const;
  Result<std::optional<GgufNumbers>> optional_integers(std::string_view key) const;
  Result<std::optional<GgufNumbers>> optional_floats(std::string_view key) const;

  // For callers with rules of their own: "<file>: metadata key <key> <what>" (kBadInput).
  Error error(std::string_view key, std::string_view what) const;

  static constexpr uint64_t kStringLimit = uint64_t{16} << 20;   // bytes of one string value

 private:
  Result<const GgufValue*> require(std::string_view key) const;
  Result<GgufNumbers> numbers(std::string_view key, bool floats) const;

  std::string file_;
  std::vector<Entry> entries_;
  std::map<std::string_view, size_t> by_key_;
};

}  // namespace quipu
