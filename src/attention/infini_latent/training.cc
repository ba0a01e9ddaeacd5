// Infini-attention over latents that learns: math.md over whole sequences. The local attention is made in the expanded form,
// as latent attention learns it; the memory gets expanded keys and values (per_head), or latents and absorbed queries.
#include <algorithm>
#include <string>
#include <vector>

#include "attention/infini_latent/infini_latent.h"
#include "attention/shared/latent_training.h"
#include "attention/shared/segment_memory_training.h"
#include "attention/training.h"

namespace quipu {
namespace {

template <class Real>
class TrainableInfiniLatent final : public TrainableAttention<Real> {
 public:
  using Matrix = MatrixView<Real>;
  using ConstMatrix = MatrixView<const Real>;
  using Call = TrainingCall<Real>;
  using Core = LatentTraining<Real>;
  using Memory = SegmentMemoryTraining<Real>;

  TrainableInfiniLatent(const InfiniLatent::Settings& settings, std::span<const std::string> optional_roles)
      : s_(settings), core_(s_.latent, optional_roles), memory_(s_.memory, s_.latent.hidden, core_.specs()) {
    if (s_.key_dim == 0) return;
    key_ = static_cast<int64_t>(core_.specs().size());
    core_.specs().push_back({"memory_key_proj", {s_.key_dim, s_.latent.rank}, Initialisation::normal(kInitialDeviation),
                             ParameterGroup::kMatrix});
  }

  std::span<const ParameterSpec> parameters() const override { return core_.specs(); }
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
  int64_t state_elements() const override { return memory_.state_elements(); }
  double forward(Matrix out, ConstMatrix x, const Call& call) const override;
  void backward(Matrix dx, ConstMatrix dout, ConstMatrix x, const Call& call) const override;
  double forward_flops(const PackedBatch& batch) const override {
    const LatentSettings& l = s_.latent;
    const int64_t rows = batch.rows();
    const double memory_input = s_.shared_memory ? core_.absorbed_flops(rows) + 2.0 * static_cast<double>(rows * (l.heads + 1) * s_.key_dim * l.rank) : 0;
    return core_.projection_flops(rows) + core_.pair_flops() * memory_.local_pairs(batch) + memory_.flops(batch) + memory_input;
  }

 private:
  // What backward needs again.
  struct Saved {
    Saved(Carver& carver, const TrainableInfiniLatent& room, const PackedBatch& batch)
        : core(carver, room.core_, batch.rows()), memory(carver, room.memory_, batch) {
      const LatentSettings& l = room.s_.latent;
      const int64_t rows = batch.rows();
      if (!room.s_.shared_memory) {
        raised = memory.read;
        return;
      }
      raised = carver.matrix<Real>(rows, room.core_.value_cols());
      absorbed = short_query = carver.matrix<Real>(rows, l.heads * l.rank);
      if (room.key_ < 0) return;
      short_query = carver.matrix<Real>(rows, l.heads * room.s_.key_dim);
      short_key = carver.matrix<Real>(rows, room.s_.key_dim);
    }
    typename Core::Saved core;
    typename Memory::Saved memory;
    Matrix raised;                   // what was read, as values of the heads
    Matrix absorbed;                 // memory "latent": absorbed queries, and what P makes of them and of latents
    Matrix short_query, short_key;
  };
  struct Scratch {
    Scratch(Carver& carver, const TrainableInfiniLatent& room, const PackedBatch& batch)
        : core(carver, room.core_, batch.rows()),
          memory(carver, room.memory_, batch),
          mixed(carver.matrix<Real>(batch.rows(), room.core_.value_cols())) {
      const LatentSettings& l = room.s_.latent;
      const int64_t rows = batch.rows();
      if (!room.s_.shared_memory) {
        draised = memory.dread;
        return;
      }
      draised = carver.matrix<Real>(rows, room.core_.value_cols());
      dlatent = carver.matrix<Real>(rows, l.rank);
      dabsorbed = dshort_query = carver.matrix<Real>(rows, l.heads * l.rank);
      if (room.key_ < 0) return;
      dshort_query = carver.matrix<Real>(rows, l.heads * room.s_.key_dim);
      dshort_key = carver.matrix<Real>(rows, room.s_.key_dim);
      projected = carver.matrix<Real>(rows, l.rank);
    }
    typename Core::Scratch core;
    typename Memory::Scratch memory;
    Matrix mixed;
    Matrix draised, dlatent, dabsorbed, dshort_query, dshort_key, projected;   // backward only
  };

  // [n, heads * dim] as [n * heads, dim].
  template <class Element>
  MatrixView<Element> heads_as_rows(MatrixView<Element> x) const {
    return {x.data, x.rows * s_.latent.heads, x.cols / s_.latent.heads};
  }
  // Rows as the memory sees them: of forward's tensors, or of their gradients.
  template <class Element>
  MemoryRows<Element> expanded_rows(MatrixView<Element> query, MatrixView<Element> key, MatrixView<Element> value) const {
    const LatentSettings& l = s_.latent;   // the position-free part of a key and a query comes first
    return {.query = query, .key = key, .value = value,
            .query_stride = l.query_dim(), .key_stride = l.query_dim(), .value_stride = l.value_dim};
  }
  template <class Element>
  MemoryRows<Element> latent_rows(MatrixView<Element> query, MatrixView<Element> key, MatrixView<Element> value) const {
    return {.query = query, .key = key, .value = value, .query_stride = query.cols / s_.latent.heads};
  }
  MemoryRows<const Real> memory_rows(const Saved& saved) const {
    const auto& core = saved.core;
    if (!s_.shared_memory) return expanded_rows<const Real>(core.query, core.key, core.value);
    return latent_rows<const Real>(saved.short_query, key_ < 0 ? core.latent : saved.short_key, core.latent);
  }
  AttentionPattern pattern(const Scratch& scratch) const { return core_.pattern(scratch.memory.slices, scratch.memory.visible); }
  void absorb(const Saved& saved, const Scratch& scratch, const Call& call) const;
  void memory_backward(const Saved& saved, const Scratch& scratch, const Call& call) const;
  void absorb_backward(const Saved& saved, const Scratch& scratch, const Call& call) const;

  InfiniLatent::Settings s_;
  Core core_;
  Memory memory_;
  int64_t key_ = -1;                 // place of memory_key_proj
};

template <class Real>
void add_to(MatrixView<Real> to, MatrixView<const Real> from, ThreadPool& pool) {
  for_rows(pool, to.rows, [&](int64_t row) {
    for (int64_t c = 0; c < to.cols; ++c) to(row, c) += from(row, c);
  });
}

template <class Real>
void TrainableInfiniLatent<Real>::absorb(const Saved& saved, const Scratch& scratch, const Call& call) const {
  if (!s_.shared_memory) return;
  core_.absorb(saved.absorbed, saved.core, scratch.core, call);
  if (key_ < 0) return;
  const ConstMatrix p = Core::weight(call, key_);
  call.ops.matmul(heads_as_rows(saved.short_query), heads_as_rows<const Real>(saved.absorbed), p);
  call.ops.matmul(saved.short_key, saved.core.latent, p);
}

template <class Real>
double TrainableInfiniLatent<Real>::forward(Matrix out, ConstMatrix x, const Call& call) const {
  Carver saved_carver(call.saved), scratch_carver(call.scratch);
  const Saved saved(saved_carver, *this, call.batch);
  const Scratch scratch(scratch_carver, *this, call.batch);
  const auto& core = saved.core;
  core_.project(core, scratch.core, x, call);
  core_.expand(core, scratch.core, core.latent, call);
  const double penalty = memory_.begin(saved.memory, scratch.memory, x, call);
  call.ops.attention(core.attended, core.log_sum_exp, {core.query, core.key, core.value}, pattern(scratch));
  absorb(saved, scratch, call);
  memory_.read_and_write(saved.memory, scratch.memory, memory_rows(saved), call);
  if (s_.shared_memory) core_.raise_values(saved.raised, scratch.core, saved.memory.read, call);
  memory_.mix(scratch.mixed, core.attended, saved.raised, saved.memory, call);
  core_.finish(out, scratch.mixed, call);
  return penalty;
}

// scratch.memory.dread -> added to the gradients of expanded rows; or written: of latents, absorbed queries and P's products.
template <class Real>
void TrainableInfiniLatent<Real>::memory_backward(const Saved& saved, const Scratch& scratch, const Call& call) const {
  MemoryRows<Real> drows = expanded_rows<Real>(scratch.core.dquery, scratch.core.dkey, scratch.core.dvalue);
  if (s_.shared_memory) {
    drows = latent_rows<Real>(scratch.dshort_query, key_ < 0 ? scratch.dlatent : scratch.dshort_key, scratch.dlatent);
    for (const Matrix& m : {drows.query, drows.key, drows.value}) std::fill_n(m.data, m.rows * m.cols, Real{0});
  }
  memory_.read_and_write_backward(drows, saved.memory, scratch.memory, memory_rows(saved), call);
}

// Undoes absorb() and the raising of what was read.
template <class Real>
void TrainableInfiniLatent<Real>::absorb_backward(const Saved& saved, const Scratch& scratch, const Call& call) const {
  if (!s_.shared_memory) return;
  if (key_ >= 0) {
    const ConstMatrix p = Core::weight(call, key_);
    const Matrix dp = Core::gradient(call, key_);
    call.ops.matmul_backward(scratch.projected, LinearBackward<Real>{scratch.dshort_key, p, dp}, saved.core.latent);
    add_to<Real>(scratch.dlatent, scratch.projected, call.ops.pool());
    call.ops.matmul_backward(heads_as_rows(scratch.dabsorbed),
                             LinearBackward<Real>{heads_as_rows<const Real>(scratch.dshort_query), p, dp},
                             heads_as_rows<const Real>(saved.absorbed));
  }
  core_.absorbed_backward(saved.core, scratch.core, scratch.dabsorbed, scratch.draised, saved.memory.read, call);
  add_to<Real>(scratch.core.dlatent, scratch.dlatent, call.ops.pool());
}

// Each line undoes one line of forward, last first.
template <class Real>
void TrainableInfiniLatent<Real>::backward(Matrix dx, ConstMatrix dout, ConstMatrix x, const Call& call) const {
  Carver saved_carver(call.saved), scratch_carver(call.scratch);
  const Saved saved(saved_carver, *this, call.batch);
  const Scratch scratch(scratch_carver, *this, call.batch);
  const auto& core = scratch.core;
  memory_.find_runs(scratch.memory, call.batch);
  memory_.mix(scratch.mixed, saved.core.attended, saved.raised, saved.memory, call);
  core_.unfinish(core, dout, scratch.mixed, call);
  memory_.mix_backward(core.dattended, scratch.draised, saved.core.attended, saved.raised, saved.memory, scratch.memory, call);
  if (s_.shared_memory) core_.raise_backward(scratch.memory.dread, core, scratch.draised, call);
  call.ops.attention_backward({core.dquery, core.dkey, core.dvalue}, core.dattended, {saved.core.query, saved.core.key, saved.core.value},
                              {saved.core.attended, saved.core.log_sum_exp}, pattern(scratch));
  memory_backward(saved, scratch, call);
  core_.unexpand(core.dlatent, core, saved.core.latent, call);
  absorb_backward(saved, scratch, call);
  core_.unproject(dx, saved.core, core, x, call);
  memory_.gates_backward(dx, scratch.memory, x, call);
}

}  // namespace

template <class Real>
Result<std::unique_ptr<TrainableAttention<Real>>> create_training_infini_latent(const AttentionShape& shape,
                                                                                const HyperParameters& parameters,
                                                                                std::span<const std::string> optional_roles) {
  ASSIGN_OR_RETURN(const InfiniLatent::Settings settings, InfiniLatent::read_settings(shape, parameters));
  return std::unique_ptr<TrainableAttention<Real>>(std::make_unique<TrainableInfiniLatent<Real>>(settings, optional_roles));
}

template Result<std::unique_ptr<TrainableAttention<float>>> create_training_infini_latent(const AttentionShape&, const HyperParameters&,
                                                                                          std::span<const std::string>);
template Result<std::unique_ptr<TrainableAttention<double>>> create_training_infini_latent(const AttentionShape&, const HyperParameters&,
                                                                                           std::span<const std::string>);

}  // namespace quipu
