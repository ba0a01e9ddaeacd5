#include <algorithm>

#include "blocks/training.h"

namespace quipu {
namespace {

template <class Real>
class TrainablePreNorm final : public TrainableBlock<Real> {
 public:
  using Matrix = MatrixView<Real>;
  using ConstMatrix = MatrixView<const Real>;
  using Call = TrainingCall<Real>;

  TrainablePreNorm(const TrainableNormOptions& options, std::unique_ptr<TrainableAttention<Real>> attention,
                   std::unique_ptr<TrainableFeedForward<Real>> feed_forward)
      : options_(options), attention_(std::move(attention)), feed_forward_(std::move(feed_forward)) {
    const auto norm = [&](const char* role) {
      specs_.push_back({role, {options.hidden}, Initialisation::constant(1), ParameterGroup::kNorm});
    };
    norm("attention_norm");
    for (const ParameterSpec& spec : attention_->parameters()) specs_.push_back(spec);
    norm("feed_forward_norm");
    for (const ParameterSpec& spec : feed_forward_->parameters()) specs_.push_back(spec);
  }

  std::span<const ParameterSpec> parameters() const override { return specs_; }
  int64_t saved_bytes(const PackedBatch& batch) const override {
    Carver measure;
    Saved(measure, *this, batch);
    return measure.bytes();
  }
  int64_t scratch_bytes(const PackedBatch& batch) const override {
    Carver measure;
    Scratch(measure, *this, batch);
    return measure.bytes();
  }
  int64_t state_elements() const override { return attention_->state_elements(); }
  bool writes_gradient(size_t parameter) const override {
    const size_t feed = feed_forward_norm();
    if (parameter > feed) return feed_forward_->writes_gradient(parameter - feed - 1);
    return parameter > 0 && parameter < feed && attention_->writes_gradient(parameter - 1);
  }

  double forward(Matrix out, ConstMatrix x, const Call& call) const override {
    Carver saved_carver(call.saved), scratch_carver(call.scratch);
    const Saved saved(saved_carver, *this, call.batch);
    const Scratch scratch(scratch_carver, *this, call.batch);
    TrainingOps<Real>& ops = call.ops;
    const Real epsilon = static_cast<Real>(options_.epsilon);
    double extra = 0;
    if (attention_->takes_norm()) {
      extra += attention_->forward(saved.middle, x, attention_call(call, saved, scratch));
    } else {
      ops.rms_norm(scratch.normed, saved.attention_scale, x, vector(call, 0), epsilon);
      extra += attention_->forward(saved.middle, scratch.normed, attention_call(call, saved, scratch));
      ops.add(saved.middle, x);
    }
    if (feed_forward_->takes_norm()) return extra + feed_forward_->forward(out, saved.middle, feed_forward_call(call, saved, scratch));
    ops.rms_norm(scratch.normed, saved.feed_forward_scale, saved.middle, vector(call, feed_forward_norm()), epsilon);
    extra += feed_forward_->forward(out, scratch.normed, feed_forward_call(call, saved, scratch));
    ops.add(out, saved.middle);
    return extra;
  }

  void backward(Matrix gradient, ConstMatrix x, const Call& call) const override {
    Carver saved_carver(call.saved), scratch_carver(call.scratch);
    const Saved saved(saved_carver, *this, call.batch);
    const Scratch scratch(scratch_carver, *this, call.batch);
    TrainingOps<Real>& ops = call.ops;
    const Real epsilon = static_cast<Real>(options_.epsilon);
    // The inputs of the two parts are cheaper to compute again than to keep.
    const std::span<const Real> feed_weight = vector(call, feed_forward_norm()), attention_weight = vector(call, 0);
    if (feed_forward_->takes_norm()) {
      feed_forward_->backward(gradient, gradient, saved.middle, feed_forward_call(call, saved, scratch));
    } else {
      ops.rms_norm(scratch.normed, {}, saved.middle, feed_weight, epsilon);
      feed_forward_->backward(scratch.dnormed, gradient, scratch.normed, feed_forward_call(call, saved, scratch));
      ops.rms_norm_backward(gradient, dvector(call, feed_forward_norm()), scratch.dnormed,
                            {saved.middle, saved.feed_forward_scale, feed_weight}, Gradient::kAdd);
    }
    if (attention_->takes_norm()) return attention_->backward(gradient, gradient, x, attention_call(call, saved, scratch));
    ops.rms_norm(scratch.normed, {}, x, attention_weight, epsilon);
    attention_->backward(scratch.dnormed, gradient, scratch.normed, attention_call(call, saved, scratch));
    ops.rms_norm_backward(gradient, dvector(call, 0), scratch.dnormed, {x, saved.attention_scale, attention_weight}, Gradient::kAdd);
  }

  double forward_flops(const PackedBatch& batch) const override {
    return attention_->forward_flops(batch) + feed_forward_->forward_flops(batch.rows());
  }

 private:
  struct Saved {
    Saved(Carver& carver, const TrainablePreNorm& block, const PackedBatch& batch)
        : middle(carver.matrix<Real>(batch.rows(), block.options_.hidden)),
          attention_scale(carver.span<Real>(batch.rows())),
          feed_forward_scale(carver.span<Real>(batch.rows())),
          attention(carver.part(block.attention_->saved_bytes(batch))),
          feed_forward(carver.part(block.feed_forward_->saved_bytes(batch.rows()))) {}
    Matrix middle;                                    // the stream between the two parts
    std::span<Real> attention_scale, feed_forward_scale;
    std::span<std::byte> attention, feed_forward;
  };
  struct Scratch {
    Scratch(Carver& carver, const TrainablePreNorm& block, const PackedBatch& batch)
        : normed(carver.matrix<Real>(block.norms() ? batch.rows() : 0, block.options_.hidden)),
          dnormed(carver.matrix<Real>(block.norms() ? batch.rows() : 0, block.options_.hidden)),
          part(carver.part(std::max(block.attention_->scratch_bytes(batch), block.feed_forward_->scratch_bytes(batch.rows())))) {}
    Matrix normed, dnormed;
    std::span<std::byte> part;
  };

  // Whether a part leaves its norm to this block.
  bool norms() const { return !attention_->takes_norm() || !feed_forward_->takes_norm(); }
  size_t feed_forward_norm() const { return 1 + attention_->parameters().size(); }
  std::span<const Real> vector(const Call& call, size_t place) const {
    return {call.weights[place].data, static_cast<size_t>(options_.hidden)};
  }
  std::span<Real> dvector(const Call& call, size_t place) const {
    Real* data = call.gradients[place].data;
    return data == nullptr ? std::span<Real>() : std::span<Real>(data, static_cast<size_t>(options_.hidden));
  }
  // The part whose norm is parameter `norm`, with `count` of its own after it.
  Call part_call(const Call& call, size_t norm, size_t count, std::span<Real> inverse_rms) const {
    const bool backward = !call.gradients.empty();
    return {.ops = call.ops, .batch = call.batch, .options = call.options, .weights = call.weights.subspan(norm + 1, count),
            .gradients = backward ? call.gradients.subspan(norm + 1, count) : call.gradients,
            .norm = {vector(call, norm), static_cast<Real>(options_.epsilon), inverse_rms, backward ? dvector(call, norm) : std::span<Real>()},
            .weight_gradients = call.weight_gradients};
  }
  Call attention_call(const Call& call, const Saved& saved, const Scratch& scratch) const {
    Call part = part_call(call, 0, attention_->parameters().size(), saved.attention_scale);
    part.saved = saved.attention, part.scratch = scratch.part;
    return part;
  }
  Call feed_forward_call(const Call& call, const Saved& saved, const Scratch& scratch) const {
    Call part = part_call(call, feed_forward_norm(), feed_forward_->parameters().size(), saved.feed_forward_scale);
    part.saved = saved.feed_forward, part.scratch = scratch.part;
    return part;
  }

  TrainableNormOptions options_;
  std::unique_ptr<TrainableAttention<Real>> attention_;
  std::unique_ptr<TrainableFeedForward<Real>> feed_forward_;
  std::vector<ParameterSpec> specs_;
};

}  // namespace

template <class Real>
std::unique_ptr<TrainableBlock<Real>> make_trainable_pre_norm(const TrainableNormOptions& options,
                                                              std::unique_ptr<TrainableAttention<Real>> attention,
                                                              std::unique_ptr<TrainableFeedForward<Real>> feed_forward) {
  return std::make_unique<TrainablePreNorm<Real>>(options, std::move(attention), std::move(feed_forward));
}

template std::unique_ptr<TrainableBlock<float>> make_trainable_pre_norm(const TrainableNormOptions&,
                                                                        std::unique_ptr<TrainableAttention<float>>,
                                                                        std::unique_ptr<TrainableFeedForward<float>>);
template std::unique_ptr<TrainableBlock<double>> make_trainable_pre_norm(const TrainableNormOptions&,
                                                                         std::unique_ptr<TrainableAttention<double>>,
                                                                         std::unique_ptr<TrainableFeedForward<double>>);

}  // namespace quipu
