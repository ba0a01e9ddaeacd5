#include <vector>

#include "attention/random_weights.h"

namespace quipu {

std::vector<ConformanceCase> conformance_cases_latent() {
  HyperParameters odd("test");   // no dimension is a multiple of another
  odd.set("heads", int64_t{3});
  odd.set("latent_rank", int64_t{13});
  odd.set("nope_dim", int64_t{7});
  odd.set("rope_dim", int64_t{6});
  odd.set("value_dim", int64_t{5});
  odd.set("latent_norm", std::string("rms"));
  odd.set("norm_epsilon", 1e-6);
  odd.set("rope_theta", 1e4);
  odd.set("rope_interleaved", true);
  std::vector<ConformanceCase> cases;
  cases.push_back({.name = "absorbed_odd_dims", .shape = {.hidden = 20}, .parameters = odd});

  HyperParameters expanded = odd;
  expanded.set("form", std::string("expanded"));
  cases.push_back({.name = "expanded_odd_dims", .shape = {.hidden = 20}, .parameters = expanded});

  HyperParameters all("test");   // rows of 64 + 32: q8_0 works
  all.set("heads", int64_t{2});
  all.set("query_rank", int64_t{11});
  all.set("latent_rank", int64_t{64});
  all.set("nope_dim", int64_t{16});
  all.set("rope_dim", int64_t{32});
  all.set("value_dim", int64_t{24});
  all.set("latent_norm", std::string("layer"));
  all.set("norm_epsilon", 1e-5);
  all.set("rope_theta", 1e4);
  all.set("rope_scaling", std::string("yarn"));
  all.set("rope_scaling_factor", 4.0);
  all.set("rope_original_context", 64.0);
  all.set("rope_mscale", 1.0);
  all.set("rope_mscale_all_dim", 0.7);
  cases.push_back({.name = "with_everything",
                   .shape = {.hidden = 24},
                   .parameters = all,
                   .optional_roles = {"query_down_bias", "latent_down_bias", "output_bias", "query_down_norm_bias",
                                      "latent_norm_bias", "key_up"},
                   .cache_dtypes = {DType::kF32, DType::kBF16, DType::kQ8_0}});

  HyperParameters bare = odd;
  bare.set("latent_norm", std::string("none"));
  bare.set("rope_dim", int64_t{0});
  cases.push_back({.name = "no_norm_no_rope", .shape = {.hidden = 16}, .parameters = bare, .optional_roles = {"query_bias"},
                   .max_chunk = 70});
  return cases;
}

}  // namespace quipu
