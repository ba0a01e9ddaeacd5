// What the module libquipu_mpi.so offers: plain C, so that program and module share no library.
#pragma once

#include <cstdint>

extern "C" {

// A collective operation ends with one of these.
enum QuipuMpiOutcome { kQuipuMpiDone = 0, kQuipuMpiStopped = 1, kQuipuMpiFailed = 2 };

struct QuipuMpi {
  int rank, size;
  // Every rank's `bytes` bytes to all, in the order of ranks: out holds size * bytes. should_stop(context) is asked now
  // and then while waiting.
  int (*gather)(void* out, const void* in, int64_t bytes, int (*should_stop)(void*), void* context);
  // Leaves; after a failure the other ranks are not waited for.
  void (*leave)(int failed);
};

// nullptr and a text in *message when it cannot join. One call per process.
const QuipuMpi* quipu_mpi_join(const char** message);
}
