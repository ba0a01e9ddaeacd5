#include "end_to_end/backends_under_test.h"

#include "backend/cpu/cpu_backend.h"
#include "backend/reference/reference_backend.h"

namespace quipu {

std::vector<NamedBackend> backends_under_test(Activations activations) {
  std::vector<NamedBackend> all;
  all.push_back({"reference", [](int threads) { return make_reference_backend(threads); }});
  for (const Isa isa : available_isas()) {
    all.push_back({"cpu " + std::string(isa_name(isa)), [isa, activations](int threads) {
                     CpuBackendOptions options;
                     options.threads = threads;
                     options.isa = isa;
                     options.activations = activations;
                     auto backend = make_cpu_backend(options);
                     CHECK(backend.ok());
                     return std::move(*backend);
                   }});
  }
  return all;
}

}  // namespace quipu
