// Attention over widened rows that many query rows share: each is loaded once for a register tile of queries. Included after
// attention_body.h.

// Query rows and keys a pass works on at once; lane = component, so a score is a sum across lanes at the end.
constexpr int kScoreQueries = kTileRows >= 12 ? 6 : 1;
constexpr int kScoreKeys = 4;

// Scores of Q query rows and K <= 4 keys. Whatever Q and K are, a score is summed in the same order.
template <int Q, int K>
QUIPU_KERNEL void row_scores_of(float* scores, const float* q, int64_t q_stride, const float* keys, int64_t stride, int64_t dim) {
  F32 sum[Q][kScoreKeys];
  repeat<Q>([&](auto i) { repeat<kScoreKeys>([&](auto j) { sum[i][j] = f_zero(); }); });
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) {
    F32 k[K];
    repeat<K>([&](auto j) { k[j] = f_load(keys + j * stride + d); });
    repeat<Q>([&](auto i) {
      const F32 x = f_load(q + i * q_stride + d);
      repeat<K>([&](auto j) { sum[i][j] = f_fma(x, k[j], sum[i][j]); });
    });
  }
  if (const int lanes = static_cast<int>(dim - d); lanes > 0) {
    F32 k[K];
    repeat<K>([&](auto j) { k[j] = f_load_part(keys + j * stride + d, lanes); });
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

// Four scores are stored at a time: the last ones of a row may be written beyond keys.rows, not beyond 64.
void row_scores(float* scores, const RowBlock& q, const RowBlock& keys) {
  for_query_tiles(q.rows, [&]<int Q>(int64_t r) {
    const float* from = q.data + r * q.stride;
    float* to = scores + r * 64;
    int64_t key = 0;
    for (; key + kScoreKeys <= keys.rows; key += kScoreKeys) {
      row_scores_of<Q, kScoreKeys>(to + key, from, q.stride, keys.data + key * keys.stride, keys.stride, keys.dim);
    }
    const float* rest = keys.data + key * keys.stride;
    switch (keys.rows - key) {
      case 3: return row_scores_of<Q, 3>(to + key, from, q.stride, rest, keys.stride, keys.dim);
      case 2: return row_scores_of<Q, 2>(to + key, from, q.stride, rest, keys.stride, keys.dim);
      case 1: return row_scores_of<Q, 1>(to + key, from, q.stride, rest, keys.stride, keys.dim);
      default: return;
    }
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

void row_values(const RowSums& out, const float* p, const float* rescale, const RowBlock& values) {
  const std::byte* bytes = reinterpret_cast<const std::byte*>(values.data);
  for_row_tiles(out.rows, [&]<int R>(int64_t r) {
    const auto part = [&](int64_t begin) { return RowSums{out.data + r * out.stride + begin, out.stride, R}; };
    int64_t begin = 0;
    for (; begin + 16 * kPassVectors <= values.dim; begin += 16 * kPassVectors) {
      values_of_rows<DType::kF32, R, kPassVectors>(part(begin), p + r * 64, rescale + r, bytes + 4 * begin, values.stride,
                                                   values.rows);
    }
    for (; begin + 16 <= values.dim; begin += 16) {
      values_of_rows<DType::kF32, R, 1>(part(begin), p + r * 64, rescale + r, bytes + 4 * begin, values.stride, values.rows);
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
