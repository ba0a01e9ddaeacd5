// Attention kernels for AVX2, FMA, F16C. See attention_kernels.h.
#if defined(__x86_64__)

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <immintrin.h>

#include "ops/kernels/attention_kernels.h"
#include "ops/kernels/attention_tables.h"
#include "ops/kernels/inlining.h"
#include "tensor/float16.h"

// Everything below has internal linkage and instantiates no template of a header above: nothing compiled for this
// instruction set can be linked into code that runs elsewhere.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace quipu {
namespace {

#include "ops/kernels/simd_avx2.h"

#include "ops/kernels/math_body.h"

#include "ops/kernels/attention_body.h"

#include "ops/kernels/row_attention_body.h"

#include "ops/kernels/attention_table_body.h"

}  // namespace
}  // namespace quipu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace quipu {

const AttentionKernels& attention_avx2() { return kAttentionTable; }

}  // namespace quipu

#endif  // __x86_64__
