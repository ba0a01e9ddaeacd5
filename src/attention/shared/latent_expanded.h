// Attention over latent rows in the expanded form: keys and values of the heads are made again, a stretch of the context at
// a time, and meet all query rows of the sequence. What prompts want.
#pragma once

#include "attention/shared/latent_kernel.h"
#include "ops/backend.h"

namespace quipu {

struct ExpandedShape {
  LatentShape latent;
  int64_t nope_dim = 0, value_dim = 0;
  int64_t query_dim() const { return nope_dim + latent.rope_dim; }
  int64_t up_dim() const { return nope_dim + value_dim; }
};

// Floats of scratch attend_expanded takes for that many rows on that many threads.
int64_t expanded_scratch_floats(const ExpandedShape& shape, int64_t rows, int threads);
// out [n, heads * value_dim] = softmax(scale * q k^T) v for n rows of one sequence, whose pages all contexts name. Per head
// k = [ key of the expanded row | rotated key of the row ], v the expanded row's value; query [n, heads * query_dim].
// up [heads * up_dim, rank], per head [key | value]. One running softmax in page order: a row's result does not depend on
// the other rows. scratch: expanded_scratch_floats(), aligned to 64.
void attend_expanded(Backend& backend, MatrixView<float> out, MatrixView<const float> query,
                     std::span<const LatentContext> contexts, const PackedMatrix& up, const ExpandedShape& shape,
                     float* scratch);

}  // namespace quipu
