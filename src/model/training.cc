#include "model/training.h"

#include <algorithm>
#include <cmath>

#include "base/random.h"
#include "base/byte_reader.h"
#include "model/names.h"
#include "model/training_layer.h"
#include "tensor/quant_blocks.h"

namespace quipu {
namespace {

constexpr int64_t kAlignment = 16;   // elements: a cache line of floats

size_t index_of(int64_t i) { return static_cast<size_t>(i); }

// Fills values as the specification says; random numbers depend on seed and name alone.
template <class Real>
void fill(std::span<Real> values, const NamedParameter& parameter, uint64_t seed, int64_t layers, double scale) {
  const Initialisation& initial = parameter.initial;
  uint64_t stream = 0;
  for (const char c : parameter.name) stream = mix64(stream ^ static_cast<uint64_t>(c));
  RandomStream random(seed, stream);
  const double deviation = scale * (initial.kind == Initialisation::Kind::kResidual
                                        ? initial.a / std::sqrt(2.0 * static_cast<double>(layers)) : initial.a);
  for (size_t i = 0; i < values.size(); ++i) {
    double value = 0;
    switch (initial.kind) {
      case Initialisation::Kind::kZero: break;
      case Initialisation::Kind::kConstant: value = initial.a; break;
      case Initialisation::Kind::kNormal:
      case Initialisation::Kind::kResidual: value = deviation * random.normal(); break;
      case Initialisation::Kind::kUniform: value = initial.a * (2.0 * random.uniform() - 1.0); break;
      case Initialisation::Kind::kSpread:
        value = values.size() == 1 ? 0.5 * (initial.a + initial.b)
                                   : initial.a + (initial.b - initial.a) * static_cast<double>(i) / static_cast<double>(values.size() - 1);
        break;
    }
    values[i] = static_cast<Real>(value);
  }
}

template <class Real>
MatrixView<Real> view_of(Real* flat, const NamedParameter& p) {
  const int64_t rows = p.shape.size() == 2 ? p.shape[0] : 1;
  return {flat + p.offset, rows, p.elements / rows};
}

}  // namespace

// Views of the workspace for one batch. Training keeps every layer's input; evaluation two, in turn.
template <class Real>
struct TrainableModel<Real>::Pass {
  Pass(Carver& carver, const TrainableModel& model, const PackedBatch& shape, bool training) {
    const int64_t count = shape.rows(), hidden = model.config_.hidden;
    const int64_t layers = static_cast<int64_t>(model.layers_.size());
    batch.offsets = shape.offsets;
    position_storage = carver.span<int64_t>(count);
    counted = carver.span<int32_t>(count);
    for (int64_t i = 0; i < (training ? layers + 1 : 2); ++i) inputs.push_back(carver.matrix<Real>(count, hidden));
    int64_t scratch_bytes = 0, largest_saved = 0;
    for (const Layer& layer : model.layers_) {
      scratch_bytes = std::max(scratch_bytes, layer.block->scratch_bytes(shape));
      largest_saved = std::max(largest_saved, layer.block->saved_bytes(shape));
    }
    const bool keep = training && !model.options_.recompute;
    for (int64_t i = 0; i < (keep ? layers : 1); ++i) {
      saved.push_back(carver.part(keep ? model.layers_[index_of(i)].block->saved_bytes(shape) : largest_saved));
    }
    if (training) gradient = carver.matrix<Real>(count, hidden);
    saved_bytes = carver.bytes();
    // The loss and the layers are never at work at the same time.
    const size_t mark = carver.mark();
    const int64_t chunk = std::min(count, model.loss_chunk());
    if (model.fuses_loss()) {
      loss_scratch = carver.part(model.ops_.output_loss_bytes(model.loss_shape(), chunk, training));
    } else {
      logits = carver.matrix<Real>(chunk, model.config_.vocabulary);
    }
    final_input = carver.matrix<Real>(chunk, hidden);
    final_normed = carver.matrix<Real>(chunk, hidden);
    dfinal = carver.matrix<Real>(chunk, hidden);
    final_scale = carver.span<Real>(chunk);
    row_losses = carver.span<Real>(chunk);
    row_predictions = carver.span<int32_t>(chunk);
    row_weights = carver.span<Real>(chunk);
    row_targets = carver.span<int32_t>(chunk);
    carver.rewind(mark);
    scratch = carver.part(scratch_bytes);
    total_bytes = carver.bytes();
  }
  MatrixView<Real> input(size_t layer) const { return inputs[inputs.size() == 2 ? layer % 2 : layer]; }
  std::span<std::byte> saved_of(size_t layer) const { return saved[saved.size() == 1 ? 0 : layer]; }

  PackedBatch batch;
  std::span<int64_t> position_storage;
  std::span<int32_t> counted;                     // rows of the loss; the first counted_rows are used
  int64_t counted_rows = 0;
  std::vector<MatrixView<Real>> inputs;           // of each layer, and the last one's output
  std::vector<std::span<std::byte>> saved;
  MatrixView<Real> gradient;
  MatrixView<Real> logits, final_input, final_normed, dfinal;
  std::span<Real> final_scale, row_losses, row_weights;
  std::span<int32_t> row_predictions, row_targets;
  std::span<std::byte> loss_scratch, scratch;
  int64_t saved_bytes = 0, total_bytes = 0;
  const TrainBatch* rows = nullptr;
  const TrainOptions* options = nullptr;
  StateExchange<Real> states;
};

template <class Real>
Result<std::unique_ptr<TrainableModel<Real>>> TrainableModel<Real>::create(const ModelConfig& config, TrainingOps<Real>& ops,
                                                                           const Options& options) {
  std::unique_ptr<TrainableModel> model(new TrainableModel(config, ops, options));
  RETURN_IF_ERROR(model->build());
  RETURN_IF_ERROR(model->allocate());
  return model;
}

template <class Real>
void TrainableModel<Real>::declare(int64_t layer, const ParameterSpec& spec) {
  const NameTable names(NameStyle::kHuggingFace, config_.post_norms);
  NamedParameter p;
  p.name = layer < 0 ? names.of_model(spec.role) : names.of_layer(layer, spec.role);
  p.role = spec.role;
  p.layer = layer;
  p.shape = spec.shape;
  p.group = spec.group;
  p.initial = spec.initial;
  p.offset = flat_elements_;
  p.elements = element_count(spec.shape);
  flat_elements_ += (p.elements + kAlignment - 1) / kAlignment * kAlignment;
  parameters_.push_back(std::move(p));
}

template <class Real>
Result<void> TrainableModel<Real>::build() {
  const ModelConfig& c = config_;
  RETURN_IF_ERROR(validate_config(c));
  if (c.post_norms) return usage_error(c.origin + ": a model with norms after attention and feed-forward cannot be trained yet");
  if (c.norm_weight_offset != 0) return usage_error(c.origin + ": a model whose norm weights have an offset cannot be trained yet");
  if (options_.loss_rows < 1) return usage_error("rows of logits alive at once: " + std::to_string(options_.loss_rows) + ", expected at least 1");
  const Initialisation normal = Initialisation::normal(kInitialDeviation);
  declare(-1, {"token_embedding", {c.vocabulary, c.hidden}, normal, ParameterGroup::kEmbedding});
  for (size_t i = 0; i < c.layers.size(); ++i) {
    Layer layer;
    ASSIGN_OR_RETURN(layer.block, make_trainable_layer<Real>(c, static_cast<int64_t>(i), ops_));
    layer.first_parameter = parameters_.size();
    for (const ParameterSpec& spec : layer.block->parameters()) declare(static_cast<int64_t>(i), spec);
    layers_.push_back(std::move(layer));
  }
  declare(-1, {"final_norm", {c.hidden}, Initialisation::constant(1), ParameterGroup::kNorm});
  if (!c.tied_output) declare(-1, {"logits", {c.vocabulary, c.hidden}, normal, ParameterGroup::kEmbedding});
  written_.assign(parameters_.size(), false);
  for (const Layer& layer : layers_) {
    for (size_t i = 0; i < layer.block->parameters().size(); ++i) written_[layer.first_parameter + i] = layer.block->writes_gradient(i);
  }
  written_[c.tied_output ? 0 : parameters_.size() - 1] = fuses_loss();
  return {};
}

template <class Real>
Result<void> TrainableModel<Real>::allocate() {
  const size_t bytes = index_of(flat_elements_) * sizeof(Real);
  ASSIGN_OR_RETURN(weights_, Buffer::allocate(bytes));
  ASSIGN_OR_RETURN(gradients_, Buffer::allocate(bytes));
  for (Layer& layer : layers_) {
    for (size_t i = 0; i < layer.block->parameters().size(); ++i) {
      const NamedParameter& p = parameters_[layer.first_parameter + i];
      layer.weights.push_back(weight(p));
      layer.gradients.push_back(gradient(p));
    }
  }
  return {};
}

template <class Real>
const NamedParameter* TrainableModel<Real>::find(std::string_view name) const {
  for (const NamedParameter& p : parameters_) {
    if (p.name == name) return &p;
  }
  return nullptr;
}

template <class Real>
int64_t TrainableModel<Real>::parameter_count() const {
  int64_t count = 0;
  for (const NamedParameter& p : parameters_) count += p.elements;
  return count;
}

template <class Real>
MatrixView<Real> TrainableModel<Real>::weight(const NamedParameter& p) const { return view_of(weights_.template as<Real>(), p); }
template <class Real>
MatrixView<Real> TrainableModel<Real>::gradient(const NamedParameter& p) const { return view_of(gradients_.template as<Real>(), p); }

template <class Real>
void TrainableModel<Real>::zero_gradients() {
  constexpr int64_t kPart = 1 << 18;
  fresh_ = true;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (written_[i]) continue;
    Real* first = gradient(parameters_[i]).data;
    const int64_t count = parameters_[i].elements;
    ops_.pool().parallel_for((count + kPart - 1) / kPart, [&](int64_t part) {
      std::fill_n(first + part * kPart, std::min(kPart, count - part * kPart), Real{0});
    });
  }
}

template <class Real>
void TrainableModel<Real>::initialise(uint64_t seed, double deviation) {
  const double scale = deviation / kInitialDeviation;
  for (const NamedParameter& p : parameters_) {
    fill(weights().subspan(index_of(p.offset), index_of(p.elements)), p, seed, static_cast<int64_t>(layers_.size()), scale);
  }
}

template <class Real>
Result<void> TrainableModel<Real>::load(const TensorFile& file) {
  std::vector<float> row;
  for (const NamedParameter& p : parameters_) {
    const NamedTensor* tensor = file.find(p.name);
    const std::string where = file.display_name() + ": tensor " + printable(p.name);
    if (tensor == nullptr) return bad_input(where + " is missing, expected " + shape_text(p.shape));
    if (tensor->view.shape != p.shape) {
      return bad_input(where + " is " + shape_text(tensor->view.shape) + ", expected " + shape_text(p.shape));
    }
    const DType dtype = tensor->view.dtype;
    if (dtype != DType::kF32 && dtype != DType::kF16 && dtype != DType::kBF16 && !traits(dtype).quantised) {
      return bad_input(where + " has type " + std::string(dtype_name(dtype)) + ", expected f32, f16, bf16 or a quantised type");
    }
    const MatrixView<Real> target = weight(p);
    row.resize(index_of(target.cols));
    for (int64_t r = 0; r < target.rows; ++r) {
      dequantise_row(row.data(), dtype, tensor->view.bytes.data() + r * row_bytes(dtype, target.cols), target.cols);
      std::ranges::copy(row, target.row(r));
    }
  }
  return {};
}

template <class Real>
int64_t TrainableModel<Real>::state_elements() const {
  int64_t elements = 0;
  for (const Layer& layer : layers_) elements += layer.block->state_elements();
  return elements;
}

template <class Real>
Result<void> TrainableModel<Real>::check(const TrainBatch& batch, const TrainOptions& options, const StateExchange<Real>& states) const {
  const std::string rows = std::to_string(batch.tokens.size());
  const auto& offsets = batch.offsets;
  if (batch.tokens.empty() || offsets.size() < 2 || offsets.front() != 0 || offsets.back() != static_cast<int64_t>(batch.tokens.size()) ||
      !std::ranges::is_sorted(offsets)) {
    return usage_error("batch of " + rows + " tokens: the offsets of its sequences must rise from 0 to " + rows);
  }
  if (batch.targets.size() != batch.tokens.size() || (!batch.weights.empty() && batch.weights.size() != batch.tokens.size()) ||
      (!options.write_repeats.empty() && options.write_repeats.size() != batch.tokens.size())) {
    return usage_error("batch of " + rows + " tokens has " + std::to_string(batch.targets.size()) + " targets, " +
                       std::to_string(batch.weights.size()) + " weights and " + std::to_string(options.write_repeats.size()) + " write repeats");
  }
  for (size_t i = 0; i < batch.tokens.size(); ++i) {
    const bool token_fits = batch.tokens[i] >= 0 && batch.tokens[i] < config_.vocabulary;
    const bool target_fits = batch.targets[i] >= -1 && batch.targets[i] < config_.vocabulary;
    if (token_fits && target_fits) continue;
    return usage_error("batch row " + std::to_string(i) + ": " + (token_fits ? "target " : "token ") +
                       std::to_string(token_fits ? batch.targets[i] : batch.tokens[i]) + " is outside the vocabulary of " +
                       std::to_string(config_.vocabulary));
  }
  const size_t elements = index_of(state_elements()) * (offsets.size() - 1);
  for (const size_t given : {states.initial.size(), states.final.size()}) {
    if (given != 0 && given != elements) {
      return usage_error("batch with " + std::to_string(given) + " elements of memory, expected " + std::to_string(elements));
    }
  }
  return {};
}

template <class Real>
Result<typename TrainableModel<Real>::Pass> TrainableModel<Real>::begin(const TrainBatch& batch, bool training) {
  const PackedBatch shape{batch.offsets, {}};
  Carver measure;
  const Pass plan(measure, *this, shape, training);
  if (static_cast<int64_t>(workspace_.size()) < plan.total_bytes) {
    workspace_ = Buffer();
    ASSIGN_OR_RETURN(workspace_, Buffer::allocate(index_of(plan.total_bytes)));
  }
  Carver carver(std::span(workspace_.data(), workspace_.size()));
  Pass pass(carver, *this, shape, training);
  pass.rows = &batch;
  for (int64_t sequence = 0; sequence < shape.sequences(); ++sequence) {
    const int64_t first = batch.offsets[index_of(sequence)];
    for (int64_t row = first; row < batch.offsets[index_of(sequence + 1)]; ++row) pass.position_storage[index_of(row)] = row - first;
  }
  pass.batch.positions = pass.position_storage;
  for (size_t row = 0; row < batch.targets.size(); ++row) {
    if (batch.targets[row] >= 0) pass.counted[index_of(pass.counted_rows++)] = static_cast<int32_t>(row);
  }
  ops_.embed(pass.input(0), batch.tokens, weight(parameters_.front()), static_cast<Real>(config_.embedding_scale));
  return pass;
}

template <class Real>
LayerOptions<Real> TrainableModel<Real>::layer_options(const Pass& pass, size_t layer) const {
  LayerOptions<Real> options;
  options.write_repeats = pass.options->write_repeats;
  options.write_penalty = pass.options->write_penalty;
  options.router_loss = pass.options->router_loss;
  options.serving = pass.options->serving;
  options.routing = pass.options->routing;
  int64_t before = 0;
  for (size_t i = 0; i < layer; ++i) before += layers_[i].block->state_elements();
  const size_t first = index_of(before * pass.batch.sequences());
  const size_t count = index_of(layers_[layer].block->state_elements() * pass.batch.sequences());
  if (!pass.states.initial.empty()) options.initial_state = pass.states.initial.subspan(first, count);
  if (!pass.states.final.empty()) options.final_state = pass.states.final.subspan(first, count);
  return options;
}

template <class Real>
double TrainableModel<Real>::forward_layer(const Pass& pass, size_t index) {
  const Layer& layer = layers_[index];
  const LayerOptions<Real> options = layer_options(pass, index);
  return layer.block->forward(pass.input(index + 1), pass.input(index),
                              {ops_, pass.batch, options, layer.weights, {}, pass.saved_of(index), pass.scratch});
}

// The loss of the rows that count, in chunks; with `backward`, also its gradient into pass.gradient and the output's weights.
template <class Real>
LossSums TrainableModel<Real>::loss(const Pass& pass, const RowLosses<Real>& rows, bool backward) {
  const NamedParameter& embedding = parameters_.front();
  const NamedParameter& output = config_.tied_output ? embedding : parameters_.back();
  const NamedParameter& norm = parameters_[layers_.back().first_parameter + layers_.back().weights.size()];
  const std::span<const Real> norm_weight{weight(norm).data, index_of(config_.hidden)};
  const LossOptions options{.backward = backward, .z_loss = pass.options->z_loss, .logit_scale = config_.logit_scale,
                            .softcap = config_.logit_softcap};
  if (backward) std::fill_n(pass.gradient.data, pass.gradient.rows * pass.gradient.cols, Real{0});
  Gradient what = fresh_ ? Gradient::kWrite : Gradient::kAdd;   // with the output's gradient
  if (backward && fresh_ && fuses_loss() && pass.counted_rows == 0) {
    const MatrixView<Real> nothing = gradient(output);
    std::fill_n(nothing.data, nothing.rows * nothing.cols, Real{0});
  }
  LossSums sums;
  for (int64_t first = 0; first < pass.counted_rows; first += loss_chunk()) {
    const int64_t count = std::min(loss_chunk(), pass.counted_rows - first);
    const std::span<const int32_t> index = pass.counted.subspan(index_of(first), index_of(count));
    for (size_t i = 0; i < index.size(); ++i) {
      pass.row_targets[i] = pass.rows->targets[index_of(index[i])];
      pass.row_weights[i] = pass.rows->weights.empty() ? Real{1} : static_cast<Real>(pass.rows->weights[index_of(index[i])]);
    }
    const auto x = pass.final_input.rows_from(0, count), normed = pass.final_normed.rows_from(0, count);
    const auto dnormed = pass.dfinal.rows_from(0, count);
    const auto scale = pass.final_scale.first(index_of(count));
    ops_.gather_rows(x, pass.input(layers_.size()), index);
    ops_.rms_norm(normed, scale, x, norm_weight, static_cast<Real>(config_.norm_epsilon));
    const RowLosses<Real> chunk{pass.row_losses.first(index_of(count)), pass.row_predictions.first(index_of(count))};
    const LossInputs<Real> inputs{pass.row_targets.first(index_of(count)), pass.row_weights.first(index_of(count))};
    LossSums part;
    if (fuses_loss()) {
      part = ops_.output_loss({weight(output), dnormed, backward ? gradient(output) : MatrixView<Real>{}, what, pass.loss_scratch}, chunk, normed,
                              inputs, options);
      what = Gradient::kAdd;
    } else {
      const auto logits = pass.logits.rows_from(0, count);
      ops_.matmul(logits, normed, weight(output));
      part = ops_.softmax_cross_entropy(logits, chunk, inputs, options);
      if (backward) ops_.matmul_backward(dnormed, LinearBackward<Real>{logits, weight(output), gradient(output)}, normed);
    }
    sums.weighted += part.weighted;
    sums.z += part.z;
    sums.weight += part.weight;
    sums.rows += part.rows;
    sums.correct += part.correct;
    for (size_t i = 0; i < index.size(); ++i) {
      if (!rows.losses.empty()) rows.losses[index_of(index[i])] = chunk.losses[i];
      if (!rows.predictions.empty()) rows.predictions[index_of(index[i])] = chunk.predictions[i];
    }
    if (!backward) continue;
    ops_.rms_norm_backward(dnormed, {gradient(norm).data, index_of(config_.hidden)}, dnormed, {x, scale, norm_weight});
    ops_.scatter_add_rows(pass.gradient, dnormed, index);
  }
  return sums;
}

template <class Real>
Result<StepLoss> TrainableModel<Real>::forward_backward(const TrainBatch& batch, const TrainOptions& options,
                                                        const StateExchange<Real>& states) {
  RETURN_IF_ERROR(check(batch, options, states));
  ASSIGN_OR_RETURN(Pass pass, begin(batch, true));
  pass.options = &options;
  pass.states = states;
  StepLoss step;
  for (size_t layer = 0; layer < layers_.size(); ++layer) step.extra += forward_layer(pass, layer);
  step.sums = loss(pass, {}, true);
  for (size_t layer = layers_.size(); layer-- > 0;) {
    // The last layer's forward is the latest: what it saved is still there.
    if (options_.recompute && layer + 1 < layers_.size()) forward_layer(pass, layer);
    const LayerOptions<Real> layer_settings = layer_options(pass, layer);
    layers_[layer].block->backward(pass.gradient, pass.input(layer),
                                   {ops_, pass.batch, layer_settings, layers_[layer].weights, layers_[layer].gradients,
                                    pass.saved_of(layer), pass.scratch, {}, fresh_ ? Gradient::kWrite : Gradient::kAdd});
  }
  fresh_ = false;
  ops_.embed_backward(gradient(parameters_.front()), batch.tokens, pass.gradient, static_cast<Real>(config_.embedding_scale));
  return step;
}

template <class Real>
Result<StepLoss> TrainableModel<Real>::evaluate(const TrainBatch& batch, const RowLosses<Real>& rows, const TrainOptions& options,
                                                const StateExchange<Real>& states) {
  RETURN_IF_ERROR(check(batch, options, states));
  CHECK(rows.losses.empty() || rows.losses.size() == batch.tokens.size()) << rows.losses.size() << " row losses";
  CHECK(rows.predictions.empty() || rows.predictions.size() == batch.tokens.size()) << rows.predictions.size() << " predictions";
  ASSIGN_OR_RETURN(Pass pass, begin(batch, false));
  pass.options = &options;
  pass.states = states;
  std::ranges::fill(rows.losses, Real{0});
  std::ranges::fill(rows.predictions, -1);
  StepLoss step;
  for (size_t layer = 0; layer < layers_.size(); ++layer) step.extra += forward_layer(pass, layer);
  step.sums = loss(pass, rows, false);
  return step;
}

template <class Real>
Result<void> TrainableModel<Real>::logits(MatrixView<Real> out, const TrainBatch& batch, std::span<const int64_t> wanted) {
  const TrainOptions options;
  RETURN_IF_ERROR(check(batch, options, {}));
  CHECK(out.rows == static_cast<int64_t>(wanted.size()) && out.cols == config_.vocabulary) << out.rows << " rows of logits";
  ASSIGN_OR_RETURN(Pass pass, begin(batch, false));
  pass.options = &options;
  for (size_t layer = 0; layer < layers_.size(); ++layer) forward_layer(pass, layer);
  const NamedParameter& output = config_.tied_output ? parameters_.front() : parameters_.back();
  const NamedParameter& norm = parameters_[layers_.back().first_parameter + layers_.back().weights.size()];
  const MatrixView<Real> normed = pass.final_normed.rows_from(0, 1);
  for (int64_t i = 0; i < out.rows; ++i) {
    ops_.rms_norm(normed, {}, pass.input(layers_.size()).rows_from(wanted[index_of(i)], 1), {weight(norm).data, index_of(config_.hidden)},
                  static_cast<Real>(config_.norm_epsilon));
    ops_.matmul(out.rows_from(i, 1), normed, weight(output));
    for (int64_t c = 0; c < out.cols; ++c) {
      const double value = static_cast<double>(out(i, c)) * config_.logit_scale, cap = config_.logit_softcap;
      out(i, c) = static_cast<Real>(cap > 0 ? cap * std::tanh(value / cap) : value);
    }
  }
  return {};
}

template <class Real>
TrainMemory TrainableModel<Real>::memory(std::span<const int64_t> offsets) const {
  Carver measure;
  const Pass plan(measure, *this, {offsets, {}}, true);
  const auto footprint = [](int64_t bytes) { return static_cast<int64_t>(Buffer::footprint(index_of(bytes))); };
  TrainMemory memory;
  memory.weights = memory.gradients = footprint(flat_elements_ * static_cast<int64_t>(sizeof(Real)));
  memory.saved = plan.saved_bytes;
  memory.scratch = footprint(plan.total_bytes) - plan.saved_bytes;
  int64_t largest = 0;
  for (const NamedParameter& p : parameters_) {
    if (p.layer >= 0 || !fuses_loss()) largest = std::max(largest, p.elements);
  }
  memory.products = ops_.scratch_bytes(largest);
  return memory;
}

template <class Real>
double TrainableModel<Real>::step_flops(std::span<const int64_t> offsets) const {
  const PackedBatch shape{offsets, {}};
  double flops = 2.0 * static_cast<double>(config_.vocabulary * config_.hidden) * static_cast<double>(shape.rows());
  for (const Layer& layer : layers_) flops += layer.block->forward_flops(shape);
  return 3.0 * flops;
}

template class TrainableModel<float>;
template class TrainableModel<double>;

}  // namespace quipu
