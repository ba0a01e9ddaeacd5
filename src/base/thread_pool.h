// ThreadPool: fork and join over a fixed set of threads. The caller is worker 0.
//
// Workers spin for a short, bounded time and then sleep on a futex, so a pinned core cannot deadlock it and an idle
// engine uses no CPU. Work is split by shape into tasks; which thread runs a task never changes a result.
//
// Every thread begins with its own share of the tasks, a run of them, and takes from the ends of others' runs when it is done.
// So the same rows (or columns) of one operation after the other stay with the thread that has them in its cache: what
// another core wrote last costs more to read than memory does.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace quipu {

class ThreadPool {
 public:
  // threads >= 1, counting the caller. 0 means one per available core.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(i) for i in [0, tasks), tasks < 2^32, each once, on any thread; returns when all are done. A thread mostly takes
  // task i + 1 after task i; long ones come first. Must not be called from inside a task. Allocates nothing.
  template <class Task>
  void parallel_for(int64_t tasks, const Task& task) {
    run(tasks, [](const void* context, int64_t index, int) { (*static_cast<const Task*>(context))(index); }, &task);
  }
  // The same with the worker's number (0 .. threads-1), for per-thread scratch.
  template <class Task>
  void parallel_for_worker(int64_t tasks, const Task& task) {
    run(tasks, [](const void* context, int64_t index, int worker) { (*static_cast<const Task*>(context))(index, worker); },
        &task);
  }

 private:
  using Entry = void (*)(const void* context, int64_t index, int worker);
  void run(int64_t tasks, Entry entry, const void* context);
  void work(int worker);
  void drain(int worker);
  bool take(int64_t& task, int from, bool last);

  // Tasks of a thread's run that nobody has taken: the first in the lower 32 bits, the one after the last in the upper.
  struct alignas(64) Run {
    std::atomic<uint64_t> left{0};
  };
  std::vector<std::thread> workers_;
  std::vector<Run> runs_;   // one a thread
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> busy_{0};
  Entry entry_ = nullptr;
  const void* context_ = nullptr;
  std::atomic<bool> stopping_{false};
};

// Number of cores this process may run on (at least 1).
int available_cores();

}  // namespace quipu
