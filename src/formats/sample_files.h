// For tests: files of every format built byte by byte, without our writers, so that any field can be wrong.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

namespace quipu::sample {

inline std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// Appends little-endian fields.
class Bytes {
 public:
  template <class T>
  Bytes& put(T value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  Bytes& u8(uint8_t v) { return put(v); }
  Bytes& u32(uint32_t v) { return put(v); }
  Bytes& u64(uint64_t v) { return put(v); }
  Bytes& f32(float v) { return put(v); }
  Bytes& raw(std::string_view text) { text_ += text; return *this; }
  Bytes& string(std::string_view text) { return u64(text.size()).raw(text); }
  operator std::string() const { return text_; }   // NOLINT(google-explicit-constructor)
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

// ---- GGUF ----

inline std::string key_u32(std::string_view key, uint32_t value) { return Bytes().string(key).u32(4).u32(value); }
inline std::string key_u16(std::string_view key, uint16_t value) { return Bytes().string(key).u32(2).put(value); }
inline std::string key_i32(std::string_view key, int32_t value) { return Bytes().string(key).u32(5).put(value); }
inline std::string key_string(std::string_view key, std::string_view value) {
  return Bytes().string(key).u32(8).string(value);
}

// One tensor's entry; ne fastest first, as the file has it.
inline std::string tensor_entry(std::string_view name, const std::vector<uint64_t>& ne, uint32_t type, uint64_t offset) {
  Bytes out;
  out.string(name).u32(static_cast<uint32_t>(ne.size()));
  for (const uint64_t extent : ne) out.u64(extent);
  return out.u32(type).u64(offset);
}

struct Gguf {
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::vector<std::string> keys = {key_string("general.architecture", "test"), key_u32("test.block_count", 2)};
  std::vector<std::string> tensors = {tensor_entry("a", {3, 2}, 0, 0), tensor_entry("b", {32, 2}, 8, 32)};
  std::string data = std::string(32 + 68, '\x11');   // a: 24 bytes, padded to 32; b: 2 rows of 34
  uint64_t alignment = 32;
  uint64_t extra_keys = 0, extra_tensors = 0;        // added to the counts in the header

  std::string build() const {
    Bytes out;
    out.raw(magic).u32(version).u64(tensors.size() + extra_tensors).u64(keys.size() + extra_keys);
    for (const std::string& key : keys) out.raw(key);
    for (const std::string& tensor : tensors) out.raw(tensor);
    std::string text = out;
    text.resize((text.size() + alignment - 1) / alignment * alignment, '\0');
    return text + data;
  }
};

// A valid file of about 4 KB with every value type and many tensor types.
inline std::string gguf_of_4_kb() {
  Gguf file;
  file.keys.push_back(Bytes().string("t.u8").u32(0).u8(200));
  file.keys.push_back(Bytes().string("t.i8").u32(1).put(int8_t{-100}));
  file.keys.push_back(key_u16("t.u16", 60000));
  file.keys.push_back(Bytes().string("t.i16").u32(3).put(int16_t{-30000}));
  file.keys.push_back(key_i32("t.i32", -5));
  file.keys.push_back(Bytes().string("t.f32").u32(6).f32(0.5f));
  file.keys.push_back(Bytes().string("t.bool").u32(7).u8(1));
  file.keys.push_back(Bytes().string("t.u64").u32(10).u64(~uint64_t{0}));
  file.keys.push_back(Bytes().string("t.i64").u32(11).put(int64_t{-7}));
  file.keys.push_back(Bytes().string("t.f64").u32(12).put(0.25));
  const std::string_view binary("\xff\x00three", 7);
  file.keys.push_back(Bytes().string("t.strings").u32(9).u32(8).u64(3).string("one").string("").string(binary));
  file.keys.push_back(Bytes().string("t.floats").u32(9).u32(6).u64(2).f32(1.5f).f32(-2));
  file.keys.push_back(Bytes().string("t.bools").u32(9).u32(7).u64(3).u8(1).u8(0).u8(1));
  file.tensors.clear();
  uint64_t offset = 0;
  const auto add = [&](const char* name, std::vector<uint64_t> ne, uint32_t type, uint64_t bytes) {
    file.tensors.push_back(tensor_entry(name, ne, type, offset));
    offset += (bytes + 31) / 32 * 32;
  };
  add("f32", {5, 3}, 0, 60);
  add("f16", {7, 3, 2}, 1, 84);
  add("q4_0", {64, 3}, 2, 108);
  add("q8_0", {32, 4, 1, 2}, 8, 272);
  add("q6_k", {256, 2}, 14, 420);
  add("bf16", {9}, 30, 18);
  add("i32", {4}, 26, 16);
  add("filler", {1400}, 24, 1400);
  file.data.resize(offset);
  for (size_t i = 0; i < file.data.size(); ++i) file.data[i] = static_cast<char>(i * 37);
  return file.build();
}

// ---- safetensors ----

inline std::string safetensors(std::string_view header, std::string_view data) {
  return Bytes().u64(header.size()).raw(header).raw(data);
}
inline std::string safetensors(std::string_view header, size_t data_bytes) {
  return safetensors(header, std::string(data_bytes, '\x11'));
}

inline std::string safetensors_of_4_kb() {
  std::string header = R"({"__metadata__":{"format":"pt","note":"a \"quoted\" \u00e9\ud83d\ude00"},)"
                       R"("a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                       R"("b":{"dtype":"BF16","shape":[5],"data_offsets":[24,34]},)"
                       R"("scalar":{"dtype":"F64","shape":[],"data_offsets":[34,42]},)"
                       R"("empty":{"dtype":"I64","shape":[0,4],"data_offsets":[42,42]},)"
                       R"("rest":{"dtype":"U8","shape":[43,83],"data_offsets":[42,3611]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string data(3611, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 37);
  return safetensors(header, data);
}

// ---- files ----

// A fresh folder below the test's temporary one, removed at the end.
class Folder {
 public:
  explicit Folder(const std::string& name) : path_(std::filesystem::path(testing::TempDir()) / ("quipu_formats_" + name)) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~Folder() {
    std::error_code code;
    std::filesystem::remove_all(path_, code);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string path(const std::string& file) const { return (path_ / file).string(); }
  const std::filesystem::path& path() const { return path_; }
  std::string write(const std::string& file, const std::string& bytes) const {
    std::ofstream(path_ / file, std::ios::binary) << bytes;
    return path(file);
  }

 private:
  std::filesystem::path path_;
};

inline std::string read_all(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace quipu::sample
