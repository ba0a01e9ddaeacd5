#include "engine/roof.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "base/clock.h"
#include "base/thread_pool.h"
#include "tensor/buffer.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#define QUIPU_X86 1
#endif

namespace quipu {
namespace {

// Where lines can be flushed from the caches a small buffer is read from memory all the same, whatever the size of the
// last level (260 MB on some servers), and the measurement does not become the program's peak of memory.
#ifdef QUIPU_X86
constexpr size_t kBufferBytes = size_t{128} << 20;
#else
constexpr size_t kBufferBytes = size_t{512} << 20;
#endif
constexpr int64_t kStreams = 8;        // a core keeps more lines in flight when it reads from several places at once
constexpr int64_t kWordsPerLine = 8;   // 64 bytes

// Sums `words` 64-bit words of each of kStreams streams that lie `words` apart. The sum keeps the loads alive.
using SumStreams = uint64_t (*)(const uint64_t* data, int64_t words);

uint64_t sum_streams_portable(const uint64_t* data, int64_t words) {
  uint64_t sums[kWordsPerLine] = {};
  for (int64_t i = 0; i < words; i += kWordsPerLine) {
    for (int64_t stream = 0; stream < kStreams; ++stream) {
      const uint64_t* line = data + stream * words + i;
      for (int64_t w = 0; w < kWordsPerLine; ++w) sums[w] += line[w];
    }
  }
  uint64_t total = 0;
  for (const uint64_t sum : sums) total += sum;
  return total;
}

#ifdef QUIPU_X86
__attribute__((target("avx2"))) uint64_t sum_streams_avx2(const uint64_t* data, int64_t words) {
  __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();
  for (int64_t i = 0; i < words; i += kWordsPerLine) {
    for (int64_t stream = 0; stream < kStreams; ++stream) {
      const auto* line = reinterpret_cast<const __m256i*>(data + stream * words + i);
      low = _mm256_add_epi64(low, _mm256_load_si256(line));
      high = _mm256_add_epi64(high, _mm256_load_si256(line + 1));
    }
  }
  alignas(32) uint64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi64(low, high));
  return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

__attribute__((target("avx512f"))) uint64_t sum_streams_avx512(const uint64_t* data, int64_t words) {
  __m512i sums[kStreams];
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < words; i += kWordsPerLine) {
    for (int64_t stream = 0; stream < kStreams; ++stream) {
      sums[stream] = _mm512_add_epi64(sums[stream], _mm512_load_si512(data + stream * words + i));
    }
  }
  uint64_t total = 0;
  for (const auto& sum : sums) {
    alignas(64) uint64_t lanes[8];
    _mm512_store_si512(lanes, sum);
    for (const uint64_t lane : lanes) total += lane;
  }
  return total;
}
#endif

#ifdef QUIPU_X86
// clflush waits for each line, clflushopt does not: 40 times faster, and a person waits for this after every answer.
__attribute__((target("clflushopt"))) void flush_unordered(const uint64_t* data, int64_t words) {
  for (int64_t i = 0; i < words; i += kWordsPerLine) _mm_clflushopt(const_cast<uint64_t*>(data + i));
}

bool has_clflushopt() {
  constexpr unsigned kFeatures = 7, kClflushoptBit = 23;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(kFeatures, 0, &a, &b, &c, &d) != 0 && ((b >> kClflushoptBit) & 1) != 0;
}
#endif

// Takes `words` words out of every cache.
void flush(const uint64_t* data, int64_t words) {
#ifdef QUIPU_X86
  if (static const bool unordered = has_clflushopt(); unordered) {
    flush_unordered(data, words);
  } else {
    for (int64_t i = 0; i < words; i += kWordsPerLine) _mm_clflush(data + i);
  }
  _mm_mfence();
#else
  (void)data;
  (void)words;
#endif
}

SumStreams best_sum() {
#ifdef QUIPU_X86
  if (__builtin_cpu_supports("avx512f")) return sum_streams_avx512;
  if (__builtin_cpu_supports("avx2")) return sum_streams_avx2;
#endif
  return sum_streams_portable;
}

}  // namespace

MemoryRoof measure_memory_roof(int threads, double seconds) {
  MemoryRoof roof;
  ThreadPool pool(threads);
  roof.threads = pool.threads();
  // Every thread's part is a whole number of lines for each of its streams.
  const int64_t unit = roof.threads * kStreams * kWordsPerLine;
  const int64_t words = static_cast<int64_t>(kBufferBytes / sizeof(uint64_t)) / unit * unit;
  auto buffer = Buffer::allocate(static_cast<size_t>(words) * sizeof(uint64_t));
  if (!buffer.ok()) return roof;   // no roof rather than a wrong one
  uint64_t* data = buffer->as<uint64_t>();
  const int64_t per_thread = words / roof.threads;
  pool.parallel_for(roof.threads, [&](int64_t t) { std::fill_n(data + t * per_thread, per_thread, static_cast<uint64_t>(t + 1)); });

  const SumStreams sum = best_sum();
  std::atomic<uint64_t> sink{0};
  std::vector<double> rates;
  const double start = monotonic_seconds();
  while (rates.size() < 5 || (monotonic_seconds() - start < seconds && rates.size() < 1000)) {
    pool.parallel_for(roof.threads, [&](int64_t t) { flush(data + t * per_thread, per_thread); });
    const double before = monotonic_seconds();
    pool.parallel_for(roof.threads, [&](int64_t t) { sink += sum(data + t * per_thread, per_thread / kStreams); });
    rates.push_back(static_cast<double>(words) * sizeof(uint64_t) / (monotonic_seconds() - before) / 1e9);
  }
  std::sort(rates.begin(), rates.end());
  roof.gigabytes_per_second = rates[rates.size() / 2];
  roof.low = rates.front();
  roof.high = rates.back();
  return roof;
}

}  // namespace quipu
