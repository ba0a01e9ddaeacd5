// 16-lane vectors on AVX-512. Included inside the target region and namespace of one instruction set: no include guard,
// no namespace, no standard headers of its own.

constexpr int kTileRows = 12;       // most rows of activations a register tile holds
constexpr int kTilePanels = 2;      // against so many panels

using F32 = __m512;
using I32 = __m512i;
using U8 = __m512i;                // 64 codes: [16 lanes][4]

inline F32 f_zero() { return _mm512_setzero_ps(); }
inline F32 f_set1(float x) { return _mm512_set1_ps(x); }
inline F32 f_load(const float* p) { return _mm512_loadu_ps(p); }
inline void f_store(float* p, F32 x) { _mm512_storeu_ps(p, x); }
inline F32 f_add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
inline F32 f_sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
inline F32 f_mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
inline F32 f_div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
inline F32 f_fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
inline F32 f_max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
inline F32 f_min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
inline F32 f_abs(F32 a) { return _mm512_abs_ps(a); }
inline F32 f_sqrt(F32 a) { return _mm512_sqrt_ps(a); }
inline F32 f_round(F32 a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F32 f_from_i(I32 a) { return _mm512_cvtepi32_ps(a); }
inline I32 i_from_f(F32 a) { return _mm512_cvtps_epi32(a); }
inline float f_reduce_add(F32 a) { return _mm512_reduce_add_ps(a); }
inline float f_reduce_max(F32 a) { return _mm512_reduce_max_ps(a); }
// The sums of the lanes of a, b, c and d to p[0 .. 3], each in the same order.
inline void f_store_sums4(float* p, F32 a, F32 b, F32 c, F32 d) {
  const F32 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const F32 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const F32 abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
// 2^n for whole n in [-126, 127].
inline F32 f_exp2_whole(F32 n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
// Lanes low <= lane < high keep a, the others get b.
inline F32 f_select_range(int low, int high, F32 a, F32 b) {
  const __mmask16 mask = static_cast<__mmask16>((high >= 16 ? 0xffffu : (1u << high) - 1u) & ~((low >= 16 ? 0x10000u : (1u << low)) - 1u));
  return _mm512_mask_blend_ps(mask, b, a);
}
// a where x > y, else b.
inline F32 f_select_greater(F32 x, F32 y, F32 a, F32 b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_GT_OQ), b, a);
}
inline F32 f_load_part(const float* p, int lanes) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << lanes) - 1u), p);
}
inline void f_store_part(float* p, F32 x, int lanes) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << lanes) - 1u), x);
}
inline F32 f_load_f16(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
inline F32 f_load_bf16(const void* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))), 16));
}
inline F32 f_load_u8(const void* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
}
inline F32 f_load_i8(const void* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
}
// Component c (0..3) of 16 groups of four int8.
template <int c>
inline F32 f_component_i8(U8 x) {
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(x, 24 - 8 * c), 24));
}

inline I32 i_zero() { return _mm512_setzero_si512(); }
inline I32 i_set1(int32_t x) { return _mm512_set1_epi32(x); }
inline I32 i_add(I32 a, I32 b) { return _mm512_add_epi32(a, b); }
inline I32 i_load1(const int32_t* p) { return _mm512_set1_epi32(*p); }
inline void i_store_i8(int8_t* p, I32 x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x)); }
inline int32_t i_reduce_add(I32 x) { return _mm512_reduce_add_epi32(x); }

inline U8 u_load(const void* p) { return _mm512_loadu_si512(p); }
inline void u_store(void* p, U8 x) { _mm512_storeu_si512(p, x); }
// The four bytes at p in every lane.
inline U8 u_repeat4(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}
inline U8 u_low_nibbles(U8 x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
inline U8 u_high_nibbles(U8 x) { return _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15)); }
template <int j>
inline U8 u_pair(U8 x) { return _mm512_and_si512(_mm512_srli_epi16(x, 2 * j), _mm512_set1_epi8(3)); }
template <int bits>
inline U8 u_shift_up(U8 x) { return _mm512_slli_epi16(x, bits); }   // codes must leave room
inline U8 u_or(U8 a, U8 b) { return _mm512_or_si512(a, b); }
inline U8 u_flip_top(U8 x) { return _mm512_xor_si512(x, _mm512_set1_epi8(static_cast<char>(0x80))); }
// value where the bit of the word at p is set.
inline U8 u_from_bits(const void* p, int value) {
  uint64_t word;
  __builtin_memcpy(&word, p, 8);
  return _mm512_maskz_set1_epi8(word, static_cast<char>(value));
}
inline U8 u_lookup16(U8 codes, const uint8_t* table) {
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table))), codes);
}
// sum[lane] += dot of 4 unsigned codes with 4 signed ones.
inline I32 i_dot(I32 sum, U8 w, U8 x) { return _mm512_dpbusd_epi32(sum, w, x); }

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
// Into the second-level cache only: what is computed with keeps the first.
inline void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
