// Latent rows as bf16 tiles take them. Included inside the target region and namespace of one instruction set with bf16, after
// math_body.h and latent_tiles.h: no include guard, no namespace.

constexpr int64_t kPageKeys = 64;
constexpr int64_t kBlock = 32;                   // components, or keys, of one tile product

inline int64_t blocks_of(int64_t width) { return (width + kBlock - 1) / kBlock; }

// rows[i][j] = rows[j][i], 16 x 16.
[[gnu::always_inline]] inline void turn(F32 (&rows)[16]) {
  F32 t[16];
  repeat<8>([&](auto i) {
    t[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  });
  const auto low = [](F32 a, F32 b) { return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))); };
  const auto high = [](F32 a, F32 b) { return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))); };
  repeat<4>([&](auto i) {   // rows[4 i + c]: in lane l column 4 l + c of rows 4 i .. 4 i + 3
    rows[4 * i] = low(t[4 * i], t[4 * i + 2]);
    rows[4 * i + 1] = high(t[4 * i], t[4 * i + 2]);
    rows[4 * i + 2] = low(t[4 * i + 1], t[4 * i + 3]);
    rows[4 * i + 3] = high(t[4 * i + 1], t[4 * i + 3]);
  });
  repeat<4>([&](auto c) {
    t[c] = _mm512_shuffle_f32x4(rows[c], rows[4 + c], 0x88);            // lanes 0 and 2 of both
    t[4 + c] = _mm512_shuffle_f32x4(rows[8 + c], rows[12 + c], 0x88);
    t[8 + c] = _mm512_shuffle_f32x4(rows[c], rows[4 + c], 0xdd);        // lanes 1 and 3
    t[12 + c] = _mm512_shuffle_f32x4(rows[8 + c], rows[12 + c], 0xdd);
  });
  repeat<4>([&](auto c) {
    rows[c] = _mm512_shuffle_f32x4(t[c], t[4 + c], 0x88);
    rows[8 + c] = _mm512_shuffle_f32x4(t[c], t[4 + c], 0xdd);
    rows[4 + c] = _mm512_shuffle_f32x4(t[8 + c], t[12 + c], 0x88);
    rows[12 + c] = _mm512_shuffle_f32x4(t[8 + c], t[12 + c], 0xdd);
  });
}

template <DType D>
[[gnu::always_inline]] inline F32 load_part_as(const std::byte* p, int64_t left) {
  return left >= 16 ? f_load_as<D>(p) : left > 0 ? f_load_first<D>(p, static_cast<int>(left)) : f_zero();
}

inline int64_t row_bytes_of(const TileSegment& s) { return s.dtype == DType::kQ8_0 ? s.width / 32 * 34 : 2 * s.width; }

// `rows` rows as bf16, `line` halves apart, zeros beyond their width; then zeros until row 32.
template <DType D>
QUIPU_KERNEL void round_rows(uint16_t* out, int64_t line, const std::byte* in, int64_t width, int64_t rows) {
  const int64_t row_bytes = D == DType::kQ8_0 ? width / 32 * 34 : 2 * width;
  int64_t row = 0;
  for (; row < rows; ++row, in += row_bytes, out += line) {
    for (int64_t d = 0; d < line; d += kBlock) {
      if constexpr (D == DType::kQ8_0) {
        const std::byte* block = in + d / 32 * 34;
        uint16_t bits;
        __builtin_memcpy(&bits, block, 2);
        const F32 scale = f_set1(f16_to_f32(bits));
        const F32 a = f_mul(f_load_i8(block + 2), scale), b = f_mul(f_load_i8(block + 18), scale);
        _mm512_storeu_si512(out + d, (__m512i)_mm512_cvtne2ps_pbh(b, a));
      } else {
        const F32 a = load_part_as<D>(in + 2 * d, width - d), b = load_part_as<D>(in + 2 * d + 32, width - d - 16);
        _mm512_storeu_si512(out + d, (__m512i)_mm512_cvtne2ps_pbh(b, a));
      }
    }
  }
  for (; row < kBlock; ++row, out += line) {
    for (int64_t d = 0; d < line; d += kBlock) _mm512_storeu_si512(out + d, _mm512_setzero_si512());
  }
}

struct Rows {
  const std::byte* data = nullptr;   // bf16
  int64_t stride = 0;                // bytes
};

// 32 rows from `row` of a segment as tiles can be loaded of: in place, or rounded into `work` [32][line], zeros after the last.
inline Rows rows_of_step(uint16_t* work, const TileSegment& s, int64_t row) {
  const int64_t line = blocks_of(s.width) * kBlock, left = s.rows - row;
  const int64_t rows = left < kBlock ? left : kBlock;
  const std::byte* in = s.pages[row / kPageKeys] + row % kPageKeys * row_bytes_of(s);
  if (s.dtype == DType::kBF16 && rows == kBlock && s.width == line) return {in, 2 * line};
  switch (s.dtype) {
    case DType::kF16: round_rows<DType::kF16>(work, line, in, s.width, rows); break;
    case DType::kQ8_0: round_rows<DType::kQ8_0>(work, line, in, s.width, rows); break;
    default: round_rows<DType::kBF16>(work, line, in, s.width, rows); break;
  }
  return {reinterpret_cast<const std::byte*>(work), 2 * line};
}
