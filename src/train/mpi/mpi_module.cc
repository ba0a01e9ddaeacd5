// The only file that speaks MPI. Built as a module when OpenMPI is there; loaded when `mpirun` started the program.
#include "train/mpi/mpi_module.h"

#define OMPI_SKIP_MPICXX 1  // the C interface alone: its C++ bindings want a library of their own
#include <mpi.h>
#include <time.h>

namespace {

QuipuMpi table;
char error_text[MPI_MAX_ERROR_STRING + 1];

// A peer that stopped for a moment is no reason to give up; one that was killed is told to us by mpirun's signal.
constexpr double kPatienceSeconds = 0.6;

double seconds() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

int gather(void* out, const void* in, int64_t bytes, int (*should_stop)(void*), void* context) {
  MPI_Request request;
  if (MPI_Iallgather(in, static_cast<int>(bytes), MPI_BYTE, out, static_cast<int>(bytes), MPI_BYTE, MPI_COMM_WORLD,
                     &request) != MPI_SUCCESS) {
    return kQuipuMpiFailed;
  }
  double stop_seen = 0;
  for (int64_t spin = 0;; ++spin) {
    int done = 0;
    if (MPI_Test(&request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) return kQuipuMpiFailed;
    if (done != 0) return kQuipuMpiDone;
    if (spin < 2000) continue;
    const timespec pause{0, 50'000};
    nanosleep(&pause, nullptr);
    if (should_stop(context) == 0) continue;
    if (stop_seen == 0) stop_seen = seconds();
    if (seconds() - stop_seen > kPatienceSeconds) return kQuipuMpiStopped;
  }
}

void leave(int failed) {
  if (failed == 0) MPI_Finalize();
}

}  // namespace

const QuipuMpi* quipu_mpi_join(const char** message) {
  int code = MPI_Init(nullptr, nullptr);
  if (code == MPI_SUCCESS) code = MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  if (code == MPI_SUCCESS) code = MPI_Comm_rank(MPI_COMM_WORLD, &table.rank);
  if (code == MPI_SUCCESS) code = MPI_Comm_size(MPI_COMM_WORLD, &table.size);
  if (code != MPI_SUCCESS) {
    int length = 0;
    MPI_Error_string(code, error_text, &length);
    *message = error_text;
    return nullptr;
  }
  table.gather = gather;
  table.leave = leave;
  return &table;
}
