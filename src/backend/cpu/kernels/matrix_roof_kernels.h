// Loops of independent multiply-adds. Each returns the operations it did; `sink` keeps the compiler honest.
#pragma once

#include <cstdint>

namespace quipu::cpu {

double multiply_adds_portable(int64_t rounds, float* sink);
#if defined(__x86_64__)
double multiply_adds_avx2(int64_t rounds, float* sink);
double multiply_adds_avx512(int64_t rounds, float* sink);
double multiply_adds_amx(int64_t rounds, float* sink);   // bfloat16 tiles
#endif

}  // namespace quipu::cpu
