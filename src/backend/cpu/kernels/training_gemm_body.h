// Tiles of products and their packing. Included after simd_<isa>.h and math_body.h, before training_body.h.

inline F32 load_lanes(const float* p, int64_t left) { return left >= 16 ? f_load(p) : f_load_part(p, static_cast<int>(left)); }
inline void store_lanes(float* p, F32 x, int64_t left) {
  if (left >= 16) {
    f_store(p, x);
  } else {
    f_store_part(p, x, static_cast<int>(left));
  }
}

// ---- products -----------------------------------------------------------------------------------------------------

constexpr int kHalves = static_cast<int>(kGemmPanel) / (16 * kTilePanels);   // passes over a panel

inline void finish_vector(const GemmTile& tile, float* c, F32 sum, int col) {
  const int left = tile.cols - col;
  if (left <= 0) return;
  sum = f_mul(sum, f_set1(tile.scale));
  if (tile.add) {
    sum = f_add(load_lanes(c, left), sum);
  } else if (tile.bias != nullptr) {
    sum = f_add(load_lanes(tile.bias + col, left), sum);
  }
  store_lanes(c, sum, left);
}

// kStride > 0: rows that far apart; 0: columns.
template <int kStride>
QUIPU_KERNEL void gemm_pass(const GemmTile& tile, int first_col) {
  F32 sum[kTilePanels][kTileRows];
  repeat<kTilePanels>([&](auto p) { repeat<kTileRows>([&](auto t) { sum[p][t] = f_zero(); }); });
  const float* b = tile.b + first_col;
  const float* a = tile.a;
  const int64_t a_step = kStride > 0 ? 1 : tile.a_step;
  for (int64_t k = 0; k < tile.depth; ++k, b += kGemmPanel, a += a_step) {
    F32 right[kTilePanels];
    repeat<kTilePanels>([&](auto p) { right[p] = f_load(b + 16 * p); });
    repeat<kTileRows>([&](auto t) {
      const F32 left = f_set1(a[kStride > 0 ? t * kStride : static_cast<int>(t)]);
      repeat<kTilePanels>([&](auto p) { sum[p][t] = f_fma(right[p], left, sum[p][t]); });
    });
  }
  // Whole tiles, which nearly all are, without questions about every vector: they count where the depth is small.
  if (tile.rows == kTileRows && tile.cols >= first_col + 16 * kTilePanels && tile.scale == 1.0f && tile.bias == nullptr) {
    repeat<kTileRows>([&](auto t) {
      repeat<kTilePanels>([&](auto p) {
        float* c = tile.c + t * tile.c_ld + first_col + 16 * p;
        f_store(c, tile.add ? f_add(f_load(c), sum[p][t]) : sum[p][t]);
      });
    });
    return;
  }
  repeat<kTileRows>([&](auto t) {
    if (t < tile.rows) {
      repeat<kTilePanels>([&](auto p) {
        finish_vector(tile, tile.c + t * tile.c_ld + first_col + 16 * p, sum[p][t], first_col + 16 * p);
      });
    }
  });
}

template <int kStride>
void gemm_tile_of(const GemmTile& tile) {
  // The output's lines are on their way while a long product runs.
  constexpr int64_t kLong = 128;
  for (int row = 0; tile.depth >= kLong && row < tile.rows; ++row) {
    prefetch(tile.c + row * tile.c_ld);
    if (tile.cols > 16) prefetch(tile.c + row * tile.c_ld + 16);
  }
  for (int pass = 0; pass < kHalves; ++pass) {
    if (pass * 16 * kTilePanels < tile.cols) gemm_pass<kStride>(tile, pass * 16 * kTilePanels);
  }
}

void gemm_tile(const GemmTile& tile) {
  switch (tile.form) {
    case LeftForm::kRows64: return gemm_tile_of<64>(tile);
    case LeftForm::kRows128: return gemm_tile_of<128>(tile);
    case LeftForm::kRows256: return gemm_tile_of<256>(tile);
    case LeftForm::kColumns: return gemm_tile_of<0>(tile);
  }
}

void pack_rows(float* out, int64_t stride, const float* a, int64_t ld, int64_t rows, int64_t depth) {
  for (int64_t t = 0; t < rows; ++t) {
    const float* from = a + t * ld;
    float* to = out + t * stride;
    for (int64_t k = 0; k < depth; k += 16) store_lanes(to + k, load_lanes(from + k, depth - k), depth - k);
  }
}

void pack_columns(float* out, const float* a, int64_t ld, int64_t rows, int64_t depth) {
  // Whole vectors are stored: what spills over is overwritten by the next column.
  for (int64_t k = 0; k < depth; ++k) f_store(out + k * kTileRows, load_lanes(a + k * ld, rows));
}

void pack_panel(float* out, const float* b, int64_t ld, int64_t cols, int64_t depth) {
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t j = 0; j < kGemmPanel; j += 16) {
      const F32 values = j < cols ? load_lanes(b + k * ld + j, cols - j) : f_zero();
      f_store(out + k * kGemmPanel + j, values);
    }
  }
}

void pack_panel_transposed(float* out, const float* b, int64_t ld, int64_t cols, int64_t depth) {
  for (int64_t k = 0; k < depth; ++k) {
    float* to = out + k * kGemmPanel;
    for (int64_t j = 0; j < cols; ++j) to[j] = b[j * ld + k];
    for (int64_t j = cols; j < kGemmPanel; ++j) to[j] = 0.0f;
  }
}
