// Weights: the tensors of a file under the model's names, checked for shape and type as they are taken.
//
//   model.gguf: tensor blk.3.attn_q.weight is [512, 2048], expected [576, 2048] (heads 9 x head_dim 64)
//
// Matrices are packed into the back end's layout one at a time; the mapped pages they came from are dropped at once, so
// that file and packed form are not both in memory.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "attention/attention.h"
#include "formats/read_ahead.h"
#include "formats/tensor_file.h"
#include "model/names.h"
#include "ops/backend.h"

namespace quipu {

class Weights {
 public:
  // norm_weight_offset: added to the elements of every role that ends in "_norm". All arguments must outlive this.
  // on_packed(bytes): called after a tensor was taken, with its bytes in the file; may be empty.
  Weights(const TensorFile& file, NameTable names, double norm_weight_offset, Backend& backend,
          std::function<void(uint64_t bytes)> on_packed = {})
      : file_(file), names_(names), norm_weight_offset_(norm_weight_offset), backend_(backend),
        on_packed_(std::move(on_packed)) {}

  // Reads the file's tensors in advance from now on.
  void read_ahead() { read_ahead_ = std::make_unique<ReadAhead>(file_); }

  bool has(const std::string& name) const { return file_.find(name) != nullptr; }
  bool has_part(const std::string& name, int64_t part) const;
  const NameTable& names() const { return names_; }
  // The tensor [rows, cols] or [length] as it lies in the file. A tensor of more dimensions is a matrix, too, when all but the
  // last of them make up the rows: GGUF has [heads, rank, width].
  Result<const NamedTensor*> tensor(const std::string& name, const Shape& shape, std::string_view meaning) const;
  // part: of a tensor [parts, rows, cols] the matrix of that number; -1: the tensor is the matrix.
  Result<std::unique_ptr<PackedMatrix>> matrix(const std::string& name, int64_t rows, int64_t cols, std::string_view meaning,
                                               Rounding rounding = Rounding::kBits8, int64_t part = -1);
  Result<std::vector<float>> dense(const std::string& name, const Shape& shape, std::string_view meaning);
  // With the norm offset where `role` asks for it; NaN and infinite values give a warning.
  Result<std::vector<float>> vector(const std::string& name, std::string_view role, int64_t length, std::string_view meaning);

  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  Result<const NamedTensor*> stacked(const std::string& name, const Shape& shape, int64_t part, std::string_view meaning) const;
  void taken(uint64_t bytes);

  const TensorFile& file_;
  NameTable names_;
  double norm_weight_offset_;
  Backend& backend_;
  std::function<void(uint64_t)> on_packed_;
  std::unique_ptr<ReadAhead> read_ahead_;
  std::vector<std::string> warnings_;
};

// The tensors of one layer by role: what rooms and blocks are given.
class LayerWeights final : public WeightSource {
 public:
  LayerWeights(Weights& weights, int64_t layer) : weights_(weights), layer_(layer) {}

  bool has(std::string_view role) const override;
  Result<std::unique_ptr<PackedMatrix>> matrix(std::string_view role, int64_t rows, int64_t cols,
                                               std::string_view meaning) override;
  Result<std::vector<float>> vector(std::string_view role, int64_t length, std::string_view meaning) override;
  Result<std::vector<float>> dense(std::string_view role, int64_t rows, int64_t cols, std::string_view meaning) override;

 private:
  Weights& weights_;
  int64_t layer_;
};

}  // namespace quipu
