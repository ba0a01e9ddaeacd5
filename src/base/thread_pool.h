// ThreadPool: fork and join over a fixed set of threads. The caller is worker 0.
//
// Workers spin for a short, bounded time and then sleep on a futex, so a pinned core cannot deadlock it and an idle
// engine uses no CPU. Work is split by shape into tasks; which thread runs a task never changes a result.
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

  // Calls task(i) for i in [0, tasks), each once, on any thread; returns when all are done. Tasks are handed out one at
  // a time in order, so put the long ones first. Must not be called from inside a task. Allocates nothing.
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

  std::vector<std::thread> workers_;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> busy_{0};
  Entry entry_ = nullptr;
  const void* context_ = nullptr;
  int64_t tasks_ = 0;
  std::atomic<bool> stopping_{false};
};

// Number of cores this process may run on (at least 1).
int available_cores();

}  // namespace quipu
