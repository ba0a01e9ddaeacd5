#include "backend/cpu/kernels/matrix_roof_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace quipu::cpu {

double multiply_adds_portable(int64_t rounds, float* sink) {
  constexpr int kChains = 16;
  float sum[kChains];
  for (int i = 0; i < kChains; ++i) sum[i] = static_cast<float>(i);
  for (int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kChains; ++i) sum[i] = sum[i] * 0.999f + 1e-3f;
  }
  for (int i = 0; i < kChains; ++i) *sink += sum[i];
  return 2.0 * kChains * static_cast<double>(rounds);
}

#if defined(__x86_64__)

[[gnu::target("avx2,fma")]] double multiply_adds_avx2(int64_t rounds, float* sink) {
  constexpr int kChains = 12;
  __m256 sum[kChains];
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(1e-3f);
  for (int i = 0; i < kChains; ++i) sum[i] = _mm256_set1_ps(static_cast<float>(i));
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sum[i] = _mm256_fmadd_ps(sum[i], a, b);
  }
  for (int i = 1; i < kChains; ++i) sum[0] = _mm256_add_ps(sum[0], sum[i]);
  *sink += _mm256_cvtss_f32(sum[0]);
  return 16.0 * kChains * static_cast<double>(rounds);
}

[[gnu::target("avx512f,prefer-vector-width=512")]] double multiply_adds_avx512(int64_t rounds, float* sink) {
  constexpr int kChains = 16;
  __m512 sum[kChains];
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(1e-3f);
  for (int i = 0; i < kChains; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sum[i] = _mm512_fmadd_ps(sum[i], a, b);
  }
  for (int i = 1; i < kChains; ++i) sum[0] = _mm512_add_ps(sum[0], sum[i]);
  *sink += _mm512_cvtss_f32(sum[0]);
  return 32.0 * kChains * static_cast<double>(rounds);
}

// Factors are numbers, as a model's are: with zeros, which flip no bits, the same loop runs a quarter to a half faster on
// machines whose clock follows the power they draw.
[[gnu::target("avx512f")]] double multiply_adds_amx(int64_t rounds, float* sink) {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = 16;
  }
  // bfloat16 numbers between 0.5 and 2 of either sign; the last factor is the one before with its sign turned, so that sums stay
  // as they are on average.
  alignas(64) uint16_t factors[4][512];
  uint32_t state = 1;
  for (int i = 0; i < 4 * 512; ++i) {
    state = state * 1664525u + 1013904223u;
    factors[i / 512][i % 512] = static_cast<uint16_t>(0x3f00u + ((state >> 16) & 0x80ffu));
  }
  for (int i = 0; i < 512; ++i) factors[3][i] = factors[2][i] ^ 0x8000u;
  alignas(64) float out[256];
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
  __asm__ volatile(
      "tileloadd (%0,%4,1), %%tmm4\n tileloadd (%1,%4,1), %%tmm5\n tileloadd (%2,%4,1), %%tmm6\n tileloadd (%3,%4,1), %%tmm7\n"
      "tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n tilezero %%tmm3"
      : : "r"(factors[0]), "r"(factors[1]), "r"(factors[2]), "r"(factors[3]), "r"(int64_t{64}) : "memory");
  for (int64_t round = 0; round < rounds; ++round) {
    __asm__ volatile(
        "tdpbf16ps %tmm6, %tmm4, %tmm0\n tdpbf16ps %tmm7, %tmm4, %tmm1\n tdpbf16ps %tmm6, %tmm5, %tmm2\n tdpbf16ps %tmm7, %tmm5, %tmm3\n"
        "tdpbf16ps %tmm7, %tmm4, %tmm0\n tdpbf16ps %tmm6, %tmm4, %tmm1\n tdpbf16ps %tmm7, %tmm5, %tmm2\n tdpbf16ps %tmm6, %tmm5, %tmm3");
  }
  __asm__ volatile("tilestored %%tmm0, (%0,%1,1)\n tilerelease" : : "r"(out), "r"(int64_t{64}) : "memory");
  *sink += out[0];
  return 8.0 * 2.0 * 16 * 16 * 32 * static_cast<double>(rounds);
}

#endif

}  // namespace quipu::cpu
