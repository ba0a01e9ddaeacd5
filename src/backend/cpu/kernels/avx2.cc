// Kernels for AVX2, FMA, F16C. See kernels.h.
#if defined(__x86_64__)

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <immintrin.h>

#include "backend/cpu/kernels/kernels.h"
#include "tensor/float16.h"

// Everything below has internal linkage and instantiates no template of a header above: nothing compiled for this
// instruction set can be linked into code that runs elsewhere.
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

#include "backend/cpu/kernels/panel_body.h"

#include "backend/cpu/kernels/matmul_body.h"

#include "backend/cpu/kernels/rows_body.h"

#include "backend/cpu/kernels/table_body.h"

constexpr KernelTable kTable = make_table("avx2");

}  // namespace
}  // namespace quipu::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace quipu::cpu {

const KernelTable& avx2_kernels() { return kTable; }

}  // namespace quipu::cpu

#endif  // __x86_64__
