#include "formats/gguf/gguf_file.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>

#include "base/byte_reader.h"
#include "base/checked.h"
#include "base/utf8.h"
#include "formats/gguf/ggml_types.h"
#include "formats/recognise.h"

namespace quipu {
namespace {

// The smallest space one entry can take: what bounds a claimed count by the bytes that are left.
constexpr uint64_t kMinKeyBytes = 8 + 1 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;

std::string number(uint64_t value) { return std::to_string(value); }

// What is wrong with a key or tensor name, or "".
std::string name_fault(std::string_view name) {
  if (name.empty()) return "the name is empty";
  if (!utf8_is_valid(name)) return "the name \"" + printable(name) + "\" is not UTF-8";
  for (const char c : name) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      return "the name \"" + printable(name) + "\" has a control character";
    }
  }
  return "";
}

struct TensorEntry {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  uint64_t offset = 0;        // from the start of the data section
  uint64_t bytes = 0;
  uint64_t header_offset = 0; // of the entry, for messages
};

// Reads one file from start to end; each step returns the first fault.
class Parser {
 public:
  Parser(const std::string& name, std::span<const std::byte> bytes, std::shared_ptr<const MappedFile> file)
      : name_(name), bytes_(bytes), file_(std::move(file)), reader_(name_, bytes) {}

  Result<GgufFile> parse() {
    RETURN_IF_ERROR(read_head());
    RETURN_IF_ERROR(read_metadata());
    RETURN_IF_ERROR(read_alignment());
    RETURN_IF_ERROR(read_tensor_entries());
    RETURN_IF_ERROR(place_data());
    RETURN_IF_ERROR(check_layout());
    std::vector<std::shared_ptr<const MappedFile>> files;
    if (file_ != nullptr) files.push_back(file_);
    return GgufFile{version_, alignment_, std::move(metadata_),
                    TensorFile(printable(name_, 400), take_tensors(), std::move(warnings_)), std::move(files)};
  }

 private:
  Result<void> read_head();
  Result<void> check_version();
  Result<void> check_count(std::string_view field, uint64_t count, uint64_t min_bytes, uint64_t limit);
  Result<void> read_metadata();
  Result<GgufValue> read_value(const std::string& field);
  Result<GgufValue> read_array(const std::string& field);
  Result<GgufType> read_type(const std::string& field);
  Result<void> check_bools(const std::string& field, std::span<const std::byte> bytes, uint64_t start);
  Result<void> read_alignment();
  Result<void> read_tensor_entries();
  Result<TensorEntry> read_tensor_entry(uint64_t index);
  Result<void> read_shape(const std::string& field, TensorEntry& entry);
  Result<void> read_tensor_type(const std::string& field, TensorEntry& entry);
  Result<void> place_data();
  Result<void> check_layout();
  std::vector<NamedTensor> take_tensors();
  Error error_at(std::string_view field, uint64_t offset, std::string_view what) const {
    return bad_input(std::string(name_) + ": " + printable(field, 160) + " at byte " + number(offset) + ": " +
                     std::string(what));
  }

  std::string name_;
  std::span<const std::byte> bytes_;
  std::shared_ptr<const MappedFile> file_;
  ByteReader reader_;
  uint32_t version_ = 0;
  uint32_t alignment_ = GgufLimits::kDefaultAlignment;
  uint64_t tensor_count_ = 0, key_count_ = 0;
  uint64_t data_start_ = 0;
  GgufMetadata metadata_;
  std::vector<TensorEntry> entries_;
  std::vector<std::string> warnings_;
};

Result<void> Parser::read_head() {
  ASSIGN_OR_RETURN(const uint32_t magic, reader_.number<uint32_t>("magic"));
  if (magic != 0x46554747) {   // "GGUF"
    return error_at("magic", 0, "expected \"GGUF\", found \"" +
                                    printable({reinterpret_cast<const char*>(bytes_.data()), 4}) + "\"" +
                                    looks_like(bytes_));
  }
  ASSIGN_OR_RETURN(version_, reader_.number<uint32_t>("version"));
  RETURN_IF_ERROR(check_version());
  ASSIGN_OR_RETURN(tensor_count_, reader_.number<uint64_t>("tensor count"));
  ASSIGN_OR_RETURN(key_count_, reader_.number<uint64_t>("metadata key count"));
  RETURN_IF_ERROR(check_count("tensor count", tensor_count_, kMinTensorBytes, GgufLimits::kTensors));
  return check_count("metadata key count", key_count_, kMinKeyBytes, GgufLimits::kKeys);
}

Result<void> Parser::check_version() {
  if (version_ == 2 || version_ == 3) return {};
  const uint32_t swapped = __builtin_bswap32(version_);
  if (swapped >= 1 && swapped <= 16) {
    return error_at("version", 4, "is " + number(swapped) + " in big-endian order; big-endian files are not supported");
  }
  std::string what = "is " + number(version_) + ", versions 2 and 3 are supported";
  if (version_ == 1) what += " (version 1 was used for a few weeks in 2023; convert the original model again)";
  if (version_ > 3 && version_ < 100) what += " (made by a newer program?)";
  return error_at("version", 4, what);
}

Result<void> Parser::check_count(std::string_view field, uint64_t count, uint64_t min_bytes, uint64_t limit) {
  const uint64_t room = reader_.remaining() / min_bytes;
  if (count > room) {
    return reader_.error_here(field, "is " + number(count) + ", but the " + number(reader_.remaining()) +
                                         " bytes that follow have room for at most " + number(room));
  }
  if (count > limit) return reader_.error_here(field, "is " + number(count) + ", the limit is " + number(limit));
  return {};
}

Result<void> Parser::read_metadata() {
  std::vector<GgufMetadata::Entry> entries;
  std::set<std::string_view> seen;
  for (uint64_t i = 0; i < key_count_; ++i) {
    const std::string place = "metadata key " + number(i + 1) + " of " + number(key_count_);
    const uint64_t start = reader_.offset();
    ASSIGN_OR_RETURN(const std::string_view key, reader_.string64(place, GgufLimits::kKeyBytes));
    const std::string fault = name_fault(key);
    if (!fault.empty()) return error_at(place, start, fault);
    const std::string field = "metadata key " + printable(key);
    if (!seen.insert(key).second) return error_at(field, start, "the key appears twice");
    ASSIGN_OR_RETURN(const GgufValue value, read_value(field));
    entries.push_back({key, value});
  }
  metadata_ = GgufMetadata(printable(name_, 400), std::move(entries));
  return {};
}

Result<GgufType> Parser::read_type(const std::string& field) {
  const uint64_t start = reader_.offset();
  ASSIGN_OR_RETURN(const uint32_t id, reader_.number<uint32_t>(field));
  if (id >= kGgufTypeCount) {
    return error_at(field, start, "value type " + number(id) + " is unknown, expected 0 to " + number(kGgufTypeCount - 1));
  }
  return static_cast<GgufType>(id);
}

Result<GgufValue> Parser::read_value(const std::string& field) {
  ASSIGN_OR_RETURN(const GgufType type, read_type(field));
  if (type == GgufType::kArray) return read_array(field);
  GgufValue value;
  value.type = type;
  const uint64_t start = reader_.offset();
  if (type == GgufType::kString) {
    ASSIGN_OR_RETURN(const std::string_view text, reader_.string64(field, reader_.remaining()));
    value.bytes = std::as_bytes(std::span(text.data(), text.size()));
    return value;
  }
  ASSIGN_OR_RETURN(value.bytes, reader_.take(field, gguf_type_bytes(type)));
  if (type == GgufType::kBool) RETURN_IF_ERROR(check_bools(field, value.bytes, start));
  return value;
}

Result<GgufValue> Parser::read_array(const std::string& field) {
  GgufValue value;
  value.type = GgufType::kArray;
  const uint64_t type_start = reader_.offset();
  ASSIGN_OR_RETURN(value.element_type, read_type(field));
  if (value.element_type == GgufType::kArray) return error_at(field, type_start, "an array of arrays is not supported");
  ASSIGN_OR_RETURN(value.count, reader_.number<uint64_t>(field));
  const uint64_t start = reader_.offset();
  const bool strings = value.element_type == GgufType::kString;
  const uint64_t width = strings ? 8 : gguf_type_bytes(value.element_type);
  if (value.count > reader_.remaining() / width) {
    return error_at(field, start, "the array claims " + number(value.count) + " elements of at least " + number(width) +
                                      " bytes, but only " + number(reader_.remaining()) + " bytes are left");
  }
  if (strings) {
    for (uint64_t i = 0; i < value.count; ++i) {
      ASSIGN_OR_RETURN(const uint64_t length, reader_.number<uint64_t>(field));
      RETURN_IF_ERROR(reader_.skip(field, length));
    }
    value.bytes = bytes_.subspan(start, reader_.offset() - start);
    return value;
  }
  ASSIGN_OR_RETURN(value.bytes, reader_.take(field, value.count * width));   // bounded by the test above
  if (value.element_type == GgufType::kBool) RETURN_IF_ERROR(check_bools(field, value.bytes, start));
  return value;
}

Result<void> Parser::check_bools(const std::string& field, std::span<const std::byte> bytes, uint64_t start) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    const unsigned value = std::to_integer<unsigned>(bytes[i]);
    if (value > 1) return error_at(field, start + i, "bool is " + number(value) + ", expected 0 or 1");
  }
  return {};
}

Result<void> Parser::read_alignment() {
  const GgufValue* value = metadata_.find("general.alignment");
  if (value == nullptr) return {};
  if (value->type != GgufType::kU32) {
    return metadata_.error("general.alignment", "is of type " + value->type_text() + ", expected u32");
  }
  ASSIGN_OR_RETURN(alignment_, metadata_.require_u32("general.alignment"));
  const bool power = alignment_ != 0 && (alignment_ & (alignment_ - 1)) == 0;
  if (!power || alignment_ < GgufLimits::kMinAlignment || alignment_ > GgufLimits::kMaxAlignment) {
    return metadata_.error("general.alignment", "is " + number(alignment_) + ", expected a power of two from 8 to 65536");
  }
  return {};
}

Result<void> Parser::read_tensor_entries() {
  // The metadata has eaten into the file since the count was first checked.
  RETURN_IF_ERROR(check_count("tensor count", tensor_count_, kMinTensorBytes, GgufLimits::kTensors));
  for (uint64_t i = 0; i < tensor_count_; ++i) {
    ASSIGN_OR_RETURN(TensorEntry entry, read_tensor_entry(i));
    entries_.push_back(std::move(entry));
  }
  std::set<std::string_view> seen;
  for (const TensorEntry& entry : entries_) {
    if (!seen.insert(entry.name).second) {
      return error_at("tensor " + entry.name, entry.header_offset, "the name appears twice");
    }
  }
  return {};
}

Result<TensorEntry> Parser::read_tensor_entry(uint64_t index) {
  TensorEntry entry;
  entry.header_offset = reader_.offset();
  const std::string place = "tensor " + number(index + 1) + " of " + number(tensor_count_);
  ASSIGN_OR_RETURN(const std::string_view name, reader_.string64(place + " name", GgufLimits::kTensorNameBytes));
  const std::string fault = name_fault(name);
  if (!fault.empty()) return error_at(place, entry.header_offset, fault);
  entry.name = name;
  const std::string field = "tensor " + entry.name;
  RETURN_IF_ERROR(read_shape(field, entry));
  RETURN_IF_ERROR(read_tensor_type(field, entry));
  const uint64_t start = reader_.offset();
  ASSIGN_OR_RETURN(entry.offset, reader_.number<uint64_t>(field));
  if (entry.offset % alignment_ != 0) {
    return error_at(field, start, "data offset " + number(entry.offset) + " is not a multiple of the alignment " +
                                      number(alignment_));
  }
  return entry;
}

Result<void> Parser::read_shape(const std::string& field, TensorEntry& entry) {
  const uint64_t start = reader_.offset();
  ASSIGN_OR_RETURN(const uint32_t dimensions, reader_.number<uint32_t>(field));
  if (dimensions < 1 || dimensions > GgufLimits::kDimensions) {
    return error_at(field, start, "has " + number(dimensions) + " dimensions, expected 1 to " +
                                      number(GgufLimits::kDimensions));
  }
  CheckedSize elements = 1;
  for (uint32_t i = 0; i < dimensions; ++i) {
    const uint64_t at = reader_.offset();
    ASSIGN_OR_RETURN(const int64_t extent, reader_.number<int64_t>(field));
    if (extent < 1) {
      return error_at(field, at, "dimension " + number(i) + " is " + std::to_string(extent) + ", expected at least 1");
    }
    entry.shape.push_back(extent);
    elements = elements * CheckedSize(static_cast<uint64_t>(extent));
  }
  std::reverse(entry.shape.begin(), entry.shape.end());   // the file lists the fastest dimension first
  if (!elements.fits(std::numeric_limits<int64_t>::max())) {
    return error_at(field, start, "the shape " + shape_text(entry.shape) + " has more than 2^63-1 elements");
  }
  return {};
}

Result<void> Parser::read_tensor_type(const std::string& field, TensorEntry& entry) {
  const uint64_t start = reader_.offset();
  ASSIGN_OR_RETURN(const uint32_t id, reader_.number<uint32_t>(field));
  const std::optional<DType> dtype = dtype_from_ggml(id);
  if (!dtype) {
    const std::string_view known = ggml_type_name(id);
    return error_at(field, start, known.empty() ? "element type " + number(id) + " is unknown"
                                                : "element type " + std::string(known) + " (" + number(id) +
                                                      ") is not supported");
  }
  entry.dtype = *dtype;
  const uint64_t columns = static_cast<uint64_t>(entry.shape.back());
  const uint64_t rows = static_cast<uint64_t>(element_count(entry.shape)) / columns;   // neither is 0
  const uint64_t block = static_cast<uint64_t>(traits(*dtype).block_elements);
  if (columns % block != 0) {
    return error_at(field, start, "rows of " + number(columns) + " elements are not a multiple of " +
                                      std::string(dtype_name(*dtype)) + "'s block of " + number(block));
  }
  const std::optional<uint64_t> row = checked_row_bytes(*dtype, columns);
  const std::optional<uint64_t> bytes = row ? (CheckedSize(*row) * CheckedSize(rows)).value() : std::nullopt;
  if (!bytes || *bytes > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return error_at(field, start, shape_text(entry.shape) + " of " + std::string(dtype_name(*dtype)) +
                                      " is more than 2^63-1 bytes");
  }
  entry.bytes = *bytes;
  return {};
}

Result<void> Parser::place_data() {
  // The header ends inside the file, so padding it cannot wrap; without tensors the padding may be absent.
  const std::optional<uint64_t> start = CheckedSize(reader_.offset()).padded_to(alignment_).value();
  data_start_ = std::min<uint64_t>(start.value_or(bytes_.size()), bytes_.size());
  const uint64_t available = bytes_.size() - data_start_;
  for (const TensorEntry& entry : entries_) {
    const CheckedSize end = CheckedSize(entry.offset) + CheckedSize(entry.bytes);
    if (end.fits(available)) continue;
    return error_at("tensor " + entry.name, entry.header_offset,
                    "its " + number(entry.bytes) + " bytes at data offset " + number(entry.offset) +
                        " pass the end of the data section, which has " + number(available) +
                        " bytes (is the file truncated?)");
  }
  return {};
}

// Tensors must not overlap. Bytes that belong to none are accepted with a warning: converters differ in padding.
Result<void> Parser::check_layout() {
  std::vector<const TensorEntry*> order;
  for (const TensorEntry& entry : entries_) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const TensorEntry* a, const TensorEntry* b) { return a->offset < b->offset; });
  uint64_t end = 0, unused = 0;
  const TensorEntry* before = nullptr;
  for (const TensorEntry* entry : order) {
    if (entry->offset < end) {
      return error_at("tensor " + entry->name, entry->header_offset,
                      "its data at offset " + number(entry->offset) + " overlaps tensor " + printable(before->name) +
                          ", which ends at " + number(end));
    }
    const uint64_t padded = CheckedSize(end).padded_to(alignment_).value().value_or(end);
    if (entry->offset > padded) unused += entry->offset - padded;
    end = entry->offset + entry->bytes;
    before = entry;
  }
  const uint64_t available = bytes_.size() - data_start_;
  const uint64_t padded = std::min(CheckedSize(end).padded_to(alignment_).value().value_or(end), available);
  if (unused > 0) warnings_.push_back(printable(name_, 400) + ": " + number(unused) + " bytes between tensors are unused");
  if (available > padded) {
    warnings_.push_back(printable(name_, 400) + ": " + number(available - padded) +
                        " bytes after the last tensor are ignored");
  }
  return {};
}

std::vector<NamedTensor> Parser::take_tensors() {
  std::vector<NamedTensor> tensors;
  tensors.reserve(entries_.size());
  for (TensorEntry& entry : entries_) {
    tensors.push_back({std::move(entry.name),
                       {entry.dtype, std::move(entry.shape), bytes_.subspan(data_start_ + entry.offset, entry.bytes)},
                       file_});
  }
  entries_.clear();
  return tensors;
}

Result<GgufFile> read_one(const std::string& path) {
  ASSIGN_OR_RETURN(const auto file, MappedFile::open(path));
  return Parser(printable(path, 400), file->bytes(), file).parse();
}

// What the split.* keys say; count is 1 for a file that is whole.
struct SplitKeys {
  uint32_t index = 0;
  uint32_t count = 1;
  int64_t tensors = -1;    // in all parts together; -1 when not stated
};

Result<SplitKeys> split_keys(const GgufMetadata& metadata) {
  SplitKeys keys;
  ASSIGN_OR_RETURN(const auto count, metadata.optional_u32("split.count"));
  if (!count || *count <= 1) return keys;
  if (*count > 65535) return metadata.error("split.count", "is " + number(*count) + ", the limit is 65535");
  keys.count = *count;
  ASSIGN_OR_RETURN(keys.index, metadata.require_u32("split.no"));
  if (keys.index >= keys.count) {
    return metadata.error("split.no", "is " + number(keys.index) + ", expected less than split.count, " + number(*count));
  }
  ASSIGN_OR_RETURN(const auto tensors, metadata.optional_i64("split.tensors.count"));
  keys.tensors = tensors.value_or(-1);
  return keys;
}

std::string five_digits(uint32_t value) {
  const std::string digits = number(value);
  return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
}

std::string part_suffix(uint32_t index, uint32_t count) {
  return "-" + five_digits(index + 1) + "-of-" + five_digits(count) + ".gguf";
}

bool same_value(const GgufValue& a, const GgufValue& b) {
  return a.type == b.type && a.element_type == b.element_type && a.count == b.count &&
         std::ranges::equal(a.bytes, b.bytes);
}

// A part repeats at most some keys of the first one; any that differ mean it belongs to another model.
Result<void> check_same_model(const GgufMetadata& first, const GgufMetadata& part) {
  for (const auto& [key, value] : part.entries()) {
    if (key == "split.no") continue;
    const GgufValue* expected = first.find(key);
    if (expected == nullptr || same_value(*expected, value)) continue;
    return part.error(key, "is " + value.text() + ", but " + expected->text() + " in " + first.file() +
                               ": the parts belong to different models");
  }
  return {};
}

Result<GgufFile> read_parts(const std::string& prefix, const SplitKeys& keys) {
  std::optional<GgufFile> whole;
  std::vector<NamedTensor> tensors;
  std::vector<std::string> warnings;
  std::set<std::string, std::less<>> seen;
  for (uint32_t i = 0; i < keys.count; ++i) {
    auto opened = read_one(prefix + part_suffix(i, keys.count));
    if (!opened.ok()) {
      Error error = std::move(opened).error();
      error.message += " (part " + number(i + 1) + " of " + number(keys.count) + ")";
      return error;
    }
    GgufFile part = std::move(opened).value();
    ASSIGN_OR_RETURN(const SplitKeys own, split_keys(part.metadata));
    if (own.count != keys.count || own.index != i) {
      return part.metadata.error("split.no", "and split.count say part " + number(own.index + 1) + " of " +
                                                 number(own.count) + ", expected part " + number(i + 1) + " of " +
                                                 number(keys.count));
    }
    if (whole) RETURN_IF_ERROR(check_same_model(whole->metadata, part.metadata));
    for (const NamedTensor& tensor : part.tensors.tensors()) {
      if (!seen.insert(tensor.name).second) {
        return bad_input(part.metadata.file() + ": tensor " + printable(tensor.name) + " is in an earlier part too");
      }
      tensors.push_back(tensor);
    }
    for (const std::string& warning : part.tensors.warnings()) warnings.push_back(warning);
    if (!whole) {
      whole = std::move(part);
    } else {
      whole->files.push_back(part.files.front());
    }
  }
  if (keys.tensors >= 0 && static_cast<uint64_t>(keys.tensors) != tensors.size()) {
    return whole->metadata.error("split.tensors.count", "is " + std::to_string(keys.tensors) + ", but the " +
                                                            number(keys.count) + " parts hold " + number(tensors.size()) +
                                                            " tensors");
  }
  whole->tensors = TensorFile(whole->metadata.file(), std::move(tensors), std::move(warnings));
  return std::move(*whole);
}

}  // namespace

Result<GgufFile> read_gguf(const std::string& path) {
  ASSIGN_OR_RETURN(GgufFile file, read_one(path));
  ASSIGN_OR_RETURN(const SplitKeys keys, split_keys(file.metadata));
  if (keys.count == 1) return file;
  const std::string suffix = part_suffix(keys.index, keys.count);
  if (!path.ends_with(suffix)) {
    return file.metadata.error("split.no", "says part " + number(keys.index + 1) + " of " + number(keys.count) +
                                               ", expected a file name that ends in " + suffix);
  }
  return read_parts(path.substr(0, path.size() - suffix.size()), keys);
}

Result<GgufFile> read_gguf_bytes(const std::string& name, std::span<const std::byte> bytes) {
  return Parser(printable(name, 400), bytes, nullptr).parse();
}

}  // namespace quipu
