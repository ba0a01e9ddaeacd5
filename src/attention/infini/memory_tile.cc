#include "attention/infini/memory_tile.h"

namespace quipu {
namespace {

// kColumns > 0: known when compiled, so that the sums stay in registers.
template <int64_t kColumns>
void read(float* __restrict out, const float* __restrict tile, const float* __restrict feature, int64_t features,
          int64_t columns) {
  const int64_t n = kColumns > 0 ? kColumns : columns;
  float sums[kTileColumns] = {};
  for (int64_t i = 0; i < features; ++i) {
    const float f = feature[i];
    for (int64_t c = 0; c < n; ++c) sums[c] += f * tile[i * n + c];
  }
  for (int64_t c = 0; c < n; ++c) out[c] = sums[c];
}

template <int64_t kColumns>
void write(float* __restrict tile, const float* __restrict feature, const float* __restrict value, int64_t features,
           int64_t columns) {
  const int64_t n = kColumns > 0 ? kColumns : columns;
  for (int64_t i = 0; i < features; ++i) {
    const float f = feature[i];
    for (int64_t c = 0; c < n; ++c) tile[i * n + c] += f * value[c];
  }
}

}  // namespace

void tile_read(float* out, const float* tile, const float* feature, int64_t features, int64_t columns) {
  if (columns == kTileColumns) return read<kTileColumns>(out, tile, feature, features, columns);
  read<0>(out, tile, feature, features, columns);
}

void tile_write(float* tile, const float* feature, const float* value, int64_t features, int64_t columns) {
  if (columns == kTileColumns) return write<kTileColumns>(tile, feature, value, features, columns);
  write<0>(tile, feature, value, features, columns);
}

void fold_sums(float* total, float* sums, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (sums[i] != 0.0f) total[i] += sums[i];   // adding zero would turn -0 into 0
    sums[i] = 0.0f;
  }
}

void fold_sums_compensated(float* total, float* carry, float* sums, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (sums[i] == 0.0f) continue;
    const float wanted = sums[i] - carry[i];
    const float sum = total[i] + wanted;
    carry[i] = (sum - total[i]) - wanted;
    total[i] = sum;
    sums[i] = 0.0f;
  }
}

}  // namespace quipu
