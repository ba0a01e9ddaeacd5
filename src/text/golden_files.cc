#include "text/golden_files.h"

#include <gtest/gtest.h>
#include <simdjson.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/byte_reader.h"
#include "base/utf8.h"

namespace quipu::golden {
namespace {

namespace dom = simdjson::dom;

std::vector<int32_t> ids_of(dom::element element) {
  std::vector<int32_t> ids;
  for (int64_t id : dom::array(element)) ids.push_back(static_cast<int32_t>(id));
  return ids;
}

std::string text_of(dom::object entry) {
  std::string_view text;
  if (entry["text"].get(text) == simdjson::SUCCESS) return std::string(text);
  std::string out;
  if (entry["hex"].get(text) == simdjson::SUCCESS) {
    for (size_t i = 0; i + 1 < text.size(); i += 2) out += static_cast<char>(std::stoi(std::string(text.substr(i, 2)), nullptr, 16));
    return out;
  }
  const int64_t count = entry["count"];
  if (entry["repeat"].get(text) == simdjson::SUCCESS) {
    for (int64_t i = 0; i < count; ++i) out += text;
    return out;
  }
  const std::string_view letters = entry["letters"];
  std::vector<std::string_view> alphabet;
  for (size_t at = 0; at < letters.size(); at += alphabet.back().size()) {
    alphabet.push_back(letters.substr(at, utf8_sequence_length(letters.substr(at))));
  }
  uint64_t state = static_cast<uint64_t>(int64_t(entry["seed"]));
  for (int64_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    out += alphabet[(state >> 33) % alphabet.size()];
  }
  return out;
}

// Reads a GGUF value or skips it.
class GgufMetadata {
 public:
  explicit GgufMetadata(OwnedVocabulary& out)
      : out_(out), reader_("gguf", std::as_bytes(std::span(out.bytes.data(), out.bytes.size()))) {}

  void run() {
    take<uint32_t>();
    take<uint32_t>();
    take<uint64_t>();
    const auto pairs = take<uint64_t>();
    for (uint64_t i = 0; i < pairs; ++i) {
      const std::string key(text());
      value(key, take<uint32_t>());
    }
  }

 private:
  template <class T>
  T take() { return reader_.number<T>("value").value(); }
  std::string_view text() { return reader_.string64("string", 1 << 30).value(); }

  int64_t scalar(uint32_t type) {
    switch (type) {
      case 0: return take<uint8_t>();
      case 1: return take<int8_t>();
      case 2: return take<uint16_t>();
      case 3: return take<int16_t>();
      case 4: return take<uint32_t>();
      case 5: return take<int32_t>();
      case 6: return static_cast<int64_t>(take<float>());
      case 7: return take<uint8_t>();
      case 10: case 11: return take<int64_t>();
      default: return static_cast<int64_t>(take<double>());
    }
  }

  void value(const std::string& key, uint32_t type) {
    GgufVocabulary& v = out_.vocabulary;
    if (type == 8) {
      const std::string_view s = text();
      if (key == "tokenizer.ggml.model") v.model = s;
      if (key == "tokenizer.ggml.pre") v.pre = s;
    } else if (type == 9) {
      const auto element = take<uint32_t>();
      const auto count = take<uint64_t>();
      for (uint64_t i = 0; i < count; ++i) {
        if (element == 8) {
          const std::string_view s = text();
          if (key == "tokenizer.ggml.tokens") v.tokens.push_back(s);
          if (key == "tokenizer.ggml.merges") v.merges.push_back(s);
        } else if (element == 6) {
          const auto x = take<float>();
          if (key == "tokenizer.ggml.scores") v.scores.push_back(x);
        } else {
          const int64_t x = scalar(element);
          if (key == "tokenizer.ggml.token_type") v.types.push_back(static_cast<int32_t>(x));
        }
      }
    } else {
      const int64_t x = scalar(type);
      if (key == "tokenizer.ggml.bos_token_id") v.bos = x;
      if (key == "tokenizer.ggml.eos_token_id") v.eos = x;
      if (key == "tokenizer.ggml.unknown_token_id") v.unknown = x;
      if (key == "tokenizer.ggml.padding_token_id") v.padding = x;
      if (key == "tokenizer.ggml.add_bos_token") v.add_bos = x != 0;
      if (key == "tokenizer.ggml.add_eos_token") v.add_eos = x != 0;
      if (key == "tokenizer.ggml.add_space_prefix") v.add_space_prefix = x != 0;
    }
  }

  OwnedVocabulary& out_;
  ByteReader reader_;
};

}  // namespace

bool Ids::matches(const std::vector<int32_t>& found) const {
  if (!count) return found == ids;
  uint64_t hash = 0xcbf29ce484222325u;
  for (int32_t id : found) {
    for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ (static_cast<uint32_t>(id) >> shift & 0xff)) * 0x100000001b3u;
  }
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return found.size() == *count && fnv1a == text;
}

std::string testdata(const std::string& name) { return std::string(QUIPU_SOURCE_DIR) + "/src/text/testdata/" + name; }

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

const std::vector<std::string>& battery() {
  static const std::vector<std::string> texts = [] {
    std::vector<std::string> all;
    dom::parser parser;
    for (dom::element entry : dom::array(parser.load(testdata("battery.json")))) all.push_back(text_of(entry));
    return all;
  }();
  return texts;
}

File read_golden(const std::string& name) {
  File file;
  dom::parser parser;
  const dom::object root = parser.load(testdata("golden_" + name + ".json"));
  for (dom::element element : dom::array(root["ids"])) {
    Ids ids;
    if (element.is_array()) {
      ids.ids = ids_of(element);
    } else {
      ids.count = uint64_t(element["count"]);
      ids.fnv1a = std::string_view(element["fnv1a"]);
    }
    file.ids.push_back(std::move(ids));
  }
  dom::object map;
  if (root["plain"].get(map) == simdjson::SUCCESS) {
    for (auto [key, value] : map) file.plain[std::stoul(std::string(key))] = ids_of(value);
  }
  if (root["decoded"].get(map) == simdjson::SUCCESS) {
    file.has_decoded = true;
    for (auto [key, value] : map) file.decoded[std::stoul(std::string(key))] = std::string(std::string_view(value));
  }
  if (root["with_special"].get(map) == simdjson::SUCCESS) {
    for (auto [key, value] : map) file.with_special[std::string(key)] = ids_of(value);
  }
  return file;
}

std::vector<Variant> variants() {
  std::vector<Variant> all;
  dom::parser parser;
  for (dom::element element : dom::array(parser.load(testdata("variants.json")))) {
    Variant variant;
    variant.name = std::string_view(element["name"]);
    variant.tokenizer = simdjson::minify(dom::element(element["tokenizer"]));
    for (auto [key, value] : dom::object(element["ids"])) variant.ids[std::stoul(std::string(key))] = ids_of(value);
    all.push_back(std::move(variant));
  }
  return all;
}

std::unique_ptr<OwnedVocabulary> spm_vocabulary() {
  auto owned = std::make_unique<OwnedVocabulary>();
  dom::parser parser;
  const dom::object root = parser.load(testdata("vocab_spm_bpe.json"));
  for (std::string_view token : dom::array(root["tokens"])) owned->strings.emplace_back(token);
  GgufVocabulary& v = owned->vocabulary;
  v.model = "llama";
  v.tokens.assign(owned->strings.begin(), owned->strings.end());
  for (double score : dom::array(root["scores"])) v.scores.push_back(static_cast<float>(score));
  for (int64_t type : dom::array(root["types"])) v.types.push_back(static_cast<int32_t>(type));
  v.bos = int64_t(root["bos"]);
  v.eos = int64_t(root["eos"]);
  v.unknown = int64_t(root["unknown"]);
  return owned;
}

std::unique_ptr<OwnedVocabulary> read_gguf_vocabulary(const std::string& path) {
  auto owned = std::make_unique<OwnedVocabulary>();
  std::ifstream in(path, std::ios::binary);
  owned->bytes.resize(size_t{16} << 20);   // metadata comes first
  in.read(owned->bytes.data(), static_cast<std::streamsize>(owned->bytes.size()));
  owned->bytes.resize(static_cast<size_t>(in.gcount()));
  GgufMetadata(*owned).run();
  return owned;
}

}  // namespace quipu::golden
