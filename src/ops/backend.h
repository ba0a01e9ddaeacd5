// Backend: THE seam. Every operation a model is made of, checked at the door, once per implementation behind it.
//
// Goals: one meaning (the reference back end, double inside), several machines; results that depend only on a row's own
// data: not on the other rows of the batch, on how a prompt was cut into chunks, or on the number of threads.
// Non-goals: an autograd graph, a general tensor library.
//
// All activations are float, row-major, one row per token. Public functions check shapes (CHECK: a wrong shape is our
// bug; sizes from files were verified when the weights were loaded) and call the virtual do_... of the back end.
// Nothing here allocates after warm-up: scratch is kept per back end and grows only when a larger shape first appears.
// A back end is used by one thread at a time; it spreads work over its own pool.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/cpu_features.h"
#include "base/result.h"
#include "base/thread_pool.h"
#include "ops/kv_cache.h"
#include "tensor/buffer.h"
#include "tensor/view.h"

namespace quipu {

// How finely activations are rounded where Activations::kFast meets a quantised matrix. 16 bits cost a second integer
// product: worth it where the matrix is small or read once per token and its errors reach far (keys, values, logits).
enum class Rounding : uint8_t { kBits8, kBits16 };

// A weight matrix in a file: y = W x, W [rows, cols], rows contiguous in any DType of tensor/quant_blocks.h.
struct MatrixSource {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  std::span<const std::byte> bytes;   // row_bytes(dtype, cols) * rows
  Rounding rounding = Rounding::kBits8;
};

// A weight matrix in a back end's own layout, made once at load. Only the back end that packed it can use it.
class PackedMatrix {
 public:
  virtual ~PackedMatrix() = default;
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  DType source_dtype() const { return dtype_; }
  virtual int64_t bytes() const = 0;   // memory held
  // Bytes a product with one row of activations reads: what bounds generation.
  virtual int64_t bytes_read() const { return bytes(); }
  // [rows / 16][cols / 32] blocks of bf16 pairs (ops/kernels/segment_attention.h), both rounded up, zeros beyond the matrix; null
  // where it is kept otherwise.
  virtual const std::byte* tile_pairs() const { return nullptr; }

 protected:
  PackedMatrix(DType dtype, int64_t rows, int64_t cols) : dtype_(dtype), rows_(rows), cols_(cols) {}

 private:
  DType dtype_;
  int64_t rows_, cols_;
};

// How quantised and 16-bit weights meet activations.
enum class Activations {
  kFast,    // rounded to what the machine multiplies fastest (8 bits a block of 32 for quantised weights, bf16 on AMX)
  kExact,   // fp32 throughout: for comparisons with other people's float32 code, slower
};

// One output of matmul: y [n, w->rows()] = x W^T (+ bias).
struct MatmulOutput {
  MatrixView<float> y;
  const PackedMatrix* w = nullptr;
  const float* bias = nullptr;   // [rows] or null
};

// One of several products of different inputs: y [n, w->rows()] = x W^T, x [n, w->cols()].
struct MatmulProduct {
  MatrixView<float> y;
  const PackedMatrix* w = nullptr;
  MatrixView<const float> x;
};

enum class GateActivation { kSilu, kGeluTanh };

struct RopeOptions {
  bool interleaved = false;      // pairs (2i, 2i+1); otherwise half-split pairs (i, i + rotary_dim/2)
  int64_t rotary_dim = 0;        // even, <= head_dim: the first rotary_dim entries of a head are rotated
  float magnitude = 1.0f;        // cos and sin are multiplied by it (YaRN)
};

// One sequence's rows in store_kv() and attend(): [row_begin, row_begin + rows) of k and v, of q and out.
struct AttendSlice {
  int64_t row_begin = 0;
  int64_t rows = 0;
  int64_t first_key = 0;         // index in the cache of the key of the slice's first row; row i sees keys <= first_key + i
  KvCacheView cache;             // holds at least first_key + rows keys
};

struct AttendOptions {
  int64_t heads = 0;             // query heads; a multiple of cache.kv_heads, head h reads group h / (heads / kv_heads)
  float scale = 1.0f;            // multiplies q . k
  int64_t window = 0;            // > 0: row at index i sees keys > i - window only
  float logit_softcap = 0.0f;    // > 0: score = cap * tanh(score / cap)
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string name() const = 0;           // "reference", "cpu avx512", ...
  virtual Isa isa() const { return Isa::kPortable; }
  ThreadPool& pool() { return *pool_; }
  int threads() const { return pool_->threads(); }
  Activations activations() const { return activations_; }

  // Copies a matrix into this back end's layout, in parallel. The source may be dropped afterwards.
  // Errors: kFailed when memory is refused; kBadInput when it has no layout for the dtype.
  Result<std::unique_ptr<PackedMatrix>> pack(const MatrixSource& source);

  // outputs[i].y = x outputs[i].w^T + bias. x [n, cols]; every w has cols() == x.cols. x is prepared (quantised) once.
  // No y may overlap x or another y.
  void matmul(std::span<const MatmulOutput> outputs, MatrixView<const float> x);
  void matmul(MatrixView<float> y, const PackedMatrix& w, MatrixView<const float> x, const float* bias = nullptr) {
    const MatmulOutput output{y, &w, bias};
    matmul({&output, 1}, x);
  }

  // Each product by itself, as matmul() makes it, all in one go: for many small ones, such as one a head.
  void matmul_each(std::span<const MatmulProduct> products);

  // out[i] = scale * row ids[i] of table. ids in [0, table.rows).
  void embed(MatrixView<float> out, std::span<const int32_t> ids, const MatrixSource& table, float scale);

  // out = x / sqrt(mean(x^2) + epsilon) * weight, per row.  weight: [cols]; out may be x.      [Zhang & Sennrich 2019]
  void rms_norm(MatrixView<float> out, MatrixView<const float> x, std::span<const float> weight, float epsilon);

  // out = (x - mean) / sqrt(variance + epsilon) * weight + bias, per row; out may be x.        [Ba et al. 2016]
  void layer_norm(MatrixView<float> out, MatrixView<const float> x, std::span<const float> weight,
                  std::span<const float> bias, float epsilon);

  // x += y, elementwise.
  void add(MatrixView<float> x, MatrixView<const float> y);

  // out = activation(gate) * up, elementwise; out may be gate.                                 [Shazeer 2020]
  void gated_activation(MatrixView<float> out, MatrixView<const float> gate, MatrixView<const float> up,
                        GateActivation activation);

  // Rotates the pairs of every head of every row by positions[row] * inverse_frequency[pair].   [RoFormer eq. 34]
  // x [n, heads * head_dim] in place; positions [n]; inverse_frequency [rotary_dim / 2] radians per token.
  void rope(MatrixView<float> x, int64_t head_dim, std::span<const int64_t> positions,
            std::span<const float> inverse_frequency, const RopeOptions& options);

  // Writes the keys and values of k [n, kv_heads * key_dim] and v [n, kv_heads * value_dim], in each cache's dtype: those of a
  // slice's rows at cache rows first_key, first_key + 1, ...
  void store_kv(std::span<const AttendSlice> slices, MatrixView<const float> k, MatrixView<const float> v);
  // All rows into one cache.
  void store_kv(const KvCacheView& cache, int64_t first_row, MatrixView<const float> k, MatrixView<const float> v) {
    const AttendSlice slice{0, k.rows, first_row, cache};
    store_kv({&slice, 1}, k, v);
  }

  // out [n, heads * value_dim] = softmax(scale * q k^T, causal) v, per head, over paged caches; q [n, heads * key_dim].
  // Never builds a rows x keys matrix; one running softmax per block of keys.                  [Milakov 2018, Dao 2022]
  void attend(MatrixView<float> out, MatrixView<const float> q, std::span<const AttendSlice> slices,
              const AttendOptions& options);

 protected:
  Backend(std::unique_ptr<ThreadPool> pool, Activations activations)
      : pool_(std::move(pool)), activations_(activations) {}

 private:
  virtual Result<std::unique_ptr<PackedMatrix>> do_pack(const MatrixSource& source) = 0;
  virtual void do_matmul(std::span<const MatmulOutput> outputs, MatrixView<const float> x) = 0;
  virtual void do_matmul_each(std::span<const MatmulProduct> products);   // one after the other
  virtual void do_embed(MatrixView<float> out, std::span<const int32_t> ids, const MatrixSource& table, float scale) = 0;
  virtual void do_rms_norm(MatrixView<float> out, MatrixView<const float> x, std::span<const float> weight,
                           float epsilon) = 0;
  virtual void do_layer_norm(MatrixView<float> out, MatrixView<const float> x, std::span<const float> weight,
                             std::span<const float> bias, float epsilon) = 0;
  virtual void do_add(MatrixView<float> x, MatrixView<const float> y) = 0;
  virtual void do_gated_activation(MatrixView<float> out, MatrixView<const float> gate, MatrixView<const float> up,
                                   GateActivation activation) = 0;
  virtual void do_rope(MatrixView<float> x, int64_t head_dim, std::span<const int64_t> positions,
                       std::span<const float> inverse_frequency, const RopeOptions& options) = 0;
  virtual void do_store_kv(std::span<const AttendSlice> slices, MatrixView<const float> k, MatrixView<const float> v) = 0;
  virtual void do_attend(MatrixView<float> out, MatrixView<const float> q, std::span<const AttendSlice> slices,
                         const AttendOptions& options) = 0;

  std::unique_ptr<ThreadPool> pool_;
  Activations activations_;
};

}  // namespace quipu
