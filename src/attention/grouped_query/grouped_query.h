// Grouped-query attention; MHA (kv_heads = heads) and MQA (kv_heads = 1) are its ends. Mathematics: math.md.
//
// Hyperparameters:
//   heads, kv_heads, head_dim        heads a multiple of kv_heads
//   value_dim                        absent: head_dim
//   rope_...                         attention/shared/rope_frequencies.h
//   scale                            multiplies q . k; absent: 1 / sqrt(head_dim)
//   window                           tokens a token sees, itself included; 0 or absent: all
//   softcap                          > 0: scores are capped by tanh; absent: 0, none
//   qk_norm                          "none" (absent) or "rms", then with norm_epsilon
// Weight roles:
//   query [heads * head_dim, hidden]  key [kv_heads * head_dim, hidden]  value [kv_heads * value_dim, hidden]
//   output [hidden, heads * value_dim]
//   query_bias, key_bias, value_bias, output_bias: used when the file has them
//   query_norm, key_norm [head_dim]: with qk_norm
#pragma once

#include <memory>
#include <vector>

#include "attention/attention.h"
#include "attention/shared/rope_frequencies.h"

namespace quipu {

class GroupedQuery final : public Attention {
 public:
  struct Settings {
    int64_t hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, value_dim = 0;
    float scale = 1.0f;
    int64_t window = 0;            // 0: none
    float softcap = 0.0f;          // 0: none
    bool qk_norm = false;
    float norm_epsilon = 0.0f;
    RopeSettings rope;
  };
  static Result<Settings> read_settings(const AttentionShape& shape, const HyperParameters& parameters);
  static Result<std::unique_ptr<Attention>> create(const AttentionShape& shape, const HyperParameters& parameters,
                                                   WeightSource& weights);

  // The cache dtype asked for, except that q8_0 needs head_dim and value_dim in whole blocks of 32; otherwise f16.
  StateLayout state_layout(const StateOptions& options) const override;
  int64_t scratch_bytes(int64_t rows) const override;
  void forward(Backend& backend, MatrixView<float> out, MatrixView<const float> x, const RaggedBatch& batch,
               Arena& scratch) const override;
  int64_t weight_bytes() const override;
  int64_t flops_per_token() const override;
  int64_t context_flops(int64_t tokens) const override;
  int64_t context_bytes_read(int64_t tokens, const StateOptions& options) const override;

 private:
  Result<void> bind(WeightSource& weights);
  void norm_and_rotate(Backend& backend, MatrixView<float> heads, std::span<const float> norm,
                       std::span<const int64_t> positions) const;
  int64_t visible(int64_t tokens) const { return s_.window > 0 && s_.window < tokens ? s_.window : tokens; }

  Settings s_;
  std::unique_ptr<PackedMatrix> query_, key_, value_, output_;
  std::vector<float> query_bias_, key_bias_, value_bias_, output_bias_;   // empty: none
  std::vector<float> query_norm_, key_norm_;                              // [head_dim] with qk_norm
};

}  // namespace quipu
