// The catalogue of bad model files: each is refused with one line that says what is wrong, without a crash and without
// memory beyond the file's size plus a fixed amount. Ids are those of the catalogue in the project's reliability notes.
#include <gtest/gtest.h>

#include <malloc.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>

#include "formats/gguf/gguf_file.h"
#include "formats/safetensors/safetensors_file.h"
#include "formats/sample_files.h"
#include "formats/state_file/state_file.h"

namespace {

// Bytes that operator new holds now and held at most: what the readers allocate.
std::atomic<int64_t> held{0}, peak{0};

void* counted(std::size_t size) {
  void* memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  const int64_t now = held += static_cast<int64_t>(malloc_usable_size(memory));
  if (now > peak) peak = now;
  return memory;
}

void uncounted(void* memory) {
  if (memory == nullptr) return;
  held -= static_cast<int64_t>(malloc_usable_size(memory));
  std::free(memory);
}

}  // namespace

void* operator new(std::size_t size) { return counted(size); }
void operator delete(void* memory) noexcept { uncounted(memory); }
void operator delete(void* memory, std::size_t) noexcept { uncounted(memory); }

namespace quipu {
namespace {

using sample::Bytes;
using sample::bytes_of;
using sample::Folder;
using sample::Gguf;
using sample::key_string;
using sample::key_u32;
using sample::safetensors;
using sample::tensor_entry;

constexpr uint64_t kMax = ~uint64_t{0};
constexpr int64_t kFixedBytes = int64_t{64} << 20;

struct BadFile {
  const char* id;
  const char* what;
  std::function<std::string()> build;
  const char* message;   // a part of the error's text
};

// The message of the refusal; the file must be refused as bad input, in one line, within the memory allowed.
template <class Read>
std::string refusal(Read read, const std::string& bytes) {
  peak = held.load();
  const int64_t before = held;
  const auto result = read("model.bin", bytes_of(bytes));
  EXPECT_LE(peak - before, static_cast<int64_t>(bytes.size()) + kFixedBytes) << "memory";
  if (result.ok()) return "(it loads)";
  EXPECT_EQ(result.error().error_class, ErrorClass::kBadInput);
  const std::string& message = result.error().message;
  EXPECT_TRUE(message.starts_with("model.bin: ")) << message;
  EXPECT_LE(message.size(), 600u) << message;
  for (const char c : message) EXPECT_GE(static_cast<unsigned char>(c), 0x20) << message;
  return message;
}

template <class Read>
void expect_refused(Read read, const std::vector<BadFile>& catalogue) {
  for (const BadFile& bad : catalogue) {
    SCOPED_TRACE(std::string(bad.id) + " " + bad.what);
    const std::string message = refusal(read, bad.build());
    EXPECT_NE(message.find(bad.message), std::string::npos) << message;
  }
}

std::string with_key(const std::string& key) {
  Gguf file;
  file.keys.push_back(key);
  return file.build();
}
// Replaces the tensors; the data section keeps its 100 bytes.
std::string with_tensors(std::vector<std::string> tensors) {
  Gguf file;
  file.tensors = std::move(tensors);
  return file.build();
}
std::string cut(const std::string& text, size_t size) { return text.substr(0, size); }

TEST(BadFiles, GgufHeaderIsRefused) {
  expect_refused(read_gguf_bytes, {
    {"F01", "empty", [] { return std::string(); }, "magic at byte 0: needs 4 bytes, but only 0"},
    {"F01", "1 byte", [] { return cut(Gguf().build(), 1); }, "magic at byte 0: needs 4 bytes, but only 1"},
    {"F01", "3 bytes", [] { return cut(Gguf().build(), 3); }, "magic at byte 0: needs 4 bytes, but only 3"},
    {"F01", "7 bytes", [] { return cut(Gguf().build(), 7); }, "version at byte 4: needs 4 bytes, but only 3"},
    {"F01", "23 bytes", [] { return cut(Gguf().build(), 23); }, "metadata key count at byte 16: needs 8 bytes, but only 7"},
    {"F02", "FUGG", [] { Gguf f; f.magic = "FUGG"; return f.build(); }, "big-endian GGUF file, which is not supported"},
    {"F02", "GGML", [] { Gguf f; f.magic = "GGML"; return f.build(); }, "GGML file from before GGUF"},
    {"F02", "junk", [] { Gguf f; f.magic = "\x01\n\xff."; return f.build(); }, "expected \"GGUF\", found \"\\x01\\x0a\\xff.\""},
    {"F03", "version 0", [] { Gguf f; f.version = 0; return f.build(); }, "version at byte 4: is 0, versions 2 and 3"},
    {"F03", "version 1", [] { Gguf f; f.version = 1; return f.build(); }, "is 1, versions 2 and 3 are supported"},
    {"F03", "version 4", [] { Gguf f; f.version = 4; return f.build(); }, "is 4, versions 2 and 3 are supported"},
    {"F03", "version 2^32-1", [] { Gguf f; f.version = ~0u; return f.build(); }, "is 4294967295, versions 2 and 3"},
    {"F03", "big-endian version", [] { Gguf f; f.version = 3u << 24; return f.build(); }, "is 3 in big-endian order"},
    {"F04", "2^64-1 tensors", [] { Gguf f; f.extra_tensors = kMax - 2; return f.build(); }, "tensor count at byte 24: is 18446744073709551615"},
    {"F04", "10^9 tensors", [] { Gguf f; f.extra_tensors = 1000000000; return f.build(); }, "have room for at most"},
    {"F04", "tensors for which keys leave no room", [] { Gguf f; f.keys.push_back(key_string("k", std::string(400, 'x')));
       f.extra_tensors = 13; return f.build(); }, "tensor count at byte"},
    {"F05", "2^64-1 keys", [] { Gguf f; f.extra_keys = kMax - 2; return f.build(); }, "metadata key count at byte 24: is 18446744073709551615"},
    {"F05", "one key too many", [] { Gguf f; f.extra_keys = 1; return f.build(); }, "at byte 123: length"},
  });
}

TEST(BadFiles, GgufMetadataIsRefused) {
  expect_refused(read_gguf_bytes, {
    {"F06", "key length 2^64-1", [] { return with_key(Bytes().u64(kMax).raw("key")); }, "length 18446744073709551615 is over the limit of 65535"},
    {"F06", "key past the end", [] { return with_key(Bytes().u64(60000).raw("key")); }, "metadata key 3 of 3 at byte"},
    {"F06", "empty key", [] { return with_key(key_u32("", 1)); }, "the name is empty"},
    {"F06", "key of 64 KiB + 1", [] { return with_key(key_u32(std::string(65537, 'k'), 1)); }, "length 65537 is over the limit of 65535"},
    {"F07", "key not UTF-8", [] { return with_key(key_u32("a\xff", 1)); }, "the name \"a\\xff\" is not UTF-8"},
    {"F07", "key with NUL", [] { return with_key(key_u32(std::string_view("a\0b", 3), 1)); }, "the name \"a\\x00b\" has a control character"},
    {"F07", "key with newline", [] { return with_key(key_u32("a\nERROR: b", 1)); }, "the name \"a\\x0aERROR: b\" has a control character"},
    {"F08", "value type 13", [] { return with_key(Bytes().string("k").u32(13).u64(0)); }, "metadata key k at byte 109: value type 13 is unknown"},
    {"F08", "value type 2^32-1", [] { return with_key(Bytes().string("k").u32(~0u).u64(0)); }, "value type 4294967295 is unknown"},
    {"F08", "nested arrays", [] { Bytes b; b.string("k"); for (int i = 0; i < 1000; ++i) b.u32(9).u32(9).u64(1); return with_key(b); },
     "an array of arrays is not supported"},
    {"F09", "count x size wraps", [] { return with_key(Bytes().string("k").u32(9).u32(10).u64(uint64_t{1} << 61).u64(0)); },
     "the array claims 2305843009213693952 elements of at least 8 bytes"},
    {"F09", "count past the end", [] { return with_key(Bytes().string("k").u32(9).u32(0).u64(1000)); }, "the array claims 1000 elements"},
    {"F10", "10^9 empty strings", [] { return with_key(Bytes().string("k").u32(9).u32(8).u64(1000000000).raw(std::string(1000, '\0'))); },
     "the array claims 1000000000 elements of at least 8 bytes"},
    {"F10", "string in an array past the end", [] { return with_key(Bytes().string("k").u32(9).u32(8).u64(1).u64(kMax)); },
     "needs 18446744073709551615 bytes"},
    {"F10", "string value past the end", [] { return with_key(Bytes().string("k").u32(8).u64(kMax)); }, "length 18446744073709551615 is over the limit"},
    {"F11", "bool 2", [] { return with_key(Bytes().string("k").u32(7).u8(2)); }, "bool is 2, expected 0 or 1"},
    {"F11", "bool 255 in an array", [] { return with_key(Bytes().string("k").u32(9).u32(7).u64(2).u8(1).u8(255)); }, "bool is 255, expected 0 or 1"},
    {"F12", "duplicate key", [] { return with_key(key_u32("test.block_count", 2)); }, "metadata key test.block_count at byte 100: the key appears twice"},
    {"F12", "duplicate key, other type", [] { return with_key(key_string("test.block_count", "2")); }, "the key appears twice"},
    {"F13", "alignment 0", [] { return with_key(key_u32("general.alignment", 0)); }, "metadata key general.alignment is 0, expected a power of two"},
    {"F13", "alignment 1", [] { return with_key(key_u32("general.alignment", 1)); }, "is 1, expected a power of two from 8 to 65536"},
    {"F13", "alignment 3", [] { return with_key(key_u32("general.alignment", 3)); }, "is 3, expected a power of two"},
    {"F13", "alignment 13", [] { return with_key(key_u32("general.alignment", 13)); }, "is 13, expected a power of two"},
    {"F13", "alignment 2^31", [] { return with_key(key_u32("general.alignment", 1u << 31)); }, "is 2147483648, expected a power of two"},
    {"F13", "alignment a string", [] { return with_key(key_string("general.alignment", "32")); }, "is of type string, expected u32"},
  });
}

TEST(BadFiles, GgufTensorsAreRefused) {
  expect_refused(read_gguf_bytes, {
    {"F15", "name empty", [] { return with_tensors({tensor_entry("", {3}, 0, 0)}); }, "the name is empty"},
    {"F15", "name of 65", [] { return with_tensors({tensor_entry(std::string(65, 'n'), {3}, 0, 0)}); }, "length 65 is over the limit of 64"},
    {"F15", "name of 2^63", [] { return with_tensors({Bytes().u64(uint64_t{1} << 63).raw(std::string(40, 'x'))}); },
     "length 9223372036854775808 is over the limit of 64"},
    {"F15", "name with newline", [] { return with_tensors({tensor_entry("a\nb", {3}, 0, 0)}); }, "has a control character"},
    {"F16", "duplicate name", [] { return with_tensors({tensor_entry("a", {3}, 0, 0), tensor_entry("a", {3}, 0, 32)}); },
     "tensor a at byte 133: the name appears twice"},
    {"F17", "0 dimensions", [] { return with_tensors({tensor_entry("a", {}, 0, 0)}); }, "has 0 dimensions, expected 1 to 4"},
    {"F17", "5 dimensions", [] { return with_tensors({tensor_entry("a", {1, 1, 1, 1, 1}, 0, 0)}); }, "has 5 dimensions, expected 1 to 4"},
    {"F17", "2^32-1 dimensions", [] { return with_tensors({Bytes().string("a").u32(~0u).raw(std::string(40, 'x'))}); }, "has 4294967295 dimensions"},
    {"F18", "dimension 0", [] { return with_tensors({tensor_entry("a", {3, 0}, 0, 0)}); }, "dimension 1 is 0, expected at least 1"},
    {"F18", "dimension -1", [] { return with_tensors({tensor_entry("a", {kMax}, 0, 0)}); }, "dimension 0 is -1, expected at least 1"},
    {"F18", "dimension 2^63-1", [] { return with_tensors({tensor_entry("a", {kMax >> 1}, 0, 0)}); }, "is more than 2^63-1 bytes"},
    {"F19", "2^32 x 2^32", [] { return with_tensors({tensor_entry("a", {uint64_t{1} << 32, uint64_t{1} << 32}, 24, 0)}); },
     "the shape [4294967296, 4294967296] has more than 2^63-1 elements"},
    {"F19", "2^62 x 2, which 64 bits still hold", [] { return with_tensors({tensor_entry("a", {uint64_t{1} << 62, 2}, 24, 0)}); },
     "the shape [2, 4611686018427387904] has more than 2^63-1 elements"},
    {"F19", "2^16 four times", [] { return with_tensors({tensor_entry("a", {1 << 16, 1 << 16, 1 << 16, 1 << 16}, 24, 0)}); },
     "has more than 2^63-1 elements"},
    {"F20", "bytes wrap", [] { return with_tensors({tensor_entry("a", {uint64_t{1} << 62}, 0, 0)}); }, "[4611686018427387904] of f32 is more than 2^63-1 bytes"},
    {"F20", "quantised bytes wrap", [] { return with_tensors({tensor_entry("a", {uint64_t{1} << 62}, 2, 0)}); }, "pass the end of the data section"},
    {"F20", "Q8_0 bytes wrap", [] { return with_tensors({tensor_entry("a", {32, (uint64_t{1} << 58) - 1}, 8, 0)}); }, "is more than 2^63-1 bytes"},
    {"F21", "padding wraps", [] { return with_tensors({tensor_entry("a", {(kMax >> 1) - 3}, 24, 0)}); }, "pass the end of the data section"},
    {"F22", "sum of sizes wraps", [] { return with_tensors({tensor_entry("a", {kMax >> 1}, 24, 0), tensor_entry("b", {kMax >> 1}, 24, uint64_t{1} << 63)}); },
     "pass the end of the data section"},
    {"F22", "offset + size wraps", [] { return with_tensors({tensor_entry("a", {64}, 24, kMax - 31)}); },
     "its 64 bytes at data offset 18446744073709551584 pass the end"},
    {"F23", "type -1", [] { return with_tensors({tensor_entry("a", {3}, ~0u, 0)}); }, "element type 4294967295 is unknown"},
    {"F23", "type 255", [] { return with_tensors({tensor_entry("a", {3}, 255, 0)}); }, "tensor a at byte 121: element type 255 is unknown"},
    {"F23", "removed type", [] { return with_tensors({tensor_entry("a", {32}, 4, 0)}); }, "element type Q4_2 (removed) (4) is not supported"},
    {"F23", "known but not supported", [] { return with_tensors({tensor_entry("a", {256}, 16, 0)}); }, "element type IQ2_XXS (16) is not supported"},
    {"F23", "MXFP4", [] { return with_tensors({tensor_entry("a", {32}, 39, 0)}); }, "element type MXFP4 (39) is not supported"},
    {"F24", "33 elements of Q4_0", [] { return with_tensors({tensor_entry("a", {33}, 2, 0)}); }, "rows of 33 elements are not a multiple of q4_0's block of 32"},
    {"F24", "32 elements of Q6_K", [] { return with_tensors({tensor_entry("a", {32, 8}, 14, 0)}); }, "rows of 32 elements are not a multiple of q6_k's block of 256"},
    {"F25", "offset not aligned", [] { return with_tensors({tensor_entry("a", {3}, 0, 31)}); }, "data offset 31 is not a multiple of the alignment 32"},
    {"F25", "one byte past the end", [] { return with_tensors({tensor_entry("a", {69}, 24, 32)}); }, "its 69 bytes at data offset 32 pass the end of the data section, which has 100 bytes"},
    {"F26", "overlap", [] { return with_tensors({tensor_entry("a", {33}, 24, 0), tensor_entry("b", {4}, 24, 32)}); },
     "tensor b at byte 133: its data at offset 32 overlaps tensor a, which ends at 33"},
    {"F26", "all at 0", [] { return with_tensors({tensor_entry("a", {4}, 24, 0), tensor_entry("b", {4}, 24, 0)}); }, "its data at offset 0 overlaps tensor"},
  });
}

TEST(BadFiles, F14HugeArchitectureIsRefusedByTheAccessor) {
  Gguf file;
  file.keys = {key_string("general.architecture", std::string(10 << 20, 'a'))};
  const std::string bytes = file.build();
  const auto read = read_gguf_bytes("m", bytes_of(bytes));
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->metadata.require_string("general.architecture", 64).error().message,
            "m: metadata key general.architecture is 10485760 bytes long, the limit is 64");
}

TEST(BadFiles, F27TruncatedDataIsRefusedAtEveryKilobyte) {
  Gguf file;
  file.tensors = {tensor_entry("a", {20000}, 24, 0)};
  file.data = std::string(20000, 'x');
  const std::string bytes = file.build();
  for (size_t size = bytes.size() - 20000; size < bytes.size(); size += 1000) {
    const std::string part = cut(bytes, size);
    const std::string message = refusal(read_gguf_bytes, part);
    EXPECT_NE(message.find("(is the file truncated?)"), std::string::npos) << message;
  }
}

TEST(BadFiles, F29TokenizerArraysOfTheWrongTypeAreSeen) {
  Gguf file;
  file.keys.push_back(Bytes().string("tokenizer.ggml.scores").u32(9).u32(1).u64(2).u8(1).u8(2));
  file.keys.push_back(Bytes().string("tokenizer.ggml.token_type").u32(9).u32(6).u64(1).f32(1));
  const std::string bytes = file.build();
  const auto read = read_gguf_bytes("m", bytes_of(bytes));
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->metadata.require_floats("tokenizer.ggml.scores").error().message,
            "m: metadata key tokenizer.ggml.scores is of type array of i8, expected array of f32");
  EXPECT_EQ(read->metadata.require_integers("tokenizer.ggml.token_type").error().message,
            "m: metadata key tokenizer.ggml.token_type is of type array of f32, expected array of integers");
}

// ---- safetensors ----

std::string one(const std::string& entry, size_t data_bytes = 4) { return safetensors("{\"x\":" + entry + "}", data_bytes); }
std::string shaped(const std::string& shape) { return one(R"({"dtype":"F32","shape":)" + shape + R"(,"data_offsets":[0,4]})"); }
std::string typed(const std::string& dtype) { return one(R"({"dtype":)" + dtype + R"(,"shape":[1],"data_offsets":[0,4]})"); }
std::string placed(const std::string& offsets) { return one(R"({"dtype":"F32","shape":[1],"data_offsets":)" + offsets + "}"); }
std::string two(const std::string& first, const std::string& second, size_t data_bytes) {
  return safetensors(R"({"x":{"dtype":"U8","shape":[4],"data_offsets":)" + first + R"(},"y":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}", data_bytes);
}
const std::string kEntry = R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})";

TEST(BadFiles, SafetensorsHeaderIsRefused) {
  expect_refused(read_safetensors_bytes, {
    {"F33", "empty", [] { return std::string(); }, "the file has 0: it looks like an empty file"},
    {"F33", "7 bytes", [] { return std::string(7, '\0'); }, "header length at byte 0: needs 8 bytes, but the file has 7"},
    {"F33", "length 0", [] { return safetensors("", 8); }, "header length at byte 0: is 0, expected at least 2"},
    {"F33", "length 1", [] { return safetensors("{", 8); }, "is 1, expected at least 2"},
    {"F33", "length 2^64-1", [] { return std::string(Bytes().u64(kMax).raw("{}")); }, "is 18446744073709551615, the limit is 100000000"},
    {"F33", "length 10^8+1", [] { return std::string(Bytes().u64(100000001).raw("{}")); }, "is 100000001, the limit is 100000000"},
    {"F33", "length past the end", [] { return std::string(Bytes().u64(3).raw("{}")); }, "is 3, but only 2 bytes follow"},
    {"F34", "not UTF-8", [] { return safetensors("{\"x\xff\":1}", 0); }, "header at byte 11: the string is not UTF-8"},
    {"F34", "not an object", [] { return safetensors("[1,2]", 0); }, "header at byte 8: must start with '{', found '['"},
    {"F34", "leading space", [] { return safetensors(" {}", 0); }, "must start with '{', found ' '"},
    {"F34", "byte order mark", [] { return safetensors("\xef\xbb\xbf{}", 0); }, "must start with '{', found '\\xef'"},
    {"F34", "text after the object", [] { return safetensors("{} x", 0); }, "header at byte 11: expected only spaces after the object, found 'x'"},
    {"F34", "newline after the object", [] { return safetensors("{}\n", 0); }, "expected only spaces after the object"},
    {"F34", "NUL after the object", [] { return safetensors(std::string_view("{}\0", 3), 0); }, "expected only spaces after the object"},
    {"F34", "does not end", [] { return safetensors(R"({"x":)", 0); }, "expected '{', found the end of the text"},
    {"F35", "10^5 brackets", [] { return safetensors(R"({"x":)" + std::string(100000, '['), 0); }, "tensor x at byte 13: expected '{', found '['"},
    {"F35", "10^5 objects", [] { std::string s; for (int i = 0; i < 100000; ++i) s += "{\"x\":"; return safetensors(s, 0); }, "unknown key"},
    {"F36", "duplicate name", [] { return safetensors("{\"x\":" + kEntry + ",\"x\":" + kEntry + "}", 4); }, "tensor x at byte 66: the name appears twice"},
    {"F36", "duplicate name, escaped", [] { return safetensors("{\"x\":" + kEntry + ",\"\\u0078\":" + kEntry + "}", 4); }, "the name appears twice"},
    {"F36", "duplicate dtype", [] { return one(R"({"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]})"); }, "tensor x dtype at byte 36: the key appears twice in this entry"},
    {"F36", "duplicate shape", [] { return one(R"({"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]})"); }, "the key appears twice in this entry"},
    {"F36", "duplicate offsets", [] { return one(R"({"dtype":"F32","data_offsets":[0,4],"shape":[1],"data_offsets":[0,4]})"); }, "the key appears twice in this entry"},
    {"F36", "unknown key", [] { return one(R"({"dtype":"F32","size":4,"shape":[1],"data_offsets":[0,4]})"); }, "tensor x size at byte 35: unknown key"},
    {"F36", "missing shape", [] { return one(R"({"dtype":"F32","data_offsets":[0,4]})"); }, "tensor x at byte 13: shape is missing"},
    {"F36", "empty entry", [] { return one("{}"); }, "dtype is missing"},
    {"F36", "control character in a name", [] { return safetensors(R"({"x\ny":)" + kEntry + "}", 4); }, "the name has a control character"},
    {"F44", "metadata of numbers", [] { return safetensors(R"({"__metadata__":{"a":1}})", 0); }, "__metadata__ key a at byte 29: expected '\"', found '1'"},
    {"F44", "metadata not an object", [] { return safetensors(R"({"__metadata__":"x"})", 0); }, "__metadata__ at byte 24: expected '{', found '\"'"},
    {"F44", "metadata twice", [] { return safetensors(R"({"__metadata__":{},"__metadata__":{}})", 0); }, "__metadata__ at byte 42: the name appears twice"},
    {"F44", "metadata key twice", [] { return safetensors(R"({"__metadata__":{"a":"1","a":"1"}})", 0); }, "the key appears twice"},
    {"F44", "50 MB value", [] { return safetensors(R"({"__metadata__":{"a":")" + std::string(50000000, 'v') + "\"}}", 0); },
     "the string is longer than the limit of 16777216 bytes"},
    {"F44", "65537 keys", [] { std::string s = R"({"__metadata__":{)"; for (int i = 0; i < 70000; ++i) s += (i ? ",\"k" : "\"k") + std::to_string(i) + "\":\"\""; return safetensors(s + "}}", 0); },
     "more than the limit of 65536 keys"},
    {"F46", "pickle", [] { return "\x80\x02}q\x01(X\x05weightq\x02" + std::string(100, 'x'); }, "Python pickle, which is never loaded"},
    {"F46", "zip", [] { return "PK\x03\x04" + std::string(100, 'x'); }, "it looks like a zip archive (a PyTorch checkpoint?)"},
    {"F46", "HTML", [] { return std::string("\n<!DOCTYPE html><html><title>404</title></html>"); }, "it looks like an HTML page (a failed download?)"},
    {"F46", "LFS pointer", [] { return std::string("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"); }, "it looks like a Git LFS pointer"},
    {"F46", "JSON error", [] { return std::string("{\"error\":\"Entry not found\"}"); }, "it looks like a JSON error message"},
    {"F46", "GGUF", [] { return Gguf().build(); }, "it looks like a GGUF file"},
  });
}

TEST(BadFiles, SafetensorsEntriesAreRefused) {
  expect_refused(read_safetensors_bytes, {
    {"F37", "unknown dtype", [] { return typed("\"F33\""); }, "tensor x dtype at byte 22: element type \"F33\" is unknown"},
    {"F37", "lower case", [] { return typed("\"f32\""); }, "element type \"f32\" is unknown"},
    {"F37", "null", [] { return typed("null"); }, "tensor x dtype at byte 22: expected '\"', found 'n'"},
    {"F37", "known but not supported", [] { return typed("\"F8_E4M3\""); }, "element type \"F8_E4M3\" is not supported"},
    {"F38", "negative", [] { return shaped("[-1]"); }, "tensor x shape at byte 37: expected a whole number, found '-'"},
    {"F38", "2.0", [] { return shaped("[2.0]"); }, "expected a whole number in plain digits, found 2.0"},
    {"F38", "1e3", [] { return shaped("[1e3]"); }, "expected a whole number in plain digits, found 1e3"},
    {"F38", "string", [] { return shaped("[\"1\"]"); }, "expected a whole number, found '\"'"},
    {"F38", "2^64", [] { return shaped("[18446744073709551616]"); }, "the number is over 2^64-1"},
    {"F38", "2^63", [] { return shaped("[9223372036854775808]"); }, "multiply to more than 2^63-1 elements"},
    {"F38", "1000 dimensions", [] { std::string s = "[1"; for (int i = 1; i < 1000; ++i) s += ",1"; return shaped(s + "]"); }, "more than 8 dimensions"},
    {"F38", "not a list", [] { return shaped("1"); }, "expected '[', found '1'"},
    {"F38", "leading zero", [] { return shaped("[01]"); }, "a number must not start with 0"},
    {"F38", "trailing comma", [] { return shaped("[1,]"); }, "expected a whole number, found ']'"},
    {"F39", "reversed", [] { return placed("[4,0]"); }, "tensor x data_offsets at byte 55: begin 4 is after end 0"},
    {"F39", "negative", [] { return placed("[-4,0]"); }, "expected a whole number, found '-'"},
    {"F39", "one element", [] { return placed("[0]"); }, "expected two numbers, found 1"},
    {"F39", "no element", [] { return placed("[]"); }, "expected two numbers, found 0"},
    {"F39", "three elements", [] { return placed("[0,4,4]"); }, "expected two numbers, found more"},
    {"F39", "past the end", [] { return placed("[0,5]"); }, "end 5 passes the file's 4 bytes of data"},
    {"F40", "hole", [] { return two("[0,4]", "[5,9]", 9); }, "tensor y at byte 65: data begins at 5, leaving a hole after 4"},
    {"F40", "hole at the start", [] { return two("[1,5]", "[5,9]", 9); }, "data begins at 1, leaving a hole after 0"},
    {"F40", "overlap", [] { return two("[0,4]", "[3,7]", 7); }, "data begins at 3, inside other data that ends at 4"},
    {"F40", "same place", [] { return two("[0,4]", "[0,4]", 4); }, "data begins at 0, inside other data that ends at 4"},
    {"F40", "file too long", [] { return two("[0,4]", "[4,8]", 9); }, "the tensors cover 8 bytes, the file has 9"},
    {"F40", "file too short", [] { return two("[0,4]", "[4,8]", 7); }, "end 8 passes the file's 7 bytes of data (is the file truncated?)"},
    {"F40", "no tensors but data", [] { return safetensors("{}", 1); }, "the tensors cover 0 bytes, the file has 1"},
    {"F41", "product wraps", [] { return shaped("[4294967296,4294967296]"); }, "multiply to more than 2^63-1 elements"},
    {"F41", "bytes wrap", [] { return shaped("[4611686018427387904]"); }, "[4611686018427387904] of F32 takes more than 2^64-1 bytes, data_offsets cover 4"},
    {"F41", "wrong size", [] { return shaped("[2]"); }, "[2] of F32 takes 8 bytes, data_offsets cover 4"},
    {"F42", "empty tensor inside another", [] { return safetensors(R"({"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"e":{"dtype":"U8","shape":[0],"data_offsets":[2,2]}})", 4); },
     "data begins at 2, inside other data that ends at 4"},
  });
}

TEST(BadFiles, F43AMillionEmptyTensorsHitTheLimit) {
  std::string header = "{";
  header.reserve(90000000);
  for (int i = 0; i < 1000000; ++i) {
    if (i > 0) header += ',';
    header += "\"tensor." + std::to_string(i) + R"(":{"dtype":"F32","shape":[0],"data_offsets":[0,0]})";
  }
  header += std::string(90000000 - header.size() - 1, ' ') + "}";
  const std::string message = refusal(read_safetensors_bytes, safetensors(header, 0));
  EXPECT_NE(message.find("tensor tensor.200000 at byte"), std::string::npos) << message;
  EXPECT_NE(message.find("more than the limit of 200000 tensors"), std::string::npos) << message;
}

// As many entries as the limits allow in as small a file as possible: the most memory a reader can be made to use.
TEST(BadFiles, TheMostEntriesStayWithinTheMemoryAllowed) {
  Gguf file;
  file.tensors.clear();
  file.data = std::string(8, 'x');
  for (uint64_t i = 0; i < GgufLimits::kTensors; ++i) file.tensors.push_back(tensor_entry(std::to_string(i), {1}, 24, 0));
  EXPECT_NE(refusal(read_gguf_bytes, file.build()).find("overlaps"), std::string::npos);
  file.tensors.push_back(tensor_entry("more", {1}, 24, 0));
  EXPECT_NE(refusal(read_gguf_bytes, file.build()).find("is 131073, the limit is 131072"), std::string::npos);
  file.tensors.clear();
  for (uint64_t i = 2; i < GgufLimits::kKeys; ++i) file.keys.push_back(Bytes().string(std::to_string(i)).u32(0).u8(1));
  peak = held.load();
  const std::string keys = file.build();
  const int64_t before = held;
  EXPECT_TRUE(read_gguf_bytes("f", bytes_of(keys)).ok());
  EXPECT_LE(peak - before, static_cast<int64_t>(keys.size()) + kFixedBytes);
  file.keys.push_back(Bytes().string("more").u32(0).u8(1));
  EXPECT_NE(refusal(read_gguf_bytes, file.build()).find("is 65537, the limit is 65536"), std::string::npos);
}

// ---- files that are no files (F63) ----

TEST(BadFiles, F63PathsThatAreNoFilesAreRefusedByEveryReader) {
  const Folder folder("no_files");
  ASSERT_EQ(mkfifo(folder.path("fifo").c_str(), 0600), 0);
  std::filesystem::create_symlink("loop", folder.path() / "loop");
  std::filesystem::create_symlink("gone", folder.path() / "dangling");
  std::filesystem::create_directory(folder.path("folder"));
  const auto expect = [](const auto& result, const char* message) {
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().error_class, ErrorClass::kBadInput);
    EXPECT_NE(result.error().message.find(message), std::string::npos) << result.error().message;
  };
  const auto expect_all = [&](const std::string& path, const char* message) {
    SCOPED_TRACE(path);
    expect(read_gguf(path), message);
    expect(read_safetensors(path), message);
    expect(read_state_file(path), message);
  };
  expect(read_gguf(folder.path("folder")), "is a directory, expected a file");
  expect(read_state_file(folder.path("folder")), "is a directory, expected a file");
  expect(read_safetensors(folder.path("folder")), "the folder has neither model.safetensors nor");
  expect_all(folder.path("fifo"), "is not a regular file, expected a file");
  expect_all("/dev/zero", "is not a regular file, expected a file");
  expect_all(folder.path("loop"), "cannot open: Too many levels of symbolic links");
  expect_all(folder.path("dangling"), "cannot open: No such file or directory");
  expect_all(folder.path("name\nwith a line break"), "name\\x0awith a line break: cannot open");
}

TEST(BadFiles, F63AFileDeletedAfterOpeningStaysReadable) {
  const Folder folder("deleted");
  const std::string path = folder.write("m.gguf", Gguf().build());
  const auto read = read_gguf(path);
  ASSERT_TRUE(read.ok());
  std::filesystem::remove(path);
  EXPECT_EQ(static_cast<unsigned char>(read->tensors.find("b")->view.bytes[67]), 0x11);
}

// ---- every bit and every length ----

// Walks all that was loaded, as a user of the file would.
uint64_t use(const GgufFile& file) {
  uint64_t sum = 0;
  for (const auto& [key, value] : file.metadata.entries()) sum += key.size() + value.text(1000).size();
  for (const NamedTensor& tensor : file.tensors.tensors()) {
    EXPECT_EQ(tensor.view.bytes.size(), static_cast<uint64_t>(row_bytes(tensor.view.dtype, element_count(tensor.view.shape))));
    for (const std::byte b : tensor.view.bytes) sum += std::to_integer<uint64_t>(b);
  }
  return sum;
}

uint64_t use(const TensorFile& file) {
  uint64_t sum = 0;
  for (const auto& [key, value] : file.metadata()) sum += key.size() + value.size();
  for (const NamedTensor& tensor : file.tensors()) {
    EXPECT_EQ(tensor.view.bytes.size(), static_cast<uint64_t>(row_bytes(tensor.view.dtype, element_count(tensor.view.shape))));
    for (const std::byte b : tensor.view.bytes) sum += std::to_integer<uint64_t>(b);
  }
  return sum;
}

struct Outcomes {
  int loads = 0, refused = 0;
};

template <class Read>
Outcomes flip_and_cut(Read read, const std::string& good) {
  Outcomes outcomes;
  const auto check = [&](const std::string& bytes) {
    const auto result = read("f", bytes_of(bytes));
    if (result.ok()) {
      use(*result);
      ++outcomes.loads;
      return;
    }
    ++outcomes.refused;
    ASSERT_EQ(result.error().error_class, ErrorClass::kBadInput);
    ASSERT_TRUE(result.error().message.starts_with("f: ")) << result.error().message;
  };
  std::string bytes = good;
  for (size_t at = 0; at < good.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      bytes[at] = static_cast<char>(good[at] ^ (1 << bit));
      check(bytes);
    }
    bytes[at] = good[at];
  }
  for (size_t size = 0; size < good.size(); ++size) {
    const auto own = std::make_unique<char[]>(size);   // exact allocation: a read past the end is seen by ASan
    std::copy_n(good.data(), size, own.get());
    const auto result = read("f", std::as_bytes(std::span(own.get(), size)));
    outcomes.loads += result.ok();
    outcomes.refused += !result.ok();
  }
  return outcomes;
}

TEST(BadFiles, EveryFlippedBitAndEveryTruncationOfAGgufFileLoadsOrIsRefused) {
  const std::string good = sample::gguf_of_4_kb();
  ASSERT_GT(good.size(), 3000u);
  const auto read = read_gguf_bytes("f", bytes_of(good));
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_GT(use(*read), 0u);
  const Outcomes outcomes = flip_and_cut(read_gguf_bytes, good);
  EXPECT_GT(outcomes.refused, 5000) << "header bits are noticed";
  EXPECT_GT(outcomes.loads, 10000) << "data bits are not";
}

TEST(BadFiles, EveryFlippedBitAndEveryTruncationOfASafetensorsFileLoadsOrIsRefused) {
  const std::string good = sample::safetensors_of_4_kb();
  ASSERT_GT(good.size(), 3000u);
  const auto read = read_safetensors_bytes("f", bytes_of(good));
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_GT(use(*read), 0u);
  const Outcomes outcomes = flip_and_cut(read_safetensors_bytes, good);
  EXPECT_GT(outcomes.refused, 5000);
  EXPECT_GT(outcomes.loads, 10000);
}

}  // namespace
}  // namespace quipu
