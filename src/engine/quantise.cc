#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include "base/byte_reader.h"
#include "base/thread_pool.h"
#include "engine/engine.h"
#include "formats/gguf/gguf_file.h"
#include "formats/gguf/gguf_writer.h"
#include "tensor/quant_blocks.h"

namespace quipu {
namespace {

constexpr int64_t kChunkElements = int64_t{4} << 20;   // decoded floats held at once: 16 MB

// llama.cpp's number for "mostly this type" (general.file_type); the K types without suffix are its "_S" mixes.
std::optional<uint32_t> file_type_number(DType type) {
  switch (type) {
    case DType::kF32: return 0;
    case DType::kF16: return 1;
    case DType::kQ4_0: return 2;
    case DType::kQ4_1: return 3;
    case DType::kQ8_0: return 7;
    case DType::kQ5_0: return 8;
    case DType::kQ5_1: return 9;
    case DType::kQ2_K: return 10;
    case DType::kQ3_K: return 11;
    case DType::kQ4_K: return 14;
    case DType::kQ5_K: return 16;
    case DType::kQ6_K: return 18;
    case DType::kIQ4_NL: return 25;
    case DType::kBF16: return 32;
    default: return std::nullopt;
  }
}

double bits_per_element(DType type) { return 8.0 * traits(type).block_bytes / traits(type).block_elements; }

// The type for rows that `type`'s blocks of 256 do not divide.                            [llama.cpp's choice]
DType fallback_type(DType type, int64_t cols) {
  if (cols % traits(type).block_elements == 0) return type;
  DType other = DType::kF16;
  switch (type) {
    case DType::kQ2_K:
    case DType::kQ3_K: other = DType::kIQ4_NL; break;
    case DType::kQ4_K: other = DType::kQ5_0; break;
    case DType::kQ5_K: other = DType::kQ5_1; break;
    case DType::kQ6_K: other = DType::kQ8_0; break;
    default: break;
  }
  return cols % traits(other).block_elements == 0 ? other : DType::kF16;
}

bool is_float(DType type) { return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16; }

struct Choice {
  DType type;
  bool fell_back = false;
};

// wanted: what the caller asked for. tied: the file has no output.weight.
Choice choose_type(const NamedTensor& tensor, DType wanted, bool tied) {
  const DType own = tensor.view.dtype;
  const bool decodable = is_float(own) || traits(own).quantised;
  const bool matrix = tensor.view.shape.size() >= 2 && tensor.name.ends_with(".weight") &&
                      tensor.name.find("norm") == std::string::npos && tensor.name.find("ffn_gate_inp") == std::string::npos;
  if (!matrix || !decodable) return {own};
  const int64_t cols = tensor.view.shape.back();
  const bool output = tensor.name == "output.weight" || (tied && tensor.name == "token_embd.weight");
  DType type = wanted;
  if (output && bits_per_element(wanted) < bits_per_element(DType::kQ6_K)) type = DType::kQ6_K;
  const DType possible = fallback_type(type, cols);
  return {possible, possible != type};
}

Result<void> refuse_same_file(const std::string& in, const std::string& out) {
  struct stat a{}, b{};
  if (stat(in.c_str(), &a) != 0 || stat(out.c_str(), &b) != 0) return {};
  if (a.st_dev != b.st_dev || a.st_ino != b.st_ino) return {};
  return usage_error(out + ": is the file to be read; choose another name for the result");
}

Result<GgufHeader> make_header(const GgufFile& file, DType wanted, std::span<const Choice> choices) {
  GgufHeader header;
  for (const GgufMetadata::Entry& entry : file.metadata.entries()) {
    if (entry.key.starts_with("split.")) continue;   // the result is one file
    RETURN_IF_ERROR(header.set(entry.key, entry.value));
  }
  RETURN_IF_ERROR(header.set_u32("general.file_type", *file_type_number(wanted)));
  RETURN_IF_ERROR(header.set_u32("general.quantization_version", 2));
  for (size_t i = 0; i < choices.size(); ++i) {
    const NamedTensor& tensor = file.tensors.tensors()[i];
    RETURN_IF_ERROR(header.add_tensor(tensor.name, choices[i].type, tensor.view.shape));
  }
  return header;
}

class Encoder {
 public:
  // Writes one tensor as `type`, some rows at a time, each row by one task.
  Result<void> write(GgufWriter& writer, const TensorView& view, DType type) {
    if (view.dtype == type) return writer.write(view.bytes);
    const int64_t cols = view.shape.back();
    const int64_t rows = element_count(view.shape) / cols;
    const int64_t in_bytes = row_bytes(view.dtype, cols), out_bytes = row_bytes(type, cols);
    const int64_t step = std::max<int64_t>(1, kChunkElements / cols);
    for (int64_t begin = 0; begin < rows; begin += step) {
      const int64_t count = std::min(step, rows - begin);
      floats_.resize(static_cast<size_t>(count * cols));
      bytes_.resize(static_cast<size_t>(count * out_bytes));
      pool_.parallel_for(count, [&](int64_t row) {
        float* values = floats_.data() + row * cols;
        dequantise_row(values, view.dtype, view.bytes.data() + (begin + row) * in_bytes, cols);
        quantise_row(bytes_.data() + row * out_bytes, type, values, cols);
      });
      RETURN_IF_ERROR(writer.write(bytes_));
    }
    return {};
  }

 private:
  ThreadPool pool_;
  std::vector<float> floats_;
  std::vector<std::byte> bytes_;
};

std::vector<std::string> notes_on(const GgufFile& file, std::span<const Choice> choices, DType wanted) {
  std::map<std::pair<int64_t, DType>, int> fallbacks;
  bool requantised = false;
  for (size_t i = 0; i < choices.size(); ++i) {
    const NamedTensor& tensor = file.tensors.tensors()[i];
    if (choices[i].fell_back) ++fallbacks[{tensor.view.shape.back(), choices[i].type}];
    requantised = requantised || (traits(tensor.view.dtype).quantised && choices[i].type != tensor.view.dtype);
  }
  std::vector<std::string> notes;
  for (const auto& [key, count] : fallbacks) {
    notes.push_back(std::to_string(count) + (count == 1 ? " tensor has" : " tensors have") + " rows of " +
                    std::to_string(key.first) + ", not whole blocks: " + std::string(dtype_name(key.second)) +
                    " in place of the type asked for (" + std::string(dtype_name(wanted)) + ")");
  }
  if (requantised) notes.push_back("the source is quantised already: its error adds to the new one; start from f16 or bf16 if you can");
  return notes;
}

}  // namespace

Result<QuantiseReport> Engine::quantise(const std::string& in, const std::string& out, DType type,
                                        const std::function<void(uint64_t, uint64_t)>& on_progress) {
  if (!file_type_number(type).has_value() || !can_quantise(type)) {
    return usage_error("cannot write weights as " + std::string(dtype_name(type)));
  }
  RETURN_IF_ERROR(refuse_same_file(in, out));
  ASSIGN_OR_RETURN(const GgufFile file, read_gguf(in));
  const std::span<const NamedTensor> tensors = file.tensors.tensors();
  const bool tied = file.tensors.find("output.weight") == nullptr;
  std::vector<Choice> choices;
  for (const NamedTensor& tensor : tensors) choices.push_back(choose_type(tensor, type, tied));
  ASSIGN_OR_RETURN(GgufHeader header, make_header(file, type, choices));
  QuantiseReport report;
  report.notes = notes_on(file, choices, type);
  report.bytes_before = file.tensors.tensor_bytes();
  for (size_t i = 0; i < header.tensor_count(); ++i) report.bytes_after += header.tensor_bytes(i);

  ASSIGN_OR_RETURN(GgufWriter writer, GgufWriter::create(out, std::move(header)));
  Encoder encoder;
  uint64_t done = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const NamedTensor& tensor = tensors[i];
    RETURN_IF_ERROR(encoder.write(writer, tensor.view, choices[i].type));
    if (tensor.file != nullptr) tensor.file->drop(tensor.view.bytes);
    done += tensor.view.bytes.size();
    if (on_progress) on_progress(done, report.bytes_before);
  }
  RETURN_IF_ERROR(writer.commit());
  return report;
}

}  // namespace quipu
