#include <vector>

#include "attention/random_weights.h"

namespace quipu {

// Segment lengths that end neither at the tokens the suite changes nor at its cuts.
std::vector<ConformanceCase> conformance_cases_infini_latent() {
  const auto base = [](const char* memory, const char* rule, int64_t segment_tokens) {
    HyperParameters p("test");
    p.set("heads", int64_t{3});
    p.set("latent_rank", int64_t{12});
    p.set("nope_dim", int64_t{5});
    p.set("rope_dim", int64_t{4});
    p.set("value_dim", int64_t{7});
    p.set("latent_norm", std::string("rms"));
    p.set("norm_epsilon", 1e-6);
    p.set("rope_theta", 1e4);
    p.set("memory", std::string(memory));
    p.set("rule", std::string(rule));
    p.set("segment_tokens", segment_tokens);
    return p;
  };
  std::vector<ConformanceCase> cases;
  cases.push_back({.name = "per_head_delta", .shape = {.hidden = 14}, .parameters = base("per_head", "delta", 29)});

  HyperParameters windowed = base("latent", "linear", 37);
  windowed.set("window", std::string("previous"));
  windowed.set("gate", std::string("token"));
  windowed.set("write_gate", std::string("hard"));
  windowed.set("latent_rank", int64_t{28});  // with the rotary part a block of q8_0
  cases.push_back({.name = "latent_linear_windowed",
                   .shape = {.hidden = 16},
                   .parameters = windowed,
                   .optional_roles = {"memory_gate", "write_gate_bias", "output_bias"},
                   .cache_dtypes = {DType::kF32, DType::kF16, DType::kQ8_0}});

  HyperParameters exact = base("latent", "delta_true", 11);
  exact.set("memory_key_dim", int64_t{6});
  exact.set("feature", std::string("silu_l2"));
  exact.set("norm", std::string("rms"));
  exact.set("query_rank", int64_t{9});
  cases.push_back({.name = "latent_projected_delta_true",
                   .shape = {.hidden = 14},
                   .parameters = exact,
                   .optional_roles = {"write_strength_bias", "read_norm"}});
  return cases;
}

}  // namespace quipu
