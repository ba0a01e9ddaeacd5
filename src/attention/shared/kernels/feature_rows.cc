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

// 1 / (1 + exp(-x)): the exponent is never above zero.
QUIPU_BODY Lanes sigmoid_lanes(Lanes x) {
  const Lanes e = exp_lanes(x > 0.0f ? -x : x);
  return (x > 0.0f ? Lanes{} + 1.0f : e) / (1.0f + e);
}

// What is done to every number: the maps, and what they are derived to.
struct Elu1 {
  QUIPU_BODY Lanes operator()(Lanes x) const { return x > 0.0f ? x + 1.0f : exp_lanes(x > 0.0f ? Lanes{} : x); }
};
struct Elu1Slope {
  QUIPU_BODY Lanes operator()(Lanes x) const { return x > 0.0f ? Lanes{} + 1.0f : exp_lanes(x > 0.0f ? Lanes{} : x); }
};
struct Silu {
  QUIPU_BODY Lanes operator()(Lanes x) const { return x * sigmoid_lanes(x); }
};
struct SiluSlope {
  QUIPU_BODY Lanes operator()(Lanes x) const {
    const Lanes gate = sigmoid_lanes(x);
    return gate * (1.0f + x * (1.0f - gate));
  }
};

template <class Map>
QUIPU_BODY void map_rows(float* out, const float* x, int64_t count, const Map& map) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, map(load(x + i)));
  if (i == count) return;
  float rest[kLanes] = {};
  std::memcpy(rest, x + i, static_cast<size_t>(count - i) * sizeof(float));
  store(rest, map(load(rest)));
  std::memcpy(out + i, rest, static_cast<size_t>(count - i) * sizeof(float));
}

template <class Slope>
QUIPU_BODY void add_slopes(float* dx, const float* dout, const float* x, int64_t count, const Slope& slope) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(dx + i, load(dx + i) + load(dout + i) * slope(load(x + i)));
  if (i == count) return;
  float rest[kLanes] = {};
  std::memcpy(rest, x + i, static_cast<size_t>(count - i) * sizeof(float));
  store(rest, slope(load(rest)));
  for (int64_t lane = 0; i + lane < count; ++lane) dx[i + lane] += dout[i + lane] * rest[lane];
}

QUIPU_BODY float dot_body(const float* a, const float* b, int64_t count) {
  Lanes sums = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sums += load(a + i) * load(b + i);
  float parts[kLanes];
  store(parts, sums);
  for (int64_t lane = 0; i + lane < count; ++lane) parts[lane] += a[i + lane] * b[i + lane];
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) parts[lane] += parts[lane + half];
  }
  return parts[0];
}

struct Functions {
  void (*elu1)(float*, const float*, int64_t);
  void (*elu1_backward)(float*, const float*, const float*, int64_t);
  void (*silu)(float*, const float*, int64_t);
  void (*silu_backward)(float*, const float*, const float*, int64_t);
  float (*dot)(const float*, const float*, int64_t);
};

// The five functions for one instruction set.
#define QUIPU_FUNCTIONS(NAME, TARGET)                                                                                           \
  struct NAME {                                                                                                                \
    TARGET static void elu1(float* out, const float* x, int64_t count) { map_rows(out, x, count, Elu1{}); }                    \
    TARGET static void elu1_backward(float* dx, const float* dout, const float* x, int64_t count) {                            \
      add_slopes(dx, dout, x, count, Elu1Slope{});                                                                             \
    }                                                                                                                          \
    TARGET static void silu(float* out, const float* x, int64_t count) { map_rows(out, x, count, Silu{}); }                    \
    TARGET static void silu_backward(float* dx, const float* dout, const float* x, int64_t count) {                            \
      add_slopes(dx, dout, x, count, SiluSlope{});                                                                             \
    }                                                                                                                          \
    TARGET static float dot(const float* a, const float* b, int64_t count) { return dot_body(a, b, count); }                   \
    static constexpr Functions functions() { return {elu1, elu1_backward, silu, silu_backward, dot}; }                         \
  };
QUIPU_FUNCTIONS(Portable, )
#if defined(__x86_64__)
QUIPU_FUNCTIONS(Avx2, QUIPU_FOR_AVX2)
QUIPU_FUNCTIONS(Avx512, QUIPU_FOR_AVX512)
#endif

const Functions& functions() {
  static const Functions chosen = [] {
#if defined(__x86_64__)
    if (best_isa() >= Isa::kAvx512) return Avx512::functions();
    if (best_isa() >= Isa::kAvx2) return Avx2::functions();
#endif
    return Portable::functions();
  }();
  return chosen;
}

}  // namespace

void elu1_rows(float* out, const float* x, int64_t count) { functions().elu1(out, x, count); }
void elu1_rows_backward(float* dx, const float* dout, const float* x, int64_t count) { functions().elu1_backward(dx, dout, x, count); }
void silu_rows(float* out, const float* x, int64_t count) { functions().silu(out, x, count); }
void silu_rows_backward(float* dx, const float* dout, const float* x, int64_t count) { functions().silu_backward(dx, dout, x, count); }
float dot_rows(const float* a, const float* b, int64_t count) { return functions().dot(a, b, count); }

}  // namespace quipu
