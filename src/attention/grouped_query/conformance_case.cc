#include <vector>

#include "attention/random_weights.h"

namespace quipu {

std::vector<ConformanceCase> conformance_cases_grouped_query() {
  const auto base = [](int64_t heads, int64_t kv_heads, int64_t head_dim) {
    HyperParameters p("test");
    p.set("heads", heads);
    p.set("kv_heads", kv_heads);
    p.set("head_dim", head_dim);
    p.set("rope_theta", 1e4);
    return p;
  };
  std::vector<ConformanceCase> cases;
  cases.push_back({.name = "grouped", .shape = {.hidden = 20}, .parameters = base(6, 2, 8)});

  HyperParameters all = base(2, 2, 32);
  all.set("value_dim", int64_t{64});
  all.set("rope_dim", int64_t{12});
  all.set("rope_interleaved", true);
  all.set("qk_norm", std::string("rms"));
  all.set("norm_epsilon", 1e-6);
  all.set("softcap", 5.0);
  all.set("scale", 0.3);
  cases.push_back({.name = "multi_head_with_everything",
                   .shape = {.hidden = 24},
                   .parameters = all,
                   .optional_roles = {"query_bias", "key_bias", "value_bias", "output_bias"},
                   .cache_dtypes = {DType::kF32, DType::kBF16, DType::kQ8_0}});

  HyperParameters windowed = base(3, 1, 10);
  windowed.set("window", int64_t{37});
  cases.push_back({.name = "multi_query_windowed", .shape = {.hidden = 16}, .parameters = windowed, .max_chunk = 30});
  return cases;
}

}  // namespace quipu
