// The room against its equations in math.md, written here in double over the whole context at once: no cache, no pages.
#include "attention/grouped_query/grouped_query.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "attention/random_weights.h"
#include "backend/reference/reference_backend.h"

namespace quipu {
namespace {

using testing::HasSubstr;
using Matrix = std::vector<std::vector<double>>;

struct Config {
  std::string name;
  int64_t hidden, heads, kv_heads, head_dim, value_dim;
  int64_t rope_dim;
  bool interleaved = false;
  double theta = 1e4;
  double scale = 0;      // 0: absent
  int64_t window = 0;
  double softcap = 0;
  bool norm = false;
  bool bias = false;
  std::string scaling = "none";
};

HyperParameters parameters_of(const Config& s) {
  HyperParameters p("test");
  p.set("heads", s.heads);
  p.set("kv_heads", s.kv_heads);
  p.set("head_dim", s.head_dim);
  if (s.value_dim != s.head_dim) p.set("value_dim", s.value_dim);
  if (s.rope_dim != s.head_dim) p.set("rope_dim", s.rope_dim);
  p.set("rope_theta", s.theta);
  p.set("rope_interleaved", s.interleaved);
  if (s.scale != 0) p.set("scale", s.scale);
  if (s.window != 0) p.set("window", s.window);
  if (s.softcap != 0) p.set("softcap", s.softcap);
  if (s.norm) {
    p.set("qk_norm", std::string("rms"));
    p.set("norm_epsilon", 1e-3);
  }
  if (s.scaling == "linear") {
    p.set("rope_scaling", s.scaling);
    p.set("rope_scaling_factor", 4.0);
  }
  return p;
}

std::vector<std::string> roles_of(const Config& s) {
  if (!s.bias) return {};
  return {"query_bias", "key_bias", "value_bias", "output_bias"};
}

// y = x W^T + b with W of the role.
Matrix project(const RandomWeights& weights, const char* role, const Matrix& x, int64_t rows, bool bias) {
  const size_t cols = x[0].size();
  const std::vector<float> w = weights.matrix_values(role, rows, static_cast<int64_t>(cols));
  const std::vector<float> b = weights.vector_values(std::string(role) + "_bias", rows);
  Matrix y(x.size(), std::vector<double>(static_cast<size_t>(rows)));
  for (size_t t = 0; t < x.size(); ++t) {
    for (size_t r = 0; r < y[t].size(); ++r) {
      double sum = bias ? double{b[r]} : 0.0;
      for (size_t c = 0; c < cols; ++c) sum += double{w[r * cols + c]} * x[t][c];
      y[t][r] = sum;
    }
  }
  return y;
}

void norm_and_rotate(Matrix& heads, const Config& s, const std::vector<float>& norm) {
  const size_t d = static_cast<size_t>(s.head_dim), half = static_cast<size_t>(s.rope_dim / 2);
  for (size_t t = 0; t < heads.size(); ++t) {
    for (size_t begin = 0; begin < heads[t].size(); begin += d) {
      double* head = heads[t].data() + begin;
      if (s.norm) {
        double squares = 0;
        for (size_t c = 0; c < d; ++c) squares += head[c] * head[c];
        for (size_t c = 0; c < d; ++c) head[c] *= double{norm[c]} / std::sqrt(squares / static_cast<double>(d) + 1e-3);
      }
      for (size_t j = 0; j < half; ++j) {
        double angle = static_cast<double>(t) * std::pow(s.theta, -2.0 * static_cast<double>(j) / static_cast<double>(s.rope_dim));
        if (s.scaling == "linear") angle /= 4;
        double& a = head[s.interleaved ? 2 * j : j];
        double& b = head[s.interleaved ? 2 * j + 1 : j + half];
        const double rotated = a * std::cos(angle) - b * std::sin(angle);
        b = a * std::sin(angle) + b * std::cos(angle);
        a = rotated;
      }
    }
  }
}

Matrix expected_output(const Config& s, const RandomWeights& weights, const Matrix& x) {
  Matrix q = project(weights, "query", x, s.heads * s.head_dim, s.bias);
  Matrix k = project(weights, "key", x, s.kv_heads * s.head_dim, s.bias);
  const Matrix v = project(weights, "value", x, s.kv_heads * s.value_dim, s.bias);
  norm_and_rotate(q, s, weights.vector_values("query_norm", s.head_dim));
  norm_and_rotate(k, s, weights.vector_values("key_norm", s.head_dim));
  const size_t d = static_cast<size_t>(s.head_dim), dv = static_cast<size_t>(s.value_dim);
  const double scale = s.scale != 0 ? s.scale : 1 / std::sqrt(static_cast<double>(s.head_dim));
  Matrix attended(x.size(), std::vector<double>(static_cast<size_t>(s.heads) * dv));
  for (size_t t = 0; t < x.size(); ++t) {
    for (size_t i = 0; i < static_cast<size_t>(s.heads); ++i) {
      const size_t m = i * static_cast<size_t>(s.kv_heads) / static_cast<size_t>(s.heads);
      std::vector<double> p(t + 1, 0.0);
      double total = 0;
      for (size_t u = 0; u <= t; ++u) {
        if (s.window > 0 && t - u >= static_cast<size_t>(s.window)) continue;
        double score = 0;
        for (size_t c = 0; c < d; ++c) score += q[t][i * d + c] * k[u][m * d + c];
        score *= scale;
        if (s.softcap > 0) score = s.softcap * std::tanh(score / s.softcap);
        p[u] = std::exp(score);   // scores here are far below 700
        total += p[u];
      }
      for (size_t u = 0; u <= t; ++u) {
        for (size_t c = 0; c < dv; ++c) attended[t][i * dv + c] += p[u] / total * v[u][m * dv + c];
      }
    }
  }
  return project(weights, "output", attended, s.hidden, s.bias);
}

class GroupedQueryEquations : public testing::TestWithParam<Config> {};

TEST_P(GroupedQueryEquations, TheRoomComputesThem) {
  const Config& s = GetParam();
  constexpr int64_t kTokens = 150, kChunk = 23;
  auto backend = make_reference_backend(1);
  RandomWeights weights(*backend, roles_of(s));
  auto room = GroupedQuery::create({.hidden = s.hidden}, parameters_of(s), weights);
  ASSERT_TRUE(room.ok()) << room.error().message;

  RandomStream random(4, 4);
  std::vector<float> x(static_cast<size_t>(kTokens * s.hidden)), out(x.size());
  for (float& value : x) value = static_cast<float>(random.normal());
  Matrix x_rows;
  for (int64_t t = 0; t < kTokens; ++t) x_rows.emplace_back(x.begin() + t * s.hidden, x.begin() + (t + 1) * s.hidden);

  PagePool pool;
  const StateOptions options{.cache_dtype = DType::kF32, .max_chunk = kChunk};
  LayerState state = *LayerState::create((*room)->state_layout(options), kTokens, pool);
  Arena arena;
  for (int64_t begin = 0; begin < kTokens; begin += kChunk) {
    const int64_t rows = std::min(kChunk, kTokens - begin);
    ASSERT_TRUE(state.prepare_append(rows).ok());
    std::vector<int64_t> positions;
    for (int64_t i = 0; i < rows; ++i) positions.push_back(begin + i);
    const SequenceSlice slice{&state, 0, rows};
    ASSERT_TRUE(arena.reserve(static_cast<size_t>((*room)->scratch_bytes(rows))).ok());
    (*room)->forward(*backend, {out.data() + begin * s.hidden, rows, s.hidden}, {x.data() + begin * s.hidden, rows, s.hidden},
                     {{&slice, 1}, positions}, arena);
  }

  const Matrix expected = expected_output(s, weights, x_rows);
  // Intermediate rows (q, k, v, heads) are rounded to float once each: relative 2^-24 of numbers below 50 whose
  // influence on the result passes through sums of at most 96 terms of gain 2. Scores change by 1e-5 at most.
  double largest = 0;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t c = 0; c < s.hidden; ++c) {
      const double wanted = expected[static_cast<size_t>(t)][static_cast<size_t>(c)];
      const double got = double{out[static_cast<size_t>(t * s.hidden + c)]};
      largest = std::max(largest, std::fabs(wanted));
      ASSERT_NEAR(got, wanted, 1e-4) << "token " << t << " column " << c;
    }
  }
  EXPECT_GT(largest, 1.0) << "the test says nothing about outputs near zero";
}

INSTANTIATE_TEST_SUITE_P(
    All, GroupedQueryEquations,
    testing::Values(Config{"multi_head", 12, 3, 3, 6, 6, 6}, Config{"grouped_like_smollm", 20, 6, 2, 8, 8, 8},
                    Config{"multi_query_interleaved", 16, 4, 1, 8, 8, 8, true},
                    Config{"partial_rope_and_wide_values", 16, 4, 2, 8, 12, 4, false, 100.0},
                    Config{.name = "window", .hidden = 10, .heads = 2, .kv_heads = 1, .head_dim = 8, .value_dim = 8,
                          .rope_dim = 8, .window = 17},
                    Config{.name = "qwen2_biases", .hidden = 10, .heads = 4, .kv_heads = 2, .head_dim = 8, .value_dim = 8,
                          .rope_dim = 8, .bias = true},
                    Config{.name = "gemma3_norms_scale_window_linear", .hidden = 10, .heads = 4, .kv_heads = 2,
                          .head_dim = 8, .value_dim = 8, .rope_dim = 8, .scale = 0.2, .window = 64, .norm = true,
                          .scaling = "linear"},
                    Config{.name = "softcap", .hidden = 10, .heads = 2, .kv_heads = 2, .head_dim = 8, .value_dim = 8,
                          .rope_dim = 8, .softcap = 3.0}),
    [](const auto& test) { return test.param.name; });

Config small() { return {"small", 10, 4, 2, 8, 8, 8}; }

std::string refusal(const HyperParameters& p) {
  auto backend = make_reference_backend(1);
  RandomWeights weights(*backend, {});
  auto room = GroupedQuery::create({.hidden = 10}, p, weights);
  return room.ok() ? "accepted" : room.error().message;
}

TEST(GroupedQuery, WrongSettingsAreNamed) {
  const auto changed = [](const char* name, HyperParameters::Value value) {
    HyperParameters p = parameters_of(small());
    p.set(name, std::move(value));
    return refusal(p);
  };
  EXPECT_EQ(refusal(HyperParameters("m.gguf")), "m.gguf: attention setting heads is missing");
  EXPECT_THAT(changed("heads", int64_t{0}), HasSubstr("heads is 0"));
  EXPECT_THAT(changed("kv_heads", int64_t{3}), HasSubstr("heads is 4, expected a multiple of kv_heads 3"));
  EXPECT_THAT(changed("kv_heads", int64_t{8}), HasSubstr("kv_heads is 8, expected a whole number in [1, 4]"));
  EXPECT_THAT(changed("head_dim", int64_t{7}), HasSubstr("rope_dim is 7, expected an even number"));
  EXPECT_THAT(changed("head_dim", int64_t{1} << 40), HasSubstr("head_dim is 1099511627776"));
  EXPECT_THAT(changed("window", int64_t{-1}), HasSubstr("window is -1"));
  EXPECT_THAT(changed("qk_norm", std::string("layer")), HasSubstr("qk_norm is \"layer\", expected none or rms"));
  EXPECT_THAT(changed("qk_norm", std::string("rms")), HasSubstr("norm_epsilon is missing"));
  EXPECT_THAT(changed("scale", 0.0), HasSubstr("scale is 0"));
}

TEST(GroupedQuery, CostsFollowTheEquations) {
  auto backend = make_reference_backend(1);
  RandomWeights weights(*backend, {});
  auto full = std::move(GroupedQuery::create({.hidden = 10}, parameters_of(small()), weights)).value();
  EXPECT_EQ(full->flops_per_token(), 2 * 10 * (4 * 8 + 2 * 8 + 2 * 8 + 4 * 8));
  EXPECT_EQ(full->context_flops(1000), 4 * 4 * 8 * 1000);
  EXPECT_EQ(full->context_bytes_read(1000, {.cache_dtype = DType::kF16}), 2 * 2 * 8 * 2 * 1000);
  EXPECT_EQ(full->state_layout({}).signature(), "key f16 16 per_token;value f16 16 per_token;");
  EXPECT_EQ(full->state_layout({.cache_dtype = DType::kQ8_0}).regions[0].dtype, DType::kF16) << "heads of 8 have no blocks";

  Config windowed = small();
  windowed.window = 100;
  auto ring = std::move(GroupedQuery::create({.hidden = 10}, parameters_of(windowed), weights)).value();
  EXPECT_EQ(ring->context_flops(1000), ring->context_flops(100));
  EXPECT_LT(ring->context_flops(99), ring->context_flops(100));
  const StateLayout layout = ring->state_layout({.max_chunk = 28});
  EXPECT_EQ(layout.regions[0].ring_rows, 128);
  EXPECT_EQ(layout.regions[0].ring_history, 99);
  EXPECT_EQ(state_bytes_allocated(layout, 1 << 20), 2 * 3 * 64 * 16 * 2) << "does not grow with the context";
}

}  // namespace
}  // namespace quipu
