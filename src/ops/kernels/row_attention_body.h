// Attention over widened rows that many query rows share: each is loaded once for a register tile of queries. Included after
// attention_body.h.

// Query rows and keys a pass works on at once; lane = component, so a score is a sum across lanes at the end.
constexpr int kScoreQueries = kTileRows >= 12 ? 6 : 1;
constexpr int kScoreKeys = 4;

// Keys of a float dtype, row by row; widened rows are written to `wide` unless that is null.
struct KeySource {
  const std::byte* bytes;
  int64_t row_bytes;
  float* wide;
  int64_t stride, dim;
  const std::byte* ahead;     // asked for on the way, ahead_step bytes further with every vector of components
  int64_t ahead_step;
};

// Scores of Q query rows and K <= 4 keys. Whatever Q and K are, a score is summed in the same order. kWiden: the keys are
// written down as floats on the way: while the sums are made that costs next to nothing, on its own a fifth of them.
template <DType D, int Q, int K, bool kWiden>
QUIPU_KERNEL void row_scores_of(float* scores, const float* q, int64_t q_stride, const KeySource& keys) {
  constexpr int64_t kSize = D == DType::kF32 ? 4 : 2;
  const std::byte* from = keys.bytes;
  const int64_t row_bytes = keys.row_bytes, dim = keys.dim, stride = keys.stride;
  float* wide = keys.wide;
  const std::byte* ahead = keys.ahead;
  const int64_t ahead_step = keys.ahead_step;
  F32 sum[Q][kScoreKeys];
  repeat<Q>([&](auto i) { repeat<kScoreKeys>([&](auto j) { sum[i][j] = f_zero(); }); });
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) {
    F32 k[K];
    prefetch_far(ahead);
    ahead += ahead_step;
    repeat<K>([&](auto j) {
      k[j] = f_load_as<D>(from + j * row_bytes + kSize * d);
      if constexpr (kWiden) f_store(wide + j * stride + d, k[j]);
    });
    repeat<Q>([&](auto i) {
      const F32 x = f_load(q + i * q_stride + d);
      repeat<K>([&](auto j) { sum[i][j] = f_fma(x, k[j], sum[i][j]); });
    });
  }
  if (const int lanes = static_cast<int>(dim - d); lanes > 0) {
    F32 k[K];
    repeat<K>([&](auto j) {
      k[j] = f_load_first<D>(from + j * row_bytes + kSize * d, lanes);
      if constexpr (kWiden) f_store_part(wide + j * stride + d, k[j], lanes);
    });
    repeat<Q>([&](auto i) {
      const F32 x = f_load_part(q + i * q_stride + d, lanes);
      repeat<K>([&](auto j) { sum[i][j] = f_fma(x, k[j], sum[i][j]); });
    });
  }
  repeat<Q>([&](auto i) { f_store_sums4(scores + i * 64, sum[i][0], sum[i][1], sum[i][2], sum[i][3]); });
}

// Tiles of queries, without a last tile so small that it waits for its own sums.
template <class Action>
inline void for_query_tiles(int64_t rows, const Action& action) {
  int64_t r = 0;
  if constexpr (kScoreQueries == 6) {
    for (; rows - r >= 6 && rows - r != 8 && rows - r != 7; r += 6) action.template operator()<6>(r);
    for (; rows - r >= 4; r += 4) action.template operator()<4>(r);
    if (rows - r == 3) return action.template operator()<3>(r);
    if (rows - r == 2) return action.template operator()<2>(r);
  }
  for (; r < rows; ++r) action.template operator()<1>(r);
}

template <DType D, int Q, bool kWiden>
void row_scores_of_tile(float* scores, const float* q, int64_t q_stride, const KeySource& keys, int64_t count) {
  int64_t key = 0;
  const auto from = [&] {
    return KeySource{keys.bytes + key * keys.row_bytes, keys.row_bytes, keys.wide + key * keys.stride, keys.stride, keys.dim,
                     keys.ahead + key / kScoreKeys * (keys.dim / 16) * keys.ahead_step, keys.ahead_step};
  };
  for (; key + kScoreKeys <= count; key += kScoreKeys) {
    row_scores_of<D, Q, kScoreKeys, kWiden>(scores + key, q, q_stride, from());
  }
  switch (count - key) {
    case 3: return row_scores_of<D, Q, 3, kWiden>(scores + key, q, q_stride, from());
    case 2: return row_scores_of<D, Q, 2, kWiden>(scores + key, q, q_stride, from());
    case 1: return row_scores_of<D, Q, 1, kWiden>(scores + key, q, q_stride, from());
    default: return;
  }
}

inline int64_t query_tiles(int64_t rows) {
  int64_t count = 0;
  for_query_tiles(rows, [&]<int Q>(int64_t) { ++count; });
  return count;
}

// How far to move on, `steps` times, to have asked for all of `ahead`. Evenly: a core keeps few lines in flight.
inline int64_t step_of(const Ahead& ahead, int64_t steps) { return steps == 0 ? 0 : (ahead.bytes + steps - 1) / steps; }

template <DType D>
void scores_of_page(float* scores, const RowBlock& q, const KeySource& kept, int64_t count) {
  const int64_t steps = (count + kScoreKeys - 1) / kScoreKeys * (kept.dim / 16);   // of one tile of queries
  KeySource keys = kept;
  for_query_tiles(q.rows, [&]<int Q>(int64_t r) {
    const float* from = q.data + r * q.stride;
    if (r == 0 && D != DType::kF32) {
      row_scores_of_tile<D, Q, true>(scores, from, q.stride, keys, count);
      keys.bytes = reinterpret_cast<const std::byte*>(keys.wide);
      keys.row_bytes = 4 * keys.stride;
    } else {
      row_scores_of_tile<DType::kF32, Q, false>(scores + r * 64, from, q.stride, keys, count);
    }
    keys.ahead += steps * keys.ahead_step;
  });
}

// Four scores are stored at a time: the last ones of a row may be written beyond keys.rows, not beyond 64. The first tile of
// queries widens for the others.
void row_scores(float* scores, const RowBlock& q, const RowBlock& keys, const Ahead& ahead) {
  const std::byte* bytes = reinterpret_cast<const std::byte*>(keys.data);
  const int64_t step = step_of(ahead, query_tiles(q.rows) * ((keys.rows + kScoreKeys - 1) / kScoreKeys) * (keys.dim / 16));
  scores_of_page<DType::kF32>(scores, q, {bytes, 4 * keys.stride, nullptr, keys.stride, keys.dim, ahead.data == nullptr ? bytes : ahead.data, step},
                              keys.rows);
}

void widen_row_scores(float* scores, float* wide, const RowBlock& q, const RowPage& keys, const Ahead& ahead) {
  if (keys.dtype == DType::kQ8_0) {
    widen_run(wide, keys.bytes, keys.dtype, keys.rows * keys.dim);
    return row_scores(scores, q, {wide, keys.dim, keys.dim, keys.rows}, ahead);
  }
  const int64_t step = step_of(ahead, query_tiles(q.rows) * ((keys.rows + kScoreKeys - 1) / kScoreKeys) * (keys.dim / 16));
  for_float(keys.dtype, [&]<DType D>() {
    constexpr int64_t kSize = D == DType::kF32 ? 4 : 2;
    scores_of_page<D>(scores, q, {keys.bytes, kSize * keys.dim, wide, keys.dim, keys.dim,
                                  ahead.data == nullptr ? keys.bytes : ahead.data, step}, keys.rows);
  });
}

// The last components of a row whose length is no multiple of 16.
inline void row_values_rest(float* out, const float* p, float rescale, const RowBlock& values, int64_t begin) {
  const int lanes = static_cast<int>(values.dim - begin);
  F32 sum = f_mul(f_load_part(out + begin, lanes), f_set1(rescale));
  for (int64_t key = 0; key < values.rows; ++key) {
    sum = f_fma(f_set1(p[key]), f_load_part(values.data + key * values.stride + begin, lanes), sum);
  }
  f_store_part(out + begin, sum, lanes);
}

// Register tiles whose sums do not wait for each other: 8 rows are 4 and 4, not 6 and 2.
template <class Action>
inline void for_sum_tiles(int64_t rows, const Action& action) {
  if constexpr (kPassVectors == 4) {
    for_query_tiles(rows, action);
  } else {
    for_row_tiles(rows, action);
  }
}

void row_values(const RowSums& out, const float* p, const float* rescale, const RowBlock& values, const Ahead& ahead) {
  const std::byte* bytes = reinterpret_cast<const std::byte*>(values.data);
  const std::byte* next = ahead.data == nullptr ? bytes : ahead.data;
  int64_t tiles = 0;
  for_sum_tiles(out.rows, [&]<int R>(int64_t) { tiles += values.dim / (16 * kPassVectors); });
  const int64_t step = step_of(ahead, tiles * values.rows);
  for_sum_tiles(out.rows, [&]<int R>(int64_t r) {
    const auto part = [&](int64_t begin) { return RowSums{out.data + r * out.stride + begin, out.stride, R}; };
    int64_t begin = 0;
    for (; begin + 16 * kPassVectors <= values.dim; begin += 16 * kPassVectors) {
      values_of_rows<DType::kF32, R, kPassVectors>(part(begin), p + r * 64, rescale + r, bytes + 4 * begin, values.stride,
                                                   values.rows, next, step);
      next += step * values.rows;
    }
    for (; begin + 16 <= values.dim; begin += 16) {
      values_of_rows<DType::kF32, R, 1>(part(begin), p + r * 64, rescale + r, bytes + 4 * begin, values.stride, values.rows, bytes, 0);
    }
    for (int64_t i = 0; begin < values.dim && i < R; ++i) {
      row_values_rest(out.data + (r + i) * out.stride, p + (r + i) * 64, rescale[r + i], values, begin);
    }
  });
}

// A key page [dim][64] of rows that lie row by row.
void turn_rows(float* out, const RowBlock& rows) {
  constexpr int64_t kBlock = 16;
  for (int64_t first = 0; first < rows.rows; first += kBlock) {
    const int64_t end = first + kBlock < rows.rows ? first + kBlock : rows.rows;
    for (int64_t d = 0; d < rows.dim; ++d) {
      for (int64_t row = first; row < end; ++row) out[d * 64 + row] = rows.data[row * rows.stride + d];
    }
  }
}
