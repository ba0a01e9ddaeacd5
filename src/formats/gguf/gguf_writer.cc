#include "formats/gguf/gguf_writer.h"

#include <algorithm>
#include <array>
#include <limits>

#include "base/byte_reader.h"
#include "base/checked.h"
#include "base/utf8.h"
#include "formats/gguf/ggml_types.h"
#include "formats/gguf/gguf_file.h"

namespace quipu {
namespace {

constexpr std::array<char, GgufLimits::kMaxAlignment> kZeros{};

template <class T>
void append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void append_string(std::string& out, std::string_view text) {
  append<uint64_t>(out, text.size());
  out += text;
}

template <class T>
GgufValue scalar(GgufType type, const T& value) {
  return {.type = type, .bytes = std::as_bytes(std::span(&value, 1))};
}

bool name_is_good(std::string_view name, uint64_t limit) {
  return !name.empty() && name.size() <= limit && utf8_is_valid(name) &&
         std::ranges::none_of(name, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
}

std::string encode_value(const GgufValue& value) {
  std::string out;
  append<uint32_t>(out, static_cast<uint32_t>(value.type));
  if (value.type == GgufType::kString) append<uint64_t>(out, value.bytes.size());
  if (value.is_array()) {
    append<uint32_t>(out, static_cast<uint32_t>(value.element_type));
    append<uint64_t>(out, value.count);
  }
  out.append(reinterpret_cast<const char*>(value.bytes.data()), value.bytes.size());
  return out;
}

uint64_t padded(uint64_t bytes, uint64_t alignment) { return (bytes + alignment - 1) / alignment * alignment; }

}  // namespace

Result<void> GgufHeader::set(std::string_view key, const GgufValue& value) {
  const size_t width = gguf_type_bytes(value.is_array() ? value.element_type : value.type);
  CHECK(width == 0 || value.bytes.size() == width * value.count) << key << ": " << value.bytes.size() << " bytes";
  if (!name_is_good(key, GgufLimits::kKeyBytes)) {
    return usage_error("GGUF metadata key \"" + printable(key) + "\" must be 1 to 65535 bytes of UTF-8 text");
  }
  if (key == "general.alignment") {
    uint32_t wanted = 0;
    if (value.type == GgufType::kU32) std::memcpy(&wanted, value.bytes.data(), 4);
    const bool power = wanted != 0 && (wanted & (wanted - 1)) == 0;
    if (!power || wanted < GgufLimits::kMinAlignment || wanted > GgufLimits::kMaxAlignment) {
      return usage_error("general.alignment must be a u32 power of two from 8 to 65536, found " + value.text());
    }
    if (!tensors_.empty() && wanted != alignment_) {
      return usage_error("general.alignment cannot change once tensors are declared");
    }
    alignment_ = wanted;
  }
  std::string encoded = encode_value(value);
  const auto [at, fresh] = key_index_.emplace(key, keys_.size());
  if (fresh) {
    keys_.push_back({std::string(key), std::move(encoded)});
  } else {
    keys_[at->second].value = std::move(encoded);
  }
  return {};
}

Result<void> GgufHeader::set_string(std::string_view key, std::string_view value) {
  return set(key, {.type = GgufType::kString, .bytes = std::as_bytes(std::span(value.data(), value.size()))});
}
Result<void> GgufHeader::set_bool(std::string_view key, bool value) {
  return set(key, scalar(GgufType::kBool, static_cast<uint8_t>(value)));
}
Result<void> GgufHeader::set_u32(std::string_view key, uint32_t value) { return set(key, scalar(GgufType::kU32, value)); }
Result<void> GgufHeader::set_i32(std::string_view key, int32_t value) { return set(key, scalar(GgufType::kI32, value)); }
Result<void> GgufHeader::set_u64(std::string_view key, uint64_t value) { return set(key, scalar(GgufType::kU64, value)); }
Result<void> GgufHeader::set_f32(std::string_view key, float value) { return set(key, scalar(GgufType::kF32, value)); }

Result<void> GgufHeader::set_strings(std::string_view key, std::span<const std::string_view> values) {
  std::string packed;
  for (const std::string_view value : values) append_string(packed, value);
  return set(key, {.type = GgufType::kArray, .element_type = GgufType::kString, .count = values.size(),
                   .bytes = std::as_bytes(std::span(packed.data(), packed.size()))});
}
Result<void> GgufHeader::set_f32s(std::string_view key, std::span<const float> values) {
  return set(key, {.type = GgufType::kArray, .element_type = GgufType::kF32, .count = values.size(),
                   .bytes = std::as_bytes(values)});
}
Result<void> GgufHeader::set_i32s(std::string_view key, std::span<const int32_t> values) {
  return set(key, {.type = GgufType::kArray, .element_type = GgufType::kI32, .count = values.size(),
                   .bytes = std::as_bytes(values)});
}

Result<void> GgufHeader::copy(const GgufMetadata& metadata) {
  for (const auto& [key, value] : metadata.entries()) RETURN_IF_ERROR(set(key, value));
  return {};
}

Result<void> GgufHeader::add_tensor(std::string_view name, DType dtype, const Shape& shape) {
  const auto wrong = [&](const std::string& what) { return usage_error("GGUF tensor " + printable(name) + ": " + what); };
  if (!name_is_good(name, GgufLimits::kTensorNameBytes)) return wrong("the name must be 1 to 64 bytes of UTF-8 text");
  if (tensor_names_.contains(name)) return wrong("declared twice");
  if (tensors_.size() >= GgufLimits::kTensors) return wrong("over the limit of tensors in one file");
  if (!ggml_from_dtype(dtype)) return wrong("GGUF has no type for " + std::string(dtype_name(dtype)));
  if (shape.empty() || shape.size() > GgufLimits::kDimensions) {
    return wrong("has " + std::to_string(shape.size()) + " dimensions, GGUF takes 1 to 4");
  }
  CheckedSize elements = 1;
  for (const int64_t extent : shape) {
    if (extent < 1) return wrong("shape " + shape_text(shape) + " has a dimension below 1");
    elements = elements * CheckedSize(static_cast<uint64_t>(extent));
  }
  const auto row = checked_row_bytes(dtype, static_cast<uint64_t>(shape.back()));
  if (!row) {
    return wrong("rows of " + std::to_string(shape.back()) + " are not whole blocks of " + std::string(dtype_name(dtype)));
  }
  if (!elements.fits(std::numeric_limits<int64_t>::max())) return wrong("shape " + shape_text(shape) + " is too large");
  const CheckedSize bytes = CheckedSize(*row) * CheckedSize(*elements.value() / static_cast<uint64_t>(shape.back()));
  const uint64_t offset = tensors_.empty() ? 0 : padded(tensors_.back().offset + tensors_.back().bytes, alignment_);
  // Half of the range for the end of this one leaves room for the padding and the next offset without further checks.
  if (!(CheckedSize(offset) + bytes).fits(std::numeric_limits<int64_t>::max() / 2)) return wrong("the file is too large");
  tensor_names_.emplace(name);
  tensors_.push_back({std::string(name), dtype, shape, offset, *bytes.value()});
  return {};
}

std::string GgufHeader::encode() const {
  std::string out = "GGUF";
  append<uint32_t>(out, 3);
  append<uint64_t>(out, tensors_.size());
  append<uint64_t>(out, keys_.size());
  for (const Key& key : keys_) {
    append_string(out, key.name);
    out += key.value;
  }
  for (const Tensor& tensor : tensors_) {
    append_string(out, tensor.name);
    append<uint32_t>(out, static_cast<uint32_t>(tensor.shape.size()));
    for (size_t i = tensor.shape.size(); i-- > 0;) append<int64_t>(out, tensor.shape[i]);   // fastest first
    append<uint32_t>(out, *ggml_from_dtype(tensor.dtype));
    append<uint64_t>(out, tensor.offset);
  }
  out.resize(padded(out.size(), alignment_), '\0');
  return out;
}

uint64_t GgufHeader::file_bytes() const {
  const uint64_t data = tensors_.empty() ? 0 : padded(tensors_.back().offset + tensors_.back().bytes, alignment_);
  return encode().size() + data;
}

Result<GgufWriter> GgufWriter::create(const std::string& path, GgufHeader header) {
  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  RETURN_IF_ERROR(file.write(header.encode()));
  return GgufWriter(std::move(file), std::move(header));
}

Result<void> GgufWriter::write(std::span<const std::byte> bytes) {
  if (bytes.empty()) return {};
  CHECK(tensor_ < header_.tensor_count()) << "data after the last tensor";
  const uint64_t whole = header_.tensor_bytes(tensor_);
  CHECK(bytes.size() <= whole - written_) << header_.tensor_name(tensor_) << ": " << bytes.size() << " bytes after "
                                          << written_ << " of " << whole;
  RETURN_IF_ERROR(file_.write(bytes));
  written_ += bytes.size();
  if (written_ < whole) return {};
  ++tensor_;
  written_ = 0;
  return file_.write(std::string_view(kZeros.data(), padded(whole, header_.alignment()) - whole));
}

Result<void> GgufWriter::commit() {
  CHECK(tensor_ == header_.tensor_count()) << "tensor " << header_.tensor_name(tensor_) << " is not complete";
  return file_.commit();
}

}  // namespace quipu
