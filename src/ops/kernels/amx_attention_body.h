// Attention of a segment of cached keys in bf16 tiles. Included after amx_tiles_body.h and amx_halves_body.h.
//
// Scores of 32 query rows and 256 keys, one softmax over them, then probabilities times values: both products in tiles,
// keys and values turned into pairs of bf16 once for all query rows of a task. What is rounded to bf16: queries,
// probabilities, and keys and values of f16 and q8_0 caches. A softmax over the whole segment needs one maximum and one sum
// across lanes a row, where one over each page spent half of its time in those.
//
// A row's result does not depend on the rows and keys beside it: a tile product adds the keys of a row in their order, and
// a hidden key adds an exact zero.

// Bytes of a row of a page.
template <DType D>
constexpr int64_t row_bytes_of(int64_t dim) { return D == DType::kQ8_0 ? dim + dim / 16 : 2 * dim; }

// Asks for pages that will be read, one after the other, a line of each half of a page at a time. (The halves one after the other: a
// tenth slower, a core has more lines in flight when it reads from two places.)
class AskAhead {
 public:
  // count pages of one head, behind those already given; three times at most.
  void then(const std::byte* const* pages, int64_t count, int64_t bytes) {
    if (count > 0) lists_[made_++] = {pages, pages + count, bytes / 2};
  }
  // Eighths of two lines: what is whole is asked for. After the last page begins it anew, which costs little.
  void owe(int64_t eighths) {
    owed_ += eighths;
    for (; owed_ >= 8; owed_ -= 8) {
      if (at_ >= half_) advance();
      prefetch_far(page_ + at_);
      prefetch_far(page_ + half_ + at_);
      at_ += 64;
    }
  }

 private:
  struct List {
    const std::byte *const *next, *const *end;
    int64_t half;
  };
  void advance() {
    at_ = 0;
    if (list_ == made_) return;
    page_ = *lists_[list_].next++;
    half_ = lists_[list_].half;
    if (lists_[list_].next == lists_[list_].end) ++list_;
  }

  const std::byte* page_ = nullptr;
  int64_t half_ = 0, at_ = 0, owed_ = 0;
  List lists_[3];
  int made_ = 0, list_ = 0;
};

// Bytes of a page of one head.
template <DType D>
constexpr int64_t page_bytes_of(int64_t dim) { return row_bytes_of<D>(dim) * 64; }

// One page of keys: components 2 i and 2 i + 1 of 16 keys in word row i of a tile, 32 components a tile. The page is read in
// the order it lies in memory; on the way as many bytes are asked for as `share` eighths of it.
template <DType D>
QUIPU_KERNEL void pair_key_page(std::byte* out, const std::byte* page, int64_t dim, AskAhead& ask, int64_t share) {
  const int64_t tile_bytes = paired_blocks(dim) * kPairedBlockBytes;   // of 16 keys
  if constexpr (D == DType::kQ8_0) {
    const int64_t owed = share * page_bytes_of<D>(dim) / 128 / (dim / 4);
    for (int64_t d = 0; d < dim; d += 4, out += 128) {
      ask.owe(owed);
      const std::byte* scales = page + dim * 64 + d / 32 * 128;
      repeat<4>([&](auto t) {
        const F32 scale = f_load_f16(scales + 32 * t);
        const U8 codes = u_load(page + d * 64 + 64 * t);
        const auto scaled = [&](auto c) { return f_mul(f_component_i8<c>(codes), scale); };
        using std::integral_constant;
        u_store(out + t * tile_bytes, pair_lanes(scaled(integral_constant<int, 0>()), scaled(integral_constant<int, 1>())));
        u_store(out + t * tile_bytes + 64, pair_lanes(scaled(integral_constant<int, 2>()), scaled(integral_constant<int, 3>())));
      });
    }
  } else {
    for (int64_t d = 0; d < dim; d += 2, out += 64) {
      ask.owe(2 * share);
      if (D == DType::kBF16 && d + 1 < dim) {   // already what tiles take
        repeat<2>([&](auto half) {
          U8 low, high;
          pair_halves(low, high, u_load(page + d * 128 + 64 * half), u_load(page + (d + 1) * 128 + 64 * half));
          u_store(out + 2 * half * tile_bytes, low);
          u_store(out + (2 * half + 1) * tile_bytes, high);
        });
        continue;
      }
      repeat<4>([&](auto t) {
        const F32 even = f_load_as<D>(page + (d * 64 + 16 * t) * 2);
        const F32 odd = d + 1 < dim ? f_load_as<D>(page + ((d + 1) * 64 + 16 * t) * 2) : f_zero();
        u_store(out + t * tile_bytes, pair_lanes(even, odd));
      });
    }
    for (int64_t d = (dim + 1) / 2 * 2; d % 32 != 0; d += 2, out += 64) {
      repeat<4>([&](auto t) { u_store(out + t * tile_bytes, i_zero()); });
    }
  }
}

// 16 values of one row, zeros beyond the row's end.
template <DType D>
inline F32 load_values(const std::byte* page, int64_t dim, int64_t row, int64_t d) {
  if constexpr (D == DType::kQ8_0) {
    int16_t scale;
    __builtin_memcpy(&scale, page + dim * 64 + (row * (dim / 32) + d / 32) * 2, 2);
    return f_mul(f_load_i8(page + row * dim + d), _mm512_cvtph_ps(_mm256_set1_epi16(scale)));
  } else {
    const std::byte* at = page + (row * dim + d) * 2;
    return dim - d >= 16 ? f_load_as<D>(at) : f_load_first<D>(at, static_cast<int>(dim - d));
  }
}

// The first `rows` values of one page, zeros up to a multiple of 32: rows 2 i and 2 i + 1 in word row i of a tile, a tile for
// every 16 components, tile_bytes apart.
template <DType D>
QUIPU_KERNEL void pair_value_page(std::byte* out, int64_t tile_bytes, const std::byte* page, int64_t dim, int64_t rows,
                                  AskAhead& ask, int64_t share) {
  const int64_t owed = share * page_bytes_of<D>(dim) / 128 / 32;
  for (int64_t row = 0; row < rows; row += 2, out += 64) {
    ask.owe(owed);
    if (D == DType::kBF16 && dim % 32 == 0 && row + 1 < rows) {
      for (int64_t d = 0; d < dim; d += 32) {
        U8 low, high;
        pair_halves(low, high, u_load(page + (row * dim + d) * 2), u_load(page + ((row + 1) * dim + d) * 2));
        u_store(out + d / 16 * tile_bytes, low);
        u_store(out + (d / 16 + 1) * tile_bytes, high);
      }
      continue;
    }
    for (int64_t d = 0; d < dim; d += 16) {
      const F32 even = load_values<D>(page, dim, row, d);
      const F32 odd = row + 1 < rows ? load_values<D>(page, dim, row + 1, d) : f_zero();
      u_store(out + d / 16 * tile_bytes, pair_lanes(even, odd));
    }
  }
  for (int64_t row = (rows + 1) / 2 * 2; row % 32 != 0; row += 2, out += 64) {
    for (int64_t d = 0; d < dim; d += 16) u_store(out + d / 16 * tile_bytes, i_zero());
  }
}

template <DType D>
void pair_segment_of(const PairedSegment& out, const KeySegment& in) {
  const int64_t pages = (in.keys + 63) / 64;
  for (int64_t page = 0; page < pages; ++page) {
    const std::byte* next = page + 1 < pages ? in.key_pages[page + 1] : in.ahead;
    const int64_t rows = in.keys - 64 * page;
    AskAhead values, keys;
    values.then(in.value_pages + page, 1, page_bytes_of<D>(in.value_dim));
    keys.then(&next, 1, page_bytes_of<D>(in.key_dim));
    pair_key_page<D>(out.keys_at(4 * page), in.key_pages[page], in.key_dim, values, 8);
    pair_value_page<D>(out.values + 2 * page * kPairedBlockBytes, kSegmentBlocks * kPairedBlockBytes, in.value_pages[page], in.value_dim,
                       rows < 64 ? rows : 64, keys, 8);
  }
}

void pair_segment(const PairedSegment& out, const KeySegment& in) {
  switch (in.dtype) {
    case DType::kQ8_0: return pair_segment_of<DType::kQ8_0>(out, in);
    case DType::kF16: return pair_segment_of<DType::kF16>(out, in);
    default: return pair_segment_of<DType::kBF16>(out, in);
  }
}

// ---- products -----------------------------------------------------------------------------------------------------

// The square += a b over `blocks` blocks of 32: a [blocks][rows][32], b tiles side by side, the second panel_bytes on.
template <int H, int P>
[[gnu::always_inline]] inline void multiply_pairs(const std::byte* a, int64_t a_block, const std::byte* b, int64_t panel_bytes,
                                                  int64_t blocks) {
  for (int64_t block = 0; block < blocks; ++block, a += a_block, b += kPairedBlockBytes) {
    tile_load<6>(b, 64);
    tile_load<4>(a, 64);
    tile_dot_bf16<0, 4, 6>();
    if constexpr (P == 2) {
      tile_load<7>(b + panel_bytes, 64);
      tile_dot_bf16<1, 4, 7>();
    }
    if constexpr (H == 2) {
      tile_load<5>(a + 16 * 64, 64);
      tile_dot_bf16<2, 5, 6>();
      if constexpr (P == 2) tile_dot_bf16<3, 5, 7>();
    }
  }
}

// 2^x for x <= 0; relative error under 5e-6: a polynomial of degree 4 on |r| <= 1/2, far below the bf16 rounding that follows.
inline F32 exp2_of(F32 x) {
  const F32 n = f_round(x);
  const F32 r = f_sub(x, n);
  F32 p = f_set1(0.009618129107628477f);
  p = f_fma(p, r, f_set1(0.05550410866482158f));
  p = f_fma(p, r, f_set1(0.2402265069591007f));
  p = f_fma(p, r, f_set1(0.6931471805599453f));
  p = f_fma(p, r, f_set1(1.0f));
  return _mm512_scalef_ps(p, n);
}

struct RowRange {
  int64_t first, last;   // visible keys
};

// Lanes of 16 keys from `key` that the range holds.
inline __mmask16 visible_lanes(const RowRange& range, int64_t key) {
  const int64_t low = range.first - key, high = range.last - key;
  const uint32_t below = high >= 16 ? 0xffffu : high <= 0 ? 0u : (1u << high) - 1u;
  const uint32_t skipped = low >= 16 ? 0xffffu : low <= 0 ? 0u : (1u << low) - 1u;
  return static_cast<__mmask16>(below & ~skipped);
}

// Probabilities of one row relative to its maximum, as bf16: those of 32 keys side by side, block_bytes to the next 32.
template <bool kPartly>
[[gnu::always_inline]] inline void softmax_segment_row(std::byte* p, int64_t block_bytes, float* maximum, float* total,
                                                       const float* scores, int64_t blocks, const RowRange& range, float scale) {
  const F32 hidden = f_set1(-__builtin_inff());
  F32 largest[2] = {hidden, hidden};
  for (int64_t block = 0; block < blocks; ++block) {
    repeat<2>([&](auto v) {
      F32 s = f_load(scores + 32 * block + 16 * v);
      if constexpr (kPartly) s = _mm512_mask_blend_ps(visible_lanes(range, 32 * block + 16 * v), hidden, s);
      largest[v] = f_max(s, largest[v]);
    });
  }
  const float top = f_reduce_max(f_max(largest[0], largest[1])) * scale;
  *maximum = top;
  *total = 0.0f;
  if (!(top > -__builtin_inff())) {   // nothing visible (or only NaN, which the values spread)
    *maximum = -__builtin_inff();
    return;
  }
  constexpr float kLog2E = 1.44269504f;
  const F32 factor = f_set1(scale * kLog2E), shift = f_set1(-top * kLog2E);
  F32 sum[2] = {f_zero(), f_zero()};
  for (int64_t block = 0; block < blocks; ++block) {
    F32 e[2];
    repeat<2>([&](auto v) {
      e[v] = exp2_of(f_fma(f_load(scores + 32 * block + 16 * v), factor, shift));
      if constexpr (kPartly) e[v] = _mm512_maskz_mov_ps(visible_lanes(range, 32 * block + 16 * v), e[v]);
      sum[v] = f_add(sum[v], e[v]);
    });
    u_store(p + block * block_bytes, (__m512i)_mm512_cvtne2ps_pbh(e[1], e[0]));
  }
  *total = f_reduce_add(f_add(sum[0], sum[1]));
}

// Scores of q.rows rows, kScoreStride apart, into probabilities: rows of 32 keys side by side, block after block.
template <class EachRow>
[[gnu::always_inline]] inline void softmax_segment(std::byte* p, const SegmentSums& out, float* scores, const SegmentQueries& q, int64_t blocks,
                                                   const EachRow& each_row) {
  const int64_t row_block = q.rows * 64;
  const bool shaped = q.softcap > 0.0f || q.scale < 0.0f;
  for (int64_t r = 0; r < q.rows; ++r) {
    each_row();
    float* row = scores + r * kScoreStride;
    if (shaped) {
      for (int64_t k = 0; k < 32 * blocks; k += 16) {
        F32 s = f_mul(f_load(row + k), f_set1(q.scale));
        if (q.softcap > 0.0f) s = f_mul(f_set1(q.softcap), f_tanh(f_div(s, f_set1(q.softcap))));
        f_store(row + k, s);
      }
    }
    const float scale = shaped ? 1.0f : q.scale;
    const RowRange range{q.first[r], q.last[r]};
    if (range.first <= 0 && range.last >= 32 * blocks) {
      softmax_segment_row<false>(p + r * 64, row_block, out.maximum + r, out.total + r, row, blocks, range, scale);
    } else {
      softmax_segment_row<true>(p + r * 64, row_block, out.maximum + r, out.total + r, row, blocks, range, scale);
    }
    if (!(out.maximum[r] > -__builtin_inff())) {
      for (int64_t block = 0; block < blocks; ++block) u_store(p + r * 64 + block * row_block, i_zero());
    }
  }
}

template <int H>
QUIPU_KERNEL void attend_segment_of(const SegmentSums& out, const SegmentQueries& q, const PairedSegment& keys, std::byte* scratch) {
  const int64_t row_block = q.rows * 64;
  const int64_t blocks = (keys.keys + 31) / 32;
  const int64_t depth = paired_blocks(keys.key_dim);
  float* scores = reinterpret_cast<float*>(scratch);
  std::byte* p = scratch + kSegmentRows * kScoreStride * 4;
  const std::byte* queries = reinterpret_cast<const std::byte*>(q.halves);
  configure_square(static_cast<int>(q.rows), 64);
  for (int64_t block = 0; block < blocks; ++block) {
    zero_square<H, 2>();
    multiply_pairs<H, 2>(queries, row_block, keys.keys_at(2 * block), depth * kPairedBlockBytes, depth);
    store_square<H, 2>(scores + 32 * block, kScoreStride * 4);
  }
  softmax_segment(p, out, scores, q, blocks, [] {});
  const int64_t tiles = (keys.value_dim + 15) / 16;
  for (int64_t tile = 0; tile < tiles; tile += 2) {
    float* sums = out.out + 16 * tile;
    const std::byte* values = keys.values + tile * kSegmentBlocks * kPairedBlockBytes;
    zero_square<H, 2>();
    if (tile + 1 < tiles) {
      multiply_pairs<H, 2>(p, row_block, values, kSegmentBlocks * kPairedBlockBytes, blocks);
      store_square<H, 2>(sums, out.stride * 4);
    } else {
      multiply_pairs<H, 1>(p, row_block, values, 0, blocks);
      store_square<H, 1>(sums, out.stride * 4);
    }
  }
}

void attend_segment(const SegmentSums& out, const SegmentQueries& q, const PairedSegment& keys, std::byte* scratch) {
  return q.rows > 16 ? attend_segment_of<2>(out, q, keys, scratch) : attend_segment_of<1>(out, q, keys, scratch);
}

// ---- few rows -----------------------------------------------------------------------------------------------------

// The same numbers for at most 16 rows, whose time is the reading of the cache: a page at a time is turned into pairs, which
// stay in the first-level cache. Turning a whole segment first, its 64 KiB wrote through to the second level and left the
// line-fill buffers to the stores: 7 GB/s a core instead of 12.
template <DType D>
QUIPU_KERNEL void attend_few_of(const SegmentSums& out, const SegmentQueries& q, const KeySegment& in, std::byte* scratch) {
  const int64_t row_block = q.rows * 64;
  const int64_t pages = (in.keys + 63) / 64;
  const int64_t blocks = (in.keys + 31) / 32;
  const int64_t depth = paired_blocks(in.key_dim);
  const int64_t tiles = (in.value_dim + 15) / 16;
  float* scores = reinterpret_cast<float*>(scratch);
  std::byte* p = scratch + kSegmentRows * kScoreStride * 4;
  std::byte* pairs = scratch + kSegmentScratchBytes;
  const std::byte* queries = reinterpret_cast<const std::byte*>(q.halves);
  configure_square(static_cast<int>(q.rows), 64);
  // Memory never rests: while a page is turned five eighths of a page are asked for, a quarter while it is multiplied, and
  // during the softmax a page, which makes up for the rest.
  const int64_t key_bytes = page_bytes_of<D>(in.key_dim), value_bytes = page_bytes_of<D>(in.value_dim);
  AskAhead ask;
  ask.then(in.key_pages + 1, pages - 1, key_bytes);
  ask.then(in.value_pages, pages, value_bytes);
  ask.then(&in.ahead, 1, key_bytes);
  for (int64_t page = 0; page < pages; ++page) {
    pair_key_page<D>(pairs, in.key_pages[page], in.key_dim, ask, 5);
    for (int64_t block = 2 * page; block < 2 * page + 2 && block < blocks; ++block) {
      ask.owe(key_bytes / 128);
      zero_square<1, 2>();
      multiply_pairs<1, 2>(queries, row_block, pairs + block % 2 * 2 * depth * kPairedBlockBytes, depth * kPairedBlockBytes, depth);
      store_square<1, 2>(scores + 32 * block, kScoreStride * 4);
    }
  }
  softmax_segment(p, out, scores, q, blocks, [&] { ask.owe(value_bytes / 16 / q.rows); });
  for (int64_t page = 0; page < pages; ++page) {
    const int64_t rows = in.keys - 64 * page;
    pair_value_page<D>(pairs, 2 * kPairedBlockBytes, in.value_pages[page], in.value_dim, rows < 64 ? rows : 64, ask, 5);
    const int64_t here = blocks - 2 * page < 2 ? 1 : 2;
    for (int64_t tile = 0; tile < tiles; tile += 2) {
      float* sums = out.out + 16 * tile;
      const bool both = tile + 1 < tiles;
      ask.owe(value_bytes / 32 / tiles);
      if (page == 0) {
        zero_square<1, 2>();
      } else {
        tile_load<0>(sums, out.stride * 4);
        if (both) tile_load<1>(sums + 16, out.stride * 4);
      }
      const std::byte* values = pairs + tile * 2 * kPairedBlockBytes;
      if (both) {
        multiply_pairs<1, 2>(p + 2 * page * row_block, row_block, values, 2 * kPairedBlockBytes, here);
        store_square<1, 2>(sums, out.stride * 4);
      } else {
        multiply_pairs<1, 1>(p + 2 * page * row_block, row_block, values, 0, here);
        store_square<1, 1>(sums, out.stride * 4);
      }
    }
  }
}

void attend_few(const SegmentSums& out, const SegmentQueries& q, const KeySegment& in, std::byte* scratch) {
  switch (in.dtype) {
    case DType::kQ8_0: return attend_few_of<DType::kQ8_0>(out, q, in, scratch);
    case DType::kF16: return attend_few_of<DType::kF16>(out, q, in, scratch);
    default: return attend_few_of<DType::kBF16>(out, q, in, scratch);
  }
}
