// The tensors a model needs, found by building its parts against a source that writes down what it is asked for. It
// works for every room because the room itself asks.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"
#include "model/config.h"
#include "model/names.h"
#include "tensor/view.h"

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

}  // namespace quipu
