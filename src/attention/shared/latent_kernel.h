// Attention over latent rows in the absorbed form: every cached row is read once and meets all heads of all query rows that
// share it, as a product of matrices: widened to fp32, or, on AMX and unless rows are kept in f32, in bf16 tiles
// (latent_tiles.h).
//
// Rows are taken in tasks of a fixed number of rows. A task's partial result starts from nothing and is then folded into the
// running one, task by task, whichever thread computed it: results depend neither on threads, nor on the batch, nor on how a
// prompt was cut.
#pragma once

#include <cstddef>
#include <cstdint>
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

struct LatentShape {
  DType dtype = DType::kF16;
  int64_t heads = 0, rank = 0, rope_dim = 0;
  float scale = 1.0f;
  Isa isa = Isa::kPortable;
  int64_t width() const { return rank + rope_dim; }
};

// Floats of scratch attend_absorbed takes for that many rows on that many threads.
int64_t absorbed_scratch_floats(const LatentShape& shape, int64_t rows, int threads);
// out [n, heads * rank] = softmax(scale * query row^T) latent, per head, for n rows with their contexts; query
// [n, heads * width]: per head the absorbed query, then the rotated one. Both without gaps between rows.
// scratch: absorbed_scratch_floats(), aligned to 64.
void attend_absorbed(ThreadPool& pool, MatrixView<float> out, MatrixView<const float> query,
                     std::span<const LatentContext> contexts, const LatentShape& shape, float* scratch);

}  // namespace quipu
