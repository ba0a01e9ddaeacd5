#include "attention/temporal_latent/temporal_latent.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <utility>

namespace quipu {
namespace {

constexpr size_t kLatentRegion = 0;
constexpr size_t kOpenRegion = 1;
constexpr int64_t kMostStride = 1 << 20;
constexpr int64_t kMostHyperDim = 1 << 16;

// 0: no hyper-network.
Result<int64_t> read_hyper_dim(const HyperParameters& p, int64_t rank) {
  ASSIGN_OR_RETURN(const std::string merge, p.text_or("merge", "learned"));
  if (merge == "unit") return 0;
  if (merge != "learned") {
    return bad_input(p.origin() + ": attention setting merge is \"" + merge + "\", expected learned or unit");
  }
  if (!p.has("hyper_dim") && rank % 4 != 0) {
    return bad_input(p.origin() + ": attention setting hyper_dim is missing, and latent_rank " + std::to_string(rank) +
                     " is no multiple of 4");
  }
  return p.integer_or("hyper_dim", 1, kMostHyperDim, rank / 4);
}

}  // namespace

Result<TemporalLatentSettings> read_temporal_latent_settings(const AttentionShape& shape, const HyperParameters& parameters) {
  TemporalLatentSettings settings;
  ASSIGN_OR_RETURN(settings.latent, read_latent_settings(shape, parameters));
  ASSIGN_OR_RETURN(settings.stride, parameters.integer("stride", 1, kMostStride));
  ASSIGN_OR_RETURN(settings.hyper_dim, read_hyper_dim(parameters, settings.latent.rank));
  return settings;
}

Result<std::unique_ptr<Attention>> TemporalLatent::create(const AttentionShape& shape, const HyperParameters& parameters,
                                                          WeightSource& weights, Backend& backend) {
  ASSIGN_OR_RETURN(const TemporalLatentSettings settings, read_temporal_latent_settings(shape, parameters));
  ASSIGN_OR_RETURN(LatentAttention core, LatentAttention::create(settings.latent, weights, backend));
  std::unique_ptr<TemporalLatent> room(new TemporalLatent(std::move(core)));
  room->stride_ = settings.stride;
  room->hyper_dim_ = settings.hyper_dim;
  RETURN_IF_ERROR(room->bind(weights, backend));
  return std::unique_ptr<Attention>(std::move(room));
}

Result<void> TemporalLatent::bind(WeightSource& weights, Backend& backend) {
  if (hyper_dim_ == 0) return {};
  const int64_t rank = core_.settings().rank;
  // fp32 whatever the file has, so that nothing is rounded on the way to the weights of a merge: what a row of the cache is off
  // by, every later token reads. On AMX products of bf16 weights round their input to 8 bits.
  const auto float_matrix = [&](const char* role) -> Result<std::unique_ptr<PackedMatrix>> {
    ASSIGN_OR_RETURN(const std::vector<float> values, weights.dense(role, hyper_dim_, rank, "hyper_dim"));
    return backend.pack({DType::kF32, hyper_dim_, rank, std::as_bytes(std::span(values))});
  };
  ASSIGN_OR_RETURN(from_code_, float_matrix("hypernet_fc_c"));
  ASSIGN_OR_RETURN(from_code_bias_, weights.vector("hypernet_fc_c_bias", hyper_dim_, "hyper_dim"));
  ASSIGN_OR_RETURN(from_latent_, float_matrix("hypernet_fc_p"));
  ASSIGN_OR_RETURN(from_latent_bias_, weights.vector("hypernet_fc_p_bias", hyper_dim_, "hyper_dim"));
  for (int64_t i = 0; i < rank; i += 2) {
    code_frequency_.push_back(std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(rank)));
  }
  return {};
}

StateLayout TemporalLatent::state_layout(const StateOptions& options) const {
  const int64_t width = core_.settings().width();
  const RegionSpec latent{.name = "latent",
                          .dtype = core_.cache_dtype(options.cache_dtype),
                          .row_elements = width,
                          .growth = Growth::kPerStride,
                          .stride = stride_};
  const RegionSpec open{.name = "open", .dtype = DType::kF32, .row_elements = width, .growth = Growth::kFixed, .fixed_rows = 1};
  return {.regions = {latent, open}, .rewind = Rewind::kStrideBoundary, .stride = stride_};
}

int64_t TemporalLatent::scratch_bytes(int64_t rows) const {
  const LatentSettings& s = core_.settings();
  const int64_t merging = hyper_dim_ == 0 ? 0 : Arena::planned<float>(rows * s.rank) + 2 * Arena::planned<float>(rows * hyper_dim_) +
                                                     2 * Arena::planned<int64_t>(rows);
  return core_.scratch_bytes(rows) + Arena::planned<LatentContext>(rows) + Arena::planned<float>(rows) +
         Arena::planned<float>(rows * s.width()) + merging;
}

void TemporalLatent::positional_code(float* code, int64_t chunk) const {
  const int64_t rank = core_.settings().rank;
  for (int64_t i = 0; i < rank; ++i) {
    const double angle = static_cast<double>(chunk) * code_frequency_[static_cast<size_t>(i / 2)];
    code[i] = static_cast<float>(i % 2 == 0 ? std::sin(angle) : std::cos(angle));
  }
}

void TemporalLatent::merge_weights(Backend& backend, float* weight, MatrixView<const float> latent, const RaggedBatch& batch,
                                   Arena& scratch) const {
  if (hyper_dim_ == 0) {
    std::fill_n(weight, latent.rows, 1.0f);
    return;
  }
  const ArenaMark mark(scratch);
  const int64_t rank = core_.settings().rank;
  const MatrixView<float> codes = scratch.matrix(latent.rows, rank);   // of the chunks the rows lie in
  const MatrixView<float> from_codes = scratch.matrix(latent.rows, hyper_dim_);
  const MatrixView<float> from_latent = scratch.matrix(latent.rows, hyper_dim_);
  int64_t* chunk = scratch.take<int64_t>(latent.rows);                 // of each code
  int64_t* code_of = scratch.take<int64_t>(latent.rows);               // of each row
  int64_t count = 0;
  for (const SequenceSlice& slice : batch.slices) {
    for (int64_t i = 0; i < slice.rows; ++i) {
      // The chunk grid counts the tokens this layer has taken, as the state's rows do.
      const int64_t token = slice.state->tokens() + i;
      // Hypotheses of one length are in the same chunk: its code is made once.
      if (count == 0 || chunk[count - 1] != token / stride_) chunk[count++] = token / stride_;
      code_of[slice.row_begin + i] = count - 1;
    }
  }
  backend.pool().parallel_for(count, [&](int64_t i) { positional_code(codes.row(i), chunk[i]); });
  backend.matmul(from_codes.rows_from(0, count), *from_code_, codes.rows_from(0, count), from_code_bias_.data());
  backend.matmul(from_latent, *from_latent_, latent.cols_from(0, rank), from_latent_bias_.data());
  backend.pool().parallel_for(latent.rows, [&](int64_t row) {
    const float* code = from_codes.row(code_of[row]);
    double sum = 0.0;
    for (int64_t c = 0; c < hyper_dim_; ++c) sum += double{code[c]} * from_latent(row, c);
    weight[row] = static_cast<float>(1.0 / (1.0 + std::exp(-sum)));
  });
}

void TemporalLatent::append(const SequenceSlice& slice, const float* weight, MatrixView<const float> latent,
                            MatrixView<float> own) const {
  const LatentSettings& s = core_.settings();
  RegionState& closed = slice.state->region(kLatentRegion);
  float* open = reinterpret_cast<float*>(slice.state->region(kOpenRegion).pages[0]);
  for (int64_t i = 0; i < slice.rows; ++i) {
    const int64_t row = slice.row_begin + i, token = slice.state->tokens() + i;
    const float* in = latent.row(row);
    if (token % stride_ == 0) std::fill_n(open, s.rank, 0.0f);
    for (int64_t c = 0; c < s.rank; ++c) open[c] += weight[row] * in[c];
    std::copy_n(in + s.rank, s.rope_dim, open + s.rank);   // the newest token's key stands for the chunk
    std::copy_n(open, s.width(), own.row(row));
    if ((token + 1) % stride_ == 0 || i + 1 == slice.rows) {
      const int64_t chunk = token / stride_;
      store_latent_row(closed.pages[static_cast<size_t>(chunk / kPageRows)], closed.spec.dtype, s.width(), chunk % kPageRows,
                       open);
    }
  }
}

void TemporalLatent::forward(Backend& backend, MatrixView<float> out, MatrixView<const float> x, const RaggedBatch& batch,
                             Arena& scratch) const {
  const ArenaMark mark(scratch);
  const LatentAttention::Projected projected = core_.project(backend, x, batch.positions, scratch);
  LatentContext* contexts = scratch.take<LatentContext>(x.rows);
  float* weight = scratch.take<float>(x.rows);
  const MatrixView<float> own = scratch.matrix(x.rows, core_.settings().width());
  merge_weights(backend, weight, projected.latent, batch, scratch);
  DType dtype = DType::kF32;
  for (const SequenceSlice& slice : batch.slices) dtype = slice.state->region(kLatentRegion).spec.dtype;
  backend.pool().parallel_for(std::ssize(batch.slices), [&](int64_t index) {   // every sequence has its own state
    const SequenceSlice& slice = batch.slices[static_cast<size_t>(index)];
    if (slice.rows == 0) return;
    append(slice, weight, projected.latent, own);
    RegionState& closed = slice.state->region(kLatentRegion);
    const int64_t before = slice.state->tokens();
    for (int64_t i = 0; i < slice.rows; ++i) {
      const int64_t row = slice.row_begin + i;
      std::construct_at(contexts + row, LatentContext{.pages = closed.pages,
                                                      .rows = (before + i) / stride_,
                                                      .own = own.row(row),
                                                      .expand = core_.expands(backend, slice, dtype)});
    }
    closed.rows = rows_of(before + slice.rows);
    slice.state->advance(slice.rows);
  });
  core_.attend(backend, out, projected.query, {contexts, static_cast<size_t>(x.rows)}, dtype, scratch);
}

int64_t TemporalLatent::weight_bytes() const {
  if (hyper_dim_ == 0) return core_.weight_bytes();
  const size_t floats = from_code_bias_.size() + from_latent_bias_.size();
  return core_.weight_bytes() + from_code_->bytes() + from_latent_->bytes() + static_cast<int64_t>(floats * sizeof(float));
}

int64_t TemporalLatent::flops_per_token() const {
  const int64_t rank = core_.settings().rank;
  return core_.flops_per_token() + 2 * rank + (hyper_dim_ == 0 ? 0 : 4 * hyper_dim_ * rank + 2 * hyper_dim_);
}

int64_t TemporalLatent::context_bytes_read(int64_t tokens, const StateOptions& options) const {
  return state_layout(options).regions[kLatentRegion].bytes_per_row() * rows_of(tokens);
}

Result<std::unique_ptr<Attention>> create_temporal_latent(const AttentionShape& shape, const HyperParameters& parameters,
                                                          WeightSource& weights, Backend& backend) {
  return TemporalLatent::create(shape, parameters, weights, backend);
}

}  // namespace quipu
