#include "end_to_end/backends_under_test.h"

#ifndef QUIPU_NO_CPU
#include "backend/cpu/cpu_backend.h"
#endif
#include "backend/reference/reference_backend.h"

namespace quipu {

std::vector<NamedBackend> backends_under_test() {
  std::vector<NamedBackend> all;
  all.push_back({"reference", [](int threads) { return make_reference_backend(threads); }});
#ifndef QUIPU_NO_CPU
  for (const Isa isa : available_isas()) {
    all.push_back({"cpu " + std::string(isa_name(isa)), [isa](int threads) {
                     CpuBackendOptions options;
                     options.threads = threads;
                     options.isa = isa;
                     options.activations = Activations::kExact;
                     auto backend = make_cpu_backend(options);
                     CHECK(backend.ok());
                     return std::move(*backend);
                   }});
  }
#endif
  return all;
}

}  // namespace quipu
