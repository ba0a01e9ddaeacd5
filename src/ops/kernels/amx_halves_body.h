// Rows of fp32 rounded to bf16 as tiles take them. Included inside the target region and namespace of one instruction set with
// bf16, after math_body.h: no include guard, no namespace.

// Components 32 b to 32 b + 31 of a row go to out + b * ld, zeros beyond cols.
inline void round_row(uint16_t* out, int64_t ld, const float* x, int64_t cols) {
  for (int64_t k = 0; k < (cols + 31) / 32 * 32; k += 16) {
    const int64_t left = cols - k;
    const F32 values = left >= 16 ? f_load(x + k) : left > 0 ? f_load_part(x + k, static_cast<int>(left)) : f_zero();
    const __m256i halves = (__m256i)_mm512_cvtneps_pbh(values);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + k / 32 * ld + k % 32), halves);
  }
}

// Word i: (even[i], odd[i]), of 32 halves each; words 0 to 15 in `low`, 16 to 31 in `high`.
inline void pair_halves(U8& low, U8& high, U8 even, U8 odd) {
  const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35,
                                         3, 34, 2, 33, 1, 32, 0);
  low = _mm512_permutex2var_epi16(even, order, odd);
  high = _mm512_permutex2var_epi16(even, _mm512_add_epi16(order, _mm512_set1_epi16(16)), odd);
}

// Word i: (bf16 of even[i], bf16 of odd[i]).
inline U8 pair_lanes(F32 even, F32 odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19,
                                         3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}
