#include "attention/latent/latent.h"

#include <memory>
#include <utility>

namespace quipu {

Result<std::unique_ptr<Attention>> Latent::create(const AttentionShape& shape, const HyperParameters& parameters,
                                                  WeightSource& weights, Backend& backend) {
  ASSIGN_OR_RETURN(const LatentSettings settings, read_latent_settings(shape, parameters));
  ASSIGN_OR_RETURN(LatentAttention core, LatentAttention::create(settings, weights, backend));
  return std::unique_ptr<Attention>(new Latent(std::move(core)));
}

StateLayout Latent::state_layout(const StateOptions& options) const {
  const RegionSpec latent{.name = "latent",
                          .dtype = core_.cache_dtype(options.cache_dtype),
                          .row_elements = core_.settings().width()};
  return {.regions = {latent}, .rewind = Rewind::kAnyToken};
}

int64_t Latent::scratch_bytes(int64_t rows) const {
  return core_.scratch_bytes(rows) + Arena::planned<LatentContext>(rows);
}

void Latent::forward(Backend& backend, MatrixView<float> out, MatrixView<const float> x, const RaggedBatch& batch,
                     Arena& scratch) const {
  const ArenaMark mark(scratch);
  const LatentAttention::Projected projected = core_.project(backend, x, batch.positions, scratch);
  LatentContext* contexts = scratch.take<LatentContext>(x.rows);
  DType dtype = DType::kF32;
  for (const SequenceSlice& slice : batch.slices) {
    RegionState& region = slice.state->region(0);
    dtype = region.spec.dtype;
    const bool expand = core_.expands(backend, slice, dtype);
    for (int64_t row = slice.row_begin; row < slice.row_begin + slice.rows; ++row) {
      std::byte* page = region.pages[static_cast<size_t>(region.rows / kPageRows)];
      store_latent_row(page, dtype, projected.latent.cols, region.rows % kPageRows, projected.latent.row(row));
      ++region.rows;
      std::construct_at(contexts + row, LatentContext{.pages = region.pages, .rows = region.rows, .expand = expand});
    }
    slice.state->advance(slice.rows);
  }
  core_.attend(backend, out, projected.query, {contexts, static_cast<size_t>(x.rows)}, dtype, scratch);
}

int64_t Latent::context_bytes_read(int64_t tokens, const StateOptions& options) const {
  return state_layout(options).regions[0].bytes_per_row() * tokens;
}

Result<std::unique_ptr<Attention>> create_latent(const AttentionShape& shape, const HyperParameters& parameters,
                                                 WeightSource& weights, Backend& backend) {
  return Latent::create(shape, parameters, weights, backend);
}

}  // namespace quipu
