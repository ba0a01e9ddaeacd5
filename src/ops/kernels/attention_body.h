// Attention over pages of 64 keys. Included after simd_<isa>.h and math_body.h.
//
// Scores of a page are [rows][64]. A row's operations and their order do not depend on the other rows.

// Vectors of keys (or of value components) a pass keeps, and query rows it works on at once.
constexpr int kPassVectors = kTileRows >= 12 ? 4 : 1;
constexpr int kPassRows = kTileRows >= 12 ? 6 : 4;

// ---- q . k, lane = key ----------------------------------------------------------------------------------------------------------

template <DType D, int R>
QUIPU_KERNEL void scores_of_rows(float* scores, const float* q, const std::byte* keys, int64_t dim) {
  constexpr int64_t kSize = D == DType::kF32 ? 4 : 2;
  for (int64_t key = 0; key < 64; key += 16 * kPassVectors) {
    F32 sum[R][kPassVectors];
    repeat<R>([&](auto r) { repeat<kPassVectors>([&](auto v) { sum[r][v] = f_zero(); }); });
    for (int64_t d = 0; d < dim; ++d) {
      F32 k[kPassVectors];
      repeat<kPassVectors>([&](auto v) { k[v] = f_load_as<D>(keys + kSize * (d * 64 + key + 16 * v)); });
      repeat<R>([&](auto r) {
        const F32 value = f_set1(q[r * dim + d]);
        repeat<kPassVectors>([&](auto v) { sum[r][v] = f_fma(k[v], value, sum[r][v]); });
      });
    }
    repeat<R>([&](auto r) {
      repeat<kPassVectors>([&](auto v) { f_store(scores + r * 64 + key + 16 * v, sum[r][v]); });
    });
  }
}

// Splits `rows` into register tiles: action.template operator()<R>(first_row).
template <class Action>
inline void for_row_tiles(int64_t rows, const Action& action) {
  int64_t r = 0;
  for (; r + kPassRows <= rows; r += kPassRows) action.template operator()<kPassRows>(r);
  for (; r + 4 <= rows; r += 4) action.template operator()<4>(r);
  switch (rows - r) {
    case 3: return action.template operator()<3>(r);
    case 2: return action.template operator()<2>(r);
    case 1: return action.template operator()<1>(r);
    default: return;
  }
}

void page_scores(float* scores, const float* q, int64_t rows, const HeadPage& keys) {
  for_float(keys.dtype, [&]<DType D>() {
    for_row_tiles(rows, [&]<int R>(int64_t r) {
      scores_of_rows<D, R>(scores + r * 64, q + r * keys.dim, keys.bytes, keys.dim);
    });
  });
}

// int8 keys against int8 queries: exact integer dots over 32 components, then scaled. Keys are made unsigned by
// flipping their top bit, which adds 128; the start value takes 128 * sum(q) off again.
template <int R>
QUIPU_KERNEL void scores_of_rows_q8(float* scores, const int8_t* q, const float* q_scales, const int32_t* q_sums, const HeadPage& keys) {
  const int64_t blocks = keys.dim / 32;
  const std::byte* key_scales = keys.bytes + keys.dim * 64;
  for (int64_t key = 0; key < 64; key += 16 * kPassVectors) {
    repeat<R>([&](auto r) {
      repeat<kPassVectors>([&](auto v) { f_store(scores + r * 64 + key + 16 * v, f_zero()); });
    });
    for (int64_t block = 0; block < blocks; ++block) {
      I32 dot[R][kPassVectors];
      repeat<R>([&](auto r) {
        const int32_t* sums = q_sums + r * (2 * blocks) + 2 * block;
        const I32 start = i_set1(-128 * (sums[0] + sums[1]));
        repeat<kPassVectors>([&](auto v) { dot[r][v] = start; });
      });
      for (int64_t i = 0; i < 8; ++i) {
        U8 k[kPassVectors];
        repeat<kPassVectors>([&](auto v) { k[v] = u_flip_top(u_load(keys.bytes + ((block * 8 + i) * 64 + key + 16 * v) * 4)); });
        repeat<R>([&](auto r) {
          const U8 q4 = u_repeat4(q + r * keys.dim + block * 32 + 4 * i);
          repeat<kPassVectors>([&](auto v) { dot[r][v] = i_dot(dot[r][v], k[v], q4); });
        });
      }
      repeat<kPassVectors>([&](auto v) {
        const F32 scale = f_load_f16(key_scales + (block * 64 + key + 16 * v) * 2);
        repeat<R>([&](auto r) {
          float* place = scores + r * 64 + key + 16 * v;
          f_store(place, f_fma(f_from_i(dot[r][v]), f_mul(scale, f_set1(q_scales[r * blocks + block])), f_load(place)));
        });
      });
      compiler_barrier();
    }
  }
}

void page_scores_q8(float* scores, const int8_t* q_codes, const float* q_scales, const int32_t* q_sums, int64_t rows,
                    const HeadPage& keys) {
  const int64_t blocks = keys.dim / 32;
  for_row_tiles(rows, [&]<int R>(int64_t r) {
    scores_of_rows_q8<R>(scores + r * 64, q_codes + r * keys.dim, q_scales + r * blocks, q_sums + r * 2 * blocks, keys);
  });
}

// ---- softmax --------------------------------------------------------------------------------------------------------

void softmax_page(float* scores, float* maximum, float* total, float* rescale, const int32_t* first, const int32_t* last,
                  int64_t rows, float scale, float softcap) {
  const F32 hidden = f_set1(-__builtin_inff());
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * 64;
    F32 s[4];
    F32 largest = hidden;
    for (int v = 0; v < 4; ++v) {
      s[v] = f_mul(f_load(row + 16 * v), f_set1(scale));
      if (softcap > 0.0f) s[v] = f_mul(f_set1(softcap), f_tanh(f_div(s[v], f_set1(softcap))));
      const int low = first[r] - 16 * v;
      const int high = last[r] - 16 * v;
      s[v] = f_select_range(low < 0 ? 0 : low, high < 0 ? 0 : high, s[v], hidden);
      largest = f_max(largest, s[v]);
    }
    const float before = maximum[r];
    const float page_largest = f_reduce_max(largest);
    const float after = page_largest > before ? page_largest : before;
    if (!(after > -__builtin_inff())) {   // nothing visible yet (or only NaN, which the values below spread)
      for (int v = 0; v < 4; ++v) f_store(row + 16 * v, f_zero());
      rescale[r] = 1.0f;
      continue;
    }
    F32 sum = f_zero();
    for (int v = 0; v < 4; ++v) {
      const F32 p = f_exp(f_sub(s[v], f_set1(after)));
      f_store(row + 16 * v, p);
      sum = f_add(sum, p);
    }
    alignas(64) float factor[16];
    f_store(factor, f_exp(f_set1(before - after)));
    rescale[r] = before == after ? 1.0f : factor[0];
    total[r] = total[r] * rescale[r] + f_reduce_add(sum);
    maximum[r] = after;
  }
}

// ---- p . v ----------------------------------------------------------------------------------------------------------

// 16 V components of R rows. ahead: memory to ask for, ahead_step bytes
// further with each key.
template <DType D, int R, int V>
QUIPU_KERNEL void values_of_rows(const RowSums& out, const float* p, const float* rescale, const std::byte* values,
                                 int64_t stride, int64_t keys, const std::byte* ahead, int64_t ahead_step) {
  constexpr int64_t kSize = D == DType::kF32 ? 4 : 2;
  F32 sum[R][V];
  repeat<R>([&](auto r) {
    repeat<V>([&](auto v) { sum[r][v] = f_mul(f_load(out.data + r * out.stride + 16 * v), f_set1(rescale[r])); });
  });
  for (int64_t key = 0; key < keys; ++key) {
    F32 x[V];
    prefetch_far(ahead);
    ahead += ahead_step;
    repeat<V>([&](auto v) { x[v] = f_load_as<D>(values + kSize * (key * stride + 16 * v)); });
    repeat<R>([&](auto r) {
      const F32 weight = f_set1(p[r * 64 + key]);
      repeat<V>([&](auto v) { sum[r][v] = f_fma(weight, x[v], sum[r][v]); });
    });
  }
  repeat<R>([&](auto r) {
    repeat<V>([&](auto v) { f_store(out.data + r * out.stride + 16 * v, sum[r][v]); });
  });
}

// One block of 32 components (two vectors) of an int8 page; scales: [64] floats of this block.
template <int R>
QUIPU_KERNEL void values_of_rows_q8(float* out, const float* p, const float* rescale, const HeadPage& values, const float* scales,
                       int64_t keys, int64_t begin) {
  const int64_t dim = values.dim;
  F32 sum[R][2];
  repeat<R>([&](auto r) {
    repeat<2>([&](auto v) { sum[r][v] = f_mul(f_load(out + r * dim + begin + 16 * v), f_set1(rescale[r])); });
  });
  for (int64_t key = 0; key < keys; ++key) {
    const F32 scale = f_set1(scales[key]);
    F32 x[2];
    repeat<2>([&](auto v) { x[v] = f_mul(f_load_i8(values.bytes + key * dim + begin + 16 * v), scale); });
    repeat<R>([&](auto r) {
      const F32 weight = f_set1(p[r * 64 + key]);
      repeat<2>([&](auto v) { sum[r][v] = f_fma(weight, x[v], sum[r][v]); });
    });
  }
  repeat<R>([&](auto r) {
    repeat<2>([&](auto v) { f_store(out + r * dim + begin + 16 * v, sum[r][v]); });
  });
}

inline uint16_t half_bits(const std::byte* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, 2);
  return bits;
}

// The scales of one 32-component block of an int8 value page, as floats.
inline void value_scales(float* scales, const std::byte* page, int64_t dim, int64_t block) {
  alignas(64) uint16_t bits[64];
  const std::byte* base = page + dim * 64;
  for (int64_t key = 0; key < 64; ++key) bits[key] = half_bits(base + (key * (dim / 32) + block) * 2);
  for (int v = 0; v < 4; ++v) f_store(scales + 16 * v, f_load_f16(bits + 16 * v));
}

void page_values(float* out, const float* p, const float* rescale, int64_t rows, const HeadPage& values, int64_t keys) {
  const int64_t dim = values.dim;
  if (values.dtype == DType::kQ8_0) {
    for (int64_t block = 0; block < dim / 32; ++block) {
      alignas(64) float scales[64];
      value_scales(scales, values.bytes, dim, block);
      for_row_tiles(rows, [&]<int R>(int64_t r) {
        values_of_rows_q8<R>(out + r * dim, p + r * 64, rescale + r, values, scales, keys, 32 * block);
      });
    }
    return;
  }
  for_float(values.dtype, [&]<DType D>() {
    constexpr int64_t kSize = D == DType::kF32 ? 4 : 2;
    for_row_tiles(rows, [&]<int R>(int64_t r) {
      int64_t begin = 0;
      for (; begin + 16 * kPassVectors <= dim; begin += 16 * kPassVectors) {
        values_of_rows<D, R, kPassVectors>({out + r * dim + begin, dim, R}, p + r * 64, rescale + r,
                                           values.bytes + kSize * begin, dim, keys, values.bytes, 0);
      }
      for (; begin < dim; begin += 16) {
        values_of_rows<D, R, 1>({out + r * dim + begin, dim, R}, p + r * 64, rescale + r, values.bytes + kSize * begin, dim,
                                keys, values.bytes, 0);
      }
    });
  });
}

// out = a * out + b * part with a, b the factors that bring both to the larger maximum.       [Milakov & Gimelshein 2018]
void merge_partial(float* out, float* maximum, float* total, const float* part, const float* part_maximum,
                   const float* part_total, int64_t rows, int64_t dim) {
  for (int64_t r = 0; r < rows; ++r) {
    if (!(part_maximum[r] > -__builtin_inff())) continue;
    const float after = part_maximum[r] > maximum[r] ? part_maximum[r] : maximum[r];
    alignas(64) float factor[32];
    f_store(factor, f_exp(f_set1(maximum[r] - after)));
    f_store(factor + 16, f_exp(f_set1(part_maximum[r] - after)));
    const float a = maximum[r] == after ? 1.0f : factor[0];
    const float b = part_maximum[r] == after ? 1.0f : factor[16];
    int64_t d = 0;
    for (; d + 16 <= dim; d += 16) {
      const F32 scaled = f_mul(f_load(out + r * dim + d), f_set1(a));
      f_store(out + r * dim + d, f_fma(f_load(part + r * dim + d), f_set1(b), scaled));
    }
    if (const int lanes = static_cast<int>(dim - d); lanes > 0) {
      const F32 scaled = f_mul(f_load_part(out + r * dim + d, lanes), f_set1(a));
      f_store_part(out + r * dim + d, f_fma(f_load_part(part + r * dim + d, lanes), f_set1(b), scaled), lanes);
    }
    total[r] = total[r] * a + part_total[r] * b;
    maximum[r] = after;
  }
}

// ---- widening -------------------------------------------------------------------------------------------------------

void widen_key_page(float* out, const HeadPage& page) {
  for_float(page.dtype, [&]<DType D>() {
    constexpr int64_t kSize = D == DType::kF32 ? 4 : 2;
    for (int64_t i = 0; i < page.dim * 64; i += 16) f_store(out + i, f_load_as<D>(page.bytes + kSize * i));
  });
}

void widen_value_page(float* out, const HeadPage& page) {
  if (page.dtype == DType::kQ8_0) {
    for (int64_t block = 0; block < page.dim / 32; ++block) {
      alignas(64) float scales[64];
      value_scales(scales, page.bytes, page.dim, block);
      for (int64_t key = 0; key < 64; ++key) {
        for (int64_t v = 0; v < 2; ++v) {
          const int64_t at = key * page.dim + 32 * block + 16 * v;
          f_store(out + at, f_mul(f_load_i8(page.bytes + at), f_set1(scales[key])));
        }
      }
    }
    return;
  }
  widen_key_page(out, page);   // plain pages are one run of numbers either way
}

// Rows of plain numbers, any count, or of whole q8_0 blocks.
void widen_run(float* out, const std::byte* in, DType dtype, int64_t n) {
  if (dtype == DType::kQ8_0) {
    constexpr int64_t kBlockBytes = 34;
    for (int64_t block = 0; block < n / 32; ++block, in += kBlockBytes, out += 32) {
      const F32 scale = f_set1(f16_to_f32(half_bits(in)));
      f_store(out, f_mul(f_load_i8(in + 2), scale));
      f_store(out + 16, f_mul(f_load_i8(in + 18), scale));
    }
    return;
  }
  for_float(dtype, [&]<DType D>() {
    constexpr int64_t kSize = D == DType::kF32 ? 4 : 2;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) f_store(out + i, f_load_as<D>(in + kSize * i));
    if (i < n) f_store_part(out + i, f_load_first<D>(in + kSize * i, static_cast<int>(n - i)), static_cast<int>(n - i));
  });
}
