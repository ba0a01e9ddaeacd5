#include "blocks/training.h"

namespace quipu {
namespace {

template <class Real>
class TrainableGatedMlp final : public TrainableFeedForward<Real> {
 public:
  using Matrix = MatrixView<Real>;
  using ConstMatrix = MatrixView<const Real>;
  using Call = TrainingCall<Real>;

  TrainableGatedMlp(const GatedMlp::Options& options, const TrainingOps<Real>& ops)
      : options_(options), ops_(ops), fused_(ops.fuses_gated(shape())) {
    const Initialisation normal = Initialisation::normal(kInitialDeviation);
    specs_.push_back({"gate", {options.inner, options.hidden}, normal, ParameterGroup::kMatrix});
    specs_.push_back({"up", {options.inner, options.hidden}, normal, ParameterGroup::kMatrix});
    specs_.push_back({"down", {options.hidden, options.inner}, Initialisation::residual(kInitialDeviation), ParameterGroup::kMatrix});
    if (!options.bias) return;
    specs_.push_back({"gate_bias", {options.inner}, {}, ParameterGroup::kBias});
    specs_.push_back({"up_bias", {options.inner}, {}, ParameterGroup::kBias});
    specs_.push_back({"down_bias", {options.hidden}, {}, ParameterGroup::kBias});
  }

  std::span<const ParameterSpec> parameters() const override { return specs_; }
  int64_t saved_bytes(int64_t rows) const override {
    if (fused_) return ops_.gated_memory(shape(), rows).saved;
    Carver measure;
    Saved(measure, rows, options_.inner);
    return measure.bytes();
  }
  int64_t scratch_bytes(int64_t rows) const override {
    if (fused_) return ops_.gated_memory(shape(), rows).scratch;
    Carver measure;
    Scratch(measure, rows, options_.inner);
    return measure.bytes();
  }

  bool takes_norm() const override { return fused_; }
  bool writes_gradient(size_t) const override { return fused_; }

  double forward(Matrix out, ConstMatrix x, const Call& call) const override {
    if (fused_) {
      call.ops.gated(out, x, fused_call(call));
      return 0;
    }
    Carver saved_carver(call.saved), scratch_carver(call.scratch);
    const Saved saved(saved_carver, x.rows, options_.inner);
    const Scratch scratch(scratch_carver, x.rows, options_.inner);
    const LinearForward<Real> wide[] = {{saved.gate, call.weights[0], bias(call, 3)}, {saved.up, call.weights[1], bias(call, 4)}};
    call.ops.matmul(wide, x);
    call.ops.gated_activation(scratch.activated, saved.gate, saved.up, options_.activation);
    call.ops.matmul(out, scratch.activated, call.weights[2], bias(call, 5));
    return 0;
  }

  void backward(Matrix dx, ConstMatrix dout, ConstMatrix x, const Call& call) const override {
    if (fused_) {
      const GatedGradients<Real> gradients{call.gradients[0], call.gradients[1], call.gradients[2], call.weight_gradients};
      return call.ops.gated_backward(dx, gradients, dout, x, fused_call(call));
    }
    Carver saved_carver(call.saved), scratch_carver(call.scratch);
    const Saved saved(saved_carver, x.rows, options_.inner);
    const Scratch scratch(scratch_carver, x.rows, options_.inner);
    // Computing `activated` again is cheaper than keeping it: it is as large as gate and up.
    call.ops.gated_activation(scratch.activated, saved.gate, saved.up, options_.activation);
    const LinearBackward<Real> narrow{dout, call.weights[2], call.gradients[2], dbias(call, 5)};
    call.ops.matmul_backward(scratch.dactivated, narrow, scratch.activated);
    call.ops.gated_activation_backward(saved.gate, saved.up, scratch.dactivated, {saved.gate, saved.up}, options_.activation);
    const LinearBackward<Real> wide[] = {{saved.gate, call.weights[0], call.gradients[0], dbias(call, 3)},
                                         {saved.up, call.weights[1], call.gradients[1], dbias(call, 4)}};
    call.ops.matmul_backward(dx, wide, x);
  }

  double forward_flops(int64_t rows) const override {
    return 6.0 * static_cast<double>(options_.hidden * options_.inner) * static_cast<double>(rows);
  }

 private:
  struct Saved {
    Saved(Carver& carver, int64_t rows, int64_t inner)
        : gate(carver.matrix<Real>(rows, inner)), up(carver.matrix<Real>(rows, inner)) {}
    Matrix gate, up;                     // backward turns them into their gradients
  };
  struct Scratch {
    Scratch(Carver& carver, int64_t rows, int64_t inner)
        : activated(carver.matrix<Real>(rows, inner)), dactivated(carver.matrix<Real>(rows, inner)) {}
    Matrix activated, dactivated;
  };
  const Real* bias(const Call& call, size_t place) const { return options_.bias ? call.weights[place].data : nullptr; }
  Real* dbias(const Call& call, size_t place) const { return options_.bias ? call.gradients[place].data : nullptr; }

  GatedShape shape() const { return {options_.hidden, options_.inner, options_.bias}; }
  GatedCall<Real> fused_call(const Call& call) const {
    return {call.weights[0], call.weights[1], call.weights[2], options_.activation, call.norm, call.saved, call.scratch};
  }

  GatedMlp::Options options_;
  const TrainingOps<Real>& ops_;       // whose memory was planned for; calls come with it
  bool fused_;
  std::vector<ParameterSpec> specs_;
};

}  // namespace

template <class Real>
std::unique_ptr<TrainableFeedForward<Real>> make_trainable_gated_mlp(const GatedMlp::Options& options, const TrainingOps<Real>& ops) {
  return std::make_unique<TrainableGatedMlp<Real>>(options, ops);
}

template std::unique_ptr<TrainableFeedForward<float>> make_trainable_gated_mlp(const GatedMlp::Options&, const TrainingOps<float>&);
template std::unique_ptr<TrainableFeedForward<double>> make_trainable_gated_mlp(const GatedMlp::Options&, const TrainingOps<double>&);

}  // namespace quipu
