// GoldenLayer: one attention layer with its weights, an input and what it must give, from a golden file: safetensors whose
// metadata names a room and its hyperparameters and whose tensors carry the published modules' names.
//
// This is the one place where such names meet ours. Metadata keys it does not know are refused: ignoring a setting would
// turn a difference of settings into a difference of numbers.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "attention/attention.h"
#include "base/result.h"
#include "formats/tensor_file.h"

namespace quipu {

// What a state must hold at the end of the input: "final_memory", "final_norm".
struct GoldenTensor {
  std::string name;
  Shape shape;
  std::vector<double> values;
};

struct GoldenLayer {
  explicit GoldenLayer(TensorFile tensors) : file(std::move(tensors)) {}

  TensorFile file;
  std::string room;
  std::string source;                    // who computed the output; "" when the file does not say
  int64_t hidden = 0;
  int64_t tokens = 0;
  HyperParameters parameters;
  std::vector<std::string> forms;        // values of the setting "form" to try; one empty text where there is none
  int64_t period = 1;                    // tokens of a stride or segment: where chunks get interesting
  std::vector<float> input;              // [tokens, hidden]
  std::vector<double> output;            // [tokens, hidden]
  std::vector<GoldenTensor> final_state;
  std::vector<std::string> notes;        // what a person should know: one line each
};

// kBadInput: no such file, an unknown room, a metadata key that is unknown, missing or out of range, input or output
// missing or of the wrong shape, numbers that are not finite. Weights are looked at when the room asks for them.
Result<GoldenLayer> read_golden_layer(const std::string& path);

// The weights of a golden layer under the names rooms use, packed as F32.
class GoldenWeights final : public WeightSource {
 public:
  // Both must outlive it.
  GoldenWeights(const GoldenLayer& layer, Backend& backend) : layer_(layer), backend_(backend) {}

  bool has(std::string_view role) const override;
  Result<std::unique_ptr<PackedMatrix>> matrix(std::string_view role, int64_t rows, int64_t cols,
                                               std::string_view meaning) override;
  Result<std::vector<float>> vector(std::string_view role, int64_t length, std::string_view meaning) override;
  Result<std::vector<float>> dense(std::string_view role, int64_t rows, int64_t cols,
                                   std::string_view meaning) override;
  // Tensors of the file that nobody asked for and that are neither input nor result.
  std::vector<std::string> unused() const;

 private:
  Result<const NamedTensor*> find(std::string_view role, const std::string& expected);
  const GoldenLayer& layer_;
  Backend& backend_;
  std::set<std::string, std::less<>> used_;
};

}  // namespace quipu
