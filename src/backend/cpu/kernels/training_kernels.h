// The kernels that training needs beside those of inference, as a table per instruction set. See kernels.h for the rules:
// one body (training_body.h), one source file per set, internal linkage.
#pragma once

#include <cstdint>

#include "ops/kernels/inlining.h"

namespace quipu::cpu {

// Depth of a packed block of a product, and columns of a packed panel.
inline constexpr int64_t kGemmDepth = 256;
inline constexpr int64_t kGemmPanel = 32;

// Where a tile's left factor lies: element (row t, depth k).
enum class LeftForm {
  kRows64,     // at a[t * 64 + k]
  kRows128,    // at a[t * 128 + k]
  kRows256,    // at a[t * 256 + k]
  kColumns,    // at a[k * a_step + t]
};

// c[rows, cols] (+)= scale * a[rows, depth] b[depth, cols]. All tile_rows rows of a must be readable, whatever they hold.
struct GemmTile {
  float* c = nullptr;
  int64_t c_ld = 0;
  int rows = 0;                    // 1 .. tile_rows
  int cols = 0;                    // 1 .. kGemmPanel
  const float* a = nullptr;
  LeftForm form = LeftForm::kRows256;
  int64_t a_step = 0;
  const float* b = nullptr;        // [depth][kGemmPanel]
  int64_t depth = 0;
  float scale = 1.0f;
  bool add = false;                // else c is written
  const float* bias = nullptr;     // [cols], with !add
};

// The same of at most 32 rows with factors rounded to bfloat16, in pairs; zeros fill rows, columns and depth up.
struct PairTile {
  float* c = nullptr;
  int64_t c_ld = 0;
  int rows = 0, cols = 0;          // 1 .. kPairRows, 1 .. kGemmPanel
  const uint16_t* a = nullptr;     // [2][blocks][16 rows][32]
  const uint16_t* b = nullptr;     // [2][blocks][16 pairs][16 columns][2]
  int64_t blocks = 0;              // of 32 components
  // A depth in several stretches of `blocks`: how far apart they lie in both factors, and the halves of a's panel; 0: blocks * 512.
  int64_t stretches = 1;
  int64_t a_stretch = 0, b_stretch = 0, a_half = 0;
  // The panel of the left factor, not of the right one, is the next tile's, too: it is to stay in the first-level cache.
  bool left_stays = false;
  // What is added to the product, rows from_ld apart; null: nothing. c, or a tile of its own where a depth is gone through in
  // parts: rows of c that are a power of two apart share few sets of the first-level cache.
  const float* from = nullptr;
  int64_t from_ld = 0;
  const float* bias = nullptr;
  // What will be wanted soon, asked for while this tile is computed: `soon_bytes` from `soon`, and the lines of the next c.
  const void* soon = nullptr;
  int64_t soon_bytes = 0;
  float* next_c = nullptr;         // whole tiles, c_ld apart; or null: where the next result goes or, of partial sums, comes from, too
  const float* next_from = nullptr;   // the same, from_ld apart
};
// What is packed into panels of one of its factors: lines (rows of the left, columns of the right one) of `depth` components,
// 32 lines a panel, zeros beyond both.
struct PairSource {
  const float* from = nullptr;
  int64_t ld = 0;
  int64_t lines = 0, depth = 0;
  int64_t blocks = 0;              // of 32 components, at least depth / 32
  int64_t panel_step = 0;          // elements from one panel to the next
  int64_t half_step = 0;           // between a panel's halves; 0: blocks * 512, else these are some of a deeper panel's blocks
  bool across = false;             // component k of line i at from[k * ld + i], else at from[i * ld + k]
};
inline constexpr int64_t kPairRows = 32;
inline constexpr int64_t kPairTile = kPairRows * kGemmPanel;   // elements of a tile of results, and of a block of a panel
inline constexpr int64_t kPairDepth = 512;   // a packed block takes the bytes of kGemmDepth floats

// The gate of a feed-forward part on 32 rows by 16 columns, half a block of what it makes: gate and up come out of one product,
// 16 columns of each side by side. They are rounded first, so that backward, which has the rounded ones alone, undoes what
// forward did.
struct GateTile {
  const float* sums = nullptr;     // [32][16 of gate, 16 of up]
  uint16_t* rounded = nullptr;     // written: the same, past the caches, 64-byte aligned
  uint16_t* activated = nullptr;   // written: activation(gate) * up, 16 columns of a block of a left factor, its halves half_step apart
  int64_t half_step = 0;
  bool gelu = false;
};
// A whole block of 32 columns.
struct GateTileBackward {
  const float* dactivated = nullptr;   // [32][32]
  const uint16_t* rounded = nullptr;   // [2 x 16 columns][32][16 of gate, 16 of up]
  // Written: blocks of left factors [rows, columns] ...
  uint16_t* dgate = nullptr;
  uint16_t* dup = nullptr;
  int64_t half_step = 0;
  // ... and of right factors [rows, columns], whose depth is the rows.
  uint16_t* activated_pairs = nullptr;
  uint16_t* dgate_pairs = nullptr;
  uint16_t* dup_pairs = nullptr;
  int64_t pairs_half_step = 0;
  bool gelu = false;
};

// Attention over pairs works on blocks of this many keys by panels of this many queries: with 64 queries what a block of keys
// touches is larger than a first-level cache of 48 KiB.
inline constexpr int64_t kPairKeys = 64;
inline constexpr int64_t kPairQueries = 32;

// One step of the running softmax over a block of keys, one query a column.
struct ScoreColumns {
  const float* scores = nullptr;   // [kPairKeys][kPairQueries]: q . k
  const int32_t* first = nullptr;  // [kPairQueries]: visible keys are first <= key < last, both in 0 .. kPairKeys
  const int32_t* last = nullptr;
  float* maximum = nullptr;        // [kPairQueries]
  float* total = nullptr;
  float* rescale = nullptr;        // written: what sums of earlier blocks are to be multiplied by
  uint16_t* probabilities = nullptr;   // written: a panel of a right factor [keys, queries]
  float scale = 1.0f, softcap = 0.0f;  // scale > 0
};
// Its backward.
struct ScoreColumnsBackward {
  const float* scores = nullptr;   // [kPairKeys][kPairQueries]: q . k
  const float* dscores = nullptr;  // the same: dout . v
  const int32_t* first = nullptr;
  const int32_t* last = nullptr;
  const float* log_sum_exp = nullptr;   // [kPairQueries]
  const float* delta = nullptr;         // [kPairQueries]: dout . out
  // Written: probabilities and gradients of q . k as one block of 32 queries of left factors [keys, queries], their halves
  // half_step apart, and the latter as a panel of a right factor [keys, queries].
  uint16_t* probabilities = nullptr;
  uint16_t* gradients = nullptr;
  int64_t half_step = 0;
  uint16_t* gradient_columns = nullptr;
  float scale = 1.0f, softcap = 0.0f;
};

// One step of the loss's running softmax: a tile of logits of 32 rows, one a column.
struct LossColumns {
  const float* logits = nullptr;   // [32 of the vocabulary][32 rows], unscaled
  int32_t first = 0;               // of the vocabulary
  const int32_t* target = nullptr;     // [32]
  float scale = 1.0f;              // > 0
  // [32], of the vocabulary up to here: the largest logit, the sum of exp(scale * (logit - maximum)), the target's logit, and where
  // the largest was first found.
  float* maximum = nullptr;
  float* total = nullptr;
  float* target_value = nullptr;
  int32_t* best = nullptr;
};
// Its backward: factor * exp(scale * logit - log_sum_exp), less target_factor at the target.
struct LossColumnsBackward {
  const float* logits = nullptr;
  int32_t first = 0;
  const int32_t* target = nullptr;
  float scale = 1.0f;
  const float* log_sum_exp = nullptr;   // [32]
  const float* factor = nullptr;        // [32]
  const float* target_factor = nullptr; // [32]
  // Written: a block of 32 rows of a left factor [vocabulary, rows], past the caches, 64-byte aligned, and a block of 32 of the
  // vocabulary of a right one.
  uint16_t* gradients = nullptr;
  int64_t half_step = 0;
  uint16_t* gradient_columns = nullptr;
  int64_t columns_half_step = 0;
};

// One row of a norm's backward. dx = (add ? dx : 0) + scale * (dy * weight - a - xhat * b), with a = 0 for rms_norm.
struct NormRow {
  float* dx = nullptr;
  float* dweight = nullptr;        // or null
  float* dbias = nullptr;          // layer_norm, or null
  const float* dy = nullptr;
  const float* x = nullptr;
  const float* weight = nullptr;
  int64_t n = 0;
  float mean = 0.0f, scale = 0.0f;
  bool centred = false;            // layer_norm
  bool add = false;
};

// One step of the running softmax over a block of at most 64 keys.
struct SoftmaxBlock {
  float* scores = nullptr;         // [rows][64]: q . k; becomes probabilities relative to the running maximum
  int64_t rows = 0;
  const int32_t* first = nullptr;  // [rows]: visible keys are first <= key < last, both in 0 .. 64
  const int32_t* last = nullptr;
  float* maximum = nullptr;        // [rows]
  float* total = nullptr;
  float* out = nullptr;            // rows out_ld apart, value_dim long: rescaled
  int64_t out_ld = 0, value_dim = 0;
  float scale = 1.0f, softcap = 0.0f;
};
// Its backward: scores become probabilities, dscores the gradient of q . k.
struct SoftmaxBlockBackward {
  float* scores = nullptr;         // [rows][64]: q . k
  float* dscores = nullptr;        // [rows][64]: dout . v
  int64_t rows = 0;
  const int32_t* first = nullptr;
  const int32_t* last = nullptr;
  const float* log_sum_exp = nullptr;   // [rows]
  const float* delta = nullptr;         // [rows]: dout . out
  float scale = 1.0f, softcap = 0.0f;
};

// One row of the loss; see TrainingOps::softmax_cross_entropy.
struct LossRow {
  float* logits = nullptr;
  int64_t n = 0;
  int32_t target = -1;
  float weight = 0.0f;
  float z_loss = 0.0f, logit_scale = 1.0f, softcap = 0.0f;
  bool backward = false;
  // Results.
  float log_sum_exp = 0.0f, target_value = 0.0f;
  int32_t best = 0;
};

struct AdamRow {
  float* w = nullptr;
  const float* g = nullptr;
  float* m = nullptr;
  float* v = nullptr;
  int64_t n = 0;
  float beta1 = 0, beta2 = 0, gradient_scale = 1;
  float step = 0;                  // rate / (1 - beta1^t)
  float inverse_root = 0;          // 1 / sqrt(1 - beta2^t)
  float epsilon = 0, shrink = 1;   // shrink: 1 - rate * decay
};

struct TrainingKernels {
  const char* name;
  int tile_rows;
  void (*gemm_tile)(const GemmTile& tile);
  // Copies `rows` rows of `depth` elements to out[t * stride + k].
  void (*pack_rows)(float* out, int64_t stride, const float* a, int64_t ld, int64_t rows, int64_t depth);
  // a[k * ld + t] to out[k * tile_rows + t]; out has 16 floats more than depth * tile_rows.
  void (*pack_columns)(float* out, const float* a, int64_t ld, int64_t rows, int64_t depth);
  // b[k * ld + j] to out[k * kGemmPanel + j], zeros beyond cols.
  void (*pack_panel)(float* out, const float* b, int64_t ld, int64_t cols, int64_t depth);
  // b[j * ld + k] to out[k * kGemmPanel + j], zeros beyond cols.
  void (*pack_panel_transposed)(float* out, const float* b, int64_t ld, int64_t cols, int64_t depth);

  float (*dot)(const float* a, const float* b, int64_t n);
  void (*add_row)(float* x, const float* y, int64_t n, float scale);
  float (*rms_norm_row)(float* out, const float* x, const float* weight, int64_t n, float epsilon);   // inverse_rms
  // moments: mean, inverse deviation.
  void (*layer_norm_row)(float* out, float* moments, const float* x, const float* weight, const float* bias, int64_t n, float epsilon);
  void (*norm_backward_row)(const NormRow& row);
  void (*gate_row)(float* out, const float* gate, const float* up, int64_t n, bool gelu);
  void (*gate_backward_row)(float* dgate, float* dup, const float* dout, const float* gate, const float* up, int64_t n, bool gelu);
  void (*rotate_row)(float* head, const float* cos_sin, int64_t pairs, int64_t step, int64_t offset);
  void (*softmax_block)(const SoftmaxBlock& block);
  void (*softmax_block_backward)(const SoftmaxBlockBackward& block);
  void (*loss_row)(LossRow& row);
  void (*adam_row)(const AdamRow& row);

  // bfloat16 products, null where a set has none that are faster than fp32's (AVX-512's VDPBF16PS runs at half the rate of
  // fp32 on the machines measured).
  void (*pair_tile)(const PairTile& tile);
  void (*pack_left_pairs)(uint16_t* out, const PairSource& source);
  void (*pack_right_pairs)(uint16_t* out, const PairSource& source);
  void (*begin_pairs)();           // around a thread's pair_tile calls; what is written past the caches is there for others after
  void (*end_pairs)();
  void (*gate_tile)(const GateTile& tile);
  void (*gate_tile_backward)(const GateTileBackward& tile);
  // to[r * ld + c] (+)= sums[r * 32 + c], or to[c * ld + r] where `transposed`, for 32 rows and columns.
  void (*give_tile)(float* to, int64_t ld, const float* sums, bool transposed, bool add);
  // sums[r] += the product of 32 components at x + r * ld and row r of a block of a left factor, for 32 rows.
  void (*add_row_products)(float* sums, const float* x, int64_t ld, const uint16_t* block, int64_t half_step);
  // Attention over pairs. score_columns says whether any rescale is not 1.
  bool (*score_columns)(const ScoreColumns& block);
  void (*score_columns_backward)(const ScoreColumnsBackward& block);
  void (*loss_columns)(const LossColumns& tile);
  void (*loss_columns_backward)(const LossColumnsBackward& tile);
  // x[r, c] *= factor[c], rows of kPairQueries columns.
  void (*scale_columns)(float* x, const float* factor, int64_t rows);
  // out[c * out_ld + r] = factor[c] * in[r * kPairQueries + c] for c < cols, r < rows; factor null: 1.
  void (*store_transposed)(float* out, int64_t out_ld, const float* in, const float* factor, int64_t rows, int64_t cols);
};

const TrainingKernels& portable_training_kernels();
#if defined(__x86_64__)
const TrainingKernels& avx2_training_kernels();
const TrainingKernels& avx512_training_kernels();
const TrainingKernels& amx_training_kernels();
#endif

}  // namespace quipu::cpu
