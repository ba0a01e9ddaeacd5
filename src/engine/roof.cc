#include "engine/roof.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "backend/cpu/read_streams.h"
#include "base/clock.h"
#include "base/thread_pool.h"
#include "tensor/buffer.h"

namespace quipu {
namespace {

// Where lines can be flushed from the caches a small buffer is read from memory all the same, whatever the size of the
// last level (260 MB on some servers), and the measurement does not become the program's peak of memory.
constexpr size_t kFlushedBufferBytes = size_t{128} << 20;
constexpr size_t kLargeBufferBytes = size_t{512} << 20;

}  // namespace

MemoryRoof measure_memory_roof(int threads, double seconds) {
  MemoryRoof roof;
  ThreadPool pool(threads);
  roof.threads = pool.threads();
  // Every thread's part is a whole number of lines for each of its streams.
  const int64_t unit = roof.threads * cpu::kReadStreams * cpu::kWordsPerLine;
  const int64_t words = static_cast<int64_t>((cpu::can_flush() ? kFlushedBufferBytes : kLargeBufferBytes) / sizeof(uint64_t)) / unit * unit;
  auto buffer = Buffer::allocate(static_cast<size_t>(words) * sizeof(uint64_t));
  if (!buffer.ok()) return roof;   // no roof rather than a wrong one
  uint64_t* data = buffer->as<uint64_t>();
  const int64_t per_thread = words / roof.threads;
  pool.parallel_for(roof.threads, [&](int64_t t) { std::fill_n(data + t * per_thread, per_thread, static_cast<uint64_t>(t + 1)); });

  const cpu::SumStreams sum = cpu::best_sum_streams();
  std::atomic<uint64_t> sink{0};
  std::vector<double> rates;
  const double start = monotonic_seconds();
  while (rates.size() < 5 || (monotonic_seconds() - start < seconds && rates.size() < 1000)) {
    pool.parallel_for(roof.threads, [&](int64_t t) { cpu::flush(data + t * per_thread, per_thread); });
    const double before = monotonic_seconds();
    pool.parallel_for(roof.threads, [&](int64_t t) { sink += sum(data + t * per_thread, per_thread / cpu::kReadStreams); });
    rates.push_back(static_cast<double>(words) * sizeof(uint64_t) / (monotonic_seconds() - before) / 1e9);
  }
  std::sort(rates.begin(), rates.end());
  roof.gigabytes_per_second = rates[rates.size() / 2];
  roof.low = rates.front();
  roof.high = rates.back();
  return roof;
}

}  // namespace quipu
