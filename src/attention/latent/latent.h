// Multi-head latent attention (MLA). Mathematics: math.md. Hyperparameters and weight roles:
// attention/shared/latent_attention.h.
//
// State: region "latent", one row a token of exactly latent_rank + rope_dim elements: the normalised latent, then the
// rotated key all heads share. Pages hold 64 rows, row by row; the value is the first latent_rank entries of the key row.
#pragma once

#include <memory>

#include "attention/attention.h"
#include "attention/shared/latent_attention.h"

namespace quipu {

class Latent final : public Attention {
 public:
  static Result<std::unique_ptr<Attention>> create(const AttentionShape& shape, const HyperParameters& parameters,
                                                   WeightSource& weights, Backend& backend);

  StateLayout state_layout(const StateOptions& options) const override;
  int64_t scratch_bytes(int64_t rows) const override;
  void forward(Backend& backend, MatrixView<float> out, MatrixView<const float> x, const RaggedBatch& batch,
               Arena& scratch) const override;
  int64_t weight_bytes() const override { return core_.weight_bytes(); }
  int64_t weight_bytes_read() const override { return core_.weight_bytes_read(); }
  int64_t flops_per_token() const override { return core_.flops_per_token(); }
  int64_t context_flops(int64_t tokens) const override { return core_.flops_per_row() * tokens; }
  int64_t context_bytes_read(int64_t tokens, const StateOptions& options) const override;

 private:
  explicit Latent(LatentAttention core) : core_(std::move(core)) {}
  LatentAttention core_;
};

}  // namespace quipu
