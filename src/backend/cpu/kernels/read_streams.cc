#include "backend/cpu/read_streams.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#define QUIPU_X86 1
#endif

namespace quipu::cpu {
namespace {

uint64_t sum_streams_portable(const uint64_t* data, int64_t words) {
  uint64_t sums[kWordsPerLine] = {};
  for (int64_t i = 0; i < words; i += kWordsPerLine) {
    for (int64_t stream = 0; stream < kReadStreams; ++stream) {
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
    for (int64_t stream = 0; stream < kReadStreams; ++stream) {
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
  __m512i sums[kReadStreams];
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < words; i += kWordsPerLine) {
    for (int64_t stream = 0; stream < kReadStreams; ++stream) {
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

}  // namespace

bool can_flush() {
#ifdef QUIPU_X86
  return true;
#else
  return false;
#endif
}

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

SumStreams best_sum_streams() {
#ifdef QUIPU_X86
  if (__builtin_cpu_supports("avx512f")) return sum_streams_avx512;
  if (__builtin_cpu_supports("avx2")) return sum_streams_avx2;
#endif
  return sum_streams_portable;
}

}  // namespace quipu::cpu
