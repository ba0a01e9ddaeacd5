#include <vector>

#include "attention/random_weights.h"

namespace quipu {

// Segment lengths that end neither at the tokens the suite changes nor at its cuts, so that a token's neighbour always
// sees it whatever the gates do.
std::vector<ConformanceCase> conformance_cases_infini() {
  const auto base = [](int64_t heads, int64_t kv_heads, int64_t head_dim, const char* rule, int64_t segment_tokens) {
    HyperParameters p("test");
    p.set("heads", heads);
    p.set("kv_heads", kv_heads);
    p.set("head_dim", head_dim);
    p.set("rope_theta", 1e4);
    p.set("rule", std::string(rule));
    p.set("segment_tokens", segment_tokens);
    return p;
  };
  std::vector<ConformanceCase> cases;

  HyperParameters linear = base(6, 2, 7, "linear", 29);
  linear.set("value_dim", int64_t{37});  // a whole tile of the memory and an odd one
  linear.set("rope_dim", int64_t{6});
  linear.set("feature", std::string("dpfp"));
  linear.set("dpfp_nu", int64_t{2});
  linear.set("write_gate", std::string("hard"));
  linear.set("accumulation", std::string("compensated"));
  cases.push_back({.name = "linear_dpfp_hard_compensated",
                   .shape = {.hidden = 20},
                   .parameters = linear,
                   .optional_roles = {"query_bias", "key_bias", "value_bias", "output_bias", "write_gate_bias"}});

  cases.push_back({.name = "delta", .shape = {.hidden = 18}, .parameters = base(4, 2, 8, "delta", 11)});

  HyperParameters grouped = base(2, 1, 64, "linear", 11);   // writes in groups of four
  grouped.set("write_gate", std::string("hard"));
  cases.push_back({.name = "linear_writes_in_groups", .shape = {.hidden = 18}, .parameters = grouped});
  cases.push_back({.name = "delta_writes_in_groups", .shape = {.hidden = 18}, .parameters = base(2, 1, 64, "delta", 37)});

  HyperParameters windowed = base(2, 1, 32, "delta", 37);
  windowed.set("window", std::string("previous"));
  windowed.set("gate", std::string("token"));
  windowed.set("norm", std::string("rms"));
  cases.push_back({.name = "delta_windowed_token_gate",
                   .shape = {.hidden = 16},
                   .parameters = windowed,
                   .optional_roles = {"memory_gate", "read_norm"},
                   .cache_dtypes = {DType::kF32, DType::kF16, DType::kQ8_0},
                   .max_chunk = 80});

  HyperParameters whole_pages = base(2, 2, 5, "linear", 64);
  whole_pages.set("rope_dim", int64_t{0});
  whole_pages.set("window", std::string("previous"));
  cases.push_back({.name = "linear_windowed_whole_pages", .shape = {.hidden = 14}, .parameters = whole_pages});

  HyperParameters exact = base(3, 3, 9, "delta_true", 37);
  exact.set("rope_dim", int64_t{4});
  exact.set("feature", std::string("silu_l2"));
  exact.set("norm", std::string("rms"));
  exact.set("write_gate", std::string("soft"));
  exact.set("first_segment", std::string("local"));
  cases.push_back({.name = "delta_true",
                   .shape = {.hidden = 14},
                   .parameters = exact,
                   .optional_roles = {"write_strength_bias", "write_gate_bias"}});
  return cases;
}

}  // namespace quipu
