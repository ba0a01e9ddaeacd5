#include "ops/kernels/halves.h"

#include "base/check.h"
#include "base/cpu_features.h"
#include "tensor/float16.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace quipu {
namespace {

#if defined(__x86_64__)
// count is a multiple of 8.
__attribute__((target("avx,f16c"))) void round_eights(uint16_t* out, const float* x, int64_t count) {
  for (int64_t i = 0; i < count; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
  }
}
#endif

}  // namespace

void round_to_halves(uint16_t* out, DType dtype, const float* x, int64_t count) {
  CHECK(dtype == DType::kF16 || dtype == DType::kBF16) << dtype_name(dtype);
  int64_t i = 0;
  if (dtype == DType::kBF16) {
    for (; i < count; ++i) out[i] = f32_to_bf16(x[i]);
    return;
  }
#if defined(__x86_64__)
  static const bool vectors = best_isa() >= Isa::kAvx2;
  if (vectors) {
    i = count / 8 * 8;
    round_eights(out, x, i);
  }
#endif
  for (; i < count; ++i) out[i] = f32_to_f16(x[i]);
}

}  // namespace quipu
