// Attention kernels for any machine, no intrinsics, and the choice among them. See attention_kernels.h.
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "ops/kernels/attention_kernels.h"
#include "ops/kernels/attention_tables.h"
#include "ops/kernels/inlining.h"
#include "tensor/float16.h"

namespace quipu {
namespace {

#include "ops/kernels/simd_portable.h"

#include "ops/kernels/math_body.h"

#include "ops/kernels/attention_body.h"

#include "ops/kernels/row_attention_body.h"

#include "ops/kernels/attention_table_body.h"

}  // namespace
}  // namespace quipu

namespace quipu {

const AttentionKernels& attention_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAmx) return attention_amx();
  if (isa >= Isa::kAvx512) return attention_avx512();
  if (isa == Isa::kAvx2) return attention_avx2();
#endif
  (void)isa;
  return kAttentionTable;
}

}  // namespace quipu
