// Kernels for AVX-512 (F BW CD DQ VL, VNNI, BF16). See kernels.h.
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
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,avx512bf16,prefer-vector-width=512")
#endif

namespace quipu::cpu {
namespace {

#include "ops/kernels/simd_avx512.h"

#include "ops/kernels/math_body.h"

#include "backend/cpu/kernels/panel_body.h"

#include "backend/cpu/kernels/matmul_body.h"

#include "backend/cpu/kernels/rows_body.h"

#include "backend/cpu/kernels/table_body.h"

constexpr KernelTable kTable = make_table("avx512");

}  // namespace
}  // namespace quipu::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace quipu::cpu {

const KernelTable& avx512_kernels() { return kTable; }

}  // namespace quipu::cpu

#endif  // __x86_64__
