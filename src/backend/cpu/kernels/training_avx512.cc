// Training kernels for AVX-512. See training_kernels.h.
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
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,prefer-vector-width=512")
#endif

namespace quipu::cpu {
namespace {

#include "ops/kernels/simd_avx512.h"

#include "ops/kernels/math_body.h"

#include "backend/cpu/kernels/training_gemm_body.h"

#include "backend/cpu/kernels/training_body.h"

constexpr TrainingKernels kTable = make_training_table("avx512");

}  // namespace
}  // namespace quipu::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace quipu::cpu {

const TrainingKernels& avx512_training_kernels() { return kTable; }

}  // namespace quipu::cpu

#endif  // __x86_64__
