// Attention kernels for AVX-512 (F BW CD DQ VL, VNNI). See attention_kernels.h.
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
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,prefer-vector-width=512")
#endif

namespace quipu {
namespace {

#include "ops/kernels/simd_avx512.h"

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

const AttentionKernels& attention_avx512() { return kAttentionTable; }

}  // namespace quipu

#endif  // __x86_64__
