// One copy of the latent kernels for each instruction set. Everything of a copy has internal linkage, so that nothing
// compiled for one set can be linked into code that runs elsewhere.
#include <math.h>

#include <cstddef>
#include <cstdint>

#include "attention/shared/latent_kernel.h"
#include "ops/kv_cache.h"
#include "tensor/float16.h"

namespace quipu {
namespace {
namespace portable {
constexpr int kLanes = 4;
#include "attention/shared/latent_kernel_body.h"
}  // namespace portable
}  // namespace
}  // namespace quipu

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace quipu {
namespace {
namespace avx2 {
constexpr int kLanes = 8;
#include "attention/shared/latent_kernel_body.h"
}  // namespace avx2
}  // namespace
}  // namespace quipu
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,prefer-vector-width=512")
#endif
namespace quipu {
namespace {
namespace avx512 {
constexpr int kLanes = 16;
#include "attention/shared/latent_kernel_body.h"
}  // namespace avx512
}  // namespace
}  // namespace quipu
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // __x86_64__

namespace quipu {

const LatentKernels& latent_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return avx512::kKernels;
  if (isa == Isa::kAvx2) return avx2::kKernels;
#endif
  (void)isa;
  return portable::kKernels;
}

}  // namespace quipu
