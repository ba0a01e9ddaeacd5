#include "blocks/training.h"

namespace quipu {
namespace {

template <class Real>
class TrainableGatedMlp final : public TrainableFeedForward<Real> {
 public:
  using Matrix = MatrixView<Real>;
  using ConstMatrix = MatrixView<const Real>;
  using Call = TrainingCall<Real>;

  explicit TrainableGatedMlp(const GatedMlp::Options& options) : options_(options) {
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
    Carver measure;
    Saved(measure, rows, options_.inner);
    return measure.bytes();
  }
  int64_t scratch_bytes(int64_t rows) const override {
    Carver measure;
    Scratch(measure, rows, options_.inner);
    return measure.bytes();
  }

  double forward(Matrix out, ConstMatrix x, const Call& call) const override {
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

  GatedMlp::Options options_;
  std::vector<ParameterSpec> specs_;
};

}  // namespace

template <class Real>
std::unique_ptr<TrainableFeedForward<Real>> make_trainable_gated_mlp(const GatedMlp::Options& options) {
  return std::make_unique<TrainableGatedMlp<Real>>(options);
}

template std::unique_ptr<TrainableFeedForward<float>> make_trainable_gated_mlp(const GatedMlp::Options&);
template std::unique_ptr<TrainableFeedForward<double>> make_trainable_gated_mlp(const GatedMlp::Options&);

}  // namespace quipu
