#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <charconv>
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

// Which layers take another type than the recipe's own. Shares are of the number of layers, as llama.cpp counts them.
enum class Layers : uint8_t { kNone, kAll, kFirst2, kFirst4, kFirstSixteenth, kFirstEighth, kSpread };

struct Exception {
  Layers layers = Layers::kNone;
  DType type = DType::kF32;
};

// A named mix of types, and llama.cpp's number for it (general.file_type). The first exception that holds counts.
struct Recipe {
  std::string_view name;
  uint32_t file_type;
  DType type;
  Exception value[2] = {};              // attn_v
  Exception down[2] = {};               // ffn_down
  Exception attention_output = {};
};

// Mixes as llama-quantize makes them without an importance matrix: values and the way back from the feed-forward part
// suffer most from few bits.
constexpr Recipe kRecipes[] = {
    {"f32", 0, DType::kF32},
    {"f16", 1, DType::kF16},
    {"bf16", 32, DType::kBF16},
    {"q8_0", 7, DType::kQ8_0},
    {"q5_0", 8, DType::kQ5_0},
    {"q5_1", 9, DType::kQ5_1},
    {"q4_0", 2, DType::kQ4_0},
    {"q4_1", 3, DType::kQ4_1},
    {"iq4_nl", 25, DType::kIQ4_NL, {}, {{Layers::kFirstEighth, DType::kQ5_K}}},
    {"q2_k", 10, DType::kQ2_K, {{Layers::kAll, DType::kQ3_K}}, {{Layers::kAll, DType::kQ3_K}}, {Layers::kAll, DType::kQ3_K}},
    {"q3_k_s", 11, DType::kQ3_K},
    {"q3_k_m", 12, DType::kQ3_K, {{Layers::kFirst2, DType::kQ5_K}, {Layers::kAll, DType::kQ4_K}},
     {{Layers::kFirstSixteenth, DType::kQ5_K}, {Layers::kAll, DType::kQ4_K}}, {Layers::kAll, DType::kQ4_K}},
    {"q3_k_l", 13, DType::kQ3_K, {{Layers::kAll, DType::kQ5_K}}, {{Layers::kAll, DType::kQ5_K}}, {Layers::kAll, DType::kQ5_K}},
    {"q4_k_s", 14, DType::kQ4_K, {{Layers::kFirst4, DType::kQ5_K}}, {{Layers::kFirstEighth, DType::kQ5_K}}},
    {"q4_k_m", 15, DType::kQ4_K, {{Layers::kSpread, DType::kQ6_K}}, {{Layers::kSpread, DType::kQ6_K}}},
    {"q5_k_s", 16, DType::kQ5_K},
    {"q5_k_m", 17, DType::kQ5_K, {{Layers::kSpread, DType::kQ6_K}}, {{Layers::kSpread, DType::kQ6_K}}},
    {"q6_k", 18, DType::kQ6_K},
};

bool among(Layers layers, int64_t layer, int64_t count) {
  switch (layers) {
    case Layers::kNone: return false;
    case Layers::kAll: return true;
    case Layers::kFirst2: return layer < 2;
    case Layers::kFirst4: return layer < 4;
    case Layers::kFirstSixteenth: return layer < count / 16;
    case Layers::kFirstEighth: return layer < count / 8;
    case Layers::kSpread: return layer < count / 8 || layer >= 7 * count / 8 || (layer - count / 8) % 3 == 2;
  }
  return false;
}

Result<Recipe> find_recipe(std::string_view name, bool pure) {
  std::string wanted(name);
  std::ranges::transform(wanted, wanted.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (wanted == "q3_k" || wanted == "q4_k" || wanted == "q5_k") wanted += "_m";   // llama-quantize's aliases
  for (const Recipe& recipe : kRecipes) {
    if (recipe.name != wanted) continue;
    return pure ? Recipe{recipe.name, recipe.file_type, recipe.type} : recipe;
  }
  return usage_error("cannot write weights as '" + printable(name) + "'; there are " + Engine::quantise_types());
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

// The number in "blk.12.attn_v.weight", or -1.
int64_t layer_of(std::string_view name) {
  if (!name.starts_with("blk.")) return -1;
  int64_t layer = -1;
  std::from_chars(name.data() + 4, name.data() + name.size(), layer);
  return layer;
}

class Chooser {
 public:
  // tied: the file has no output.weight. layers: how many the file has.
  Chooser(const Recipe& recipe, bool tied, int64_t layers) : recipe_(recipe), tied_(tied), layers_(layers) {}

  Choice choose(const NamedTensor& tensor) const {
    const DType own = tensor.view.dtype;
    const bool decodable = is_float(own) || traits(own).quantised;
    const bool matrix = tensor.view.shape.size() >= 2 && tensor.name.ends_with(".weight") &&
                        tensor.name.find("norm") == std::string::npos &&
                        tensor.name.find("ffn_gate_inp") == std::string::npos;
    if (!matrix || !decodable) return {own};
    const DType type = wanted(tensor.name);
    const DType possible = fallback_type(type, tensor.view.shape.back());
    return {possible, possible != type};
  }

 private:
  DType wanted(const std::string& name) const {
    const auto part = [&](std::string_view text) { return name.find(text) != std::string::npos; };
    const bool output = name == "output.weight" || (tied_ && name == "token_embd.weight");
    if (output) return at_least(DType::kQ6_K);
    // Queries and contexts pass through these at full width: 4 bits here flip tokens (mlx-lm#1509, sglang#31604).
    if (part("attn_k_b.") || part("attn_v_b.") || part("attn_kv_b.")) return at_least(DType::kQ8_0);
    if (part("attn_v.")) return first_of(recipe_.value, name);
    if (part("ffn_down")) return first_of(recipe_.down, name);
    if (part("attn_output.")) return first_of({&recipe_.attention_output, 1}, name);
    return recipe_.type;
  }
  DType at_least(DType type) const {
    return bits_per_element(recipe_.type) < bits_per_element(type) ? type : recipe_.type;
  }
  DType first_of(std::span<const Exception> exceptions, const std::string& name) const {
    for (const Exception& exception : exceptions) {
      if (among(exception.layers, layer_of(name), layers_)) return exception.type;
    }
    return recipe_.type;
  }

  const Recipe& recipe_;
  bool tied_;
  int64_t layers_;
};

Result<void> refuse_same_file(const std::string& in, const std::string& out) {
  struct stat a{}, b{};
  if (stat(in.c_str(), &a) != 0 || stat(out.c_str(), &b) != 0) return {};
  if (a.st_dev != b.st_dev || a.st_ino != b.st_ino) return {};
  return usage_error(out + ": is the file to be read; choose another name for the result");
}

Result<GgufHeader> make_header(const GgufFile& file, uint32_t file_type, std::span<const Choice> choices) {
  GgufHeader header;
  for (const GgufMetadata::Entry& entry : file.metadata.entries()) {
    if (entry.key.starts_with("split.")) continue;   // the result is one file
    RETURN_IF_ERROR(header.set(entry.key, entry.value));
  }
  RETURN_IF_ERROR(header.set_u32("general.file_type", file_type));
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

std::vector<std::string> notes_on(const GgufFile& file, std::span<const Choice> choices, std::string_view wanted) {
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
                    " in place of the type asked for (" + std::string(wanted) + ")");
  }
  if (requantised) notes.push_back("the source is quantised already: its error adds to the new one; start from f16 or bf16 if you can");
  return notes;
}

}  // namespace

std::string Engine::quantise_types() {
  std::string names;
  for (const Recipe& recipe : kRecipes) names += (names.empty() ? "" : ", ") + std::string(recipe.name);
  return names;
}

Result<QuantiseReport> Engine::quantise(const std::string& in, const std::string& out, const QuantiseOptions& options) {
  ASSIGN_OR_RETURN(const Recipe recipe, find_recipe(options.type, options.pure));
  RETURN_IF_ERROR(refuse_same_file(in, out));
  ASSIGN_OR_RETURN(const GgufFile file, read_gguf(in));
  const std::span<const NamedTensor> tensors = file.tensors.tensors();
  int64_t layers = 0;
  for (const NamedTensor& tensor : tensors) layers = std::max(layers, layer_of(tensor.name) + 1);
  const Chooser chooser(recipe, file.tensors.find("output.weight") == nullptr, layers);
  std::vector<Choice> choices;
  for (const NamedTensor& tensor : tensors) choices.push_back(chooser.choose(tensor));
  ASSIGN_OR_RETURN(GgufHeader header, make_header(file, recipe.file_type, choices));
  QuantiseReport report;
  report.notes = notes_on(file, choices, recipe.name);
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
    if (options.on_progress) options.on_progress(done, report.bytes_before);
  }
  RETURN_IF_ERROR(writer.commit());
  return report;
}

}  // namespace quipu
