// Multi-head temporal latent attention (MTLA): MLA whose rows are merged, `stride` tokens into one. Mathematics: math.md.
//
// Hyperparameters: those of attention/shared/latent_attention.h and
//   stride       tokens of a chunk, >= 1
//   merge        "learned" (absent): weights from a hyper-network; "unit": every weight is 1 (stride 1 is then MLA)
//   hyper_dim    width of the hyper-network; absent: latent_rank / 4, which must be whole
// Weight roles: those of latent_attention.h and, unless merge is unit,
//   hypernet_fc_c [hyper_dim, latent_rank], hypernet_fc_c_bias [hyper_dim]   on the chunk's positional code (not the latent:
//                                                                            the published letters mislead)
//   hypernet_fc_p [hyper_dim, latent_rank], hypernet_fc_p_bias [hyper_dim]   on the latent
//
// State: region "latent", one row per stride tokens of latent_rank + rope_dim elements, 64 rows a page, row by row. The last
// row may belong to an open chunk: it then holds a rounded copy nobody reads. Region "open": that row in fp32, one fixed
// row, private to its sequence; without meaning between chunks, so that the state can be cut back there.
#pragma once

#include <memory>
#include <vector>

#include "attention/attention.h"
#include "attention/shared/latent_attention.h"

namespace quipu {

struct TemporalLatentSettings {
  LatentSettings latent;
  int64_t stride = 1;
  int64_t hyper_dim = 0;   // 0: unit weights
};
Result<TemporalLatentSettings> read_temporal_latent_settings(const AttentionShape& shape, const HyperParameters& parameters);

class TemporalLatent final : public Attention {
 public:
  static Result<std::unique_ptr<Attention>> create(const AttentionShape& shape, const HyperParameters& parameters,
                                                   WeightSource& weights, Backend& backend);

  StateLayout state_layout(const StateOptions& options) const override;
  int64_t scratch_bytes(int64_t rows) const override;
  void forward(Backend& backend, MatrixView<float> out, MatrixView<const float> x, const RaggedBatch& batch,
               Arena& scratch) const override;
  int64_t weight_bytes() const override;
  int64_t weight_bytes_read() const override { return weight_bytes() - core_.weight_bytes() + core_.weight_bytes_read(); }
  int64_t flops_per_token() const override;
  int64_t context_flops(int64_t tokens) const override { return core_.flops_per_row() * rows_of(tokens); }
  int64_t context_bytes_read(int64_t tokens, const StateOptions& options) const override;

 private:
  explicit TemporalLatent(LatentAttention core) : core_(std::move(core)) {}
  Result<void> bind(WeightSource& weights, Backend& backend);
  int64_t rows_of(int64_t tokens) const { return (tokens + stride_ - 1) / stride_; }
  // weight [n] of every row's latent in its chunk.
  void merge_weights(Backend& backend, float* weight, MatrixView<const float> latent, const RaggedBatch& batch,
                     Arena& scratch) const;
  // Sinusoid code of a chunk, [latent_rank].
  void positional_code(float* code, int64_t chunk) const;
  // Takes a sequence's rows into its state; own [n, width]: the open row as it is after each token.
  void append(const SequenceSlice& slice, const float* weight, MatrixView<const float> latent, MatrixView<float> own) const;

  LatentAttention core_;
  int64_t stride_ = 1;
  int64_t hyper_dim_ = 0;   // 0: unit weights
  std::unique_ptr<PackedMatrix> from_code_, from_latent_;
  std::vector<float> from_code_bias_, from_latent_bias_;
  std::vector<double> code_frequency_;   // of each pair of the positional code
};

}  // namespace quipu
