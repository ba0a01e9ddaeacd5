#include <gtest/gtest.h>

#include <cstring>

#include "formats/safetensors/json_cursor.h"
#include "formats/safetensors/safetensors_file.h"
#include "formats/safetensors/safetensors_writer.h"
#include "formats/sample_files.h"

namespace quipu {
namespace {

using sample::bytes_of;
using sample::Folder;
using sample::safetensors;

std::string error_of(const Result<TensorFile>& file) { return file.ok() ? "(it loads)" : file.error().message; }

void expect_contains(const std::string& message, const std::string& wanted) {
  EXPECT_NE(message.find(wanted), std::string::npos) << message;
}

// The values are those of tests/fuzz/make_seed_files.py, written by the safetensors package.
TEST(Safetensors, ReadsWhatAnotherWriterWrote) {
  const auto file = read_safetensors(QUIPU_SOURCE_DIR "/tests/fuzz/corpus/safetensors_fuzz/other_writer.safetensors");
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(file->tensors().size(), 7u);
  EXPECT_EQ(file->metadata().at("note"), "gr\xc3\xbc\xc3\x9f" "e \"quoted\"\n");
  const NamedTensor* f16 = file->find("f16");
  ASSERT_NE(f16, nullptr);
  EXPECT_EQ(f16->view.dtype, DType::kF16);
  EXPECT_EQ(f16->view.shape, (Shape{2, 3, 4}));
  EXPECT_EQ(file->find("empty")->view.shape, (Shape{0, 4}));
  EXPECT_TRUE(file->find("empty")->view.bytes.empty());
  EXPECT_EQ(file->find("bool")->view.dtype, DType::kBool);
  const NamedTensor* scalar = file->find("scalar");
  EXPECT_EQ(scalar->view.shape, Shape{});
  float value;
  ASSERT_EQ(scalar->view.bytes.size(), 4u);
  std::memcpy(&value, scalar->view.bytes.data(), 4);
  EXPECT_EQ(value, 7.5f);
}

TEST(Safetensors, ReadsTheGoldenFiles) {
  const std::filesystem::path golden = QUIPU_SOURCE_DIR "/../shared/golden";
  if (!std::filesystem::is_directory(golden)) GTEST_SKIP() << "no folder of golden files beside the sources";
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(golden)) {
    if (entry.path().extension() != ".safetensors") continue;
    const auto file = read_safetensors(entry.path().string());
    ASSERT_TRUE(file.ok()) << file.error().message;
    EXPECT_FALSE(file->tensors().empty());
    EXPECT_TRUE(file->metadata().contains("room")) << entry.path();
    ++files;
  }
  EXPECT_GT(files, 0);
}

// F42: an empty tensor may stand at the offset of a real one, and takes none of its bytes.
TEST(Safetensors, GivesEmptyTensorsNoStorage) {
  const std::string bytes = safetensors(R"({"e":{"dtype":"F32","shape":[3,0],"data_offsets":[4,4]},)"
                                        R"("x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                        R"("y":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8);
  const auto file = read_safetensors_bytes("f", bytes_of(bytes));
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_TRUE(file->find("e")->view.bytes.empty());
  EXPECT_EQ(file->find("y")->view.bytes.size(), 4u);
}

TEST(SafetensorsWriter, RoundTrips) {
  const Folder folder("safetensors_writer");
  const std::string data = "0123456789abcdefghijklmnopqrstuv";
  const auto bytes = bytes_of(data);
  const SafetensorsTensor tensors[] = {
      {"model.w", {DType::kF32, {2, 3}, bytes.first(24)}},
      {"quote\"back\\slash \xc3\xbc", {DType::kBF16, {3}, bytes.subspan(24, 6)}},
      {"empty", {DType::kF64, {0, 7}, {}}},
      {"scalar", {DType::kI16, {}, bytes.subspan(30, 2)}},
  };
  const TensorFile::TextMap metadata = {{"format", "pt"}, {"note", "line\nbreak \"quoted\""}};
  ASSERT_TRUE(write_safetensors(folder.path("x.safetensors"), tensors, metadata).ok());
  const auto file = read_safetensors(folder.path("x.safetensors"));
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(file->metadata(), metadata);
  ASSERT_EQ(file->tensors().size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    const NamedTensor& read = file->tensors()[i];
    EXPECT_EQ(read.name, tensors[i].name);
    EXPECT_EQ(read.view.dtype, tensors[i].view.dtype);
    EXPECT_EQ(read.view.shape, tensors[i].view.shape);
    EXPECT_TRUE(std::ranges::equal(read.view.bytes, tensors[i].view.bytes));
  }
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file->tensors()[0].view.bytes.data()) % 64, 0u);
}

TEST(SafetensorsWriter, WritesAFileWithoutTensors) {
  const Folder folder("safetensors_none");
  ASSERT_TRUE(write_safetensors(folder.path("x.safetensors"), {}).ok());
  const auto file = read_safetensors(folder.path("x.safetensors"));
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_TRUE(file->tensors().empty());
}

TEST(SafetensorsWriter, RefusesWhatTheFormatCannotHold) {
  const auto refused = [](const SafetensorsTensor& tensor) {
    return !encode_safetensors_header(std::span(&tensor, 1), {}).ok();
  };
  EXPECT_TRUE(refused({"", {DType::kF32, {1}, {}}}));
  EXPECT_TRUE(refused({"__metadata__", {DType::kF32, {1}, {}}}));
  EXPECT_TRUE(refused({"\xff", {DType::kF32, {1}, {}}}));
  EXPECT_TRUE(refused({"line\nbreak", {DType::kF32, {1}, {}}}));
  EXPECT_TRUE(refused({"q", {DType::kQ4_0, {32}, {}}}));
  EXPECT_TRUE(refused({"n", {DType::kF32, {-1}, {}}}));
  EXPECT_TRUE(refused({"l", {DType::kF32, {int64_t{1} << 40, int64_t{1} << 40}, {}}}));
  const SafetensorsTensor twice[] = {{"x", {DType::kF32, {1}, {}}}, {"x", {DType::kF32, {1}, {}}}};
  EXPECT_FALSE(encode_safetensors_header(twice, {}).ok());
  EXPECT_FALSE(encode_safetensors_header({}, {{"k", "\xff"}}).ok());
}

// ---- folders and indexes (F45) ----

const std::string kX = safetensors(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4);
const std::string kY = safetensors(R"({"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4);
const std::string kIndexName = "model.safetensors.index.json";
const std::string kGoodMap = R"("weight_map":{"x":"a.safetensors","y":"b.safetensors"})";

struct Sharded {
  explicit Sharded(const std::string& name, const std::string& index = "{" + kGoodMap + "}") : folder("sharded_" + name) {
    folder.write("a.safetensors", kX);
    folder.write("b.safetensors", kY);
    folder.write(kIndexName, index);
  }
  std::string error() const { return error_of(read_safetensors(folder.path().string())); }
  Folder folder;
};

TEST(SafetensorsIndex, LoadsAllFilesItNames) {
  const Sharded set("good", R"({"metadata":{"total_size":8,"deep":[[1,-2.5e3,null,{"k":true}]]},)" + kGoodMap + "}\n");
  for (const std::string& path : {set.folder.path().string(), set.folder.path(kIndexName)}) {
    const auto file = read_safetensors(path);
    ASSERT_TRUE(file.ok()) << file.error().message;
    EXPECT_EQ(file->tensors().size(), 2u);
    EXPECT_NE(file->find("x"), nullptr);
    EXPECT_NE(file->find("y"), nullptr);
    EXPECT_TRUE(file->warnings().empty());
  }
}

TEST(SafetensorsIndex, PrefersTheSingleFileOfAFolder) {
  const Sharded set("single");
  set.folder.write("model.safetensors", kX);
  EXPECT_EQ(read_safetensors(set.folder.path().string())->tensors().size(), 1u);
}

TEST(SafetensorsIndex, WarnsOfTensorsItDoesNotList) {
  const Sharded set("unlisted", R"({"weight_map":{"x":"a.safetensors"}})");
  set.folder.write("a.safetensors", safetensors(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                                R"("z":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8));
  const auto file = read_safetensors(set.folder.path().string());
  ASSERT_TRUE(file.ok()) << file.error().message;
  ASSERT_EQ(file->warnings().size(), 1u);
  expect_contains(file->warnings()[0], "1 tensors of its files are not in weight_map");
}

TEST(SafetensorsIndex, F45RefusesNamesThatLeadOut) {
  const auto with_name = [](const std::string& shard) {
    return Sharded("name", R"({"weight_map":{"x":")" + shard + R"("}})").error();
  };
  expect_contains(with_name("../../x"), "weight_map entry x at byte 19: the file name ../../x leads out of the folder");
  expect_contains(with_name("/etc/a.safetensors"), "leads out of the folder");
  expect_contains(with_name(".."), "leads out of the folder");
  expect_contains(with_name("a\\u0000.safetensors"), "control character");
  expect_contains(with_name(""), "the file name is empty");
  expect_contains(with_name("a.bin"), "is not a .safetensors file");
  expect_contains(with_name("gone.safetensors"), "gone.safetensors: No such file or directory (named by the index)");
}

TEST(SafetensorsIndex, F45RefusesLinksOutOfTheFolderButFollowsTheHubCache) {
  const Folder outside("sharded_outside");
  outside.write("b.safetensors", kY);
  const Sharded set("links");
  const std::string link = set.folder.path("b.safetensors");
  std::filesystem::remove(link);
  std::filesystem::create_symlink(outside.path("b.safetensors"), link);
  expect_contains(set.error(), "b.safetensors: is a link out of the model's folder, to");
  std::filesystem::remove(link);
  std::filesystem::create_symlink("b.safetensors", link);
  expect_contains(set.error(), "b.safetensors: Too many levels of symbolic links");
  std::filesystem::remove(link);
  std::filesystem::create_symlink("a.safetensors", link);
  expect_contains(set.error(), "tensor x is in a.safetensors too");

  const Folder cache("hub_cache");
  std::filesystem::create_directories(cache.path() / "snapshots" / "rev");
  std::filesystem::create_directories(cache.path() / "blobs");
  cache.write("blobs/0123", kX);
  cache.write("snapshots/rev/" + kIndexName, R"({"weight_map":{"x":"a.safetensors"}})");
  std::filesystem::create_symlink("../../blobs/0123", cache.path() / "snapshots" / "rev" / "a.safetensors");
  EXPECT_EQ(error_of(read_safetensors(cache.path("snapshots/rev"))), "(it loads)");
}

TEST(SafetensorsIndex, F45RefusesMapsThatDoNotFitTheFiles) {
  expect_contains(Sharded("absent", R"({"weight_map":{"x":"a.safetensors","z":"b.safetensors"}})").error(),
                  "weight_map places tensor z in b.safetensors, where it is not");
  expect_contains(Sharded("moved", R"({"weight_map":{"x":"b.safetensors","y":"a.safetensors"}})").error(),
                  "weight_map places tensor x in b.safetensors, but it is in a.safetensors");
  const Sharded both("both");
  both.folder.write("b.safetensors", kX);
  expect_contains(both.error(), "b.safetensors: tensor x is in a.safetensors too");
  expect_contains(Sharded("twice", R"({"weight_map":{"x":"a.safetensors","x":"b.safetensors"}})").error(),
                  "the tensor is listed twice");
  expect_contains(Sharded("maps", "{" + kGoodMap + "," + kGoodMap + "}").error(), "weight_map at byte");
  expect_contains(Sharded("none", R"({"metadata":{}})").error(), "weight_map is missing");
  expect_contains(Sharded("nothing", R"({"weight_map":{}})").error(), "weight_map is empty");
  expect_contains(Sharded("number", R"({"weight_map":{"x":1}})").error(), "expected '\"', found '1'");
  expect_contains(Sharded("list", "[]").error(), "index at byte 0: expected '{', found '['");
  expect_contains(Sharded("cut", R"({"weight_map":{"x":"a.safe)").error(), "the string does not end");
  expect_contains(Sharded("after", "{" + kGoodMap + "} x").error(), "unexpected text after the object");
  expect_contains(Sharded("deep", R"({"metadata":)" + std::string(100000, '[')).error(), "nested deeper than the limit of 128");
  expect_contains(Sharded("empty", "").error(), "expected '{', found the end of the text");
}

TEST(Safetensors, SaysWhatAFolderLacks) {
  const Folder folder("no_model");
  expect_contains(error_of(read_safetensors(folder.path().string())),
                  "the folder has neither model.safetensors nor model.safetensors.index.json");
  std::filesystem::create_symlink("gone", folder.path() / "model.safetensors");
  expect_contains(error_of(read_safetensors(folder.path().string())), "model.safetensors: cannot open: No such file");
}

// ---- the header's JSON ----

TEST(JsonCursor, ResolvesEscapesAndRefusesBrokenOnes) {
  const auto string = [](std::string_view text) { return JsonCursor("f", text, 0).string("s", 1000); };
  EXPECT_EQ(*string(R"("a\"\\\/\b\f\n\r\t\u0041\u00e9\u20ac\ud83d\ude00")"),
            "a\"\\/\b\f\n\r\tA\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
  for (const char* bad : {R"("\x")", R"("\u12g4")", R"("\u12)", R"("\ud83d")", R"("\ud83dx")", R"("\ud83d\u0041")", R"("\ude00")",
                          "\"a\nb\"", "\"\xff\"", "\"\xed\xa0\x80\"", "\"abc", "\"abc\\", "\"abc\\\"", "abc", ""}) {
    EXPECT_FALSE(string(bad).ok()) << bad;
  }
  EXPECT_FALSE(JsonCursor("f", "\"abcd\"", 0).string("s", 3).ok());
  EXPECT_FALSE(JsonCursor("f", R"("\u0041\u0041\u0041\u0041")", 0).string("s", 3).ok());
  EXPECT_TRUE(JsonCursor("f", "\"abc\"", 0).string("s", 3).ok());
}

TEST(JsonCursor, TakesWholeNumbersInPlainDigitsOnly) {
  const auto number_of = [](std::string_view text) { return JsonCursor("f", text, 0).whole_number("n"); };
  EXPECT_EQ(*number_of("0"), 0u);
  EXPECT_EQ(*number_of(" 18446744073709551615,"), ~uint64_t{0});
  for (const char* bad : {"18446744073709551616", "-1", "+1", "2.0", "1e3", "1E3", "01", "00", "\"1\"", "null", "", "x"}) {
    EXPECT_FALSE(number_of(bad).ok()) << bad;
  }
}

TEST(JsonCursor, PassesEveryValueAndRefusesMalformedOnes) {
  const auto skip = [](std::string_view text) {
    JsonCursor json("f", text, 0);
    auto result = json.skip_value("v");
    return result.ok() && json.peek() == '\0';
  };
  for (const char* good : {"0", "-0.5e+10", "true", "null", "\"x\"", "[]", "{}", "[1, [2], {\"a\": {\"b\": []}}]"}) EXPECT_TRUE(skip(good)) << good;
  for (const char* bad : {"", "-", "01", "1.", ".5", "1e", "tru", "[", "[1,]", "[1 2]", "{\"a\"}", "{\"a\":}", "{a:1}", "{\"a\":1,}", "]"}) {
    EXPECT_FALSE(skip(bad)) << bad;
  }
  EXPECT_TRUE(skip(std::string(100, '[') + std::string(100, ']')));
  EXPECT_FALSE(skip(std::string(200, '[') + std::string(200, ']')));
}

}  // namespace
}  // namespace quipu
