// The room against its equations in math.md, written here in double over the whole sequence: no state, no pages, and
// for the linear rule no memory either. Limits, sizes and refusals.
#include "attention/infini/infini.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention/infini/layer_for_test.h"
#include "attention/random_weights.h"
#include "base/random.h"

namespace quipu {
namespace {

using testing::HasSubstr;
using Vector = std::vector<double>;
using Matrix = std::vector<Vector>;

struct Config {
  std::string name = {};
  std::string rule = "linear";
  int64_t heads = 4, kv_heads = 2, head_dim = 7, value_dim = 5;
  int64_t rope_dim = 6;
  int64_t segment = 9;
  std::string feature = "elu1";
  std::string norm = {};  // empty: absent
  bool token_gate = false;
  std::string write_gate = "none";
  bool window = false;
  bool local_first = false;
  bool compensated = false;
  int64_t hidden = 12;
};

HyperParameters parameters_of(const Config& s) {
  HyperParameters p("test");
  p.set("heads", s.heads);
  p.set("kv_heads", s.kv_heads);
  p.set("head_dim", s.head_dim);
  p.set("value_dim", s.value_dim);
  p.set("rope_dim", s.rope_dim);
  if (s.rope_dim > 0) p.set("rope_theta", 100.0);
  p.set("segment_tokens", s.segment);
  p.set("rule", s.rule);
  p.set("feature", s.feature);
  if (s.feature == "dpfp") p.set("dpfp_nu", int64_t{2});
  if (!s.norm.empty()) p.set("norm", s.norm);
  if (s.token_gate) p.set("gate", std::string("token"));
  p.set("write_gate", s.write_gate);
  if (s.window) p.set("window", std::string("previous"));
  if (s.local_first) p.set("first_segment", std::string("local"));
  if (s.compensated) p.set("accumulation", std::string("compensated"));
  return p;
}

// The weights RandomWeights gives those roles, so that a test can read and change them.
GivenWeights::Map weights_of(const Config& s) {
  auto backend = make_reference_backend(1);
  const RandomWeights random(*backend, {});
  GivenWeights::Map map;
  const auto matrix = [&](const char* role, int64_t rows, int64_t cols) {
    map[role] = random.matrix_values(role, rows, cols);
  };
  const auto vector = [&](const char* role, int64_t length) { map[role] = random.vector_values(role, length); };
  matrix("query", s.heads * s.head_dim, s.hidden);
  matrix("key", s.kv_heads * s.head_dim, s.hidden);
  matrix("value", s.kv_heads * s.value_dim, s.hidden);
  matrix("output", s.hidden, s.heads * s.value_dim);
  vector("query_bias", s.heads * s.head_dim);
  vector("key_bias", s.kv_heads * s.head_dim);
  vector("value_bias", s.kv_heads * s.value_dim);
  vector("output_bias", s.hidden);
  vector("memory_gate", s.heads);
  matrix("memory_gate_proj", s.heads, s.hidden);
  matrix("write_gate", s.kv_heads, s.hidden);
  vector("write_gate_bias", s.kv_heads);
  matrix("write_strength", s.kv_heads, s.hidden);
  vector("write_strength_bias", s.kv_heads);
  vector("read_norm", s.value_dim);
  return map;
}

Matrix project(const GivenWeights::Map& weights, const std::string& role, const std::string& bias, const Matrix& x) {
  const std::vector<float>& w = weights.at(role);
  const std::vector<float>& b = weights.at(bias);
  Matrix y(x.size(), Vector(b.size()));
  for (size_t t = 0; t < x.size(); ++t) {
    for (size_t r = 0; r < b.size(); ++r) {
      y[t][r] = double{b[r]};
      for (size_t c = 0; c < x[t].size(); ++c) y[t][r] += double{w[r * x[t].size() + c]} * x[t][c];
    }
  }
  return y;
}

Vector part(const Vector& row, size_t index, int64_t size) {
  const auto begin = row.begin() + static_cast<int64_t>(index) * size;
  return {begin, begin + size};
}

double dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

Vector features(const Config& s, const Vector& x) {
  Vector f;
  if (s.feature == "dpfp") {
    Vector r;
    for (const double v : x) r.push_back(std::max(v, 0.0));
    for (const double v : x) r.push_back(std::max(-v, 0.0));
    for (size_t j = 1; j <= 2; ++j) {
      for (size_t i = 0; i < r.size(); ++i) f.push_back(r[i] * r[(i + j) % r.size()]);
    }
  } else {
    for (const double v : x) f.push_back(s.feature == "silu_l2" ? v * logistic(v) : v > 0 ? v + 1 : std::exp(v));
  }
  if (s.feature == "silu_l2" || s.rule == "delta_true") {
    const double length = std::sqrt(dot(f, f));
    for (double& v : f) v /= length;
  }
  return f;
}

Vector rotated(const Config& s, Vector x, size_t position) {
  const size_t half = static_cast<size_t>(s.rope_dim / 2);
  for (size_t j = 0; j < half; ++j) {
    const double angle = static_cast<double>(position) *
                         std::pow(100.0, -2.0 * static_cast<double>(j) / static_cast<double>(s.rope_dim));
    const double a = x[j], b = x[j + half];
    x[j] = a * std::cos(angle) - b * std::sin(angle);
    x[j + half] = a * std::sin(angle) + b * std::cos(angle);
  }
  return x;
}

// One key head over the whole sequence: features, values, write weights; and what a query reads at segment s.
struct HeadOracle {
  const Config& s;
  Matrix f, v;
  Vector w;

  size_t segment_of(size_t t) const { return t / static_cast<size_t>(s.segment); }
  size_t tokens_before(size_t segment) const { return std::min(f.size(), segment * static_cast<size_t>(s.segment)); }

  // What each token before `segment` has written, u_t: the memory is sum_t f_t^T u_t.
  Matrix written(size_t segment) const {
    const size_t end = tokens_before(segment);
    Matrix u;
    for (size_t t = 0; t < end; ++t) {
      Vector known(v[t].size(), 0.0);
      if (s.rule == "delta") {
        known = weighted(u, f[t], segment_of(t), true);
      } else if (s.rule == "delta_true") {
        // Row t of (I + strict-lower(diag(b) F F^T)) U = diag(b) V, over all tokens at once: no segment appears.
        known = weighted(u, f[t], SIZE_MAX, false);
      }
      Vector row;
      for (size_t c = 0; c < known.size(); ++c) row.push_back(w[t] * (v[t][c] - known[c]));
      u.push_back(row);
    }
    return u;
  }
  // sum over tokens before the segment (or all of u) of kappa(query, f_t) u_t, over sum of w_t kappa when normalised.
  Vector weighted(const Matrix& u, const Vector& query, size_t segment, bool normalised) const {
    const size_t end = segment == SIZE_MAX ? u.size() : tokens_before(segment);
    Vector sum(static_cast<size_t>(s.value_dim), 0.0);
    double total = 0;
    for (size_t t = 0; t < end; ++t) {
      const double kappa = dot(query, f[t]);
      total += w[t] * kappa;
      for (size_t c = 0; c < sum.size(); ++c) sum[c] += kappa * u[t][c];
    }
    for (double& c : sum) c /= normalised ? std::max(total, 1e-6) : 1.0;
    return sum;
  }
};

Vector local_attention(const Config& s, const Matrix& q, const Matrix& k, const Matrix& v, size_t t) {
  const size_t segment = t / static_cast<size_t>(s.segment);
  const size_t first = (s.window && segment > 0 ? segment - 1 : segment) * static_cast<size_t>(s.segment);
  Vector out(v[0].size(), 0.0);
  double total = 0;
  for (size_t u = first; u <= t; ++u) {
    const double p =
        std::exp(dot(rotated(s, q[t], t), rotated(s, k[u], u)) / std::sqrt(static_cast<double>(s.head_dim)));
    total += p;
    for (size_t c = 0; c < out.size(); ++c) out[c] += p * v[u][c];
  }
  for (double& c : out) c /= total;
  return out;
}

Matrix expected_output(const Config& s, const GivenWeights::Map& weights, const Matrix& x) {
  const Matrix q = project(weights, "query", "query_bias", x), k = project(weights, "key", "key_bias", x);
  const Matrix v = project(weights, "value", "value_bias", x);
  const Matrix gates = project(weights, "memory_gate_proj", "memory_gate", x);
  const Matrix write = project(weights, "write_gate", "write_gate_bias", x);
  const Matrix strength = project(weights, "write_strength", "write_strength_bias", x);
  Matrix mixed(x.size());
  for (size_t i = 0; i < static_cast<size_t>(s.heads); ++i) {
    const size_t m = i * static_cast<size_t>(s.kv_heads) / static_cast<size_t>(s.heads);
    HeadOracle head{s, {}, {}, {}};
    Matrix queries, keys;
    for (size_t t = 0; t < x.size(); ++t) {
      queries.push_back(part(q[t], i, s.head_dim));
      keys.push_back(part(k[t], m, s.head_dim));
      head.f.push_back(features(s, keys[t]));
      head.v.push_back(part(v[t], m, s.value_dim));
      double w = s.write_gate == "none" ? 1.0 : logistic(write[t][m]);
      if (s.write_gate == "hard") w = std::clamp(1.2 * w - 0.1, 0.0, 1.0);
      if (s.rule == "delta_true") w *= logistic(strength[t][m]);
      head.w.push_back(w);
    }
    const bool divides = s.norm.empty() ? s.rule != "delta_true" : s.norm == "z";
    const Matrix u = head.written(head.segment_of(x.size()) + 1);
    for (size_t t = 0; t < x.size(); ++t) {
      Vector read = head.weighted(u, features(s, queries[t]), head.segment_of(t), divides);
      if (s.norm == "rms") {
        const double length = std::sqrt(dot(read, read) / static_cast<double>(s.value_dim) + 1e-6);
        for (size_t c = 0; c < read.size(); ++c) read[c] *= double{weights.at("read_norm")[c]} / length;
      }
      const Vector local = local_attention(s, queries, keys, head.v, t);
      double gate = logistic(s.token_gate ? gates[t][i] : double{weights.at("memory_gate")[i]});
      if (s.local_first && head.segment_of(t) == 0) gate = 0;
      for (size_t c = 0; c < read.size(); ++c) mixed[t].push_back(gate * read[c] + (1 - gate) * local[c]);
    }
  }
  return project(weights, "output", "output_bias", mixed);
}

std::vector<float> random_input(int64_t tokens, int64_t hidden, uint64_t seed = 4) {
  RandomStream random(seed, 4);
  std::vector<float> x(static_cast<size_t>(tokens * hidden));
  for (float& value : x) value = static_cast<float>(random.normal());
  return x;
}

class InfiniEquations : public testing::TestWithParam<Config> {};

TEST_P(InfiniEquations, TheRoomComputesThem) {
  const Config& s = GetParam();
  constexpr int64_t kTokens = 75;
  const GivenWeights::Map weights = weights_of(s);
  const std::vector<float> x = random_input(kTokens, s.hidden);
  Matrix x_rows;
  for (int64_t t = 0; t < kTokens; ++t) x_rows.emplace_back(x.begin() + t * s.hidden, x.begin() + (t + 1) * s.hidden);
  Vector wanted;
  for (const Vector& row : expected_output(s, weights, x_rows)) wanted.insert(wanted.end(), row.begin(), row.end());

  InfiniLayer layer(s.hidden, parameters_of(s), weights);
  // Everything behind the projections is single precision, some 1e2 roundings of 6e-8 deep; divisors are sums of
  // positive numbers. The delta rules feed errors of the memory back a few times.
  EXPECT_LE(relative_error(layer.feed(x), wanted), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(
    All, InfiniEquations,
    testing::Values(
        Config{.name = "linear"}, Config{.name = "linear_of_single_tokens", .segment = 1},
        Config{.name = "linear_longer_than_the_text", .segment = 100},
        Config{.name = "linear_window_compensated", .window = true, .compensated = true},
        Config{.name = "linear_dpfp_hard", .feature = "dpfp", .write_gate = "hard"},
        Config{.name = "linear_silu_rms", .feature = "silu_l2", .norm = "rms"},
        Config{.name = "linear_wide_values", .kv_heads = 1, .value_dim = 70, .local_first = true},
        Config{.name = "linear_writes_in_groups", .head_dim = 64, .value_dim = 70, .segment = 10, .write_gate = "hard"},
        Config{.name = "delta", .rule = "delta"},
        Config{.name = "delta_writes_in_groups", .rule = "delta", .head_dim = 64, .value_dim = 64, .segment = 14, .compensated = true},
        Config{.name = "delta_token_gate_window", .rule = "delta", .kv_heads = 4, .token_gate = true, .window = true},
        Config{.name = "delta_rms_soft", .rule = "delta", .rope_dim = 0, .norm = "rms", .write_gate = "soft"},
        Config{.name = "delta_true", .rule = "delta_true"},
        Config{.name = "delta_true_dpfp_hard",
               .rule = "delta_true",
               .segment = 16,
               .feature = "dpfp",
               .write_gate = "hard"},
        Config{.name = "delta_true_silu_rms", .rule = "delta_true", .feature = "silu_l2", .norm = "rms"}),
    [](const auto& test) { return test.param.name; });

TEST(Infini, AClosedGateIsLocalAttentionToTheLastBit) {
  // And so does not depend on the rule, the features, or what the memory holds.
  Config s;
  GivenWeights::Map weights = weights_of(s);
  weights["memory_gate"] = std::vector<float>(4, -200.0f);
  const std::vector<float> x = random_input(60, s.hidden);
  const std::vector<float> linear = InfiniLayer(s.hidden, parameters_of(s), weights).feed(x);
  s.rule = "delta_true";
  EXPECT_EQ(InfiniLayer(s.hidden, parameters_of(s), weights).feed(x), linear);
  s.rule = "delta";
  s.feature = "dpfp";
  EXPECT_EQ(InfiniLayer(s.hidden, parameters_of(s), weights).feed(x), linear);
  weights["memory_gate"] = std::vector<float>(4, 0.0f);
  EXPECT_NE(InfiniLayer(s.hidden, parameters_of(s), weights).feed(x), linear);
}

std::vector<double> sum_of(const std::vector<float>& a, const std::vector<float>& b) {
  std::vector<double> sum;
  for (size_t i = 0; i < a.size(); ++i) sum.push_back(double{a[i]} + double{b[i]});
  return sum;
}

TEST(Infini, LinearMemoriesOfTwoTextsAddUpInEitherOrder) {
  Config s;
  const GivenWeights::Map weights = weights_of(s);
  InfiniLayer layer(s.hidden, parameters_of(s), weights);
  const std::vector<float> a = random_input(3 * s.segment, s.hidden, 1), b = random_input(5 * s.segment, s.hidden, 2);
  const auto memory_of = [&](const std::vector<float>& first, const std::vector<float>& second) {
    layer.begin_again();
    layer.feed(first);
    if (!second.empty()) layer.feed(second);
    return layer.memory();
  };
  const std::vector<double> sum = sum_of(memory_of(a, {}), memory_of(b, {}));
  EXPECT_LE(relative_error(memory_of(a, b), sum), 1e-6);
  EXPECT_LE(relative_error(memory_of(b, a), sum), 1e-6);
  Config other = s;
  other.rule = "delta";
  InfiniLayer delta(s.hidden, parameters_of(other), weights);
  delta.feed(a);
  delta.feed(b);
  EXPECT_GT(relative_error(delta.memory(), sum), 1e-2) << "the delta rule must know the order";
}

TEST(Infini, OnlyTrueDeltaIgnoresHowLongSegmentsAre) {
  for (const char* rule : {"linear", "delta", "delta_true"}) {
    Config s;
    s.rule = rule;
    const GivenWeights::Map weights = weights_of(s);
    const std::vector<float> x = random_input(72, s.hidden);
    const auto memory_of = [&](int64_t segment) {
      s.segment = segment;
      InfiniLayer layer(s.hidden, parameters_of(s), weights);
      layer.feed(x);
      return layer.memory();
    };
    const std::vector<float> nines = memory_of(9);
    const double difference = relative_error(memory_of(24), {nines.begin(), nines.end()});
    if (std::string(rule) == "delta") {
      EXPECT_GT(difference, 1e-2);
    } else {
      EXPECT_LE(difference, 1e-5) << rule;  // sums of sums: the same but for rounding
    }
    if (std::string(rule) == "delta_true") {
      EXPECT_EQ(memory_of(24), nines) << "the very same steps";
    }
  }
}

int64_t elements(const StateLayout& layout, std::initializer_list<std::string_view> names) {
  int64_t sum = 0;
  for (const RegionSpec& region : layout.regions) {
    if (std::find(names.begin(), names.end(), region.name) == names.end()) continue;
    sum += region.fixed_rows * region.row_elements;
  }
  return sum;
}

TEST(Infini, ThePapersMemoryIsReproducedToTheElement) {
  Config s{.heads = 8, .kv_heads = 8, .head_dim = 128, .value_dim = 128, .rope_dim = 128, .segment = 2048, .hidden = 2};
  for (const char* rule : {"linear", "delta"}) {
    s.rule = rule;
    InfiniLayer layer(s.hidden, parameters_of(s), weights_of(s));
    const StateLayout layout = layer.room().state_layout({.cache_dtype = DType::kBF16});
    constexpr int64_t kLayers = 12;
    EXPECT_EQ(kLayers * elements(layout, {"memory", "norm"}), 1'585'152);
    // The local window the paper does not count, as large as Transformer-XL's cache.
    EXPECT_EQ(kLayers * elements(layout, {"key", "value"}), 50'331'648);
    const int64_t waiting = 8 * (1 + 8 * (128 + 128));   // eight writes of each memory
    const int64_t fixed = 2 * (1'585'152 * 4) + kLayers * (32 + 4 * waiting);
    EXPECT_EQ(kLayers * state_bytes(layout, 1), fixed + 50'331'648 * 2);
    EXPECT_EQ(state_bytes(layout, 1'000'000), state_bytes(layout, 1)) << "flat in the context";
  }
  s.rule = "delta_true";
  InfiniLayer layer(s.hidden, parameters_of(s), weights_of(s));
  EXPECT_EQ(elements(layer.room().state_layout({}), {"memory"}), 8 * 128 * 128);
  EXPECT_EQ(elements(layer.room().state_layout({}), {"norm", "open_norm"}), 0);
}

TEST(Infini, CostsFollowTheEquations) {
  Config s{.head_dim = 8, .value_dim = 6, .segment = 100};
  InfiniLayer linear(s.hidden, parameters_of(s), weights_of(s));
  const int64_t projections = 2 * 12 * (4 + 2) * (8 + 6);
  EXPECT_EQ(linear.room().flops_per_token(), projections + 2 * (4 + 2) * 8 * 6);
  EXPECT_EQ(linear.room().context_flops(1'000'000), 2 * 4 * (8 + 6) * 100);
  EXPECT_EQ(linear.room().context_flops(10), 2 * 4 * (8 + 6) * 10);
  EXPECT_EQ(linear.room().context_bytes_read(1'000'000, {.cache_dtype = DType::kF16}),
            100 * 2 * (8 + 6) * 2 + 2 * 4 * 2 * 8 * (6 + 1));
  s.rule = "delta";
  s.window = true;
  InfiniLayer delta(s.hidden, parameters_of(s), weights_of(s));
  EXPECT_EQ(delta.room().flops_per_token(), projections + 2 * (4 + 2 + 2) * 8 * 6);
  EXPECT_EQ(delta.room().context_flops(1'000'000), 2 * 4 * (8 + 6) * 200);
  s.rule = "delta_true";
  s.write_gate = "hard";
  s.token_gate = true;
  InfiniLayer exact(s.hidden, parameters_of(s), weights_of(s));
  EXPECT_EQ(exact.room().flops_per_token(), projections + 2 * 12 * (4 + 2 + 2) + 2 * (4 + 2 + 2) * 8 * 6);
  EXPECT_GT(exact.room().weight_bytes(), delta.room().weight_bytes());
}

// Large memories take writes in groups; which tokens wait depends on their place in the segment, not on how they came.
TEST(Infini, AStateDoesNotDependOnHowThePromptWasCut) {
  for (const char* rule : {"linear", "delta"}) {
    Config s{.rule = rule, .head_dim = 64, .value_dim = 64, .segment = 10, .write_gate = "hard"};
    InfiniLayer whole(s.hidden, parameters_of(s), weights_of(s)), cut(s.hidden, parameters_of(s), weights_of(s));
    const std::vector<float> x = random_input(46, s.hidden);
    int64_t done = 0;
    for (const int64_t rows : {1, 1, 1, 2, 3, 5, 4, 11, 1, 1, 16}) {
      const auto from = x.begin() + done * s.hidden, to = from + rows * s.hidden;
      cut.feed({from, to});
      done += rows;
      whole.begin_again();
      whole.feed({x.begin(), to});
      for (size_t i = 2; i < whole.state().regions(); ++i) {   // after the local window, whose unused rows hold anything
        const RegionState& a = whole.state().region(i);
        const RegionState& b = cut.state().region(i);
        EXPECT_EQ(std::memcmp(a.pages[0], b.pages[0], static_cast<size_t>(a.page_bytes())), 0) << rule << " " << a.spec.name << " at " << done;
      }
    }
    ASSERT_EQ(done, 46);
    bool waits = false;
    for (size_t i = 0; i < whole.state().regions(); ++i) {
      const RegionState& region = whole.state().region(i);
      if (region.spec.name == "waiting") waits = *reinterpret_cast<const int32_t*>(region.pages[0]) > 0;
    }
    EXPECT_TRUE(waits) << "46 tokens end inside a group";
  }
}

TEST(Infini, AForgedNumberOfWaitingWritesStaysInsideItsPages) {
  Config s{.head_dim = 64, .value_dim = 64, .segment = 10};
  constexpr int32_t kGroup = 4;   // writes of a memory of 64 x 64
  InfiniLayer layer(s.hidden, parameters_of(s), weights_of(s));
  const auto waiting = [&] {
    for (size_t i = 0; i < layer.state().regions(); ++i) {
      RegionState& region = layer.state().region(i);
      if (region.spec.name == "waiting") return std::span(reinterpret_cast<int32_t*>(region.pages[0]), 1);
    }
    return std::span<int32_t>();
  };
  for (const int32_t forged : {-1, INT32_MIN, INT32_MAX, kGroup, kGroup + 1}) {
    for (int64_t fed = 10; fed < 21; ++fed) {   // every place in a group and in a segment
      for (const int64_t rows : {1, 2, 3, 7}) {
        layer.begin_again();
        layer.feed(random_input(fed, s.hidden));
        ASSERT_EQ(waiting().size(), 1u);
        waiting()[0] = forged;
        EXPECT_EQ(layer.feed(random_input(rows, s.hidden)).size(), static_cast<size_t>(rows * s.hidden));
        EXPECT_TRUE(waiting()[0] >= 0 && waiting()[0] <= kGroup) << waiting()[0] << " after " << fed << " + " << rows << ", forged " << forged;
      }
    }
  }
}

TEST(Infini, AForgedStateStaysInsideItsPages) {
  Config s;
  s.window = true;
  InfiniLayer layer(s.hidden, parameters_of(s), weights_of(s));
  for (const int64_t forged : {int64_t{-1}, int64_t{1} << 40, INT64_MAX, INT64_MIN, int64_t{9}, int64_t{10}}) {
    for (size_t field = 0; field < 4; ++field) {
      layer.begin_again();
      layer.feed(random_input(13, s.hidden));
      RegionState& region = layer.state().region(2);
      ASSERT_EQ(region.spec.name, "segment");
      std::memcpy(region.pages[0] + field * sizeof(forged), &forged, sizeof(forged));
      EXPECT_EQ(layer.feed(random_input(30, s.hidden)).size(), 30u * 12u);  // CHECKs and sanitizers are the judges
    }
  }
}

std::string refusal(const HyperParameters& p, GivenWeights::Map weights) {
  auto backend = make_reference_backend(1);
  GivenWeights source(*backend, std::move(weights));
  auto room = Infini::create({.hidden = 12}, p, source, *backend);
  return room.ok() ? "accepted" : room.error().message;
}

TEST(Infini, WrongSettingsAreNamed) {
  const Config s;
  const auto changed = [&](const char* name, HyperParameters::Value value, const char* rule = "linear") {
    HyperParameters p = parameters_of(s);
    p.set("rule", std::string(rule));
    p.set(name, std::move(value));
    return refusal(p, weights_of(s));
  };
  const auto text = [](const char* value) { return HyperParameters::Value(std::string(value)); };
  EXPECT_EQ(refusal(parameters_of(s), weights_of(s)), "accepted");
  EXPECT_EQ(refusal(HyperParameters("config.json"), {}), "config.json: attention setting heads is missing");
  EXPECT_THAT(changed("heads", int64_t{0}), HasSubstr("heads is 0"));
  EXPECT_THAT(changed("kv_heads", int64_t{3}), HasSubstr("heads is 4, expected a multiple of kv_heads 3"));
  EXPECT_THAT(changed("kv_heads", int64_t{8}), HasSubstr("kv_heads is 8, expected a whole number in [1, 4]"));
  EXPECT_THAT(changed("head_dim", int64_t{1} << 40), HasSubstr("head_dim is 1099511627776"));
  EXPECT_THAT(changed("rope_dim", int64_t{5}), HasSubstr("rope_dim is 5, expected an even number"));
  EXPECT_THAT(changed("segment_tokens", int64_t{0}), HasSubstr("segment_tokens is 0"));
  EXPECT_THAT(changed("segment_tokens", int64_t{1} << 30), HasSubstr("segment_tokens is 1073741824"));
  EXPECT_THAT(changed("rule", text("hebbian")), HasSubstr("rule is \"hebbian\", expected linear, delta or delta_true"));
  EXPECT_THAT(changed("feature", text("relu")), HasSubstr("feature is \"relu\", expected elu1, dpfp or silu_l2"));
  EXPECT_THAT(changed("feature", text("dpfp")), HasSubstr("dpfp_nu is missing"));
  EXPECT_THAT(changed("feature", text("silu_l2")), HasSubstr("feature is \"silu_l2\", expected elu1 or dpfp"));
  EXPECT_THAT(changed("norm", text("none")), HasSubstr("norm is \"none\", expected z or rms"));
  EXPECT_THAT(changed("norm", text("z"), "delta_true"), HasSubstr("norm is \"z\", expected none or rms"));
  EXPECT_THAT(changed("gate", text("layer")), HasSubstr("gate is \"layer\", expected head or token"));
  EXPECT_THAT(changed("write_gate", text("top")), HasSubstr("write_gate is \"top\", expected none, soft or hard"));
  EXPECT_THAT(changed("window", text("next")), HasSubstr("window is \"next\", expected none or previous"));
  EXPECT_THAT(changed("first_segment", text("a")), HasSubstr("first_segment is \"a\", expected gated or local"));
  EXPECT_THAT(changed("accumulation", text("fp64")),
              HasSubstr("accumulation is \"fp64\", expected fp32 or compensated"));
  EXPECT_THAT(changed("accumulation", text("compensated"), "delta_true"), HasSubstr("accumulation is \"compensated\""));
  GivenWeights::Map gateless = weights_of(s);
  gateless.erase("memory_gate");
  EXPECT_THAT(refusal(parameters_of(s), gateless), HasSubstr("memory_gate"));
}

}  // namespace
}  // namespace quipu
