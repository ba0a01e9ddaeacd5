// Every back end this machine can run: what end-to-end tests walk.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ops/backend.h"

namespace quipu {

struct NamedBackend {
  std::string name;
  std::function<std::unique_ptr<Backend>(int threads)> make_with;
  std::unique_ptr<Backend> make(int threads = 2) const { return make_with(threads); }
};

// The reference first, then the CPU back end at each instruction set from the lowest.
std::vector<NamedBackend> backends_under_test(Activations activations = Activations::kExact);

}  // namespace quipu
