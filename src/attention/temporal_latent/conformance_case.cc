#include <vector>

#include "attention/random_weights.h"

namespace quipu {

std::vector<ConformanceCase> conformance_cases_temporal_latent() {
  HyperParameters odd("test");
  odd.set("heads", int64_t{3});
  odd.set("latent_rank", int64_t{13});
  odd.set("nope_dim", int64_t{7});
  odd.set("rope_dim", int64_t{6});
  odd.set("value_dim", int64_t{5});
  odd.set("latent_norm", std::string("layer"));
  odd.set("norm_epsilon", 1e-5);
  odd.set("rope_theta", 1e4);
  odd.set("rope_interleaved", true);
  odd.set("stride", int64_t{3});
  odd.set("hyper_dim", int64_t{5});
  std::vector<ConformanceCase> cases;
  cases.push_back({.name = "stride_three_odd_dims", .shape = {.hidden = 20}, .parameters = odd});

  HyperParameters expanded = odd;
  expanded.set("form", std::string("expanded"));
  expanded.set("stride", int64_t{2});
  cases.push_back({.name = "expanded_stride_two", .shape = {.hidden = 20}, .parameters = expanded,
                   .optional_roles = {"latent_norm_bias"}});

  HyperParameters quantised("test");   // rows of 64 + 32: q8_0 works
  quantised.set("heads", int64_t{2});
  quantised.set("query_rank", int64_t{11});
  quantised.set("latent_rank", int64_t{64});
  quantised.set("nope_dim", int64_t{16});
  quantised.set("rope_dim", int64_t{32});
  quantised.set("value_dim", int64_t{24});
  quantised.set("latent_norm", std::string("rms"));
  quantised.set("norm_epsilon", 1e-6);
  quantised.set("rope_theta", 1e4);
  quantised.set("stride", int64_t{4});
  cases.push_back({.name = "stride_four_low_rank_query",
                   .shape = {.hidden = 24},
                   .parameters = quantised,
                   .optional_roles = {"query_down_bias", "latent_down_bias", "output_bias"},
                   .cache_dtypes = {DType::kF32, DType::kBF16, DType::kQ8_0}});

  HyperParameters single = odd;
  single.set("stride", int64_t{1});
  single.set("merge", std::string("unit"));
  cases.push_back({.name = "stride_one_unit", .shape = {.hidden = 16}, .parameters = single});
  return cases;
}

}  // namespace quipu
