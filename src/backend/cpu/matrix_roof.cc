#include "backend/cpu/matrix_roof.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "backend/cpu/kernels/matrix_roof_kernels.h"
#include "base/clock.h"
#include "base/thread_pool.h"

namespace quipu::cpu {
namespace {

using Loop = double (*)(int64_t rounds, float* sink);

Loop loop_of(Isa isa, bool bfloat16) {
#if defined(__x86_64__)
  if (isa == Isa::kAmx && bfloat16) return multiply_adds_amx;
  if (isa >= Isa::kAvx512) return multiply_adds_avx512;
  if (isa == Isa::kAvx2) return multiply_adds_avx2;
#endif
  (void)isa, (void)bfloat16;
  return multiply_adds_portable;
}

}  // namespace

double matrix_roof(Isa isa, bool bfloat16, int threads) {
  const Loop loop = loop_of(isa, bfloat16);
  ThreadPool pool(threads);
  std::atomic<int> kept{0};
  const auto rate_of = [&](int64_t rounds) {
    const double start = monotonic_seconds();
    std::vector<double> done(static_cast<size_t>(threads));
    pool.parallel_for(threads, [&](int64_t thread) {
      float sink = 0.0f;
      done[static_cast<size_t>(thread)] = loop(rounds, &sink);
      if (sink == 0.5f) ++kept;
    });
    double total = 0;
    for (const double operations : done) total += operations;
    return total / (monotonic_seconds() - start);
  };
  int64_t rounds = 1 << 16;
  double first = rate_of(rounds);
  const double per_round = first > 0 ? loop(1, std::vector<float>(1).data()) * threads : 1.0;
  rounds = std::max<int64_t>(1, static_cast<int64_t>(0.03 * first / per_round));   // 30 milliseconds a run
  std::vector<double> rates;
  for (int i = 0; i < 7; ++i) rates.push_back(rate_of(rounds));
  std::sort(rates.begin(), rates.end());
  return rates[rates.size() / 2];
}

}  // namespace quipu::cpu
