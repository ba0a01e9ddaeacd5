// Training kernels for AVX2 and FMA. See training_kernels.h.
#if defined(__x86_64__)

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <immintrin.h>

#include "backend/cpu/kernels/training_kernels.h"
#include "tensor/dtype.h"
#include "tensor/float16.h"

// Internal linkage and no templates of the headers above: see avx512.cc.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace quipu::cpu {
namespace {

#include "ops/kernels/simd_avx2.h"

#include "ops/kernels/math_body.h"

#include "backend/cpu/kernels/training_gemm_body.h"

#include "backend/cpu/kernels/training_body.h"

constexpr TrainingKernels kTable = make_training_table("avx2");

}  // namespace
}  // namespace quipu::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace quipu::cpu {

const TrainingKernels& avx2_training_kernels() { return kTable; }

}  // namespace quipu::cpu

#endif  // __x86_64__
