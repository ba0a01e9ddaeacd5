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

#include "ops/kernels/amx_target_begin.h"

namespace quipu {
namespace {

#include "ops/kernels/simd_avx512.h"

#include "ops/kernels/math_body.h"

#include "ops/kernels/amx_tiles_body.h"

#include "ops/kernels/amx_halves_body.h"

#include "ops/kernels/amx_attention_body.h"

}  // namespace
}  // namespace quipu

#include "ops/kernels/amx_target_end.h"

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
