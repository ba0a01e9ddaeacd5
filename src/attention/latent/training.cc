// Latent attention that learns: the expanded form of math.md over whole sequences, and its derivative beside it.
//
// The expanded form takes 2 (dn + dr + dv) operations a pair of rows and head, the absorbed one 2 (2 r + dr): published
// training code that absorbs pays four times the attention at the usual shapes. Only where 2 r < dn + dv would it pay.
#include <memory>

#include "attention/latent/latent.h"
#include "attention/shared/latent_training.h"

namespace quipu {
namespace {

template <class Real>
class TrainableLatent final : public TrainableAttention<Real> {
 public:
  using Matrix = MatrixView<Real>;
  using ConstMatrix = MatrixView<const Real>;
  using Call = TrainingCall<Real>;
  using Saved = typename LatentTraining<Real>::Saved;

  TrainableLatent(const LatentSettings& settings, std::span<const std::string> optional_roles) : core_(settings, optional_roles) {}

  std::span<const ParameterSpec> parameters() const override { return core_.specs(); }
  int64_t saved_bytes(const PackedBatch& batch) const override {
    Carver measure;
    Saved(measure, core_, batch.rows());
    return measure.bytes();
  }
  int64_t scratch_bytes(const PackedBatch& batch) const override {
    Carver measure;
    Scratch(measure, core_, batch);
    return measure.bytes();
  }

  double forward(Matrix out, ConstMatrix x, const Call& call) const override {
    Carver saved_carver(call.saved), scratch_carver(call.scratch);
    const Saved saved(saved_carver, core_, x.rows);
    const Scratch scratch(scratch_carver, core_, call.batch);
    core_.project(saved, scratch.core, x, call);
    core_.expand(saved, scratch.core, saved.latent, call);
    call.ops.attention(saved.attended, saved.log_sum_exp, {saved.query, saved.key, saved.value}, pattern(scratch, call.batch));
    core_.finish(out, saved.attended, call);
    return 0;
  }

  // Each line undoes one line of forward, last first.
  void backward(Matrix dx, ConstMatrix dout, ConstMatrix x, const Call& call) const override {
    Carver saved_carver(call.saved), scratch_carver(call.scratch);
    const Saved saved(saved_carver, core_, x.rows);
    const Scratch scratch(scratch_carver, core_, call.batch);
    const auto& core = scratch.core;
    core_.unfinish(core, dout, saved.attended, call);
    call.ops.attention_backward({core.dquery, core.dkey, core.dvalue}, core.dattended, {saved.query, saved.key, saved.value},
                                {saved.attended, saved.log_sum_exp}, pattern(scratch, call.batch));
    core_.unexpand(core.dlatent, core, saved.latent, call);
    core_.unproject(dx, saved, core, x, call);
  }

  double forward_flops(const PackedBatch& batch) const override {
    double pairs = 0;
    for (int64_t i = 0; i < batch.sequences(); ++i) {
      const double rows = static_cast<double>(batch.offsets[static_cast<size_t>(i) + 1] - batch.offsets[static_cast<size_t>(i)]);
      pairs += rows * (rows + 1) / 2;
    }
    return core_.projection_flops(batch.rows()) + core_.pair_flops() * pairs;
  }

 private:
  struct Scratch {
    Scratch(Carver& carver, const LatentTraining<Real>& room, const PackedBatch& batch)
        : visible(carver.span<KeyRange>(batch.rows())),
          slices(carver.span<AttentionSlice>(batch.sequences())),
          core(carver, room, batch.rows()) {}
    std::span<KeyRange> visible;
    std::span<AttentionSlice> slices;
    typename LatentTraining<Real>::Scratch core;
  };

  AttentionPattern pattern(const Scratch& scratch, const PackedBatch& batch) const {
    causal_ranges(scratch.visible, batch, 0);
    sequence_slices(scratch.slices, batch);
    return core_.pattern(scratch.slices, scratch.visible);
  }

  LatentTraining<Real> core_;
};

}  // namespace

template <class Real>
Result<std::unique_ptr<TrainableAttention<Real>>> create_training_latent(const AttentionShape& shape, const HyperParameters& parameters,
                                                                         std::span<const std::string> optional_roles) {
  ASSIGN_OR_RETURN(const LatentSettings settings, read_latent_settings(shape, parameters));
  return std::unique_ptr<TrainableAttention<Real>>(std::make_unique<TrainableLatent<Real>>(settings, optional_roles));
}

template Result<std::unique_ptr<TrainableAttention<float>>> create_training_latent(const AttentionShape&, const HyperParameters&,
                                                                                   std::span<const std::string>);
template Result<std::unique_ptr<TrainableAttention<double>>> create_training_latent(const AttentionShape&, const HyperParameters&,
                                                                                    std::span<const std::string>);

}  // namespace quipu
