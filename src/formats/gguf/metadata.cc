#include "formats/gguf/metadata.h"

#include <cmath>
#include <limits>
#include <sstream>

#include "base/byte_reader.h"
#include "base/check.h"

namespace quipu {
namespace {

constexpr std::string_view kNames[kGgufTypeCount] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                     "bool", "string", "array", "u64", "i64", "f64"};
constexpr size_t kBytes[kGgufTypeCount] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

// Any integer or bool of the file: 128 bits hold both u64 and i64.
__int128 wide_integer(GgufType type, const std::byte* at) {
  switch (type) {
    case GgufType::kU8: case GgufType::kBool: return load<uint8_t>(at);
    case GgufType::kI8: return load<int8_t>(at);
    case GgufType::kU16: return load<uint16_t>(at);
    case GgufType::kI16: return load<int16_t>(at);
    case GgufType::kU32: return load<uint32_t>(at);
    case GgufType::kI32: return load<int32_t>(at);
    case GgufType::kU64: return load<uint64_t>(at);
    case GgufType::kI64: return load<int64_t>(at);
    default: break;
  }
  CHECK(false) << "not an integer: " << static_cast<uint32_t>(type);
  return 0;
}

double wide_real(GgufType type, const std::byte* at) {
  if (type == GgufType::kF32) return load<float>(at);
  if (type == GgufType::kF64) return load<double>(at);
  return static_cast<double>(wide_integer(type, at));
}

std::string number_text(GgufType type, const std::byte* at) {
  if (type == GgufType::kBool) return load<uint8_t>(at) != 0 ? "true" : "false";
  if (type == GgufType::kU64) return std::to_string(load<uint64_t>(at));
  if (!gguf_is_float(type)) return std::to_string(static_cast<int64_t>(wide_integer(type, at)));
  std::ostringstream out;
  out << wide_real(type, at);
  return out.str();
}

template <class T>
Result<std::optional<T>> if_present(bool present, Result<T> (GgufMetadata::*get)(std::string_view) const,
                                    const GgufMetadata& metadata, std::string_view key) {
  if (!present) return std::optional<T>();
  ASSIGN_OR_RETURN(T value, (metadata.*get)(key));
  return std::optional<T>(value);
}

}  // namespace

std::string_view gguf_type_name(GgufType type) { return kNames[static_cast<uint32_t>(type)]; }
size_t gguf_type_bytes(GgufType type) { return kBytes[static_cast<uint32_t>(type)]; }

std::string GgufValue::type_text() const {
  if (is_array()) return "array of " + std::string(gguf_type_name(element_type));
  return std::string(gguf_type_name(type));
}

std::string GgufValue::text(size_t limit) const {
  if (type == GgufType::kString) {
    return printable({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, limit);
  }
  if (!is_array()) return number_text(type, bytes.data());
  std::string out = "[";
  uint64_t shown = 0;
  const auto append = [&](const std::string& element) { out += (shown++ == 0 ? "" : ", ") + element; };
  if (element_type == GgufType::kString) {
    for (const std::string_view element : GgufStrings(bytes, count)) {
      if (out.size() >= limit) break;
      append('"' + printable(element, limit) + '"');
    }
  } else {
    const size_t width = gguf_type_bytes(element_type);
    for (uint64_t i = 0; i < count && out.size() < limit; ++i) append(number_text(element_type, bytes.data() + i * width));
  }
  if (shown < count) out += ", ... " + std::to_string(count) + " of " + std::string(gguf_type_name(element_type));
  return out + "]";
}

int64_t GgufNumbers::integer(uint64_t i) const {
  CHECK(i < count_) << i << " of " << count_;
  const std::byte* at = bytes_.data() + i * gguf_type_bytes(type_);
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max(), kMin = std::numeric_limits<int64_t>::min();
  if (is_float()) {
    const double value = wide_real(type_, at);
    if (std::isnan(value)) return 0;
    if (value >= 0x1.0p63) return kMax;
    return value < -0x1.0p63 ? kMin : static_cast<int64_t>(value);
  }
  const __int128 value = wide_integer(type_, at);
  return value > kMax ? kMax : static_cast<int64_t>(value);
}

double GgufNumbers::real(uint64_t i) const {
  CHECK(i < count_) << i << " of " << count_;
  return wide_real(type_, bytes_.data() + i * gguf_type_bytes(type_));
}

GgufMetadata::GgufMetadata(std::string file, std::vector<Entry> entries)
    : file_(std::move(file)), entries_(std::move(entries)) {
  for (size_t i = 0; i < entries_.size(); ++i) {
    const bool inserted = by_key_.emplace(entries_[i].key, i).second;
    CHECK(inserted) << "key twice: " << entries_[i].key;
  }
}

const GgufValue* GgufMetadata::find(std::string_view key) const {
  const auto found = by_key_.find(key);
  return found == by_key_.end() ? nullptr : &entries_[found->second].value;
}

Error GgufMetadata::error(std::string_view key, std::string_view what) const {
  return bad_input(file_ + ": metadata key " + printable(key) + " " + std::string(what));
}

Result<const GgufValue*> GgufMetadata::require(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return error(key, "is missing");
  return value;
}

Result<uint32_t> GgufMetadata::require_u32(std::string_view key) const {
  ASSIGN_OR_RETURN(const int64_t value, require_i64(key));
  if (value < 0 || value > std::numeric_limits<uint32_t>::max()) {
    return error(key, "is " + std::to_string(value) + ", expected 0 to 4294967295");
  }
  return static_cast<uint32_t>(value);
}

Result<int64_t> GgufMetadata::require_i64(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, require(key));
  if (!gguf_is_integer(value->type)) return error(key, "is of type " + value->type_text() + ", expected an integer");
  const __int128 wide = wide_integer(value->type, value->bytes.data());
  if (wide > std::numeric_limits<int64_t>::max()) {
    return error(key, "is " + value->text() + ", expected at most 9223372036854775807");
  }
  return static_cast<int64_t>(wide);
}

Result<float> GgufMetadata::require_f32(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, require(key));
  if (!gguf_is_float(value->type)) return error(key, "is of type " + value->type_text() + ", expected f32");
  const double wide = wide_real(value->type, value->bytes.data());
  if (std::isfinite(wide) && std::fabs(wide) > std::numeric_limits<float>::max()) {
    return error(key, "is " + value->text() + ", out of the range of f32");
  }
  return static_cast<float>(wide);
}

Result<bool> GgufMetadata::require_bool(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, require(key));
  if (value->type != GgufType::kBool) return error(key, "is of type " + value->type_text() + ", expected bool");
  return load<uint8_t>(value->bytes.data()) != 0;
}

Result<std::string_view> GgufMetadata::require_string(std::string_view key, uint64_t limit) const {
  ASSIGN_OR_RETURN(const GgufValue* value, require(key));
  if (value->type != GgufType::kString) return error(key, "is of type " + value->type_text() + ", expected string");
  if (value->bytes.size() > limit) {
    return error(key, "is " + std::to_string(value->bytes.size()) + " bytes long, the limit is " + std::to_string(limit));
  }
  return std::string_view(reinterpret_cast<const char*>(value->bytes.data()), value->bytes.size());
}

Result<GgufStrings> GgufMetadata::require_strings(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, require(key));
  if (!value->is_array() || value->element_type != GgufType::kString) {
    return error(key, "is of type " + value->type_text() + ", expected array of string");
  }
  return GgufStrings(value->bytes, value->count);
}

Result<GgufNumbers> GgufMetadata::numbers(std::string_view key, bool floats) const {
  ASSIGN_OR_RETURN(const GgufValue* value, require(key));
  const bool fits = value->is_array() && value->element_type != GgufType::kString &&
                    gguf_is_float(value->element_type) == floats;
  if (!fits) {
    return error(key, "is of type " + value->type_text() + ", expected array of " + (floats ? "f32" : "integers"));
  }
  return GgufNumbers(value->element_type, value->bytes, value->count);
}

Result<GgufNumbers> GgufMetadata::require_integers(std::string_view key) const { return numbers(key, false); }
Result<GgufNumbers> GgufMetadata::require_floats(std::string_view key) const { return numbers(key, true); }

Result<std::optional<uint32_t>> GgufMetadata::optional_u32(std::string_view key) const {
  return if_present(has(key), &GgufMetadata::require_u32, *this, key);
}
Result<std::optional<int64_t>> GgufMetadata::optional_i64(std::string_view key) const {
  return if_present(has(key), &GgufMetadata::require_i64, *this, key);
}
Result<std::optional<float>> GgufMetadata::optional_f32(std::string_view key) const {
  return if_present(has(key), &GgufMetadata::require_f32, *this, key);
}
Result<std::optional<bool>> GgufMetadata::optional_bool(std::string_view key) const {
  return if_present(has(key), &GgufMetadata::require_bool, *this, key);
}
Result<std::optional<std::string_view>> GgufMetadata::optional_string(std::string_view key, uint64_t limit) const {
  if (!has(key)) return std::optional<std::string_view>();
  ASSIGN_OR_RETURN(const std::string_view value, require_string(key, limit));
  return std::optional<std::string_view>(value);
}
Result<std::optional<GgufStrings>> GgufMetadata::optional_strings(std::string_view key) const {
  return if_present(has(key), &GgufMetadata::require_strings, *this, key);
}
Result<std::optional<GgufNumbers>> GgufMetadata::optional_integers(std::string_view key) const {
  return if_present(has(key), &GgufMetadata::require_integers, *this, key);
}
Result<std::optional<GgufNumbers>> GgufMetadata::optional_floats(std::string_view key) const {
  return if_present(has(key), &GgufMetadata::require_floats, *this, key);
}

}  // namespace quipu
