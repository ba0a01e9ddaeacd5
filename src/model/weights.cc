#include "model/weights.h"

#include <algorithm>
#include <cmath>

#include "base/byte_reader.h"
#include "tensor/quant_blocks.h"

namespace quipu {
namespace {

bool is_weight_dtype(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16: return true;
    default: return traits(dtype).quantised;
  }
}

// [heads, rank, width] is [heads * rank, width].
bool flattens_to(const Shape& shape, const Shape& matrix) {
  if (shape.size() < 3 || matrix.size() != 2) return false;
  return shape.back() == matrix.back() && element_count(shape) == element_count(matrix);
}

}  // namespace

void Weights::taken(uint64_t bytes) {
  if (read_ahead_ != nullptr) read_ahead_->took(bytes);
  if (on_packed_) on_packed_(bytes);
}

bool Weights::has_part(const std::string& name, int64_t part) const {
  const NamedTensor* found = file_.find(name);
  return found != nullptr && !found->view.shape.empty() && part < found->view.shape.front();
}

Result<const NamedTensor*> Weights::stacked(const std::string& name, const Shape& shape, int64_t part,
                                            std::string_view meaning) const {
  const NamedTensor* found = file_.find(name);
  Shape all = {part + 1};   // for messages: as many as are asked for
  if (found != nullptr && found->view.shape.size() == 3) all.front() = std::max(all.front(), found->view.shape.front());
  all.insert(all.end(), shape.begin(), shape.end());
  return tensor(name, all, meaning);
}

Result<const NamedTensor*> Weights::tensor(const std::string& name, const Shape& shape, std::string_view meaning) const {
  const std::string where = file_.display_name() + ": tensor " + printable(name);
  const NamedTensor* found = file_.find(name);
  const std::string explained = meaning.empty() ? std::string() : " (" + std::string(meaning) + ")";
  if (found == nullptr) return bad_input(where + " is missing, expected " + shape_text(shape) + explained);
  if (found->view.shape != shape && !flattens_to(found->view.shape, shape)) {
    return bad_input(where + " is " + shape_text(found->view.shape) + ", expected " + shape_text(shape) + explained);
  }
  if (!is_weight_dtype(found->view.dtype)) {
    return bad_input(where + " has type " + std::string(dtype_name(found->view.dtype)) +
                     ", expected f32, f16, bf16 or a quantised type");
  }
  return found;
}

Result<std::unique_ptr<PackedMatrix>> Weights::matrix(const std::string& name, int64_t rows, int64_t cols,
                                                      std::string_view meaning, Rounding rounding, int64_t part) {
  const Shape shape{rows, cols};
  ASSIGN_OR_RETURN(const NamedTensor* found, part < 0 ? tensor(name, shape, meaning) : stacked(name, shape, part, meaning));
  std::span<const std::byte> bytes = found->view.bytes;
  if (part >= 0) {
    const auto size = static_cast<size_t>(row_bytes(found->view.dtype, cols) * rows);
    bytes = bytes.subspan(static_cast<size_t>(part) * size, size);
  }
  auto packed = backend_.pack({found->view.dtype, rows, cols, bytes, rounding});
  if (!packed.ok()) {
    return Error{packed.error().error_class, file_.display_name() + ": tensor " + printable(name) + ": " + packed.error().message};
  }
  if (found->file != nullptr) found->file->drop(bytes);
  taken(bytes.size());
  return packed;
}

Result<std::vector<float>> Weights::dense(const std::string& name, const Shape& shape, std::string_view meaning) {
  ASSIGN_OR_RETURN(const NamedTensor* found, tensor(name, shape, meaning));
  const int64_t cols = shape.back();
  const int64_t rows = element_count(shape) / cols;
  const int64_t bytes_per_row = row_bytes(found->view.dtype, cols);
  std::vector<float> values(static_cast<size_t>(rows * cols));
  for (int64_t row = 0; row < rows; ++row) {
    dequantise_row(values.data() + row * cols, found->view.dtype, found->view.bytes.data() + row * bytes_per_row, cols);
  }
  taken(found->view.bytes.size());
  return values;
}

Result<std::vector<float>> Weights::vector(const std::string& name, std::string_view role, int64_t length,
                                           std::string_view meaning) {
  ASSIGN_OR_RETURN(std::vector<float> values, dense(name, {length}, meaning));
  int64_t not_finite = 0;
  for (const float value : values) not_finite += !std::isfinite(value);
  if (not_finite > 0) {
    warnings_.push_back(file_.display_name() + ": tensor " + printable(name) + " holds " + std::to_string(not_finite) +
                        " NaN or infinite values of " + std::to_string(length));
  }
  if (norm_weight_offset_ != 0 && role.ends_with("_norm")) {
    for (float& value : values) value = static_cast<float>(value + norm_weight_offset_);
  }
  return values;
}

bool LayerWeights::has(std::string_view role) const {
  const std::string name = weights_.names().of_layer(layer_, role);
  const int64_t part = weights_.names().part_of(role);
  return part < 0 ? weights_.has(name) : weights_.has_part(name, part);
}

Result<std::unique_ptr<PackedMatrix>> LayerWeights::matrix(std::string_view role, int64_t rows, int64_t cols,
                                                           std::string_view meaning) {
  // Values are a small part of a layer, but every later token reads their errors (of all matrices of a layer, finer
  // rounding pays most here: a third of the divergence for 2 % of the work).
  const Rounding rounding = role == "value" ? Rounding::kBits16 : Rounding::kBits8;
  const NameTable& names = weights_.names();
  return weights_.matrix(names.of_layer(layer_, role), rows, cols, meaning, rounding, names.part_of(role));
}

Result<std::vector<float>> LayerWeights::vector(std::string_view role, int64_t length, std::string_view meaning) {
  return weights_.vector(weights_.names().of_layer(layer_, role), role, length, meaning);
}

Result<std::vector<float>> LayerWeights::dense(std::string_view role, int64_t rows, int64_t cols, std::string_view meaning) {
  return weights_.dense(weights_.names().of_layer(layer_, role), {rows, cols}, meaning);
}

}  // namespace quipu
