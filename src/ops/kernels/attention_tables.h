// The tables behind attention_kernels(); only machines that have the instructions may call what is in them.
#pragma once

#include "ops/kernels/attention_kernels.h"

namespace quipu {

#if defined(__x86_64__)
const AttentionKernels& attention_avx2();
const AttentionKernels& attention_avx512();
const AttentionKernels& attention_amx();
#endif

}  // namespace quipu
