// Temporal latent attention that learns: math.md over whole sequences in expanded form, and its derivative beside it.
//
// A query sees the closed rows of earlier chunks, T / stride of them, and its own partial row, which nobody else sees: the
// published training code instead builds T x T merge weights and masks T x T scores. Where a chunk ends, the partial row is
// the closed row, so that keys and values are made once, for every token.
#include <cmath>
#include <memory>
#include <vector>

#include "attention/shared/latent_training.h"
#include "attention/temporal_latent/temporal_latent.h"

namespace quipu {
namespace {

// A run of rows that are merged into one.
struct Chunk {
  int64_t first = 0;     // row of the batch
  int32_t rows = 0;      // stride, or fewer at the end of a sequence
  int32_t number = 0;    // in its sequence, from 0
};

template <class Real>
class TrainableTemporalLatent final : public TrainableAttention<Real> {
 public:
  using Matrix = MatrixView<Real>;
  using ConstMatrix = MatrixView<const Real>;
  using Call = TrainingCall<Real>;

  TrainableTemporalLatent(const TemporalLatentSettings& settings, std::span<const std::string> optional_roles)
      : core_(settings.latent, optional_roles), stride_(settings.stride), hyper_dim_(settings.hyper_dim) {
    if (hyper_dim_ == 0) return;
    const int64_t rank = settings.latent.rank;
    // As the published module begins: its linear layers have their library's default.
    const auto uniform = Initialisation::uniform(1.0 / std::sqrt(static_cast<double>(rank)));
    const auto add = [&](const char* role, Shape shape, ParameterGroup group) {
      core_.specs().push_back({role, std::move(shape), uniform, group});
      return static_cast<int64_t>(core_.specs().size()) - 1;
    };
    from_code_ = add("hypernet_fc_c", {hyper_dim_, rank}, ParameterGroup::kMatrix);
    from_code_bias_ = add("hypernet_fc_c_bias", {hyper_dim_}, ParameterGroup::kBias);
    from_latent_ = add("hypernet_fc_p", {hyper_dim_, rank}, ParameterGroup::kMatrix);
    from_latent_bias_ = add("hypernet_fc_p_bias", {hyper_dim_}, ParameterGroup::kBias);
    for (int64_t i = 0; i < rank; i += 2) {
      code_frequency_.push_back(std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(rank)));
    }
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
  double forward(Matrix out, ConstMatrix x, const Call& call) const override;
  void backward(Matrix dx, ConstMatrix dout, ConstMatrix x, const Call& call) const override;

  double forward_flops(const PackedBatch& batch) const override {
    double pairs = 0;
    for (int64_t i = 0; i < batch.sequences(); ++i) {
      for (int64_t row = 0; row < rows_of(batch, i); ++row) pairs += static_cast<double>(row / stride_ + 1);
    }
    const int64_t rank = core_.settings().rank;
    const double merging = static_cast<double>(batch.rows() * 2 * rank * (1 + hyper_dim_) + most_chunks(batch) * 2 * rank * hyper_dim_);
    return core_.projection_flops(batch.rows()) + core_.pair_flops() * pairs + merging;
  }

 private:
  struct Saved {
    Saved(Carver& carver, const TrainableTemporalLatent& room, const PackedBatch& batch)
        : core(carver, room.core_, batch.rows()),
          merged(carver.matrix<Real>(batch.rows(), room.core_.settings().rank)),
          merge_weight(carver.span<Real>(batch.rows())) {
      if (room.hyper_dim_ == 0) return;
      const int64_t chunks = room.most_chunks(batch);
      codes = carver.matrix<Real>(chunks, room.core_.settings().rank);
      from_code = carver.matrix<Real>(chunks, room.hyper_dim_);
      from_latent = carver.matrix<Real>(batch.rows(), room.hyper_dim_);
    }
    typename LatentTraining<Real>::Saved core;
    Matrix merged;                   // [n, rank]: every chunk's sum as it stands at each token
    std::span<Real> merge_weight;    // [n] w
    Matrix codes, from_code;         // pe and e of the chunks of the longest sequence
    Matrix from_latent;              // [n, hyper_dim] p
  };
  struct Scratch {
    Scratch(Carver& carver, const TrainableTemporalLatent& room, const PackedBatch& batch)
        : visible(carver.span<KeyRange>(batch.rows())),
          slices(carver.span<AttentionSlice>(batch.sequences())),
          core(carver, room.core_, batch.rows()) {
      int64_t all = 0, closed = 0;
      for (int64_t i = 0; i < batch.sequences(); ++i) {
        all += room.chunks_of(room.rows_of(batch, i));
        closed += room.rows_of(batch, i) / room.stride_;
      }
      chunks = carver.span<Chunk>(all);
      closing = carver.span<int32_t>(closed);
      closed_key = carver.matrix<Real>(closed, room.core_.query_cols());
      closed_value = carver.matrix<Real>(closed, room.core_.value_cols());
      dclosed_key = carver.matrix<Real>(closed, room.core_.query_cols());
      dclosed_value = carver.matrix<Real>(closed, room.core_.value_cols());
      dmerged = carver.matrix<Real>(batch.rows(), room.core_.settings().rank);
      dfrom_latent = carver.matrix<Real>(batch.rows(), room.hyper_dim_);
      dfrom_code = carver.matrix<Real>(room.hyper_dim_ == 0 ? 0 : room.most_chunks(batch), room.hyper_dim_);
      dlogit = carver.span<Real>(batch.rows());
    }
    std::span<KeyRange> visible;
    std::span<AttentionSlice> slices;
    typename LatentTraining<Real>::Scratch core;
    std::span<Chunk> chunks;
    std::span<int32_t> closing;      // the last rows of the full chunks
    Matrix closed_key, closed_value;
    Matrix dclosed_key, dclosed_value, dmerged, dfrom_latent, dfrom_code;   // backward only
    std::span<Real> dlogit;          // [n] gradient of e . p
  };

  static int64_t rows_of(const PackedBatch& batch, int64_t sequence) {
    return batch.offsets[static_cast<size_t>(sequence) + 1] - batch.offsets[static_cast<size_t>(sequence)];
  }
  int64_t chunks_of(int64_t rows) const { return (rows + stride_ - 1) / stride_; }
  int64_t most_chunks(const PackedBatch& batch) const {
    int64_t most = 0;
    for (int64_t i = 0; i < batch.sequences(); ++i) most = std::max(most, chunks_of(rows_of(batch, i)));
    return most;
  }

  // The chunk grid of every sequence, counting the rows this layer was given, and who sees what.
  AttentionPattern lay_out(const Scratch& scratch, const PackedBatch& batch) const;
  AttentionInputs<Real> inputs(const Saved& saved, const Scratch& scratch, const Call& call) const;
  void merge(const Saved& saved, const Scratch& scratch, const Call& call) const;
  // scratch.dmerged, from attention, -> scratch.core.dlatent.
  void unmerge(const Saved& saved, const Scratch& scratch, const Call& call) const;
  void unweigh(const Saved& saved, const Scratch& scratch, const Call& call) const;
  // task(chunk) for every chunk.
  template <class Task>
  static void for_chunks(const Call& call, std::span<const Chunk> chunks, const Task& task) {
    for_rows(call.ops.pool(), static_cast<int64_t>(chunks.size()), [&](int64_t i) { task(chunks[static_cast<size_t>(i)]); });
  }

  LatentTraining<Real> core_;
  int64_t stride_, hyper_dim_;
  int64_t from_code_ = -1, from_code_bias_ = -1, from_latent_ = -1, from_latent_bias_ = -1;
  std::vector<double> code_frequency_;   // of each pair of the positional code
};

template <class Real>
AttentionPattern TrainableTemporalLatent<Real>::lay_out(const Scratch& scratch, const PackedBatch& batch) const {
  size_t chunk = 0;
  int64_t closed = 0;
  for (int64_t sequence = 0; sequence < batch.sequences(); ++sequence) {
    const int64_t begin = batch.offsets[static_cast<size_t>(sequence)], rows = rows_of(batch, sequence);
    const int64_t full = rows / stride_;
    scratch.slices[static_cast<size_t>(sequence)] = {begin, rows, closed, full};
    for (int64_t i = 0; i < rows; ++i) scratch.visible[static_cast<size_t>(begin + i)] = {0, static_cast<int32_t>(i / stride_)};
    for (int64_t i = 0; i < rows; i += stride_) {
      scratch.chunks[chunk++] = {begin + i, static_cast<int32_t>(std::min(stride_, rows - i)), static_cast<int32_t>(i / stride_)};
    }
    for (int64_t i = 0; i < full; ++i) scratch.closing[static_cast<size_t>(closed + i)] = static_cast<int32_t>(begin + (i + 1) * stride_ - 1);
    closed += full;
  }
  return core_.pattern(scratch.slices, scratch.visible);
}

template <class Real>
AttentionInputs<Real> TrainableTemporalLatent<Real>::inputs(const Saved& saved, const Scratch& scratch, const Call& call) const {
  call.ops.gather_rows(scratch.closed_key, saved.core.key, scratch.closing);
  call.ops.gather_rows(scratch.closed_value, saved.core.value, scratch.closing);
  return {saved.core.query, scratch.closed_key, scratch.closed_value, saved.core.key, saved.core.value};
}

template <class Real>
void TrainableTemporalLatent<Real>::merge(const Saved& saved, const Scratch& scratch, const Call& call) const {
  if (hyper_dim_ > 0) {
    for_rows(call.ops.pool(), saved.codes.rows, [&](int64_t chunk) {
      for (int64_t i = 0; i < saved.codes.cols; ++i) {
        const double angle = static_cast<double>(chunk) * code_frequency_[static_cast<size_t>(i / 2)];
        saved.codes(chunk, i) = static_cast<Real>(i % 2 == 0 ? std::sin(angle) : std::cos(angle));
      }
    });
    call.ops.matmul(saved.from_code, saved.codes, core_.weight(call, from_code_), core_.bias(call, from_code_bias_));
    call.ops.matmul(saved.from_latent, saved.core.latent, core_.weight(call, from_latent_), core_.bias(call, from_latent_bias_));
  }
  for_chunks(call, scratch.chunks, [&](const Chunk& chunk) {
    for (int64_t row = chunk.first; row < chunk.first + chunk.rows; ++row) {
      Real w = 1;
      if (hyper_dim_ > 0) {
        Real logit = 0;
        for (int64_t c = 0; c < hyper_dim_; ++c) logit += saved.from_code(chunk.number, c) * saved.from_latent(row, c);
        w = Real{1} / (Real{1} + std::exp(-logit));
      }
      saved.merge_weight[static_cast<size_t>(row)] = w;
      const Real* latent = saved.core.latent.row(row);
      Real* merged = saved.merged.row(row);
      const Real* before = row == chunk.first ? nullptr : saved.merged.row(row - 1);
      for (int64_t c = 0; c < saved.merged.cols; ++c) merged[c] = (before == nullptr ? Real{0} : before[c]) + w * latent[c];
    }
  });
}

// With G the gradient of the partial sums and A_k = sum of G over the chunk from row k on:
//   dw_k = A_k . c_k;  dc_k = w_k A_k;  the gradient of e . p is dw_k w_k (1 - w_k).
template <class Real>
void TrainableTemporalLatent<Real>::unmerge(const Saved& saved, const Scratch& scratch, const Call& call) const {
  for_chunks(call, scratch.chunks, [&](const Chunk& chunk) {
    for (int64_t row = chunk.first + chunk.rows - 1; row >= chunk.first; --row) {
      Real* a = scratch.dmerged.row(row);
      if (row + 1 < chunk.first + chunk.rows) {
        const Real* after = scratch.dmerged.row(row + 1);
        for (int64_t c = 0; c < scratch.dmerged.cols; ++c) a[c] += after[c];
      }
      const Real* latent = saved.core.latent.row(row);
      const Real w = saved.merge_weight[static_cast<size_t>(row)];
      Real* dlatent = scratch.core.dlatent.row(row);
      Real dw = 0;
      for (int64_t c = 0; c < scratch.dmerged.cols; ++c) dw += a[c] * latent[c];
      for (int64_t c = 0; c < scratch.dmerged.cols; ++c) dlatent[c] = w * a[c];
      scratch.dlogit[static_cast<size_t>(row)] = dw * w * (1 - w);
    }
  });
  if (hyper_dim_ > 0) unweigh(saved, scratch, call);
}

// dp_k = dlogit_k e_j;  de_j = sum over all sequences' chunks j of dlogit_k p_k; then through the two linear layers.
template <class Real>
void TrainableTemporalLatent<Real>::unweigh(const Saved& saved, const Scratch& scratch, const Call& call) const {
  for_chunks(call, scratch.chunks, [&](const Chunk& chunk) {
    for (int64_t row = chunk.first; row < chunk.first + chunk.rows; ++row) {
      const Real d = scratch.dlogit[static_cast<size_t>(row)];
      for (int64_t c = 0; c < hyper_dim_; ++c) scratch.dfrom_latent(row, c) = d * saved.from_code(chunk.number, c);
    }
  });
  // By columns, so that the sequences' chunks of one number are added in order.
  constexpr int64_t kColumns = 16;
  std::fill_n(scratch.dfrom_code.data, scratch.dfrom_code.rows * scratch.dfrom_code.cols, Real{0});
  call.ops.pool().parallel_for((hyper_dim_ + kColumns - 1) / kColumns, [&](int64_t block) {
    const int64_t begin = block * kColumns, end = std::min(hyper_dim_, begin + kColumns);
    for (const Chunk& chunk : scratch.chunks) {
      Real* de = scratch.dfrom_code.row(chunk.number);
      for (int64_t row = chunk.first; row < chunk.first + chunk.rows; ++row) {
        const Real d = scratch.dlogit[static_cast<size_t>(row)];
        for (int64_t c = begin; c < end; ++c) de[c] += d * saved.from_latent(row, c);
      }
    }
  });
  const LinearBackward<Real> latent{scratch.dfrom_latent, core_.weight(call, from_latent_), core_.gradient(call, from_latent_),
                                    core_.dbias(call, from_latent_bias_)};
  call.ops.matmul_backward(scratch.core.dlatent, latent, saved.core.latent, Gradient::kAdd);
  const LinearBackward<Real> code{scratch.dfrom_code, core_.weight(call, from_code_), core_.gradient(call, from_code_),
                                  core_.dbias(call, from_code_bias_)};
  call.ops.matmul_backward(Matrix(), code, saved.codes);
}

template <class Real>
double TrainableTemporalLatent<Real>::forward(Matrix out, ConstMatrix x, const Call& call) const {
  Carver saved_carver(call.saved), scratch_carver(call.scratch);
  const Saved saved(saved_carver, *this, call.batch);
  const Scratch scratch(scratch_carver, *this, call.batch);
  const AttentionPattern pattern = lay_out(scratch, call.batch);
  core_.project(saved.core, scratch.core, x, call);
  merge(saved, scratch, call);
  core_.expand(saved.core, scratch.core, saved.merged, call);
  call.ops.attention(saved.core.attended, saved.core.log_sum_exp, inputs(saved, scratch, call), pattern);
  core_.finish(out, saved.core.attended, call);
  return 0;
}

// Each step undoes one of forward, last first.
template <class Real>
void TrainableTemporalLatent<Real>::backward(Matrix dx, ConstMatrix dout, ConstMatrix x, const Call& call) const {
  Carver saved_carver(call.saved), scratch_carver(call.scratch);
  const Saved saved(saved_carver, *this, call.batch);
  const Scratch scratch(scratch_carver, *this, call.batch);
  const AttentionPattern pattern = lay_out(scratch, call.batch);
  const auto& core = scratch.core;
  core_.unfinish(core, dout, saved.core.attended, call);
  call.ops.attention_backward({core.dquery, scratch.dclosed_key, scratch.dclosed_value, core.dkey, core.dvalue}, core.dattended,
                              inputs(saved, scratch, call), {saved.core.attended, saved.core.log_sum_exp}, pattern);
  // A closed row is the partial row of its last token.
  call.ops.scatter_add_rows(core.dkey, scratch.dclosed_key, scratch.closing);
  call.ops.scatter_add_rows(core.dvalue, scratch.dclosed_value, scratch.closing);
  core_.unexpand(scratch.dmerged, core, saved.merged, call);
  unmerge(saved, scratch, call);
  core_.unproject(dx, saved.core, core, x, call);
}

}  // namespace

template <class Real>
Result<std::unique_ptr<TrainableAttention<Real>>> create_training_temporal_latent(const AttentionShape& shape,
                                                                                  const HyperParameters& parameters,
                                                                                  std::span<const std::string> optional_roles) {
  ASSIGN_OR_RETURN(const TemporalLatentSettings settings, read_temporal_latent_settings(shape, parameters));
  return std::unique_ptr<TrainableAttention<Real>>(std::make_unique<TrainableTemporalLatent<Real>>(settings, optional_roles));
}

template Result<std::unique_ptr<TrainableAttention<float>>> create_training_temporal_latent(const AttentionShape&,
                                                                                            const HyperParameters&,
                                                                                            std::span<const std::string>);
template Result<std::unique_ptr<TrainableAttention<double>>> create_training_temporal_latent(const AttentionShape&,
                                                                                             const HyperParameters&,
                                                                                             std::span<const std::string>);

}  // namespace quipu
