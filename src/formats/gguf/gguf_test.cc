#include <gtest/gtest.h>

#include <cstring>

#include "formats/gguf/ggml_types.h"
#include "formats/gguf/gguf_file.h"
#include "formats/gguf/gguf_writer.h"
#include "formats/sample_files.h"

namespace quipu {
namespace {

using sample::bytes_of;
using sample::Folder;
using sample::Gguf;
using sample::key_i32;
using sample::key_string;
using sample::key_u16;
using sample::key_u32;
using sample::tensor_entry;


const std::string kOtherWriter = QUIPU_SOURCE_DIR "/tests/fuzz/corpus/gguf_fuzz/other_writer.gguf";

// The values are those of tests/fuzz/make_seed_files.py, written by the gguf package.
TEST(Gguf, ReadsWhatAnotherWriterWrote) {
  for (const char* name : {"other_writer.gguf", "other_writer_aligned_64.gguf"}) {
    SCOPED_TRACE(name);
    const auto file = read_gguf(std::string(QUIPU_SOURCE_DIR "/tests/fuzz/corpus/gguf_fuzz/") + name);
    ASSERT_TRUE(file.ok()) << file.error().message;
    const GgufMetadata& m = file->metadata;
    EXPECT_EQ(*m.require_string("general.architecture"), "test");
    EXPECT_EQ(*m.require_u32("test.block_count"), 2u);
    EXPECT_EQ(*m.require_f32("t.f32"), 0.5f);
    EXPECT_EQ(*m.require_f32("t.f64"), 0.25f);
    EXPECT_TRUE(*m.require_bool("t.bool"));
    EXPECT_EQ(*m.require_i64("t.i8"), -100);
    EXPECT_EQ(*m.require_string("t.text"), "gr\xc3\xbc\xc3\x9f" "e");
    EXPECT_EQ(m.require_strings("t.strings")->to_vector(), (std::vector<std::string_view>{"one", "", "three"}));
    const GgufNumbers ints = *m.require_integers("t.ints");
    ASSERT_EQ(ints.size(), 3u);
    EXPECT_EQ(ints.integer(0), -1);
    EXPECT_EQ(ints.integer(2), 70000);
    EXPECT_EQ(m.require_floats("t.floats")->real(1), -2.0);

    const NamedTensor* f16 = file->tensors.find("f16");
    ASSERT_NE(f16, nullptr);
    EXPECT_EQ(f16->view.dtype, DType::kF16);
    EXPECT_EQ(f16->view.shape, (Shape{2, 3, 4})) << "slowest dimension first";
    const NamedTensor* f32 = file->tensors.find("f32");
    ASSERT_EQ(f32->view.bytes.size(), 24u);
    float last;
    std::memcpy(&last, f32->view.bytes.data() + 20, 4);
    EXPECT_EQ(last, 5 * 0.25f - 3);
    EXPECT_EQ(file->tensors.find("q4_0")->view.shape, (Shape{2, 64}));
    EXPECT_EQ(file->tensors.find("q8_0")->view.bytes.size(), 4u * 34);
    EXPECT_EQ(file->tensors.find("bf16")->view.dtype, DType::kBF16);
    EXPECT_TRUE(file->tensors.warnings().empty());
  }
}

TEST(Gguf, ReadsVersion2AsVersion3) {
  Gguf file;
  file.version = 2;
  const std::string bytes = file.build();
  const auto read = read_gguf_bytes("v2.gguf", bytes_of(bytes));
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read->version, 2u);
  EXPECT_EQ(read->tensors.find("a")->view.shape, (Shape{2, 3}));
}

TEST(Gguf, PointsIntoTheGivenBytes) {
  const std::string bytes = Gguf().build();
  const auto read = read_gguf_bytes("f", bytes_of(bytes));
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->tensors.find("b")->view.bytes.data(), bytes_of(bytes).data() + bytes.size() - 68);
}

TEST(Gguf, AcceptsATruncatedPaddingAfterTheLastTensorAndWarnsOfMore) {
  const std::string exact = Gguf().build();    // ends with b's last byte, without padding
  EXPECT_TRUE(read_gguf_bytes("f", bytes_of(exact))->tensors.warnings().empty());
  const std::string padded = exact + std::string(28, '\0');
  EXPECT_TRUE(read_gguf_bytes("f", bytes_of(padded))->tensors.warnings().empty());
  const std::string longer = padded + std::string(1 << 20, '\xee');   // F28
  const auto read = read_gguf_bytes("f", bytes_of(longer));
  ASSERT_TRUE(read.ok());
  ASSERT_EQ(read->tensors.warnings().size(), 1u);
  EXPECT_EQ(read->tensors.warnings()[0], "f: 1048576 bytes after the last tensor are ignored");
}

TEST(Gguf, LoadsWithoutTensors) {
  Gguf file;
  file.tensors.clear();
  file.data.clear();
  const std::string bytes = file.build();
  const auto read = read_gguf_bytes("vocabulary.gguf", bytes_of(bytes));
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_TRUE(read->tensors.tensors().empty());
}

TEST(GgufMetadata, SaysWhatIsMissingOrOfTheWrongKind) {
  const std::string bytes = sample::gguf_of_4_kb();
  const auto file = read_gguf_bytes("m.gguf", bytes_of(bytes));
  ASSERT_TRUE(file.ok()) << file.error().message;
  const GgufMetadata& m = file->metadata;
  EXPECT_EQ(m.require_u32("nothing").error().message, "m.gguf: metadata key nothing is missing");
  EXPECT_EQ(m.require_u32("t.i32").error().message, "m.gguf: metadata key t.i32 is -5, expected 0 to 4294967295");
  EXPECT_EQ(m.require_i64("t.u64").error().message,
            "m.gguf: metadata key t.u64 is 18446744073709551615, expected at most 9223372036854775807");
  EXPECT_EQ(m.require_u32("t.f32").error().message, "m.gguf: metadata key t.f32 is of type f32, expected an integer");
  EXPECT_EQ(m.require_f32("t.u8").error().message, "m.gguf: metadata key t.u8 is of type u8, expected f32");
  EXPECT_EQ(m.require_bool("t.u8").error().message, "m.gguf: metadata key t.u8 is of type u8, expected bool");
  EXPECT_EQ(m.require_string("t.strings").error().message,
            "m.gguf: metadata key t.strings is of type array of string, expected string");
  EXPECT_EQ(m.require_string("general.architecture", 3).error().message,
            "m.gguf: metadata key general.architecture is 4 bytes long, the limit is 3");
  EXPECT_EQ(m.require_strings("t.floats").error().message,
            "m.gguf: metadata key t.floats is of type array of f32, expected array of string");
  EXPECT_EQ(m.require_integers("t.floats").error().message,
            "m.gguf: metadata key t.floats is of type array of f32, expected array of integers");
  EXPECT_EQ(m.require_floats("t.bools").error().message,
            "m.gguf: metadata key t.bools is of type array of bool, expected array of f32");
  EXPECT_EQ(m.require_u32("nothing").error().error_class, ErrorClass::kBadInput);

  EXPECT_FALSE(m.optional_u32("nothing")->has_value());
  EXPECT_EQ(**m.optional_u32("t.u8"), 200u);
  EXPECT_FALSE(m.optional_u32("t.f32").ok()) << "present but of the wrong kind is an error, not an absence";
  EXPECT_EQ(**m.optional_string("general.architecture"), "test");
  EXPECT_EQ(m.require_integers("t.bools")->integer(2), 1);
  EXPECT_EQ(m.require_strings("t.strings")->to_vector()[2], std::string_view("\xff\x00three", 7));
}

TEST(GgufMetadata, PrintsValuesOnOneLine) {
  const std::string bytes = sample::gguf_of_4_kb();
  const auto file = read_gguf_bytes("m.gguf", bytes_of(bytes));
  const GgufMetadata& m = file->metadata;
  EXPECT_EQ(m.find("t.u64")->text(), "18446744073709551615");
  EXPECT_EQ(m.find("t.bool")->text(), "true");
  EXPECT_EQ(m.find("t.floats")->text(), "[1.5, -2]");
  EXPECT_EQ(m.find("t.strings")->text(), "[\"one\", \"\", \"\\xff\\x00three\"]");
  EXPECT_EQ(m.find("t.strings")->text(3), "[\"one\", ... 3 of string]");
}

TEST(GgufTypes, NameEveryNumberGgmlHasGivenOut) {
  for (int i = 0; i < kDTypeCount; ++i) {
    const DType dtype = static_cast<DType>(i);
    const auto id = ggml_from_dtype(dtype);
    if (dtype == DType::kU8 || dtype == DType::kBool) {
      EXPECT_FALSE(id.has_value());
    } else {
      ASSERT_TRUE(id.has_value()) << dtype_name(dtype);
      EXPECT_EQ(dtype_from_ggml(*id), dtype);
      EXPECT_EQ(dtype_from_name(ggml_type_name(*id)), dtype);
    }
  }
  EXPECT_EQ(ggml_type_name(16), "IQ2_XXS");
  EXPECT_EQ(ggml_type_name(39), "MXFP4");
  EXPECT_EQ(ggml_type_name(255), "");
}

// ---- writer ----

TEST(GgufWriter, WritesBackWhatWasReadKeepingOrderAndTypes) {
  const Folder folder("gguf_writer");
  const auto source = read_gguf(kOtherWriter);
  ASSERT_TRUE(source.ok());
  GgufHeader header;
  ASSERT_TRUE(header.copy(source->metadata).ok());
  for (const NamedTensor& tensor : source->tensors.tensors()) {
    ASSERT_TRUE(header.add_tensor(tensor.name, tensor.view.dtype, tensor.view.shape).ok());
  }
  const uint64_t expected_bytes = header.file_bytes();
  auto writer = GgufWriter::create(folder.path("copy.gguf"), std::move(header));
  ASSERT_TRUE(writer.ok());
  for (const NamedTensor& tensor : source->tensors.tensors()) {
    const size_t half = tensor.view.bytes.size() / 2;
    ASSERT_TRUE(writer->write(tensor.view.bytes.first(half)).ok());
    ASSERT_TRUE(writer->write(tensor.view.bytes.subspan(half)).ok());
  }
  ASSERT_TRUE(writer->commit().ok());
  const std::string copy = sample::read_all(folder.path("copy.gguf"));
  EXPECT_EQ(copy.size(), expected_bytes);
  EXPECT_EQ(copy, sample::read_all(kOtherWriter)) << "the other writer lays files out the same way";
}

TEST(GgufWriter, ReplacesAKeyInPlaceAndFollowsTheAlignment) {
  GgufHeader header;
  ASSERT_TRUE(header.set_string("general.architecture", "test").ok());
  ASSERT_TRUE(header.set_u32("general.file_type", 1).ok());
  ASSERT_TRUE(header.set_u32("general.alignment", 128).ok());
  ASSERT_TRUE(header.set_u32("general.file_type", 7).ok());
  const std::string_view words[] = {"a", "bc"};
  const float reals[] = {0.5f, 2};
  const int32_t wholes[] = {-1, 3};
  ASSERT_TRUE(header.set_strings("t.words", words).ok());
  ASSERT_TRUE(header.set_f32s("t.reals", reals).ok());
  ASSERT_TRUE(header.set_i32s("t.wholes", wholes).ok());
  ASSERT_TRUE(header.add_tensor("x", DType::kF32, {3}).ok());
  ASSERT_TRUE(header.add_tensor("y", DType::kQ4_0, {2, 32}).ok());
  EXPECT_FALSE(header.set_u32("general.alignment", 32).ok()) << "offsets are laid out already";
  std::string bytes = header.encode();
  EXPECT_EQ(bytes.size() % 128, 0u);
  bytes.resize(header.file_bytes());
  const auto read = read_gguf_bytes("f", bytes_of(bytes));
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read->alignment, 128u);
  EXPECT_EQ(read->metadata.entries()[1].key, "general.file_type");
  EXPECT_EQ(*read->metadata.require_u32("general.file_type"), 7u);
  EXPECT_EQ(read->metadata.require_strings("t.words")->to_vector()[1], "bc");
  EXPECT_EQ(read->metadata.require_floats("t.reals")->real(1), 2.0);
  EXPECT_EQ(read->metadata.require_integers("t.wholes")->integer(0), -1);
  EXPECT_EQ(read->tensors.find("y")->view.bytes.data() - read->tensors.find("x")->view.bytes.data(), 128);
}

TEST(GgufWriter, RefusesWhatTheReaderWouldRefuse) {
  GgufHeader header;
  EXPECT_FALSE(header.set_u32("", 1).ok());
  EXPECT_FALSE(header.set_u32("a\nb", 1).ok());
  EXPECT_FALSE(header.set_u32("general.alignment", 3).ok());
  EXPECT_FALSE(header.set_u32("general.alignment", 1u << 31).ok());
  ASSERT_TRUE(header.add_tensor("x", DType::kF32, {3}).ok());
  EXPECT_FALSE(header.add_tensor("x", DType::kF32, {3}).ok()) << "twice";
  EXPECT_FALSE(header.add_tensor(std::string(65, 'n'), DType::kF32, {3}).ok());
  EXPECT_FALSE(header.add_tensor("rank0", DType::kF32, {}).ok());
  EXPECT_FALSE(header.add_tensor("rank5", DType::kF32, {1, 1, 1, 1, 1}).ok());
  EXPECT_FALSE(header.add_tensor("zero", DType::kF32, {0}).ok());
  EXPECT_FALSE(header.add_tensor("negative", DType::kF32, {-1}).ok());
  EXPECT_FALSE(header.add_tensor("u8", DType::kU8, {8}).ok());
  EXPECT_FALSE(header.add_tensor("block", DType::kQ4_0, {33}).ok());
  EXPECT_FALSE(header.add_tensor("large", DType::kF32, {int64_t{1} << 40, int64_t{1} << 40}).ok());
  EXPECT_FALSE(header.add_tensor("bytes", DType::kF64, {int64_t{1} << 60}).ok());
  EXPECT_EQ(header.tensor_count(), 1u);
}

TEST(GgufWriter, LeavesNothingBehindWithoutCommit) {
  const Folder folder("gguf_uncommitted");
  {
    GgufHeader header;
    ASSERT_TRUE(header.add_tensor("x", DType::kF32, {3}).ok());
    auto writer = GgufWriter::create(folder.path("x.gguf"), std::move(header));
    ASSERT_TRUE(writer.ok());
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

// ---- split sets (F32) ----

std::string part(uint16_t index, uint16_t count, const std::vector<std::string>& names, std::vector<std::string> keys = {}) {
  Gguf file;
  file.keys = std::move(keys);
  file.keys.push_back(key_u16("split.no", index));
  file.keys.push_back(key_u16("split.count", count));
  file.keys.push_back(key_i32("split.tensors.count", 3));
  file.tensors.clear();
  for (size_t i = 0; i < names.size(); ++i) file.tensors.push_back(tensor_entry(names[i], {3, 2}, 0, 32 * i));
  file.data = std::string(32 * names.size(), static_cast<char>('0' + index));
  return file.build();
}

struct SplitSet {
  explicit SplitSet(const std::string& name) : folder("split_" + name) {
    folder.write("m-00001-of-00003.gguf", part(0, 3, {"a"}, {key_string("general.architecture", "test")}));
    folder.write("m-00002-of-00003.gguf", part(1, 3, {"b"}));
    folder.write("m-00003-of-00003.gguf", part(2, 3, {"c"}));
  }
  std::string error(const char* first = "m-00001-of-00003.gguf") const {
    const auto read = read_gguf(folder.path(first));
    return read.ok() ? "(it loads)" : read.error().message;
  }
  Folder folder;
};

TEST(GgufSplit, LoadsAllPartsWhicheverIsNamed) {
  const SplitSet set("good");
  for (const char* name : {"m-00001-of-00003.gguf", "m-00003-of-00003.gguf"}) {
    const auto read = read_gguf(set.folder.path(name));
    ASSERT_TRUE(read.ok()) << read.error().message;
    ASSERT_EQ(read->tensors.tensors().size(), 3u);
    EXPECT_EQ(read->tensors.tensors()[2].name, "c");
    EXPECT_EQ(static_cast<char>(read->tensors.find("b")->view.bytes[0]), '1');
    EXPECT_EQ(*read->metadata.require_string("general.architecture"), "test");
    EXPECT_EQ(read->files.size(), 3u);
  }
}

TEST(GgufSplit, SaysWhichPartIsWrong) {
  {
    const SplitSet set("missing");
    std::filesystem::remove(set.folder.path("m-00002-of-00003.gguf"));
    EXPECT_NE(set.error().find("m-00002-of-00003.gguf: cannot open: No such file or directory (part 2 of 3)"), std::string::npos)
        << set.error();
  }
  const auto with_second = [](const std::string& name, const std::string& bytes) {
    const SplitSet set(name);
    set.folder.write("m-00002-of-00003.gguf", bytes);
    return set.error();
  };
  const auto expect = [](const std::string& message, const std::string& wanted) {
    EXPECT_NE(message.find(wanted), std::string::npos) << message;
  };
  expect(with_second("count", part(1, 4, {"b"})), "say part 2 of 4, expected part 2 of 3");
  expect(with_second("number", part(2, 3, {"b"})), "say part 3 of 3, expected part 2 of 3");
  expect(with_second("whole", Gguf().build()), "say part 1 of 1, expected part 2 of 3");
  expect(with_second("name", part(1, 3, {"a"})), "tensor a is in an earlier part too");
  expect(with_second("tensors", part(1, 3, {"b", "d"})), "split.tensors.count is 3, but the 3 parts hold 4 tensors");
  expect(with_second("model", part(1, 3, {"b"}, {key_string("general.architecture", "other")})),
         "the parts belong to different models");
  const SplitSet set("renamed");
  set.folder.write("renamed.gguf", part(0, 3, {"a"}));
  expect(set.error("renamed.gguf"), "expected a file name that ends in -00001-of-00003.gguf");
  set.folder.write("m-00001-of-00003.gguf", part(3, 3, {"a"}));
  expect(set.error(), "split.no is 3, expected less than split.count, 3");
}

// The model the quick start uses, when a copy is at hand.
TEST(Gguf, ReadsARealModel) {
  const char* path = std::getenv("QUIPU_TEST_GGUF");
  if (path == nullptr) GTEST_SKIP() << "set QUIPU_TEST_GGUF to a GGUF model to read it here";
  const auto file = read_gguf(path);
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_TRUE(file->metadata.require_string("general.architecture").ok());
  EXPECT_GT(file->tensors.tensors().size(), 0u);
  EXPECT_TRUE(file->tensors.warnings().empty());
}

}  // namespace
}  // namespace quipu
