// What latent attention (MLA) and its temporal variant (MTLA) share: projections into queries and latent rows, attention
// over such rows in both forms, and the way back. What the rows are and where they are kept is the rooms' business.
// Mathematics: latent/math.md.
//
// Hyperparameters:
//   heads, latent_rank, nope_dim, rope_dim, value_dim    rope_dim even, may be 0
//   query_rank                0 or absent: the query comes from the hidden row directly
//   latent_norm               "none", "rms" or "layer", required; the query latent has the same kind
//   norm_epsilon              unless latent_norm is none
//   scale                     multiplies q . k; absent: 1 / sqrt(nope_dim + rope_dim), times the square of
//                             yarn_magnitude(rope_scaling_factor, rope_mscale_all_dim) when that is given and not 0
//   form                      "prompt" (absent), "absorbed", "expanded" or "auto": see LatentForm
//   rope_...                  attention/shared/rope_frequencies.h (interleaved for DeepSeek and MTLA weights)
// Weight roles:
//   query [heads * (nope_dim + rope_dim), hidden], per head [nope | rope]; with query_rank instead of it:
//     query_down [query_rank, hidden]  query_down_norm [query_rank]  query_up [heads * (nope_dim + rope_dim), query_rank]
//   latent_down [latent_rank + rope_dim, hidden]   rows [latent | shared rotary key]
//   latent_norm [latent_rank]
//   latent_up [heads * (nope_dim + value_dim), latent_rank], per head [key | value]; or, when there is key_up,
//     key_up [heads * latent_rank, nope_dim] (transposed per head)  value_up [heads * value_dim, latent_rank]
//   output [hidden, heads * value_dim]
//   query_bias or query_down_bias, latent_down_bias, output_bias, query_down_norm_bias and latent_norm_bias (norm layer):
//     used when the file has them
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "attention/shared/latent_expanded.h"
#include "attention/shared/latent_kernel.h"
#include "attention/shared/rope_frequencies.h"

namespace quipu {

enum class LatentNorm { kNone, kRms, kLayer };

// Equal in exact arithmetic, different in rounding.
enum class LatentForm {
  kPrompt,     // rows of a prompt (SequenceSlice::prompt) expanded where that is done in bf16 tiles, others absorbed
  kAbsorbed,   // queries go into the latent space: what generation wants
  kExpanded,   // keys and values of the context are made again in every step: what prompts want
  kAuto,       // by the rows a sequence appends in the step (crossover()): fastest, but the last bits depend on how a
               // prompt is cut into chunks
};

struct LatentSettings {
  int64_t hidden = 0, heads = 0, query_rank = 0, rank = 0, nope_dim = 0, rope_dim = 0, value_dim = 0;
  LatentNorm norm = LatentNorm::kNone;
  float norm_epsilon = 0.0f;
  float scale = 1.0f;
  LatentForm form = LatentForm::kPrompt;
  bool keeps_up = false;   // keeps what expand() multiplies by, whatever the form
  RopeSettings rope;

  int64_t query_dim() const { return nope_dim + rope_dim; }   // of one head
  int64_t width() const { return rank + rope_dim; }           // of one latent row
  int64_t up_dim() const { return nope_dim + value_dim; }     // of one head's expanded row
  // Rows from which the expanded form is faster on a long context, in fp32 or in bf16 tiles; INT64_MAX: never.
  int64_t crossover(bool tiles) const;
};

Result<LatentSettings> read_latent_settings(const AttentionShape& shape, const HyperParameters& parameters);

class LatentAttention {
 public:
  static Result<LatentAttention> create(const LatentSettings& settings, WeightSource& weights, Backend& backend);

  const LatentSettings& settings() const { return s_; }
  // The dtype asked for, except that q8_0 needs width() in whole blocks of 32; otherwise f16.
  DType cache_dtype(DType wanted) const;
  // Whether these rows are computed in the expanded form, where rows are kept as `dtype`.
  bool expands(const Backend& backend, const SequenceSlice& slice, DType dtype) const;

  struct Projected {
    MatrixView<float> query;   // [n, heads * query_dim], rotated
    MatrixView<float> latent;  // [n, width]: normalised latent, rotated key
  };
  // What project() and attend() take from the arena for n rows, together.
  int64_t scratch_bytes(int64_t rows) const;
  // The result lives in the arena; the caller marks it.
  Projected project(Backend& backend, MatrixView<const float> x, std::span<const int64_t> positions, Arena& scratch) const;
  // out [n, hidden] = output projection of the rows' attention over their contexts, kept in cache dtype `dtype`.
  void attend(Backend& backend, MatrixView<float> out, MatrixView<const float> query,
              std::span<const LatentContext> contexts, DType dtype, Arena& scratch) const;

  // The parts of attend(), for rooms that mix something else in. heads [n, heads * value_dim]: before the output projection.
  void attend_heads(Backend& backend, MatrixView<float> heads, MatrixView<const float> query,
                    std::span<const LatentContext> contexts, DType dtype, Arena& scratch) const;
  void project_output(Backend& backend, MatrixView<float> out, MatrixView<const float> heads) const;
  // Not with form expanded. Head i of out begins at i * stride and gets the query's position-free part in the latent space,
  // [rank]; head i of `heads` gets what its value projection makes of sums [n, heads * rank].
  void absorb(Backend& backend, MatrixView<float> out, MatrixView<const float> query, int64_t stride) const;
  void raise_values(Backend& backend, MatrixView<float> heads, MatrixView<const float> sums) const;
  // With settings().keeps_up: out [n, heads * up_dim], per head [key | value], of latents [n, rank].
  void expand(Backend& backend, MatrixView<float> out, MatrixView<const float> latent) const;

  int64_t weight_bytes() const;
  int64_t weight_bytes_read() const;   // of them, what a generated token reads
  int64_t flops_per_token() const;
  int64_t flops_per_row() const;   // of one token attending to one row

 private:
  Result<void> bind(WeightSource& weights);
  Result<void> bind_up(WeightSource& weights, Backend& backend);
  Result<void> bind_expanding(std::span<const float> joint, Backend& backend);
  bool expands_in_tiles(const Backend& backend, DType dtype) const;
  void norm(Backend& backend, MatrixView<float> x, const std::vector<float>& weight, const std::vector<float>& bias) const;
  void rotate_queries(Backend& backend, MatrixView<float> query, std::span<const int64_t> positions) const;
  void absorbed(Backend& backend, MatrixView<float> heads, MatrixView<const float> query,
                std::span<const LatentContext> contexts, DType dtype, Arena& scratch) const;
  ExpandedShape kernel_shape(DType dtype, Isa isa) const {
    return {.latent = {.dtype = dtype, .heads = s_.heads, .rank = s_.rank, .rope_dim = s_.rope_dim, .scale = s_.scale, .isa = isa},
            .nope_dim = s_.nope_dim,
            .value_dim = s_.value_dim};
  }

  LatentSettings s_;
  int threads_ = 1;
  std::unique_ptr<PackedMatrix> query_, query_down_, query_up_, latent_down_, output_;
  std::vector<std::unique_ptr<PackedMatrix>> key_up_;     // per head [rank, nope_dim]; not for kExpanded
  std::vector<std::unique_ptr<PackedMatrix>> value_up_;   // per head [value_dim, rank]; not for kExpanded
  std::unique_ptr<PackedMatrix> latent_up_;               // [heads * up_dim, rank]; for kExpanded, kAuto and keeps_up
  std::unique_ptr<PackedMatrix> tile_up_;                 // [heads * head_up_rows(), rank] where there are tiles; not for kAbsorbed
  std::vector<float> query_bias_, query_down_bias_, latent_down_bias_, output_bias_;
  std::vector<float> query_down_norm_, query_down_norm_bias_, latent_norm_, latent_norm_bias_;
};

}  // namespace quipu
