// 16-lane vectors on AVX2, FMA and F16C: two registers each. See simd_avx512.h for the contract.

constexpr int kTileRows = 4;       // most rows of activations a register tile holds
constexpr int kTilePanels = 1;      // against so many panels

struct F32 { __m256 a, b; };
struct I32 { __m256i a, b; };
using U8 = I32;

inline F32 f_zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F32 f_set1(float x) { const __m256 v = _mm256_set1_ps(x); return {v, v}; }
inline F32 f_load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void f_store(float* p, F32 x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
inline F32 f_add(F32 x, F32 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F32 f_sub(F32 x, F32 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F32 f_mul(F32 x, F32 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F32 f_div(F32 x, F32 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F32 f_fma(F32 x, F32 y, F32 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F32 f_max(F32 x, F32 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F32 f_min(F32 x, F32 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F32 f_abs(F32 x) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(x.a, mask), _mm256_and_ps(x.b, mask)};
}
inline F32 f_round(F32 x) {
  return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline F32 f_sqrt(F32 x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
inline F32 f_from_i(I32 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline I32 i_from_f(F32 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline float f_reduce_add(F32 x) {
  const __m256 s = _mm256_add_ps(x.a, x.b);
  __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_add_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
}
inline float f_reduce_max(F32 x) {
  const __m256 s = _mm256_max_ps(x.a, x.b);
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_max_ss(t, _mm_shuffle_ps(t, t, 1)));
}
inline void f_store_sums4(float* p, F32 w, F32 x, F32 y, F32 z) {
  const __m256 wx = _mm256_hadd_ps(_mm256_add_ps(w.a, w.b), _mm256_add_ps(x.a, x.b));
  const __m256 yz = _mm256_hadd_ps(_mm256_add_ps(y.a, y.b), _mm256_add_ps(z.a, z.b));
  const __m256 sums = _mm256_hadd_ps(wx, yz);
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
}
inline __m256 exp2_whole_half(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline F32 f_exp2_whole(F32 n) { return {exp2_whole_half(n.a), exp2_whole_half(n.b)}; }
inline __m256 range_mask(int low, int high, int first_lane) {
  const __m256i lane = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first_lane));
  return _mm256_castsi256_ps(_mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(low), lane),
                                                 _mm256_cmpgt_epi32(_mm256_set1_epi32(high), lane)));
}
inline F32 f_select_range(int low, int high, F32 x, F32 y) {
  return {_mm256_blendv_ps(y.a, x.a, range_mask(low, high, 0)), _mm256_blendv_ps(y.b, x.b, range_mask(low, high, 8))};
}
inline F32 f_select_greater(F32 x, F32 y, F32 a, F32 b) {
  return {_mm256_blendv_ps(b.a, a.a, _mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ)),
          _mm256_blendv_ps(b.b, a.b, _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ))};
}
inline __m256i part_mask(int lanes) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline F32 f_load_part(const float* p, int lanes) {
  return {_mm256_maskload_ps(p, part_mask(lanes)), lanes > 8 ? _mm256_maskload_ps(p + 8, part_mask(lanes - 8)) : _mm256_setzero_ps()};
}
inline void f_store_part(float* p, F32 x, int lanes) {
  _mm256_maskstore_ps(p, part_mask(lanes), x.a);
  if (lanes > 8) _mm256_maskstore_ps(p + 8, part_mask(lanes - 8), x.b);
}
inline F32 f_load_f16(const void* p) {
  const __m128i* q = static_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
inline __m256 load_bf16_half(const __m128i* q) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), 16));
}
inline F32 f_load_bf16(const void* p) {
  const __m128i* q = static_cast<const __m128i*>(p);
  return {load_bf16_half(q), load_bf16_half(q + 1)};
}
inline F32 f_load_u8(const void* p) {
  const __m128i v = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(v, 8)))};
}
inline F32 f_load_i8(const void* p) {
  const __m128i v = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(v, 8)))};
}
template <int c>
inline F32 f_component_i8(U8 x) {
  return {_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(x.a, 24 - 8 * c), 24)),
          _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(x.b, 24 - 8 * c), 24))};
}

inline I32 i_zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline I32 i_set1(int32_t x) { const __m256i v = _mm256_set1_epi32(x); return {v, v}; }
inline I32 i_add(I32 x, I32 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline I32 i_load1(const int32_t* p) { return i_set1(*p); }
inline void i_store_i8(int8_t* p, I32 x) {
  alignas(32) int32_t lanes[16];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), x.a);
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes + 8), x.b);
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(lanes[i]);
}
inline int32_t i_reduce_add(I32 x) {
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi32(x.a, x.b));
  int32_t sum = 0;
  for (const int32_t lane : lanes) sum += lane;
  return sum;
}

inline U8 u_load(const void* p) {
  const __m256i* q = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline void u_store(void* p, U8 x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), x.a);
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, x.b);
}
inline U8 u_repeat4(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return i_set1(word);
}
inline U8 u_and(U8 x, int mask) {
  const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
  return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
inline U8 u_low_nibbles(U8 x) { return u_and(x, 15); }
inline U8 u_high_nibbles(U8 x) { return u_and({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}, 15); }
template <int j>
inline U8 u_pair(U8 x) { return u_and({_mm256_srli_epi16(x.a, 2 * j), _mm256_srli_epi16(x.b, 2 * j)}, 3); }
template <int bits>
inline U8 u_shift_up(U8 x) { return {_mm256_slli_epi16(x.a, bits), _mm256_slli_epi16(x.b, bits)}; }
inline U8 u_or(U8 x, U8 y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
inline U8 u_flip_top(U8 x) {
  const __m256i m = _mm256_set1_epi8(static_cast<char>(0x80));
  return {_mm256_xor_si256(x.a, m), _mm256_xor_si256(x.b, m)};
}
inline __m256i bytes_from_bits(uint32_t word, int value) {
  const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(word)),
                                             _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2,
                                                              2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3));
  const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ull));
  return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit), _mm256_set1_epi8(static_cast<char>(value)));
}
inline U8 u_from_bits(const void* p, int value) {
  uint32_t words[2];
  __builtin_memcpy(words, p, 8);
  return {bytes_from_bits(words[0], value), bytes_from_bits(words[1], value)};
}
inline U8 u_lookup16(U8 codes, const uint8_t* table) {
  const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(t, codes.a), _mm256_shuffle_epi8(t, codes.b)};
}
// maddubs saturates at 16 bits, so the top bit of the codes is multiplied apart: 127 * 127 * 2 < 2^15.
inline __m256i dot_half(__m256i sum, __m256i w, __m256i x) {
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(w, _mm256_set1_epi8(0x7f)), x);
  const __m256i top = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(w, 1), _mm256_set1_epi8(0x40)), x);
  const __m256i top32 = _mm256_madd_epi16(top, ones);
  return _mm256_add_epi32(_mm256_add_epi32(sum, _mm256_madd_epi16(low, ones)), _mm256_add_epi32(top32, top32));
}
inline I32 i_dot(I32 sum, U8 w, U8 x) { return {dot_half(sum.a, w.a, x.a), dot_half(sum.b, w.b, x.b)}; }

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
inline void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
