#include "attention/shared/feature_rows.h"

#include <cstring>

#include "base/cpu_features.h"

// As in small_gemm.cc: one body, compiled for each instruction set; without contraction all give the same bits.
#define QUIPU_BODY inline __attribute__((always_inline))
#if defined(__x86_64__)
#define QUIPU_FOR_AVX2 __attribute__((target("avx2")))
#define QUIPU_FOR_AVX512 __attribute__((target("avx512f,avx512dq")))
#endif

namespace quipu {
namespace {

using Lanes = float __attribute__((vector_size(64)));
using Words = int32_t __attribute__((vector_size(64)));
constexpr int64_t kLanes = 16;

QUIPU_BODY void store(float* to, const Lanes& x) { std::memcpy(to, &x, sizeof(x)); }
QUIPU_BODY Lanes load(const float* from) {
  Lanes x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

// exp(x) for x <= 0; NaN stays. 2^n times a polynomial of degree 6 in the remainder r, |r| <= ln2 / 2, whose first omitted
// Taylor term is r^7 / 5040 < 2e-7. Under -87 the result is e^-87.
QUIPU_BODY Lanes exp_lanes(Lanes x) {
  x = x < -87.0f ? Lanes{} - 87.0f : x;
  // The sum with 1.5 * 2^23 has the nearest whole number in its low bits.
  const Lanes shifted = x * 1.44269504f + 12582912.0f;
  const Lanes n = shifted - 12582912.0f;
  const Lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;   // ln2 in two parts: n * the first is exact
  Lanes p = r * (1.0f / 720.0f) + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  Words bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  const Words power = (bits - 0x4b400000 + 127) << 23;
  Lanes scale;
  std::memcpy(&scale, &power, sizeof(scale));
  return p * scale;
}

QUIPU_BODY Lanes elu1_lanes(Lanes x) { return x > 0.0f ? x + 1.0f : exp_lanes(x > 0.0f ? Lanes{} : x); }
QUIPU_BODY Lanes elu1_slope(Lanes x) { return x > 0.0f ? Lanes{} + 1.0f : exp_lanes(x > 0.0f ? Lanes{} : x); }

QUIPU_BODY void features(float* out, const float* x, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, elu1_lanes(load(x + i)));
  if (i == count) return;
  float rest[kLanes] = {};
  std::memcpy(rest, x + i, static_cast<size_t>(count - i) * sizeof(float));
  store(rest, elu1_lanes(load(rest)));
  std::memcpy(out + i, rest, static_cast<size_t>(count - i) * sizeof(float));
}

QUIPU_BODY void backward(float* dx, const float* dout, const float* x, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(dx + i, load(dx + i) + load(dout + i) * elu1_slope(load(x + i)));
  if (i == count) return;
  float rest[kLanes] = {};
  std::memcpy(rest, x + i, static_cast<size_t>(count - i) * sizeof(float));
  store(rest, elu1_slope(load(rest)));
  for (int64_t lane = 0; i + lane < count; ++lane) dx[i + lane] += dout[i + lane] * rest[lane];
}

struct Functions {
  void (*features)(float*, const float*, int64_t);
  void (*backward)(float*, const float*, const float*, int64_t);
};
void features_portable(float* out, const float* x, int64_t count) { features(out, x, count); }
void backward_portable(float* dx, const float* dout, const float* x, int64_t count) { backward(dx, dout, x, count); }
#if defined(__x86_64__)
QUIPU_FOR_AVX2 void features_avx2(float* out, const float* x, int64_t count) { features(out, x, count); }
QUIPU_FOR_AVX2 void backward_avx2(float* dx, const float* dout, const float* x, int64_t count) { backward(dx, dout, x, count); }
QUIPU_FOR_AVX512 void features_avx512(float* out, const float* x, int64_t count) { features(out, x, count); }
QUIPU_FOR_AVX512 void backward_avx512(float* dx, const float* dout, const float* x, int64_t count) { backward(dx, dout, x, count); }
#endif

Functions functions_of(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return {features_avx512, backward_avx512};
  if (isa >= Isa::kAvx2) return {features_avx2, backward_avx2};
#endif
  (void)isa;
  return {features_portable, backward_portable};
}

}  // namespace

void elu1_rows(float* out, const float* x, int64_t count) {
  static const Functions functions = functions_of(best_isa());
  functions.features(out, x, count);
}

void elu1_rows_backward(float* dx, const float* dout, const float* x, int64_t count) {
  static const Functions functions = functions_of(best_isa());
  functions.backward(dx, dout, x, count);
}

}  // namespace quipu
