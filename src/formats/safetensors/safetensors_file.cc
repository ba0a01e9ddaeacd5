#include "formats/safetensors/safetensors_file.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <limits>
#include <optional>
#include <set>
#include <system_error>

#include "base/byte_reader.h"
#include "base/checked.h"
#include "formats/recognise.h"
#include "formats/safetensors/dtypes.h"
#include "formats/safetensors/json_cursor.h"

namespace quipu {
namespace {

std::string number(uint64_t value) { return std::to_string(value); }

// What is wrong with a tensor name, or "". It is printed in listings and logs.
std::string name_fault(std::string_view name) {
  if (name.empty()) return "the name is empty";
  for (const char c : name) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return "the name has a control character";
  }
  return "";
}

struct Entry {
  std::string name;
  std::optional<DType> dtype;
  std::optional<Shape> shape;
  uint64_t elements = 0;
  std::optional<std::array<uint64_t, 2>> offsets;
  uint64_t header_offset = 0;   // of the entry, for messages
};

class Parser {
 public:
  Parser(const std::string& name, std::span<const std::byte> bytes, std::shared_ptr<const MappedFile> file)
      : name_(name), bytes_(bytes), file_(std::move(file)) {}

  Result<TensorFile> parse() {
    ASSIGN_OR_RETURN(const std::string_view header, find_header());
    JsonCursor json(name_, header, 8);
    RETURN_IF_ERROR(read_header(json));
    RETURN_IF_ERROR(check_names());
    RETURN_IF_ERROR(check_layout());
    return TensorFile(name_, take_tensors(), {}, std::move(metadata_));
  }

 private:
  Result<std::string_view> find_header();
  Result<void> read_header(JsonCursor& json);
  Result<void> read_metadata(JsonCursor& json);
  Result<void> read_entry(JsonCursor& json, std::string name, uint64_t header_offset);
  Result<void> read_dtype(JsonCursor& json, const std::string& field, Entry& entry);
  Result<void> read_shape(JsonCursor& json, const std::string& field, Entry& entry);
  Result<void> read_offsets(JsonCursor& json, const std::string& field, Entry& entry);
  Result<void> check_size(JsonCursor& json, const std::string& field, const Entry& entry);
  Result<void> check_names();
  Result<void> check_layout();
  std::vector<NamedTensor> take_tensors();

  std::string name_;
  std::span<const std::byte> bytes_;
  std::shared_ptr<const MappedFile> file_;
  uint64_t data_start_ = 0;
  bool has_metadata_ = false;
  TensorFile::TextMap metadata_;
  std::vector<Entry> entries_;
};

Result<std::string_view> Parser::find_header() {
  ByteReader reader(name_, bytes_);
  if (bytes_.size() < 8) {
    return bad_input(name_ + ": header length at byte 0: needs 8 bytes, but the file has " + number(bytes_.size()) +
                     looks_like(bytes_));
  }
  ASSIGN_OR_RETURN(const uint64_t length, reader.number<uint64_t>("header length"));
  const auto wrong = [&](const std::string& what) {
    return bad_input(name_ + ": header length at byte 0: is " + number(length) + ", " + what + looks_like(bytes_));
  };
  if (length < 2) return wrong("expected at least 2");
  if (length > SafetensorsLimits::kHeaderBytes) return wrong("the limit is " + number(SafetensorsLimits::kHeaderBytes));
  if (length > reader.remaining()) return wrong("but only " + number(reader.remaining()) + " bytes follow");
  data_start_ = 8 + length;
  const std::string_view header(reinterpret_cast<const char*>(bytes_.data() + 8), length);
  if (header[0] != '{') {
    return bad_input(name_ + ": header at byte 8: must start with '{', found '" + printable(header.substr(0, 1)) + "'" +
                     looks_like(bytes_));
  }
  return header;
}

Result<void> Parser::read_header(JsonCursor& json) {
  RETURN_IF_ERROR(json.object("header", SafetensorsLimits::kNameBytes, [&](std::string name) -> Result<void> {
    const uint64_t offset = json.offset();
    if (name == "__metadata__") return read_metadata(json);
    return read_entry(json, std::move(name), offset);
  }));
  // Only spaces may pad the header.
  const size_t other = json.rest().find_first_not_of(' ');
  if (other == std::string_view::npos) return {};
  return json.error_at("header", json.offset() + other,
                       "expected only spaces after the object, found '" + printable(json.rest().substr(other, 1)) + "'");
}

Result<void> Parser::read_metadata(JsonCursor& json) {
  if (has_metadata_) return json.error("__metadata__", "the name appears twice");
  has_metadata_ = true;
  return json.object("__metadata__", SafetensorsLimits::kNameBytes, [&](std::string key) -> Result<void> {
    const std::string field = "__metadata__ key " + printable(key);
    if (metadata_.size() >= SafetensorsLimits::kMetadataEntries) {
      return json.error(field, "more than the limit of " + number(SafetensorsLimits::kMetadataEntries) + " keys");
    }
    const uint64_t offset = json.offset();
    ASSIGN_OR_RETURN(std::string value, json.string(field, SafetensorsLimits::kMetadataValueBytes));
    if (!metadata_.emplace(std::move(key), std::move(value)).second) {
      return json.error_at(field, offset, "the key appears twice");
    }
    return {};
  });
}

Result<void> Parser::read_entry(JsonCursor& json, std::string name, uint64_t header_offset) {
  const std::string field = "tensor " + printable(name);
  if (const std::string fault = name_fault(name); !fault.empty()) return json.error_at(field, header_offset, fault);
  if (entries_.size() >= SafetensorsLimits::kTensors) {
    return json.error_at(field, header_offset,
                         "more than the limit of " + number(SafetensorsLimits::kTensors) + " tensors");
  }
  Entry entry;
  entry.name = std::move(name);
  entry.header_offset = header_offset;
  RETURN_IF_ERROR(json.object(field, SafetensorsLimits::kNameBytes, [&](const std::string& key) -> Result<void> {
    const std::string part = field + " " + printable(key);
    const bool twice = (key == "dtype" && entry.dtype) || (key == "shape" && entry.shape) ||
                       (key == "data_offsets" && entry.offsets);
    if (twice) return json.error(part, "the key appears twice in this entry");
    if (key == "dtype") return read_dtype(json, part, entry);
    if (key == "shape") return read_shape(json, part, entry);
    if (key == "data_offsets") return read_offsets(json, part, entry);
    return json.error(part, "unknown key, expected dtype, shape and data_offsets");
  }));
  const char* missing = !entry.dtype ? "dtype" : !entry.shape ? "shape" : !entry.offsets ? "data_offsets" : nullptr;
  if (missing != nullptr) return json.error_at(field, header_offset, std::string(missing) + " is missing");
  RETURN_IF_ERROR(check_size(json, field, entry));
  entries_.push_back(std::move(entry));
  return {};
}

Result<void> Parser::read_dtype(JsonCursor& json, const std::string& field, Entry& entry) {
  const uint64_t offset = json.offset();
  ASSIGN_OR_RETURN(const std::string name, json.string(field, 64));
  entry.dtype = dtype_from_safetensors(name);
  if (entry.dtype) return {};
  return json.error_at(field, offset, "element type \"" + printable(name) + "\" is " +
                                          (safetensors_knows(name) ? "not supported" : "unknown"));
}

Result<void> Parser::read_shape(JsonCursor& json, const std::string& field, Entry& entry) {
  Shape shape;
  CheckedSize elements = 1;
  RETURN_IF_ERROR(json.array(field, [&]() -> Result<void> {
    const uint64_t offset = json.offset();
    if (shape.size() >= SafetensorsLimits::kDimensions) {
      return json.error(field, "more than " + number(SafetensorsLimits::kDimensions) + " dimensions");
    }
    ASSIGN_OR_RETURN(const uint64_t extent, json.whole_number(field));
    elements = elements * CheckedSize(extent);
    if (extent > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) ||
        !elements.fits(std::numeric_limits<int64_t>::max())) {
      return json.error_at(field, offset, "the dimensions multiply to more than 2^63-1 elements");
    }
    shape.push_back(static_cast<int64_t>(extent));
    return {};
  }));
  entry.shape = std::move(shape);
  entry.elements = *elements.value();   // every step fitted
  return {};
}

Result<void> Parser::read_offsets(JsonCursor& json, const std::string& field, Entry& entry) {
  std::array<uint64_t, 2> offsets{};
  size_t count = 0;
  const uint64_t begin = json.offset();
  RETURN_IF_ERROR(json.array(field, [&]() -> Result<void> {
    if (count >= 2) return json.error(field, "expected two numbers, found more");
    ASSIGN_OR_RETURN(offsets[count], json.whole_number(field));
    ++count;
    return {};
  }));
  if (count != 2) return json.error_at(field, begin, "expected two numbers, found " + number(count));
  if (offsets[0] > offsets[1]) {
    return json.error_at(field, begin, "begin " + number(offsets[0]) + " is after end " + number(offsets[1]));
  }
  const uint64_t available = bytes_.size() - data_start_;
  if (offsets[1] > available) {
    return json.error_at(field, begin, "end " + number(offsets[1]) + " passes the file's " + number(available) +
                                           " bytes of data (is the file truncated?)");
  }
  entry.offsets = offsets;
  return {};
}

Result<void> Parser::check_size(JsonCursor& json, const std::string& field, const Entry& entry) {
  const std::optional<uint64_t> bytes = checked_row_bytes(*entry.dtype, entry.elements);
  const uint64_t stated = (*entry.offsets)[1] - (*entry.offsets)[0];
  if (bytes == stated) return {};
  return json.error_at(field, entry.header_offset,
                       shape_text(*entry.shape) + " of " + std::string(safetensors_name(*entry.dtype)) + " takes " +
                           (bytes ? number(*bytes) : "more than 2^64-1") + " bytes, data_offsets cover " + number(stated));
}

Result<void> Parser::check_names() {
  std::set<std::string_view> seen;
  for (const Entry& entry : entries_) {
    if (!seen.insert(entry.name).second) {
      return JsonCursor(name_, "", 0).error_at("tensor " + entry.name, entry.header_offset, "the name appears twice");
    }
  }
  return {};
}

// The tensors, in order of their data, must cover the data section exactly. Empty ones take no place.
Result<void> Parser::check_layout() {
  std::vector<const Entry*> order;
  for (const Entry& entry : entries_) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const Entry* a, const Entry* b) { return *a->offsets < *b->offsets; });
  uint64_t end = 0;
  for (const Entry* entry : order) {
    const auto [begin, stop] = *entry->offsets;
    if (begin != end) {
      return JsonCursor(name_, "", 0).error_at(
          "tensor " + entry->name, entry->header_offset,
          "data begins at " + number(begin) +
              (begin < end ? ", inside other data that ends at " : ", leaving a hole after ") + number(end));
    }
    end = stop;
  }
  const uint64_t available = bytes_.size() - data_start_;
  if (end == available) return {};
  return bad_input(name_ + ": data at byte " + number(data_start_) + ": the tensors cover " + number(end) +
                   " bytes, the file has " + number(available));
}

std::vector<NamedTensor> Parser::take_tensors() {
  std::vector<NamedTensor> tensors;
  tensors.reserve(entries_.size());
  for (Entry& entry : entries_) {
    const auto [begin, end] = *entry.offsets;
    tensors.push_back({std::move(entry.name),
                       {*entry.dtype, std::move(*entry.shape), bytes_.subspan(data_start_ + begin, end - begin)},
                       file_});
  }
  return tensors;
}

Result<TensorFile> read_one(const std::string& path) {
  ASSIGN_OR_RETURN(const auto file, MappedFile::open(path));
  return Parser(printable(path, 400), file->bytes(), file).parse();
}

// ---- index ----

struct Index {
  std::map<std::string, std::string> shard_of;   // tensor name -> file name
  std::set<std::string> shards;
};

std::string shard_fault(std::string_view shard) {
  if (shard.empty()) return "the file name is empty";
  if (shard.find('/') != std::string_view::npos || shard.find('\\') != std::string_view::npos || shard == "..") {
    return "the file name " + printable(shard) + " leads out of the folder, expected a plain name";
  }
  if (!name_fault(shard).empty()) return "the file name has a control character";
  if (!shard.ends_with(".safetensors")) return "the file " + printable(shard) + " is not a .safetensors file";
  return "";
}

Result<Index> read_index(const std::string& name, std::span<const std::byte> bytes) {
  if (bytes.size() > SafetensorsLimits::kIndexBytes) {
    return bad_input(name + ": is " + number(bytes.size()) + " bytes, the limit for an index is " +
                     number(SafetensorsLimits::kIndexBytes));
  }
  JsonCursor json(name, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}, 0);
  Index index;
  bool mapped = false;
  RETURN_IF_ERROR(json.object("index", SafetensorsLimits::kNameBytes, [&](const std::string& key) -> Result<void> {
    if (key != "weight_map") return json.skip_value("index key " + key);
    if (mapped) return json.error("weight_map", "the key appears twice");
    mapped = true;
    return json.object("weight_map", SafetensorsLimits::kNameBytes, [&](std::string tensor) -> Result<void> {
      const std::string field = "weight_map entry " + printable(tensor);
      if (index.shard_of.size() >= SafetensorsLimits::kTensors) {
        return json.error(field, "more than the limit of " + number(SafetensorsLimits::kTensors) + " tensors");
      }
      const uint64_t offset = json.offset();
      ASSIGN_OR_RETURN(const std::string shard, json.string(field, 255));
      if (const std::string fault = shard_fault(shard); !fault.empty()) return json.error_at(field, offset, fault);
      if (!index.shard_of.emplace(std::move(tensor), shard).second) {
        return json.error_at(field, offset, "the tensor is listed twice");
      }
      index.shards.insert(shard);
      return {};
    });
  }));
  if (json.peek() != '\0' || !json.rest().empty()) return json.error("index", "unexpected text after the object");
  if (!mapped) return bad_input(name + ": weight_map is missing");
  if (index.shards.empty()) return bad_input(name + ": weight_map is empty");
  return index;
}

// A shard must lie in its folder; links of the Hugging Face cache lead from snapshots/<revision> to blobs.
Result<void> check_shard_place(const std::filesystem::path& folder, const std::string& shard) {
  std::error_code code;
  const std::filesystem::path place = std::filesystem::canonical(folder, code);
  if (code) return bad_input(printable(folder.string(), 400) + ": " + code.message());
  const std::filesystem::path target = std::filesystem::canonical(folder / shard, code);
  if (code) return bad_input(printable((folder / shard).string(), 400) + ": " + code.message() + " (named by the index)");
  if (target.parent_path() == place) return {};
  const bool cached = place.parent_path().filename() == "snapshots" &&
                      target.parent_path() == place.parent_path().parent_path() / "blobs";
  if (cached) return {};
  return bad_input(printable((folder / shard).string(), 400) + ": is a link out of the model's folder, to " +
                   printable(target.string(), 400));
}

Result<TensorFile> read_sharded(const std::string& path) {
  ASSIGN_OR_RETURN(const auto file, MappedFile::open(path));
  const std::string name = printable(path, 400);
  ASSIGN_OR_RETURN(const Index index, read_index(name, file->bytes()));
  const std::filesystem::path folder = std::filesystem::path(path).has_parent_path()
                                           ? std::filesystem::path(path).parent_path() : std::filesystem::path(".");
  std::vector<NamedTensor> tensors;
  std::vector<std::string> warnings;
  TensorFile::TextMap metadata;
  std::map<std::string, std::string> found;   // tensor name -> the file it is in
  uint64_t unlisted = 0;
  for (const std::string& shard : index.shards) {
    RETURN_IF_ERROR(check_shard_place(folder, shard));
    ASSIGN_OR_RETURN(const TensorFile part, read_one((folder / shard).string()));
    for (const NamedTensor& tensor : part.tensors()) {
      if (const auto [at, fresh] = found.emplace(tensor.name, shard); !fresh) {
        return bad_input(part.display_name() + ": tensor " + printable(tensor.name) + " is in " + printable(at->second) +
                         " too");
      }
      if (tensors.size() >= SafetensorsLimits::kTensors) {
        return bad_input(name + ": the files hold more than " + number(SafetensorsLimits::kTensors) + " tensors");
      }
      if (!index.shard_of.contains(tensor.name)) ++unlisted;
      tensors.push_back(tensor);
    }
    metadata.insert(part.metadata().begin(), part.metadata().end());
  }
  for (const auto& [tensor, shard] : index.shard_of) {
    const auto at = found.find(tensor);
    if (at != found.end() && at->second == shard) continue;
    return bad_input(name + ": weight_map places tensor " + printable(tensor) + " in " + printable(shard) + ", " +
                     (at == found.end() ? "where it is not" : "but it is in " + printable(at->second)));
  }
  if (unlisted > 0) warnings.push_back(name + ": " + number(unlisted) + " tensors of its files are not in weight_map");
  return TensorFile(name, std::move(tensors), std::move(warnings), std::move(metadata));
}

}  // namespace

Result<TensorFile> read_safetensors(const std::string& path) {
  std::error_code code;
  if (!std::filesystem::is_directory(path, code)) {
    return path.ends_with(".index.json") ? read_sharded(path) : read_one(path);
  }
  const std::filesystem::path folder(path);
  for (const char* name : {"model.safetensors", "model.safetensors.index.json"}) {
    const std::filesystem::path candidate = folder / name;
    // A dangling link counts as there, so that the message is about the link.
    if (!std::filesystem::exists(std::filesystem::symlink_status(candidate, code))) continue;
    return candidate.extension() == ".json" ? read_sharded(candidate.string()) : read_one(candidate.string());
  }
  return bad_input(printable(path, 400) + ": the folder has neither model.safetensors nor model.safetensors.index.json");
}

Result<TensorFile> read_safetensors_bytes(const std::string& name, std::span<const std::byte> bytes) {
  return Parser(printable(name, 400), bytes, nullptr).parse();
}

}  // namespace quipu
