#include "base/thread_pool.h"

#include <sched.h>

#include "base/check.h"

namespace quipu {
namespace {

// About 20 microseconds: longer than the gap between two kernels of one step, shorter than a scheduler tick.
constexpr int kSpins = 4000;

inline void pause_core() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waits until value differs from `old`, spinning first.
template <class T>
void wait_while_equal(const std::atomic<T>& value, T old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause_core();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  const int count = CPU_COUNT(&set);
  return count > 0 ? count : 1;
}

ThreadPool::ThreadPool(int threads) {
  if (threads == 0) threads = available_cores();
  CHECK(threads >= 1) << threads;
  runs_ = std::vector<Run>(static_cast<size_t>(threads));
  workers_.reserve(static_cast<size_t>(threads - 1));
  for (int worker = 1; worker < threads; ++worker) workers_.emplace_back([this, worker] { work(worker); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

bool ThreadPool::take(int64_t& task, int from, bool last) {
  std::atomic<uint64_t>& run = runs_[static_cast<size_t>(from)].left;
  uint64_t left = run.load(std::memory_order_relaxed);
  for (;;) {
    const uint64_t begin = left & 0xffffffffu, end = left >> 32;
    if (begin >= end) return false;
    const uint64_t rest = last ? begin | (end - 1) << 32 : (begin + 1) | end << 32;
    if (!run.compare_exchange_weak(left, rest, std::memory_order_relaxed)) continue;
    task = static_cast<int64_t>(last ? end - 1 : begin);
    return true;
  }
}

void ThreadPool::drain(int worker) {
  const int count = threads();
  for (int64_t task = 0; take(task, worker, false);) entry_(context_, task, worker);
  for (int other = 1; other < count; ++other) {
    for (int64_t task = 0; take(task, (worker + other) % count, true);) entry_(context_, task, worker);
  }
}

void ThreadPool::run(int64_t tasks, Entry entry, const void* context) {
  if (tasks <= 0) return;
  CHECK(tasks < int64_t{1} << 32) << tasks;
  if (workers_.empty() || tasks == 1) {
    for (int64_t index = 0; index < tasks; ++index) entry(context, index, 0);
    return;
  }
  entry_ = entry;
  context_ = context;
  const auto count = static_cast<uint64_t>(threads()), all = static_cast<uint64_t>(tasks);
  for (uint64_t i = 0; i < count; ++i) {
    runs_[i].left.store(i * all / count | ((i + 1) * all / count) << 32, std::memory_order_relaxed);
  }
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  drain(0);
  for (int busy = busy_.load(std::memory_order_acquire); busy != 0; busy = busy_.load(std::memory_order_acquire)) {
    wait_while_equal(busy_, busy);
  }
}

void ThreadPool::work(int worker) {
  uint32_t seen = 0;
  for (;;) {
    wait_while_equal(generation_, seen);
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_.load()) return;
    drain(worker);
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
  }
}

}  // namespace quipu
