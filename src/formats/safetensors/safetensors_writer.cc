#include "formats/safetensors/safetensors_writer.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>

#include "base/byte_reader.h"
#include "base/checked.h"
#include "base/utf8.h"
#include "formats/safetensors/dtypes.h"
#include "formats/safetensors/safetensors_file.h"

namespace quipu {
namespace {

constexpr uint64_t kMaxFileBytes = uint64_t{1} << 62;

// A JSON string; the text must be UTF-8.
std::string quoted(std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (byte < 0x20) {
      out += std::string("\\u00") + kHex[byte >> 4] + kHex[byte & 15];
    } else {
      out += c;
    }
  }
  return out + '"';
}

Result<uint64_t> bytes_of(const SafetensorsTensor& tensor) {
  const std::string name = "safetensors tensor " + printable(tensor.name);
  if (safetensors_name(tensor.view.dtype).empty()) {
    return usage_error(name + ": the format has no type for " + std::string(dtype_name(tensor.view.dtype)));
  }
  if (tensor.view.shape.size() > SafetensorsLimits::kDimensions) {
    return usage_error(name + ": has " + std::to_string(tensor.view.shape.size()) + " dimensions, the limit is " +
                       std::to_string(SafetensorsLimits::kDimensions));
  }
  CheckedSize bytes = static_cast<uint64_t>(row_bytes(tensor.view.dtype, 1));
  for (const int64_t extent : tensor.view.shape) {
    if (extent < 0) return usage_error(name + ": shape " + shape_text(tensor.view.shape) + " has a negative dimension");
    bytes = bytes * CheckedSize(static_cast<uint64_t>(extent));
  }
  if (!bytes.fits(kMaxFileBytes)) return usage_error(name + ": shape " + shape_text(tensor.view.shape) + " is too large");
  return *bytes.value();
}

Result<void> check_name(std::string_view name) {
  const bool control = std::ranges::any_of(name, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
  if (!name.empty() && name.size() <= SafetensorsLimits::kNameBytes && name != "__metadata__" && !control &&
      utf8_is_valid(name)) {
    return {};
  }
  return usage_error("safetensors tensor name \"" + printable(name) + "\" must be 1 to 4096 bytes of UTF-8 text");
}

Result<std::string> encode_metadata(const TensorFile::TextMap& metadata) {
  std::string out = "\"__metadata__\":{";
  for (const auto& [key, value] : metadata) {
    const bool fits = key.size() <= SafetensorsLimits::kNameBytes && value.size() <= SafetensorsLimits::kMetadataValueBytes;
    if (!fits || !utf8_is_valid(key) || !utf8_is_valid(value)) {
      return usage_error("safetensors metadata " + printable(key) + ": key and value must be UTF-8 text within limits");
    }
    if (out.back() != '{') out += ',';
    out += quoted(key) + ":" + quoted(value);
  }
  return out + "}";
}

uint64_t data_bytes(std::span<const SafetensorsTensor> tensors) {
  uint64_t total = 0;
  for (const SafetensorsTensor& tensor : tensors) total += *bytes_of(tensor);   // summed with checks by the encoder
  return total;
}

}  // namespace

Result<std::string> encode_safetensors_header(std::span<const SafetensorsTensor> tensors,
                                              const TensorFile::TextMap& metadata) {
  if (tensors.size() > SafetensorsLimits::kTensors) {
    return usage_error("safetensors: " + std::to_string(tensors.size()) + " tensors are over the limit of one file");
  }
  std::string out(8, '\0');
  out += '{';
  if (!metadata.empty()) {
    ASSIGN_OR_RETURN(const std::string encoded, encode_metadata(metadata));
    out += encoded;
  }
  std::set<std::string_view> seen;
  uint64_t begin = 0;
  for (const SafetensorsTensor& tensor : tensors) {
    RETURN_IF_ERROR(check_name(tensor.name));
    if (!seen.insert(tensor.name).second) {
      return usage_error("safetensors tensor " + printable(tensor.name) + ": declared twice");
    }
    ASSIGN_OR_RETURN(const uint64_t bytes, bytes_of(tensor));
    if (!(CheckedSize(begin) + CheckedSize(bytes)).fits(kMaxFileBytes)) {
      return usage_error("safetensors: the file is too large");
    }
    std::string shape;
    for (const int64_t extent : tensor.view.shape) shape += (shape.empty() ? "" : ",") + std::to_string(extent);
    if (out.back() != '{') out += ',';
    out += quoted(tensor.name) + ":{\"dtype\":\"" + std::string(safetensors_name(tensor.view.dtype)) + "\",\"shape\":[" +
           shape + "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(begin + bytes) + "]}";
    begin += bytes;
  }
  out += '}';
  out.resize((out.size() + 63) / 64 * 64, ' ');
  const uint64_t length = out.size() - 8;
  if (length > SafetensorsLimits::kHeaderBytes) return usage_error("safetensors: the header is over the format's 100 MB");
  std::memcpy(out.data(), &length, sizeof(length));
  return out;
}

Result<SafetensorsWriter> SafetensorsWriter::create(const std::string& path, std::span<const SafetensorsTensor> tensors,
                                                    const TensorFile::TextMap& metadata) {
  ASSIGN_OR_RETURN(const std::string header, encode_safetensors_header(tensors, metadata));
  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  RETURN_IF_ERROR(file.write(header));
  return SafetensorsWriter(std::move(file), data_bytes(tensors));
}

Result<void> SafetensorsWriter::write(std::span<const std::byte> bytes) {
  CHECK(bytes.size() <= left_) << bytes.size() << " bytes, " << left_ << " declared and not yet written";
  RETURN_IF_ERROR(file_.write(bytes));
  left_ -= bytes.size();
  return {};
}

Result<void> SafetensorsWriter::commit() {
  CHECK(left_ == 0) << left_ << " declared bytes were not written";
  return file_.commit();
}

Result<void> write_safetensors(const std::string& path, std::span<const SafetensorsTensor> tensors,
                               const TensorFile::TextMap& metadata) {
  ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::create(path, tensors, metadata));
  for (const SafetensorsTensor& tensor : tensors) {
    CHECK(tensor.view.bytes.size() == *bytes_of(tensor)) << tensor.name << shape_text(tensor.view.shape);
    RETURN_IF_ERROR(writer.write(tensor.view.bytes));
  }
  return writer.commit();
}

}  // namespace quipu
