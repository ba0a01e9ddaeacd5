// Ranks: the processes of one run, each with the whole model and its share of every batch (data parallel).
//
// Sums are formed in the order of ranks, so every rank has the same bits. Under `mpirun` the processes talk through
// OpenMPI, which lives in a module of its own (libquipu_mpi.so beside the program) that only such runs load; otherwise
// there is one rank and nothing to do.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "base/result.h"

namespace quipu {

class Ranks {
 public:
  virtual ~Ranks() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // values become the sum over all ranks, added in the order 0, 1, ... Called by all ranks with equal sizes. An Error
  // (kFailed) when a rank is gone, or when should_stop() says so while others are waited for.
  virtual Result<void> sum(std::span<float> values) = 0;
  virtual Result<void> sum(std::span<double> values) = 0;
  // This rank ends with an error of its own: the others are not waited for, mpirun ends them.
  virtual void abandon() = 0;
  // Bytes of scratch that sum(float) holds.
  virtual int64_t scratch_bytes() const = 0;

  // Waits for all ranks.
  Result<void> meet() {
    double one = 1;
    return sum({&one, 1});
  }
};

// The ranks of this process: those of `mpirun` when it was started by it, else one.
// should_stop: asked while waiting for other ranks; must outlive the result.
Result<std::unique_ptr<Ranks>> join_ranks(std::function<bool()> should_stop);

}  // namespace quipu
