// The tensors a model needs, found by building its parts against a source that writes down what it is asked for. It
// works for every room because the room itself asks.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"
#include "formats/tensor_file.h"
#include "model/config.h"
#include "model/names.h"

namespace quipu {

struct ModelTensor {
  std::string name;    // in the file
  std::string role;    // "query", "token_embedding"
  int64_t layer = -1;  // -1: of the whole model
  Shape shape;
};

// Of one layer, in the order it takes them. config.layers[layer].required_roles are answered "yes, there is".
// optional_roles (may be null): gets the roles the layer would use if there were a tensor.
// Errors: what the layer refuses; a tensor of more than 2^40 elements.
Result<std::vector<ModelTensor>> layer_tensors(const ModelConfig& config, int64_t layer, const NameTable& names,
                                               std::set<std::string, std::less<>>* optional_roles = nullptr);

// Of the whole model: embedding, layers, final norm, output.
Result<std::vector<ModelTensor>> model_tensors(const ModelConfig& config, NameStyle style);

// Stands in for the weights of a model that has none: every tensor that model_tensors() lists, all zeros and all in the
// same read-only pages, so that it takes no memory. For plans and cost tables.
class BlankWeights {
 public:
  static Result<std::shared_ptr<const BlankWeights>> create(const ModelConfig& config, NameStyle style, DType dtype);
  ~BlankWeights();
  BlankWeights(const BlankWeights&) = delete;
  BlankWeights& operator=(const BlankWeights&) = delete;
  const TensorFile& file() const { return file_; }

 private:
  BlankWeights(TensorFile file, void* pages, size_t bytes) : file_(std::move(file)), pages_(pages), bytes_(bytes) {}
  TensorFile file_;
  void* pages_;
  size_t bytes_;
};

}  // namespace quipu
