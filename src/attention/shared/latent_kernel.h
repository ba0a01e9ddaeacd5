// The inner loops of attention over latent rows: one page of rows for one head of one query at a time, with a running
// softmax. A fused kernel replaces attend_absorbed(); nothing above it changes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "base/cpu_features.h"
#include "base/thread_pool.h"
#include "tensor/dtype.h"
#include "tensor/view.h"

namespace quipu {

// Pages of latent rows: [64][width] row by row in the cache dtype, width = rank + rope_dim. The key is the whole row, the
// value its first `rank` entries: a view, never stored twice. [spec: 576 elements a token for DeepSeek]
void store_latent_row(std::byte* page, DType dtype, int64_t width, int64_t row, const float* values);
// What one row of the batch attends to: the first `rows` rows of the cache, then, unless null, `own` [width] in fp32
// (MTLA: the open chunk as it stood at that token).
struct LatentContext {
  std::span<std::byte* const> pages;
  int64_t rows = 0;
  const float* own = nullptr;
  bool expand = false;             // expanded form instead of the absorbed one
};

struct SoftmaxState {
  float largest = -std::numeric_limits<float>::infinity();
  float sum = 0.0f;
};

// Keys in two parts and their values, row j at data + j * stride.
struct LatentBlock {
  const float* key = nullptr;        // [key_dim]
  int64_t key_stride = 0, key_dim = 0;
  const float* rotary = nullptr;     // [rotary_dim], 0 when the key holds it already
  int64_t rotary_stride = 0, rotary_dim = 0;
  const float* value = nullptr;      // [value_dim]
  int64_t value_stride = 0, value_dim = 0;
};

// The arithmetic, once for each instruction set.
struct LatentKernels {
  // Adds the first `rows` (<= 64) rows of the block to the running softmax of one query head: sum [value_dim] is kept
  // scaled to state.largest. The result depends on the query, the rows and their order only.   [Milakov & Gimelshein 2018]
  void (*attend_block)(SoftmaxState& state, float* sum, const float* query, const float* rotary_query, float scale,
                       const LatentBlock& block, int64_t rows);
  // n numbers of that type as floats, exactly.
  void (*decode_f16)(float* out, const std::byte* in, int64_t n);
  void (*decode_bf16)(float* out, const std::byte* in, int64_t n);
};
const LatentKernels& latent_kernels(Isa isa);

struct LatentShape {
  DType dtype = DType::kF16;
  int64_t heads = 0, rank = 0, rope_dim = 0;
  float scale = 1.0f;
  Isa isa = Isa::kPortable;
  int64_t width() const { return rank + rope_dim; }
};

// Rows [0, count) of a page as floats: the page itself when it holds f32, else decoded into `buffer` [count * width].
const float* latent_rows(const std::byte* page, const LatentShape& shape, int64_t count, float* buffer);

// Floats of scratch attend_absorbed takes for each thread of the pool.
int64_t absorbed_scratch_floats(const LatentShape& shape);
// out [n, heads * rank] = softmax(scale * query row^T) latent, per head, for n rows with their contexts;
// query [n, heads * width]: per head the absorbed query, then the rotated one. scratch: threads * absorbed_scratch_floats().
void attend_absorbed(ThreadPool& pool, MatrixView<float> out, MatrixView<const float> query,
                     std::span<const LatentContext> contexts, const LatentShape& shape, float* scratch);

}  // namespace quipu
