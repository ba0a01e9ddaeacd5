// TrainableModel: the model of model/model.h as something that learns. Weights and gradients are flat arrays (fp32, or
// double for checks) with a table of named parameters; the names are those of our safetensors files.
//
// One step:  zero_gradients();  forward_backward(batch) once or more (microbatches add up);  clip;  ops.adamw(...) by
// parameter group.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "blocks/training.h"
#include "formats/tensor_file.h"
#include "model/config.h"
#include "ops/training.h"
#include "tensor/buffer.h"

namespace quipu {

struct NamedParameter {
  std::string name;                // in files: "model.layers.0.self_attn.q_proj.weight"
  std::string role;                // "query", "token_embedding"
  int64_t layer = -1;              // -1: of the whole model
  Shape shape;                     // rank 1 or 2
  ParameterGroup group = ParameterGroup::kMatrix;
  Initialisation initial;
  int64_t offset = 0;              // first element in weights() and gradients(), a multiple of 16
  int64_t elements = 0;
};

// Token rows of whole sequences, one after the other.
struct TrainBatch {
  std::span<const int32_t> tokens;      // [rows], each in [0, vocabulary)
  std::span<const int32_t> targets;     // [rows], -1: ignored
  std::span<const float> weights;       // [rows] of the loss, or empty: 1. Put 1 / (tokens of the step) here for a mean.
  std::span<const int64_t> offsets;     // [sequences + 1], 0 .. rows
};

struct TrainOptions {
  double z_loss = 0;
  // Layers with a memory: LayerOptions, the same for all of them but for the states.
  std::span<const float> write_repeats = {};       // [rows] or empty
  double write_penalty = 0;
  double router_loss = 0;
  bool serving = false;
  RoutingCounts* routing = nullptr;                // meant for evaluate(): a recomputed forward counts twice
};

// State passing: the layers' memories at the start (detached: no gradient reaches them) and at the end of a batch. Layer
// after layer, in each [sequences, that layer's state_elements()]; sequences * TrainableModel::state_elements() in all.
// Empty: the rooms' empty memory; not wanted.
template <class Real>
struct StateExchange {
  std::span<const Real> initial;
  std::span<Real> final;
};

struct StepLoss {
  LossSums sums;                   // of the next-token loss and z-loss
  double extra = 0;                // what layers added (write penalty, router loss)
  double total() const { return sums.weighted + sums.z + extra; }
  double mean() const { return sums.weight > 0 ? sums.weighted / sums.weight : 0; }
};

// What a step of this shape holds at once, in bytes, the program itself not counted.
struct TrainMemory {
  int64_t weights = 0, gradients = 0;
  int64_t saved = 0;               // activations kept for backward
  int64_t scratch = 0;             // of the largest layer, and the loss
  int64_t products = 0;            // the back end's own
  int64_t total() const { return weights + gradients + saved + scratch + products; }
};

template <class Real>
class TrainableModel {
 public:
  struct Options {
    bool recompute = false;        // keep only each layer's input; compute the rest again in backward
    int64_t loss_rows = 1024;      // rows of logits alive at once; twice as many where only their rounded gradients are
  };
  // ops must outlive the model. Errors (kUsage, kBadInput) name what of the configuration cannot be trained.
  static Result<std::unique_ptr<TrainableModel>> create(const ModelConfig& config, TrainingOps<Real>& ops,
                                                        const Options& options);

  const ModelConfig& config() const { return config_; }
  TrainingOps<Real>& ops() const { return ops_; }
  std::span<const NamedParameter> parameters() const { return parameters_; }
  const NamedParameter* find(std::string_view name) const;
  int64_t parameter_count() const;                              // without padding
  // Flat, in the order of parameters(), padding (zeros) between them.
  std::span<Real> weights() const { return {weights_.as<Real>(), static_cast<size_t>(flat_elements_)}; }
  // Of no meaning between zero_gradients() and forward_backward().
  std::span<Real> gradients() const { return {gradients_.as<Real>(), static_cast<size_t>(flat_elements_)}; }
  MatrixView<Real> weight(const NamedParameter& parameter) const;
  MatrixView<Real> gradient(const NamedParameter& parameter) const;
  // The next forward_backward() counts from zero: what it writes over is left as it is, the rest zeroed.
  void zero_gradients();

  // Every parameter as its Initialisation says, normal numbers scaled so that kInitialDeviation becomes `deviation`; a pure
  // function of seed and the parameter's name. Narrow models want more than the default: 1 / sqrt(hidden), say.
  void initialise(uint64_t seed, double deviation = kInitialDeviation);
  // All parameters from a file by name, any float or quantised type. Errors name file, tensor, shape.
  Result<void> load(const TensorFile& file);

  // Adds the gradient of weighted loss + z-loss + extra to gradients(). kUsage for a batch that cannot be: a token outside
  // the vocabulary, offsets that do not cover the rows; kFailed without memory.
  Result<StepLoss> forward_backward(const TrainBatch& batch, const TrainOptions& options = {},
                                    const StateExchange<Real>& states = {});
  // The same loss without gradients, keeping nothing; rows: losses and predictions of every row, spans may be empty.
  Result<StepLoss> evaluate(const TrainBatch& batch, const RowLosses<Real>& rows, const TrainOptions& options = {},
                            const StateExchange<Real>& states = {});
  // logits [wanted, vocabulary] of the rows asked for.
  Result<void> logits(MatrixView<Real> out, const TrainBatch& batch, std::span<const int64_t> wanted);

  // Elements of memory one sequence carries from stretch to stretch, all layers.
  int64_t state_elements() const;

  // What a batch with these offsets will take; exact but for the allocator's rounding.
  TrainMemory memory(std::span<const int64_t> offsets) const;
  // Operations of one forward and backward (three forwards; recomputation is not counted: it is overhead).
  double step_flops(std::span<const int64_t> offsets) const;

 private:
  struct Layer {
    std::unique_ptr<TrainableBlock<Real>> block;
    size_t first_parameter = 0;
    std::vector<MatrixView<const Real>> weights;
    std::vector<MatrixView<Real>> gradients;
  };
  struct Pass;                     // one batch on its way: views of the workspace (training.cc)

  TrainableModel(const ModelConfig& config, TrainingOps<Real>& ops, const Options& options)
      : config_(config), ops_(ops), options_(options) {}
  Result<void> build();
  void declare(int64_t layer, const ParameterSpec& spec);
  Result<void> allocate();
  Result<void> check(const TrainBatch& batch, const TrainOptions& options, const StateExchange<Real>& states) const;
  Result<Pass> begin(const TrainBatch& batch, bool training);
  LayerOptions<Real> layer_options(const Pass& pass, size_t layer) const;
  double forward_layer(const Pass& pass, size_t layer);
  LossSums loss(const Pass& pass, const RowLosses<Real>& rows, bool backward);
  OutputLossShape loss_shape() const { return {config_.hidden, config_.vocabulary, config_.logit_scale, config_.logit_softcap}; }
  bool fuses_loss() const { return ops_.fuses_output_loss(loss_shape()); }
  int64_t loss_chunk() const { return fuses_loss() ? 2 * options_.loss_rows : options_.loss_rows; }   // rows

  ModelConfig config_;
  TrainingOps<Real>& ops_;
  Options options_;
  std::vector<Layer> layers_;
  std::vector<NamedParameter> parameters_;
  // Whether forward_backward() can write its gradient over: of parameters_[i].
  std::vector<bool> written_;
  bool fresh_ = false;             // gradients: to be written over, where they can
  int64_t flat_elements_ = 0;
  Buffer weights_, gradients_;
  Buffer workspace_;               // saved regions and scratch of the largest step so far
};

extern template class TrainableModel<float>;
extern template class TrainableModel<double>;

}  // namespace quipu
