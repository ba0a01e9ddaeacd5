#include "train/ranks.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "train/mpi/mpi_module.h"

namespace quipu {
namespace {

constexpr size_t kChunkBytes = size_t{4} << 20;  // summed at once

class OneRank final : public Ranks {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  Result<void> sum(std::span<float>) override { return {}; }
  Result<void> sum(std::span<double>) override { return {}; }
  void abandon() override {}
  int64_t scratch_bytes() const override { return 0; }
};

class MpiRanks final : public Ranks {
 public:
  MpiRanks(const QuipuMpi* mpi, std::function<bool()> should_stop) : mpi_(mpi), should_stop_(std::move(should_stop)) {
    gathered_.resize(kChunkBytes * static_cast<size_t>(mpi_->size));
  }
  ~MpiRanks() override { mpi_->leave(failed_ ? 1 : 0); }
  int rank() const override { return mpi_->rank; }
  int size() const override { return mpi_->size; }
  Result<void> sum(std::span<float> values) override { return sum_of(values); }
  Result<void> sum(std::span<double> values) override { return sum_of(values); }
  void abandon() override { failed_ = true; }
  int64_t scratch_bytes() const override { return static_cast<int64_t>(gathered_.size()); }

 private:
  template <class T>
  Result<void> sum_of(std::span<T> values) {
    const size_t chunk = kChunkBytes / sizeof(T);
    for (size_t begin = 0; begin < values.size(); begin += chunk) {
      const std::span<T> part = values.subspan(begin, std::min(chunk, values.size() - begin));
      const auto asked = [](void* context) { return static_cast<MpiRanks*>(context)->should_stop_() ? 1 : 0; };
      const int outcome =
          mpi_->gather(gathered_.data(), part.data(), static_cast<int64_t>(part.size_bytes()), asked, this);
      if (outcome != kQuipuMpiDone) {
        failed_ = true;
        return failed("rank " + std::to_string(rank()) + " of " + std::to_string(size()) +
                      (outcome == kQuipuMpiStopped
                           ? ": told to stop while waiting for the other ranks: one of them is gone"
                           : ": the connection to the other ranks broke") +
                      "; the last checkpoint is whole, --resume continues from it");
      }
      const T* gathered = reinterpret_cast<const T*>(gathered_.data());
      for (size_t i = 0; i < part.size(); ++i) {
        T total = gathered[i];
        for (int other = 1; other < size(); ++other) total += gathered[static_cast<size_t>(other) * part.size() + i];
        part[i] = total;
      }
    }
    return {};
  }

  const QuipuMpi* mpi_;
  std::function<bool()> should_stop_;
  std::vector<std::byte> gathered_;
  bool failed_ = false;
};

std::string beside_program(const char* name) {
  char path[4096];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path);
  std::string folder(path, length > 0 ? static_cast<size_t>(length) : 0);
  folder.resize(folder.rfind('/') == std::string::npos ? 0 : folder.rfind('/') + 1);
  return folder + name;
}

}  // namespace

Result<std::unique_ptr<Ranks>> join_ranks(std::function<bool()> should_stop) {
  const char* size = std::getenv("OMPI_COMM_WORLD_SIZE");
  if (size == nullptr || std::atoi(size) <= 1) return std::unique_ptr<Ranks>(std::make_unique<OneRank>());
  const std::string module = beside_program("libquipu_mpi.so");
  void* library = dlopen(module.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return failed("mpirun started " + std::string(size) + " processes, but " + module + " cannot be loaded (" +
                  dlerror() + "); it is built where OpenMPI is (Debian: libopenmpi-dev)");
  }
  const auto join = reinterpret_cast<decltype(&quipu_mpi_join)>(dlsym(library, "quipu_mpi_join"));
  const char* message = "no entry quipu_mpi_join";
  const QuipuMpi* mpi = join == nullptr ? nullptr : join(&message);
  if (mpi == nullptr) return failed(module + ": " + message);
  return std::unique_ptr<Ranks>(std::make_unique<MpiRanks>(mpi, std::move(should_stop)));
}

}  // namespace quipu
