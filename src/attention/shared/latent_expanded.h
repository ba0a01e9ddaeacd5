// Attention over latent rows in the expanded form: keys and values of the heads are made again, a stretch of the context at
// a time, and meet all query rows of the sequence. What prompts want.
//
// Or, on AMX, in bf16 tiles: a thread makes a head's keys and values of 256
// rows (latent_expand_tiles.h), attends to them with all rows of the step while they are in its second-level cache, and folds the
// result into the running one. Rounded to bf16 are rows kept otherwise, the up-projection unless it is bf16, queries, keys, values
// and probabilities, as in attention over cached keys and values.
#pragma once

#include "attention/shared/latent_expand_tiles.h"
#include "attention/shared/latent_kernel.h"
#include "ops/backend.h"

namespace quipu {

struct ExpandedShape {
  LatentShape latent;
  int64_t nope_dim = 0, value_dim = 0;
  bool tiles = false;   // in bf16 tiles
  int64_t query_dim() const { return nope_dim + latent.rope_dim; }
  // Rows of a head's part of the up-projection: its keys', and all.
  int64_t key_rows() const { return tiles ? paired_blocks(nope_dim) * kBlockCols : nope_dim; }
  int64_t head_rows() const { return tiles ? head_up_rows(nope_dim, value_dim) : nope_dim + value_dim; }
};

// Floats of scratch attend_expanded takes for that many rows on that many threads.
int64_t expanded_scratch_floats(const ExpandedShape& shape, int64_t rows, int threads);
// out [n, heads * value_dim] = softmax(scale * q k^T) v for n rows of one sequence, whose pages all contexts name. Per head
// k = [ key of the expanded row | rotated key of the row ], v the expanded row's value; query [n, heads * query_dim].
// up [heads * head_rows(), rank], per head [key | value], for tiles with zeros between as HeadUp wants it. One running
// softmax in page order: a row's result does not depend on the other rows. scratch: expanded_scratch_floats(), aligned to 64.
void attend_expanded(Backend& backend, MatrixView<float> out, MatrixView<const float> query,
                     std::span<const LatentContext> contexts, const PackedMatrix& up, const ExpandedShape& shape,
                     float* scratch);

}  // namespace quipu
