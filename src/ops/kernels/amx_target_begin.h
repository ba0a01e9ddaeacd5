// From here to amx_target_end.h functions are compiled for AVX-512 with AMX. Included at file scope: no include guard. What
// stands between has internal linkage and instantiates no template of a header above: nothing compiled for this instruction set
// can be linked into code that runs elsewhere. Clang is not told of AMX: the tile instructions are assembler
// (amx_tile_registers.h).
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,avx512bf16,prfchw"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-int8,amx-bf16,prfchw,prefer-vector-width=512")
#endif
