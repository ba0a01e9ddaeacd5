// Attention kernels for AMX: those of AVX-512, and whole segments in bf16 tiles. See attention_kernels.h.
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
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-bf16,prefer-vector-width=512")
#endif

namespace quipu {
namespace {

#include "ops/kernels/simd_avx512.h"

#include "ops/kernels/math_body.h"

#include "ops/kernels/amx_tiles_body.h"

#include "ops/kernels/amx_halves_body.h"

#include "ops/kernels/amx_attention_body.h"

}  // namespace
}  // namespace quipu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace quipu {

const AttentionKernels& attention_amx() {
  static const AttentionKernels table = [] {
    AttentionKernels t = attention_avx512();
    t.round_row = round_row;
    t.pair_segment = pair_segment;
    t.attend_segment = attend_segment;
    t.attend_few = attend_few;
    t.release_tiles = release_tiles;
    return t;
  }();
  return table;
}

}  // namespace quipu

#endif  // __x86_64__
