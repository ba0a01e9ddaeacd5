#include "fma_peak.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace quipu {
namespace {

constexpr int kChains = 12;   // enough to hide the latency of two units

// Factor below 1, so that the numbers stay normal.
constexpr float kFactor = 0.999f, kTerm = 1e-3f;

double portable(int64_t rounds) {
  float sums[kChains][4] = {};
  for (int64_t i = 0; i < rounds; ++i) {
    for (auto& chain : sums) {
      for (float& lane : chain) lane = lane * kFactor + kTerm;
    }
    __asm__ volatile("" ::: "memory");
  }
  return double{sums[0][0]} + double{sums[kChains - 1][3]};
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) double avx2(int64_t rounds) {
  __m256 sums[kChains];
#pragma GCC unroll 12
  for (auto& sum : sums) {
    sum = _mm256_set1_ps(1.0f);
    __asm__ volatile("" : "+x"(sum));   // chains known to be equal would be computed once
  }
  const __m256 factor = _mm256_set1_ps(kFactor), term = _mm256_set1_ps(kTerm);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (auto& sum : sums) sum = _mm256_fmadd_ps(sum, factor, term);
  }
  __m256 total = sums[0];
#pragma GCC unroll 12
  for (const auto& sum : sums) total = _mm256_add_ps(total, sum);
  return double{_mm256_cvtss_f32(total)};
}

__attribute__((target("avx512f"))) double avx512(int64_t rounds) {
  __m512 sums[kChains];
#pragma GCC unroll 12
  for (auto& sum : sums) {
    sum = _mm512_set1_ps(1.0f);
    __asm__ volatile("" : "+v"(sum));   // chains known to be equal would be computed once
  }
  const __m512 factor = _mm512_set1_ps(kFactor), term = _mm512_set1_ps(kTerm);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (auto& sum : sums) sum = _mm512_fmadd_ps(sum, factor, term);
  }
  __m512 total = sums[0];
#pragma GCC unroll 12
  for (const auto& sum : sums) total = _mm512_add_ps(total, sum);
  return double{_mm512_cvtss_f32(total)};
}
#endif

}  // namespace

FmaPeak fma_peak(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return {avx512, kChains * 16 * 2};
  if (isa == Isa::kAvx2) return {avx2, kChains * 8 * 2};
#endif
  (void)isa;
  return {portable, kChains * 4 * 2};
}

}  // namespace quipu
