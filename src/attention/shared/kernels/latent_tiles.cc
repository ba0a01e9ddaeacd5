// Three passes over a segment of 256 rows:
//   scores    32 rows at a time: A = 16 rows as they lie, B = the queries' halves; the sums come out turned and are turned back,
//             halves added. While the rows are in the first-level cache they are interleaved in pairs for the third pass
//   softmax   over the whole segment at once, so that sums are never rescaled; probabilities are split like queries
//   values    A = 8 queries' probabilities, B = the pairs, a stripe of 32 columns at a time
// Every cached row is read from memory once. What was read once only leaves the second-level cache early, so nothing is asked
// for more than half a segment ahead, and what is used twice is the pairs, whose memory is always the same. Asked for evenly,
// as a core keeps few lines in flight.
#include "attention/shared/latent_tiles.h"

#include "base/check.h"

#if defined(__x86_64__)

#include <type_traits>
#include <utility>
#include <immintrin.h>

#include "ops/kernels/inlining.h"
#include "tensor/float16.h"

#include "ops/kernels/amx_target_begin.h"

namespace quipu {
namespace {

#include "ops/kernels/simd_avx512.h"

#include "ops/kernels/math_body.h"

#include "attention/shared/kernels/latent_rows_body.h"

constexpr int64_t kTileHalves = 16 * 32;
constexpr int64_t kPairHalves = 2 * kTileHalves; // two tiles: 32 keys and a stripe of 32 columns
constexpr int64_t kSteps = kTileSegmentRows / kBlock;

int64_t groups_of(int64_t queries) { return (queries + kTileQueries - 1) / kTileQueries; }

// ---- tile registers: sums 0 to 3, left factors 4 and 5, right factors 6 and 7 ----

#include "ops/kernels/amx_tile_registers.h"

thread_local bool configured = false;

void configure() {
  if (configured) return;
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = 16;
    config.row_bytes[tile] = 64;
  }
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
  configured = true;
}

void release() {
  if (!configured) return;
  __asm__ volatile("tilerelease");
  configured = false;
}

// ---- small pieces -----------------------------------------------------------------------------------------------------

struct Halves {
  __m512i upper, lower;   // 32 bf16 each
};
// a: components 0 to 15, b: 16 to 31.
[[gnu::always_inline]] inline Halves split(F32 a, F32 b) {
  const __m512i upper = (__m512i)_mm512_cvtne2ps_pbh(b, a);
  const F32 upper_a = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(upper)), 16));
  const F32 upper_b = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(upper, 1)), 16));
  return {upper, (__m512i)_mm512_cvtne2ps_pbh(f_sub(b, upper_b), f_sub(a, upper_a))};
}

// Not _mm_prefetch: GCC 12 takes a function that only prefetches for one without effect and drops its calls.
[[gnu::always_inline]] inline void ask_for(const std::byte* line) { __asm__ volatile("prefetcht1 %0" : : "m"(*line)); }

// Pages to ask for, some lines at a time: the two halves of a page in step, as a core has more lines in flight when it reads
// from two places.
struct Pending {
  const std::byte* page = nullptr;
  int64_t line = 0, lines = 0;              // of this page: asked for already, and all
  const std::byte* const* next = nullptr;   // pages after this one
  int64_t pages = 0, page_lines = 0, last_lines = 0;   // the last page may have rows in a part of it
  [[gnu::always_inline]] void ask(int64_t count) {
    const int64_t half = lines / 2, end = line + count < lines ? line + count : lines;
    for (; line < end; ++line) ask_for(page + 64 * (line / 2 + line % 2 * half));
    if (line >= lines && pages > 0) turn_page();
  }
  void turn_page() {
    page = *next++;
    line = 0;
    lines = pages == 1 ? last_lines : page_lines;
    --pages;
  }
  int64_t bytes() const { return 64 * (lines - line + (pages > 0 ? (pages - 1) * page_lines + last_lines : 0)); }
  void skip(int64_t bytes) {   // asked for already
    int64_t count = bytes / 64;
    while (pages > 0 && count >= lines - line) {
      count -= lines - line;
      turn_page();
    }
    line = line + count < lines ? line + count : lines;
  }
};
Pending pending(const std::byte* const* pages, int64_t rows, int64_t row_bytes) {
  Pending p;
  p.next = pages;
  p.pages = (rows + kPageKeys - 1) / kPageKeys;
  p.page_lines = kPageKeys * row_bytes / 64;
  p.last_lines = ((rows - (p.pages - 1) * kPageKeys) * row_bytes + 127) / 128 * 2;   // two halves in step
  return p;
}
int64_t lines_per_step(int64_t bytes, int64_t steps) { return (bytes / 64 + steps) / steps; }

// ---- scores -----------------------------------------------------------------------------------------------------------

// Pairs of 32 keys, 32 columns: tile 0 gets columns 0-3, 8-11, 16-19, 24-27 of the stripe, tile 1 the others.
[[gnu::always_inline]] inline void interleave(uint16_t* pairs, const std::byte* rows, int64_t stride) {
  repeat<16>([&](auto i) {
    const __m512i a = _mm512_loadu_si512(rows + 2 * i * stride), b = _mm512_loadu_si512(rows + (2 * i + 1) * stride);
    _mm512_storeu_si512(pairs + 32 * i, _mm512_unpacklo_epi16(a, b));
    _mm512_storeu_si512(pairs + kTileHalves + 32 * i, _mm512_unpackhi_epi16(a, b));
  });
}

// Turned scores of 32 keys and G groups: turned[group][key][16]. The first `stripes` blocks of the keys' columns are written to
// `pairs` as well.
template <int G>
QUIPU_KERNEL void score_keys(float* turned, uint16_t* pairs, int64_t stripes, const Rows& keys, const uint16_t* q, int64_t blocks,
                             Pending& ahead, int64_t lines) {
  const std::byte* row = keys.data;
  const int64_t stride = keys.stride, group_halves = blocks * kTileHalves;
  tile_zero<0>(), tile_zero<1>();
  if constexpr (G == 2) tile_zero<2>(), tile_zero<3>();
  for (int64_t block = 0; block < blocks; ++block, row += 64, q += kTileHalves, pairs += kPairHalves) {
    tile_load<6>(q, 64);
    tile_load<4>(row, stride);
    tile_dot_bf16<0, 4, 6>();
    tile_load<5>(row + 16 * stride, stride);
    tile_dot_bf16<1, 5, 6>();
    if constexpr (G == 2) {
      tile_load<7>(q + group_halves, 64);
      tile_dot_bf16<2, 4, 7>();
      tile_dot_bf16<3, 5, 7>();
    }
    if (block < stripes) interleave(pairs, row, stride);
    ahead.ask(lines);
  }
  tile_store<0>(turned, 64), tile_store<1>(turned + 256, 64);
  if constexpr (G == 2) tile_store<2>(turned + 512, 64), tile_store<3>(turned + 768, 64);
}

// scores[query][kTileSegmentRows] of one group from turned[32][16].
QUIPU_KERNEL void turn_back(float* scores, const float* turned) {
  repeat<2>([&](auto half) {
    F32 rows[16];
    repeat<16>([&](auto i) { rows[i] = f_load(turned + half * 256 + i * 16); });
    turn(rows);
    repeat<8>([&](auto i) { f_store(scores + i * kTileSegmentRows + half * 16, f_add(rows[i], rows[8 + i])); });
  });
}

// ---- softmax ----------------------------------------------------------------------------------------------------------

// Probabilities of one query relative to its maximum, as halves: upper at out, lower 8 rows of kTileSegmentRows further.
QUIPU_KERNEL void softmax_of_query(uint16_t* out, float* maximum, float* total, float* scores, int64_t visible, int64_t keys,
                                   float scale) {
  const F32 hidden = f_set1(-__builtin_inff());
  F32 largest = hidden;
  for (int64_t key = 0; key < keys; key += 16) {
    const int64_t high = visible - key;
    const F32 s = f_select_range(0, high < 0 ? 0 : high > 16 ? 16 : static_cast<int>(high), f_mul(f_load(scores + key), f_set1(scale)), hidden);
    f_store(scores + key, s);
    largest = f_max(largest, s);
  }
  const float most = f_reduce_max(largest);
  uint16_t* lower = out + kTileQueries * kTileSegmentRows;
  *maximum = most;
  *total = 0.0f;
  if (!(most > -__builtin_inff())) {   // nothing visible
    for (int64_t key = 0; key < keys; key += kBlock) {
      _mm512_storeu_si512(out + key, _mm512_setzero_si512());
      _mm512_storeu_si512(lower + key, _mm512_setzero_si512());
    }
    *maximum = -__builtin_inff();
    return;
  }
  F32 sum = f_zero();
  for (int64_t key = 0; key < keys; key += kBlock) {
    const F32 a = f_exp(f_sub(f_load(scores + key), f_set1(most)));
    const F32 b = f_exp(f_sub(f_load(scores + key + 16), f_set1(most)));
    sum = f_add(sum, f_add(a, b));
    const Halves p = split(a, b);
    _mm512_storeu_si512(out + key, p.upper);
    _mm512_storeu_si512(lower + key, p.lower);
  }
  *total = f_reduce_add(sum);
}

// ---- values -----------------------------------------------------------------------------------------------------------

// Sums of G groups over a stripe, `steps` pairs of tiles that lie pair_stride halves apart.
template <int G>
QUIPU_KERNEL void sum_stripe(float* tiles, const uint16_t* pairs, int64_t pair_stride, const uint16_t* p, int64_t steps,
                             Pending& ahead, int64_t lines) {
  tile_zero<0>(), tile_zero<1>();
  if constexpr (G == 2) tile_zero<2>(), tile_zero<3>();
  for (int64_t step = 0; step < steps; ++step, pairs += pair_stride, p += kBlock) {
    tile_load<6>(pairs, 64);
    tile_load<4>(p, 2 * kTileSegmentRows);
    tile_dot_bf16<0, 4, 6>();
    tile_load<7>(pairs + kTileHalves, 64);
    tile_dot_bf16<1, 4, 7>();
    if constexpr (G == 2) {
      tile_load<5>(p + 2 * kTileQueries * kTileSegmentRows, 2 * kTileSegmentRows);
      tile_dot_bf16<2, 5, 6>();
      tile_dot_bf16<3, 5, 7>();
    }
    ahead.ask(lines);
  }
  tile_store<0>(tiles, 64), tile_store<1>(tiles + 256, 64);
  if constexpr (G == 2) tile_store<2>(tiles + 512, 64), tile_store<3>(tiles + 768, 64);
}

// out[query][columns], columns <= 32: both halves' sums, in the columns' order.
QUIPU_KERNEL void store_sums(float* out, int64_t ld, const float* tiles, int64_t queries, int64_t columns) {
  const __m512i low = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
  const __m512i high = _mm512_set_epi32(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8);
  for (int64_t i = 0; i < queries; ++i) {
    const F32 even = f_add(f_load(tiles + 16 * i), f_load(tiles + 16 * (i + 8)));
    const F32 odd = f_add(f_load(tiles + 256 + 16 * i), f_load(tiles + 256 + 16 * (i + 8)));
    const F32 a = _mm512_permutex2var_ps(even, low, odd), b = _mm512_permutex2var_ps(even, high, odd);
    float* to = out + i * ld;
    if (columns == 32) {
      f_store(to, a);
      f_store(to + 16, b);
    } else {
      f_store_part(to, a, columns < 16 ? static_cast<int>(columns) : 16);
      if (columns > 16) f_store_part(to + 16, b, static_cast<int>(columns - 16));
    }
  }
}

struct Work {
  uint16_t* rows;            // [32][line]
  uint16_t* pairs;           // [kSteps][stripes][kPairHalves]
  uint16_t* probabilities;   // [groups][16][kTileSegmentRows]
  float* scores;             // [groups][8][kTileSegmentRows]
  float* tiles;              // [4][16][16]
};

// Lays the parts out; returns the bytes they take.
int64_t lay_out(Work& w, std::byte* work, int64_t queries, int64_t width) {
  int64_t bytes = 0;
  const auto take = [&](int64_t count) {
    std::byte* part = work + bytes;
    bytes += count;
    return part;
  };
  const auto halves = [&](int64_t count) { return reinterpret_cast<uint16_t*>(take(2 * count)); };
  const auto floats = [&](int64_t count) { return reinterpret_cast<float*>(take(4 * count)); };
  w.rows = halves(kBlock * blocks_of(width) * kBlock);
  w.pairs = halves(kSteps * blocks_of(width) * kPairHalves);
  w.probabilities = halves(groups_of(queries) * 2 * kTileQueries * kTileSegmentRows);
  w.scores = floats(groups_of(queries) * kTileQueries * kTileSegmentRows);
  w.tiles = floats(4 * 256);
  return bytes;
}

void score_step(const Work& w, int64_t step, const Rows& keys, const TileQuerySet& queries, const TileSegment& s, Pending& ahead,
                int64_t lines) {
  const int64_t groups = groups_of(queries.count), blocks = blocks_of(s.width);
  int64_t stripes = blocks_of(s.rank);
  uint16_t* pairs = w.pairs + step * stripes * kPairHalves;
  for (int64_t group = 0; group < groups; group += 2, stripes = 0, lines = 0) {
    const uint16_t* q = queries.packed + group * blocks * kTileHalves;
    float* scores = w.scores + group * kTileQueries * kTileSegmentRows + step * kBlock;
    if (group + 1 < groups) {
      score_keys<2>(w.tiles, pairs, stripes, keys, q, blocks, ahead, lines);
      turn_back(scores + kTileQueries * kTileSegmentRows, w.tiles + 512);
    } else {
      score_keys<1>(w.tiles, pairs, stripes, keys, q, blocks, ahead, lines);
    }
    turn_back(scores, w.tiles);
  }
}

void sum_values(const TileSums& sums, const Work& w, int64_t count, int64_t steps, int64_t rank, Pending& ahead, int64_t lines) {
  const int64_t groups = groups_of(count), stripes = blocks_of(rank);
  for (int64_t stripe = 0; stripe < stripes; ++stripe) {
    const uint16_t* pairs = w.pairs + stripe * kPairHalves;
    for (int64_t group = 0; group < groups; group += 2) {
      const uint16_t* p = w.probabilities + group * 2 * kTileQueries * kTileSegmentRows;
      const bool two = group + 1 < groups;
      if (two) {
        sum_stripe<2>(w.tiles, pairs, stripes * kPairHalves, p, steps, ahead, group == 0 ? lines : 0);
      } else {
        sum_stripe<1>(w.tiles, pairs, stripes * kPairHalves, p, steps, ahead, group == 0 ? lines : 0);
      }
      for (int64_t g = group; g < group + (two ? 2 : 1); ++g) {
        const int64_t left = count - g * kTileQueries, columns = rank - stripe * kBlock;
        store_sums(sums.out + g * kTileQueries * rank + stripe * kBlock, rank, w.tiles + (g - group) * 512,
                   left < kTileQueries ? left : kTileQueries, columns < kBlock ? columns : kBlock);
      }
    }
  }
}

// Of a segment's bytes, what is asked for while the one before is in its last pass.
int64_t early_bytes(int64_t bytes) { return bytes / 2; }

void attend(const TileSums& sums, const TileQuerySet& queries, const TileSegment& s, std::byte* work) {
  Work w;
  lay_out(w, work, queries.count, s.width);
  const int64_t steps = (s.rows + kBlock - 1) / kBlock, groups = groups_of(queries.count);
  configure();

  Pending here = pending(s.pages, s.rows, row_bytes_of(s));
  here.skip(early_bytes(here.bytes()));
  const int64_t lines_here = lines_per_step(here.bytes(), steps * blocks_of(s.width));
  for (int64_t step = 0; step < steps; ++step) {
    score_step(w, step, rows_of_step(w.rows, s, step * kBlock), queries, s, here, lines_here);
  }

  Pending next = pending(s.next, s.next_rows, row_bytes_of(s));
  const int64_t early = early_bytes(next.bytes());
  const int64_t lines_of_query = early / 64 / (4 * groups * kTileQueries);
  for (int64_t i = 0; i < groups * kTileQueries; ++i) {
    next.ask(lines_of_query);
    uint16_t* p = w.probabilities + (i / kTileQueries * 2 * kTileQueries + i % kTileQueries) * kTileSegmentRows;
    float ignored[2];
    const bool real = i < queries.count;
    softmax_of_query(p, real ? sums.maximum + i : ignored, real ? sums.total + i : ignored + 1, w.scores + i * kTileSegmentRows,
                     real ? queries.visible[i] : 0, steps * kBlock, queries.scale);
  }

  const int64_t lines_next = lines_per_step(early - early / 4, steps * blocks_of(s.rank));
  sum_values(sums, w, queries.count, steps, s.rank, next, lines_next);
}

void pack(uint16_t* packed, const RowBlock& q) {
  for (int64_t d = 0; d < q.dim; d += kBlock, packed += kTileHalves) {
    F32 rows[16];
    for (int64_t i = 0; i < kTileQueries; ++i) {
      const float* from = q.data + i * q.stride + d;
      const int64_t left = i < q.rows ? q.dim - d : 0;
      const F32 a = left >= 16 ? f_load(from) : left > 0 ? f_load_part(from, static_cast<int>(left)) : f_zero();
      const F32 b = left >= 32 ? f_load(from + 16) : left > 16 ? f_load_part(from + 16, static_cast<int>(left - 16)) : f_zero();
      const Halves halves = split(a, b);
      rows[i] = _mm512_castsi512_ps(halves.upper);
      rows[i + kTileQueries] = _mm512_castsi512_ps(halves.lower);
    }
    turn(rows);
    for (int64_t i = 0; i < 16; ++i) _mm512_storeu_ps(packed + 32 * i, rows[i]);
  }
}

}  // namespace
}  // namespace quipu

#include "ops/kernels/amx_target_end.h"

namespace quipu {

bool multiplies_latents_by_tiles(Isa isa, DType dtype) { return isa == Isa::kAmx && dtype != DType::kF32; }
int64_t tile_query_halves(int64_t width) { return blocks_of(width) * kTileHalves; }
void pack_tile_queries(uint16_t* packed, const RowBlock& q) { pack(packed, q); }
int64_t tile_work_bytes(int64_t most_queries, int64_t width) {
  Work w;
  return lay_out(w, nullptr, most_queries, width);
}
void attend_tiles(const TileSums& sums, const TileQuerySet& queries, const TileSegment& segment, std::byte* work) {
  CHECK(queries.count > 0 && segment.rows > 0 && segment.rows <= kTileSegmentRows) << queries.count << " " << segment.rows;
  attend(sums, queries, segment, work);
}
void release_latent_tiles() { release(); }

}  // namespace quipu

#else  // no AMX: never asked for

namespace quipu {

bool multiplies_latents_by_tiles(Isa, DType) { return false; }
int64_t tile_query_halves(int64_t) { return 0; }
void pack_tile_queries(uint16_t*, const RowBlock&) {}
int64_t tile_work_bytes(int64_t, int64_t) { return 0; }
void attend_tiles(const TileSums&, const TileQuerySet&, const TileSegment&, std::byte*) { CHECK(false) << "no tiles on this machine"; }
void release_latent_tiles() {}

}  // namespace quipu

#endif  // __x86_64__
