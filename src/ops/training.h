// TrainingOps: the seam for training. Every operation that learns, forward and backward side by side, checked at the door.
//
// Real is double in the reference back end (plain loops; central differences run in it) and float on the CPU back end.
// There is no graph: a room, a block and the model call these by hand, in order, and keep what their backward needs.
//
// Conventions, for all operations:
// - Matrices are row-major, one row per token, tokens of all sequences packed one after the other.
// - Gradients of inputs (dx, dq, ...) are written over, unless Gradient::kAdd is given. Gradients of weights are added to what
//   is there, so that microbatches add up; the trainer zeroes them. Operations in one piece write them over where
//   Gradient::kWrite is given, for the first microbatch.
// - Every sum is split by shape and folded in a fixed order: results do not depend on the number of threads.
// - Wrong shapes are our bug (CHECK). Scratch is kept and grows only when a larger shape first appears.
// - One caller at a time; work is spread over the own pool. Loops of a room's own may use pool().parallel_for.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/thread_pool.h"
#include "ops/backend.h"
#include "ops/training_types.h"
#include "tensor/view.h"

namespace quipu {

template <class Real>
class TrainingOps {
 public:
  virtual ~TrainingOps() = default;
  virtual std::string name() const = 0;                      // "reference", "cpu avx512 bf16", ...
  ThreadPool& pool() { return *pool_; }
  int threads() const { return pool_->threads(); }
  MatmulPrecision precision() const { return precision_; }
  // Bytes of own scratch that steps take whose matmul weights have at most `weight_elements` elements.
  virtual int64_t scratch_bytes(int64_t weight_elements) const = 0;

  // --- products -----------------------------------------------------------------------------------------------------
  // outputs[i].y [n, rows] = x [n, cols] outputs[i].w [rows, cols]^T + bias. x is prepared once for all of them. No y may
  // overlap x or another y.
  void matmul(std::span<const LinearForward<Real>> outputs, MatrixView<const Real> x);
  // Undoes matmul: dx (+)= sum_i dy_i W_i;  dw_i += dy_i^T x;  dbias_i += sum of the rows of dy_i.
  // dx.data null: not wanted (then x alone is used). dw.data null: that weight is frozen. dx overlaps no dy and not x.
  void matmul_backward(MatrixView<Real> dx, std::span<const LinearBackward<Real>> outputs, MatrixView<const Real> x,
                       Gradient gradient = Gradient::kWrite);
  // The common case of one weight.
  void matmul(MatrixView<Real> y, MatrixView<const Real> x, MatrixView<const Real> w, const Real* bias = nullptr) {
    const LinearForward<Real> one{y, w, bias};
    matmul({&one, 1}, x);
  }
  void matmul_backward(MatrixView<Real> dx, const LinearBackward<Real>& output, MatrixView<const Real> x,
                       Gradient gradient = Gradient::kWrite) {
    matmul_backward(dx, {&output, 1}, x, gradient);
  }
  // c_b = alpha * op(a_b) op(b_b) + beta * c_b for b in [0, batch): small products, always in Real, each on one thread.
  // For what belongs to one room: merging latents, associative memories. Its backward is two more of them.
  void batched_gemm(const BatchedGemm<Real>& gemm);

  // --- rows ---------------------------------------------------------------------------------------------------------
  // out[i] = scale * table[ids[i]];  backward: dtable[ids[i]] += scale * dout[i], in order of i.
  void embed(MatrixView<Real> out, std::span<const int32_t> ids, MatrixView<const Real> table, Real scale);
  void embed_backward(MatrixView<Real> dtable, std::span<const int32_t> ids, MatrixView<const Real> dout, Real scale);

  // out[i] = x[index[i]];  out[index[i]] += factor[i] * x[i], index without repeats, factor empty: 1.
  // Each is the other's backward (routing of Mixture-of-Depths).
  void gather_rows(MatrixView<Real> out, MatrixView<const Real> x, std::span<const int32_t> index);
  void scatter_add_rows(MatrixView<Real> out, MatrixView<const Real> x, std::span<const int32_t> index,
                        std::span<const Real> factor = {});

  // x += scale * y.
  void add(MatrixView<Real> x, MatrixView<const Real> y, Real scale = 1);

  // out = x * inverse_rms * weight, inverse_rms = 1 / sqrt(mean(x^2) + epsilon) per row.     [Zhang & Sennrich 2019]
  // inverse_rms [rows] is saved for backward (may be empty in forward: not wanted). out may be x.
  void rms_norm(MatrixView<Real> out, std::span<Real> inverse_rms, MatrixView<const Real> x, std::span<const Real> weight,
                Real epsilon);
  //   g = dy * weight;  dx (+)= inverse_rms * (g - xhat * mean(g * xhat));  dweight += sum over rows of dy * xhat,
  //   xhat = x * inverse_rms. dx may be dy. dweight empty: frozen.
  void rms_norm_backward(MatrixView<Real> dx, std::span<Real> dweight, MatrixView<const Real> dy,
                         const NormSaved<Real>& saved, Gradient gradient = Gradient::kWrite);

  // out = xhat * weight + bias, xhat = (x - mean) * inverse_deviation per row.                  [Ba et al. 2016]
  // moments [rows, 2] gets (mean, inverse_deviation). out may be x.
  void layer_norm(MatrixView<Real> out, MatrixView<Real> moments, MatrixView<const Real> x, const NormWeights<Real>& norm);
  //   g = dy * weight;  dx (+)= inverse_deviation * (g - mean(g) - xhat * mean(g * xhat));
  //   dweight += sum dy * xhat;  dbias += sum dy. saved.scale is moments [rows * 2].
  void layer_norm_backward(MatrixView<Real> dx, const NormGradients<Real>& gradients, MatrixView<const Real> dy,
                           const NormSaved<Real>& saved, Gradient gradient = Gradient::kWrite);

  // Rotates as Backend::rope does; Direction::kBackward rotates by the opposite angle (times the same magnitude): the
  // transpose, in place on the gradient.                                                             [RoFormer eq. 34]
  void rope(MatrixView<Real> x, int64_t head_dim, std::span<const int64_t> positions,
            std::span<const float> inverse_frequency, const RopeOptions& options, Direction direction);

  // out = activation(gate) * up. out may be gate or up.                                          [Shazeer 2020]
  void gated_activation(MatrixView<Real> out, MatrixView<const Real> gate, MatrixView<const Real> up,
                        GateActivation activation);
  // dgate = dout * up * activation'(gate);  dup = dout * activation(gate). dgate may be gate, dup may be up or dout.
  void gated_activation_backward(MatrixView<Real> dgate, MatrixView<Real> dup, MatrixView<const Real> dout,
                                 const GatedSaved<Real>& saved, GateActivation activation);

  // --- gated feed-forward, optional -----------------------------------------------------------------------------------
  // out = (activation(x Wg^T) * (x Wu^T)) Wd^T and its backward in one piece, where a back end has one that is faster than
  // matmul and gated_activation in turn: bfloat16 tiles, whose gate and up never leave the cache in fp32. What it means is
  // blocks/gated_mlp_training.cc, which composes those. Whether there is one, and the bytes of a call:
  virtual bool fuses_gated(const GatedShape& shape) const { return (void)shape, false; }
  virtual FusedMemory gated_memory(const GatedShape& shape, int64_t rows) const { return (void)shape, (void)rows, FusedMemory{}; }
  // out must not overlap x.
  void gated(MatrixView<Real> out, MatrixView<const Real> x, const GatedCall<Real>& call);
  // dx is written over; it overlaps neither dout nor x. With call.norm dx is dout.
  void gated_backward(MatrixView<Real> dx, const GatedGradients<Real>& gradients, MatrixView<const Real> dout,
                      MatrixView<const Real> x, const GatedCall<Real>& call);

  // --- attention ----------------------------------------------------------------------------------------------------
  // Per query head h of group m = h / (heads / kv_heads), query row i of a slice sees keys visible[i].begin <= j <
  // visible[i].end and, where the inputs have self keys, its own: s_ij = scale * q_i . k_j, capped where asked;
  // out_i = sum_j softmax(s)_ij v_j;  log_sum_exp[i, h] = log sum_j exp(s_ij). A row that sees nothing gives out = 0 and
  // log_sum_exp = -inf. Never builds rows x keys.                            [Milakov 2018; Dao 2022, algorithms 1 and 4]
  // q [n, heads * key_dim]  k [m, kv_heads * key_dim]  v [m, kv_heads * value_dim]  out [n, heads * value_dim]
  // log_sum_exp [n, heads], saved for backward.
  void attention(MatrixView<Real> out, MatrixView<Real> log_sum_exp, const AttentionInputs<Real>& in,
                 const AttentionPattern& pattern);
  //   p_ij = exp(s_ij - lse_i);  delta_i = dout_i . out_i;  ds_ij = p_ij (dout_i . v_j - delta_i) (1 - (s_ij / cap)^2)
  //   dq_i = scale sum_j ds_ij k_j;  dk_j = scale sum_i ds_ij q_i;  dv_j = sum_i p_ij dout_i
  // All gradients are written over; rows of keys that no query sees get 0.
  void attention_backward(const AttentionGradients<Real>& gradients, MatrixView<const Real> dout,
                          const AttentionInputs<Real>& in, const AttentionSaved<Real>& saved,
                          const AttentionPattern& pattern);

  // --- attention with its projections, optional ----------------------------------------------------------------------------
  // out = attention(rope(x Wq^T), rope(x Wk^T), x Wv^T) Wo^T and its backward in one piece, as gated() is. What it means is
  // attention/grouped_query/training.cc. offsets: of the sequences, as PackedBatch's; fewer rows in each want no more memory.
  virtual bool fuses_self_attention(const SelfAttentionShape& shape) const { return (void)shape, false; }
  virtual FusedMemory self_attention_memory(const SelfAttentionShape& shape, std::span<const int64_t> offsets) const {
    return (void)shape, (void)offsets, FusedMemory{};
  }
  // out must not overlap x.
  void self_attention(MatrixView<Real> out, MatrixView<const Real> x, const SelfAttentionCall<Real>& call);
  // As gated_backward's.
  void self_attention_backward(MatrixView<Real> dx, const SelfAttentionGradients<Real>& gradients, MatrixView<const Real> dout,
                               MatrixView<const Real> x, const SelfAttentionCall<Real>& call);

  // --- loss ---------------------------------------------------------------------------------------------------------
  // Per row with target t >= 0: loss = log sum exp(z) - z_t, z = softcapped(scale * logits), and
  // total = weight * (loss + z_loss * (log sum exp z)^2).                        [z-loss: PaLM, Chowdhery et al. 2022]
  // With `backward`, logits are replaced by d total / d logits (0 in ignored rows), else they are left. Returns the sums
  // over rows, folded in order.
  LossSums softmax_cross_entropy(MatrixView<Real> logits, const RowLosses<Real>& rows, const LossInputs<Real>& in,
                                 const LossOptions& options);

  // --- loss with its product, optional -------------------------------------------------------------------------------
  // softmax_cross_entropy(x w^T) and its backward in one piece, as gated() is, without logits in fp32. What it means is
  // model/training.cc, which composes matmul, softmax_cross_entropy and matmul_backward. More rows want no less scratch.
  virtual bool fuses_output_loss(const OutputLossShape& shape) const { return (void)shape, false; }
  virtual int64_t output_loss_bytes(const OutputLossShape& shape, int64_t rows, bool backward) const {
    return (void)shape, (void)rows, (void)backward, int64_t{0};
  }
  LossSums output_loss(const OutputLossCall<Real>& call, const RowLosses<Real>& rows, MatrixView<const Real> x, const LossInputs<Real>& in,
                       const LossOptions& options);

  // --- optimiser ----------------------------------------------------------------------------------------------------
  double squared_norm(std::span<const Real> values);                                     // in double
  // Decoupled weight decay, in place:                                                  [Loshchilov & Hutter 2019]
  //   m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w -= rate * (mhat / (sqrt(vhat) + epsilon) + decay * w)
  // with g = gradient_scale * gradients (clipping, averaging) and mhat, vhat corrected for `step` (from 1).
  void adamw(std::span<Real> weights, const AdamState<Real>& state, const AdamSettings& settings);

 protected:
  TrainingOps(std::unique_ptr<ThreadPool> pool, MatmulPrecision precision) : pool_(std::move(pool)), precision_(precision) {}

 private:
  virtual void do_matmul(std::span<const LinearForward<Real>> outputs, MatrixView<const Real> x) = 0;
  virtual void do_matmul_backward(MatrixView<Real> dx, std::span<const LinearBackward<Real>> outputs,
                                  MatrixView<const Real> x, Gradient gradient) = 0;
  virtual void do_batched_gemm(const BatchedGemm<Real>& gemm) = 0;
  virtual void do_embed(MatrixView<Real> out, std::span<const int32_t> ids, MatrixView<const Real> table, Real scale) = 0;
  virtual void do_embed_backward(MatrixView<Real> dtable, std::span<const int32_t> ids, MatrixView<const Real> dout,
                                 Real scale) = 0;
  virtual void do_gather_rows(MatrixView<Real> out, MatrixView<const Real> x, std::span<const int32_t> index) = 0;
  virtual void do_scatter_add_rows(MatrixView<Real> out, MatrixView<const Real> x, std::span<const int32_t> index,
                                   std::span<const Real> factor) = 0;
  virtual void do_add(MatrixView<Real> x, MatrixView<const Real> y, Real scale) = 0;
  virtual void do_rms_norm(MatrixView<Real> out, std::span<Real> inverse_rms, MatrixView<const Real> x,
                           std::span<const Real> weight, Real epsilon) = 0;
  virtual void do_rms_norm_backward(MatrixView<Real> dx, std::span<Real> dweight, MatrixView<const Real> dy,
                                    const NormSaved<Real>& saved, Gradient gradient) = 0;
  virtual void do_layer_norm(MatrixView<Real> out, MatrixView<Real> moments, MatrixView<const Real> x,
                             const NormWeights<Real>& norm) = 0;
  virtual void do_layer_norm_backward(MatrixView<Real> dx, const NormGradients<Real>& gradients, MatrixView<const Real> dy,
                                      const NormSaved<Real>& saved, Gradient gradient) = 0;
  virtual void do_rope(MatrixView<Real> x, int64_t head_dim, std::span<const int64_t> positions,
                       std::span<const float> inverse_frequency, const RopeOptions& options, Direction direction) = 0;
  virtual void do_gated_activation(MatrixView<Real> out, MatrixView<const Real> gate, MatrixView<const Real> up,
                                   GateActivation activation) = 0;
  virtual void do_gated_activation_backward(MatrixView<Real> dgate, MatrixView<Real> dup, MatrixView<const Real> dout,
                                            const GatedSaved<Real>& saved, GateActivation activation) = 0;
  virtual void do_gated(MatrixView<Real> out, MatrixView<const Real> x, const GatedCall<Real>& call);
  virtual void do_gated_backward(MatrixView<Real> dx, const GatedGradients<Real>& gradients, MatrixView<const Real> dout,
                                 MatrixView<const Real> x, const GatedCall<Real>& call);
  virtual void do_attention(MatrixView<Real> out, MatrixView<Real> log_sum_exp, const AttentionInputs<Real>& in,
                            const AttentionPattern& pattern) = 0;
  virtual void do_attention_backward(const AttentionGradients<Real>& gradients, MatrixView<const Real> dout,
                                     const AttentionInputs<Real>& in, const AttentionSaved<Real>& saved,
                                     const AttentionPattern& pattern) = 0;
  virtual void do_self_attention(MatrixView<Real> out, MatrixView<const Real> x, const SelfAttentionCall<Real>& call);
  virtual void do_self_attention_backward(MatrixView<Real> dx, const SelfAttentionGradients<Real>& gradients, MatrixView<const Real> dout,
                                          MatrixView<const Real> x, const SelfAttentionCall<Real>& call);
  virtual LossSums do_softmax_cross_entropy(MatrixView<Real> logits, const RowLosses<Real>& rows,
                                            const LossInputs<Real>& in, const LossOptions& options) = 0;
  virtual LossSums do_output_loss(const OutputLossCall<Real>& call, const RowLosses<Real>& rows, MatrixView<const Real> x,
                                  const LossInputs<Real>& in, const LossOptions& options);
  virtual double do_squared_norm(std::span<const Real> values) = 0;
  virtual void do_adamw(std::span<Real> weights, const AdamState<Real>& state, const AdamSettings& settings) = 0;

  std::unique_ptr<ThreadPool> pool_;
  MatmulPrecision precision_;
};

extern template class TrainingOps<float>;
extern template class TrainingOps<double>;

}  // namespace quipu
