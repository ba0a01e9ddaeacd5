// The arguments of TrainingOps (ops/training.h), as plain data.
#pragma once

#include <cstdint>
#include <span>

#include "ops/backend.h"
#include "tensor/view.h"

namespace quipu {

enum class MatmulPrecision {
  kFull,      // products in Real
  // Both factors may be rounded to bfloat16 where the machine multiplies those faster (AMX), with sums in fp32; weights and
  // gradients stay fp32. Elsewhere the same as kFull. Float only.
  kBfloat16,
};

enum class Gradient { kWrite, kAdd };         // what happens to a gradient that is already there
enum class Direction { kForward, kBackward };

// matmul: y [n, w.rows] = x w^T + bias.
template <class Real>
struct LinearForward {
  MatrixView<Real> y;
  MatrixView<const Real> w;
  const Real* bias = nullptr;      // [w.rows] or null
};
template <class Real>
struct LinearBackward {
  MatrixView<const Real> dy;       // [n, w.rows]
  MatrixView<const Real> w;
  MatrixView<Real> dw;             // as w, added to; data null: frozen
  Real* dbias = nullptr;           // [w.rows], added to; or null
};

// op(a): [m, k], op(b): [k, n], c: [m, n]; ld: elements between rows as stored; step: elements between batch members.
enum class GemmKind {
  kNN,   // a [m, k], b [k, n]
  kNT,   // a [m, k], b [n, k]
  kTN,   // a [k, m], b [k, n]
};
template <class Real>
struct BatchedGemm {
  GemmKind kind = GemmKind::kNN;
  int64_t m = 0, n = 0, k = 0;
  Real* c = nullptr;
  const Real* a = nullptr;
  const Real* b = nullptr;
  int64_t c_ld = 0, a_ld = 0, b_ld = 0;
  int64_t c_step = 0, a_step = 0, b_step = 0;
  int64_t batch = 1;
  Real alpha = 1;
  Real beta = 0;                   // 0: c need not be initialised
};

// What the norms keep: the input and, per row, inverse_rms [rows] or (mean, inverse deviation) [rows * 2].
template <class Real>
struct NormSaved {
  MatrixView<const Real> x;
  std::span<const Real> scale;
  std::span<const Real> weight;
};
template <class Real>
struct NormWeights {
  std::span<const Real> weight, bias;
  Real epsilon = 0;
};
template <class Real>
struct NormGradients {
  std::span<Real> dweight, dbias;  // empty: frozen
};

template <class Real>
struct GatedSaved {
  MatrixView<const Real> gate, up;
};

// What an operation that does a whole part of a layer wants, in bytes.
struct FusedMemory {
  int64_t saved = 0, scratch = 0;
};

// For such an operation: the norm before the part and the residual connection around it, out = x + part(rms_norm(x)).
template <class Real>
struct ResidualNorm {
  std::span<const Real> weight;    // empty: neither, out = part(x)
  Real epsilon = 0;
  std::span<Real> inverse_rms;     // [rows]: written by forward, read by backward
  std::span<Real> dweight;         // backward: added to; empty: frozen
};

// A gated feed-forward part as one operation.
struct GatedShape {
  int64_t hidden = 0, inner = 0;
  bool bias = false;
};
template <class Real>
struct GatedCall {
  MatrixView<const Real> gate, up;     // [inner, hidden]
  MatrixView<const Real> down;         // [hidden, inner]
  GateActivation activation = GateActivation::kSilu;
  ResidualNorm<Real> norm;
  std::span<std::byte> saved;          // gated_memory().saved: written by forward, read by backward
  std::span<std::byte> scratch;        // gated_memory().scratch: anything before and after
};
template <class Real>
struct GatedGradients {
  MatrixView<Real> gate, up, down;     // data null: frozen
  Gradient gradient = Gradient::kAdd;
};

// Keys of a slice that one query row sees, counted from the slice's first key. A range may be empty.
struct KeyRange {
  int32_t begin = 0, end = 0;
};
// One sequence: its query rows in q and out, its key rows in k and v. Slices share no rows.
struct AttentionSlice {
  int64_t query_begin = 0, queries = 0;
  int64_t key_begin = 0, keys = 0;
};
struct AttentionPattern {
  std::span<const AttentionSlice> slices;
  // [rows of q]. Within a slice neither begin nor end ever falls from one row to the next.
  std::span<const KeyRange> visible;
  int64_t heads = 0, kv_heads = 0;
  int64_t key_dim = 0, value_dim = 0;
  double scale = 1;
  double softcap = 0;              // > 0: s = cap * tanh(s / cap)
};
template <class Real>
struct AttentionInputs {
  MatrixView<const Real> q, k, v;
  // One more key and value per query row that this row alone sees (temporal latent: the open chunk); data null: none.
  // self_k [n, kv_heads * key_dim], self_v [n, kv_heads * value_dim].
  MatrixView<const Real> self_k = {}, self_v = {};
};
template <class Real>
struct AttentionSaved {
  MatrixView<const Real> out, log_sum_exp;
};
template <class Real>
struct AttentionGradients {
  MatrixView<Real> dq, dk, dv;
  MatrixView<Real> dself_k = {}, dself_v = {};   // where there are self_k, self_v
};

// Attention over whole sequences with its projections as one operation.
struct SelfAttentionShape {
  int64_t hidden = 0, heads = 0, kv_heads = 0, key_dim = 0, value_dim = 0;
  bool plain = true;               // neither biases nor norms of heads
};
template <class Real>
struct SelfAttentionCall {
  MatrixView<const Real> query, key, value;   // [heads * key_dim, hidden], [kv_heads * key_dim, hidden], [kv_heads * value_dim, hidden]
  MatrixView<const Real> output;              // [hidden, heads * value_dim]
  AttentionPattern pattern;                   // slices: all sequences in order, whose keys are their queries' rows
  std::span<const int64_t> positions;         // [rows]
  std::span<const float> inverse_frequency;   // as TrainingOps::rope's; rope.rotary_dim 0: not rotated
  RopeOptions rope;
  ResidualNorm<Real> norm;
  std::span<std::byte> saved;          // self_attention_memory().saved: written by forward, read by backward
  std::span<std::byte> scratch;        // self_attention_memory().scratch: anything before and after
};
template <class Real>
struct SelfAttentionGradients {
  MatrixView<Real> query, key, value, output;   // data null: frozen
  Gradient gradient = Gradient::kAdd;
};

template <class Real>
struct LossInputs {
  std::span<const int32_t> targets;   // [n], -1: ignored
  std::span<const Real> weights;      // [n]; empty: 1
};
// What the loss says of every row; spans [n] or empty (not wanted).
template <class Real>
struct RowLosses {
  std::span<Real> losses;             // -log probability of the target, unweighted, without z-loss; 0 where ignored
  std::span<int32_t> predictions;     // the largest logit, the first of equals
};
struct LossOptions {
  bool backward = true;
  double z_loss = 0;
  double logit_scale = 1;
  double softcap = 0;              // > 0: z = cap * tanh(z / cap)
};
struct LossSums {
  double weighted = 0;             // sum of weight * loss
  double z = 0;                    // sum of weight * z_loss * lse^2
  double weight = 0;               // sum of the weights of rows that count
  int64_t rows = 0;                // rows that count
  int64_t correct = 0;             // rows whose largest logit is the target's (the first of equals)
};

// The loss of rows with the product that makes their logits as one operation.
struct OutputLossShape {
  int64_t hidden = 0, vocabulary = 0;
  double logit_scale = 1, softcap = 0;
};
template <class Real>
struct OutputLossCall {
  MatrixView<const Real> w;            // [vocabulary, hidden]
  MatrixView<Real> dx;                 // backward: [rows, hidden], written over; overlaps nothing
  MatrixView<Real> dw;                 // backward: as w; data null: frozen
  Gradient gradient = Gradient::kAdd;  // of the weight
  std::span<std::byte> scratch;        // output_loss_bytes(): anything before and after
};

template <class Real>
struct AdamState {
  std::span<const Real> gradients;
  std::span<Real> first, second;   // moments, 0 before step 1
};
struct AdamSettings {
  double rate = 0;
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
  double decay = 0;
  double gradient_scale = 1;
  int64_t step = 1;                // of this update, from 1
};

}  // namespace quipu
