// quipu version: what was built and what it will run on.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/cpu_features.h"
#include "base/thread_pool.h"
#include "report.h"
#include "verb.h"

namespace quipu::cli {

Action declare_version(CLI::App& app) {
  auto json = std::make_shared<bool>(false);
  app.add_flag("--json", *json, "one JSON object on standard output");
  return [json]() -> Result<void> {
    ASSIGN_OR_RETURN(const Isa isa, chosen_isa());
    const std::string isa_text(isa_name(isa));
    if (*json) {
      return print_json({{"version", QUIPU_VERSION},
                         {"compiler", __VERSION__},
                         {"instruction_set", isa_text},
                         {"processor", cpu_model_name()},
                         {"cores", available_cores()}});
    }
    return print_text(std::string("quipu ") + QUIPU_VERSION + "\ncompiler         GCC or compatible " + __VERSION__ +
                      "\ninstruction set  " + isa_text + " (QUIPU_ISA forces another)\nprocessor        " +
                      cpu_model_name() + ", " + std::to_string(available_cores()) + " core(s) for this process\n");
  };
}

}  // namespace quipu::cli
