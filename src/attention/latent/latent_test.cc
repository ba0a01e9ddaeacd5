#include "attention/latent/latent.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "attention/random_weights.h"
#include "attention/shared/latent_equations.h"
#include "backend/reference/reference_backend.h"

namespace quipu {
namespace {

using testing::HasSubstr;
using Matrix = LatentEquations::Matrix;

Matrix rows_of(const std::vector<float>& x, int64_t cols) {
  Matrix rows;
  for (auto it = x.begin(); it != x.end(); it += cols) rows.emplace_back(it, it + cols);
  return rows;
}

std::vector<float> random_input(int64_t tokens, int64_t hidden) {
  RandomStream random(4, 4);
  std::vector<float> x(static_cast<size_t>(tokens * hidden));
  for (float& value : x) value = static_cast<float>(random.normal());
  return x;
}

// All weights of a configuration, random, with the optional ones asked for.
GivenWeights random_weights(Backend& backend, const LatentEquations& e, const std::vector<std::string>& optional) {
  const RandomWeights random(backend, {});
  GivenWeights weights(backend);
  const auto matrix = [&](const char* role, int64_t rows, int64_t cols) {
    weights.give(role, random.matrix_values(role, rows, cols));
  };
  const int64_t queries = e.heads * (e.nope + e.rope), width = e.rank + e.rope;
  if (e.query_rank > 0) {
    matrix("query_down", e.query_rank, e.hidden);
    matrix("query_up", queries, e.query_rank);
  } else {
    matrix("query", queries, e.hidden);
  }
  matrix("latent_down", width, e.hidden);
  matrix("latent_up", e.heads * (e.nope + e.value), e.rank);
  matrix("output", e.hidden, e.heads * e.value);
  if (e.norm != "none") {
    weights.give("latent_norm", random.vector_values("latent_norm", e.rank));
    if (e.query_rank > 0) weights.give("query_down_norm", random.vector_values("query_down_norm", e.query_rank));
  }
  const std::map<std::string, int64_t> lengths = {{"query_bias", queries},         {"query_down_bias", e.query_rank},
                                                  {"latent_down_bias", width},     {"output_bias", e.hidden},
                                                  {"query_down_norm_bias", e.query_rank}, {"latent_norm_bias", e.rank}};
  for (const std::string& role : optional) weights.give(role, random.vector_values(role, lengths.at(role)));
  return weights;
}

struct Config {
  std::string name;
  LatentEquations equations;
  std::vector<std::string> optional = {};
};

void PrintTo(const Config& config, std::ostream* out) { *out << config.name; }

class LatentRoom : public testing::TestWithParam<Config> {};

TEST_P(LatentRoom, BothFormsComputeThePublishedEquations) {
  LatentEquations e = GetParam().equations;
  auto backend = make_reference_backend(2);
  GivenWeights weights = random_weights(*backend, e, GetParam().optional);
  e.weights = &weights;
  const std::vector<float> x = random_input(150, e.hidden);
  const Matrix wanted = e.output(rows_of(x, e.hidden));
  for (const char* form : {"absorbed", "expanded", "auto"}) {
    auto room = Latent::create({.hidden = e.hidden}, e.parameters(form), weights, *backend);
    ASSERT_TRUE(room.ok()) << room.error().message;
    const SequenceRun run(**room, *backend, x, e.hidden, {23});
    EXPECT_LT(largest_relative_error(run.out, wanted), 1e-5) << form;
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, LatentRoom,
    testing::Values(
        Config{"full_query_rms", {20, 3, 0, 13, 7, 6, 5, "rms", 1e-6, true}},
        Config{"low_rank_query_rms", {20, 3, 9, 16, 8, 4, 12, "rms", 1e-3, true}, {"query_down_bias", "output_bias"}},
        Config{"low_rank_query_layer_half_split", {12, 2, 7, 40, 6, 8, 9, "layer", 1e-5, false, 100.0},
               {"latent_norm_bias", "query_down_norm_bias", "latent_down_bias"}},
        Config{"no_norm", {10, 4, 0, 6, 5, 4, 3, "none", 0, false}, {"query_bias", "latent_down_bias"}},
        Config{"no_rope", {10, 2, 5, 6, 5, 0, 3, "rms", 1e-6, false}}),
    [](const auto& test) { return test.param.name; });

GivenWeights worked_example(Backend& backend) {
  GivenWeights weights(backend);
  weights.give("query", worked_matrix(1, 12, 4));
  weights.give("latent_down", worked_matrix(2, 8, 4));
  weights.give("latent_norm", {1, 1, 1, 1});
  weights.give("latent_up", worked_matrix(3, 8, 4));
  weights.give("output", worked_matrix(4, 4, 4));
  return weights;
}

LatentEquations worked_shape() { return {4, 2, 0, 4, 2, 4, 2, "rms", 1e-6, true}; }

// Numbers of DeepSeek's own module, printed to six digits.
TEST(Latent, TheWorkedExampleComesOutInBothForms) {
  auto backend = make_reference_backend(1);
  GivenWeights weights = worked_example(*backend);
  const Matrix wanted = {{-.352767, .767019, -.169552, -.340966},
                         {-.431539, .434201, -.244410, -.420265},
                         {-.134607, .122682, -.173040, -.129502},
                         {-.110209, -.014702, -.021903, -.092991},
                         {-.015980, .022749, .095923, -.014459}};
  for (const char* form : {"absorbed", "expanded"}) {
    auto room = std::move(Latent::create({.hidden = 4}, worked_shape().parameters(form), weights, *backend)).value();
    for (const std::vector<int64_t>& chunks : {std::vector<int64_t>{5}, {1}, {3, 2}, {2}}) {
      EXPECT_LT(largest_relative_error(SequenceRun(*room, *backend, worked_input(), 4, chunks).out, wanted), 2e-6) << form;
    }
  }
}

TEST(Latent, TheOtherRotaryLayoutGivesTheOtherNumbers) {
  auto backend = make_reference_backend(1);
  GivenWeights weights = worked_example(*backend);
  LatentEquations shape = worked_shape();
  shape.interleaved = false;
  auto room = std::move(Latent::create({.hidden = 4}, shape.parameters("absorbed"), weights, *backend)).value();
  const std::vector<float> out = SequenceRun(*room, *backend, worked_input(), 4, {5}).out;
  EXPECT_LT(largest_relative_error({out.end() - 4, out.end()}, {{.040920, -.003791, .075149, .046220}}), 2e-5);
}

TEST(Latent, TheRowKeepsTheNormalisedLatentAndTheRotatedKey) {
  auto backend = make_reference_backend(1);
  GivenWeights weights = worked_example(*backend);
  // The key of token 1 is [1, 2, 3, 4] before its rotation by one step.
  std::vector<float> down = worked_matrix(2, 8, 4);
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t c = 0; c < 4; ++c) down[static_cast<size_t>((4 + i) * 4 + c)] = c == 0 ? static_cast<float>(i + 1) : 0.0f;
  }
  weights.give("latent_down", down);
  const std::vector<float> x = {0, 1, 0, 0, 1, 0, 0, 0};
  const std::vector<std::pair<bool, Matrix>> layouts = {{true, {{-1.1426397, 1.9220756, 2.9598507, 4.0297995}}},
                                                        {false, {{-1.9841106, 1.9599007, 2.4623779, 4.0197997}}}};
  for (const auto& [interleaved, wanted] : layouts) {
    LatentEquations shape = worked_shape();
    shape.interleaved = interleaved;
    auto room = std::move(Latent::create({.hidden = 4}, shape.parameters("absorbed"), weights, *backend)).value();
    const SequenceRun run(*room, *backend, x, 4, {1});
    const float* row = reinterpret_cast<const float*>(run.state[0].region(0).pages[0]) + 8;   // [latent 4 | key 4]
    EXPECT_LT(largest_relative_error({row + 4, row + 8}, wanted), 1e-6) << interleaved;
    double squares = 0;
    for (int64_t c = 0; c < 4; ++c) squares += double{row[c]} * row[c];
    EXPECT_NEAR(squares / 4, 1.0, 1e-4) << "after the norm";
  }
}

TEST(Latent, ASplitUpProjectionIsTheJointOne) {
  auto backend = make_reference_backend(1);
  const LatentEquations e{20, 3, 0, 13, 7, 6, 5, "rms", 1e-6, true};
  GivenWeights joint = random_weights(*backend, e, {});
  GivenWeights split = random_weights(*backend, e, {});
  std::vector<float> keys, values;
  const std::vector<float>& up = joint.values("latent_up");
  for (int64_t head = 0; head < 3; ++head) {
    const float* block = up.data() + head * 12 * 13;
    for (int64_t r = 0; r < 13; ++r) {
      for (int64_t c = 0; c < 7; ++c) keys.push_back(block[c * 13 + r]);
    }
    values.insert(values.end(), block + 7 * 13, block + 12 * 13);
  }
  split.give("key_up", keys);
  split.give("value_up", values);
  split.give("latent_up", {});   // must not be looked at
  const std::vector<float> x = random_input(20, 20);
  for (const char* form : {"absorbed", "expanded"}) {
    auto a = std::move(Latent::create({.hidden = 20}, e.parameters(form), joint, *backend)).value();
    auto b = std::move(Latent::create({.hidden = 20}, e.parameters(form), split, *backend)).value();
    EXPECT_EQ(SequenceRun(*a, *backend, x, 20, {7}).out, SequenceRun(*b, *backend, x, 20, {7}).out) << form;
  }
}

TEST(Latent, AutoChangesTheFormAtTheCrossover) {
  auto backend = make_reference_backend(1);
  const LatentEquations e{12, 2, 0, 16, 7, 4, 5, "rms", 1e-6, true};   // crossover 16 * 12 / (32 - 12) = 9.6
  GivenWeights weights = random_weights(*backend, e, {});
  const auto run = [&](const char* form, int64_t chunk) {
    auto room = std::move(Latent::create({.hidden = 12}, e.parameters(form), weights, *backend)).value();
    return SequenceRun(*room, *backend, random_input(90, 12), 12, {chunk}).out;
  };
  EXPECT_EQ(run("auto", 9), run("absorbed", 9));
  EXPECT_EQ(run("auto", 10), run("expanded", 10));
  EXPECT_NE(run("auto", 9), run("auto", 10)) << "if equal, the default could be auto";
}

LatentSettings settings_of(const HyperParameters& p) { return *read_latent_settings({.hidden = 16}, p); }

TEST(Latent, TheCrossoverIsTheOneOfTheFormula) {
  const auto crossover = [](int64_t rank, int64_t nope, int64_t value, bool tiles = false) {
    return settings_of(LatentEquations{16, 2, 0, rank, nope, 32, value}.parameters("auto")).crossover(tiles);
  };
  EXPECT_EQ(crossover(512, 128, 128), 171);
  EXPECT_EQ(crossover(256, 64, 64), 86);   // 85.3: from 86 rows on
  EXPECT_EQ(crossover(128, 64, 64), 128);
  EXPECT_EQ(crossover(64, 64, 64), INT64_MAX);
  EXPECT_EQ(crossover(512, 128, 128, true), 46);   // rope of 32: 131072 / (3 * 1056 - 288) = 45.5
  EXPECT_EQ(crossover(16, 64, 64, true), 64);
}

TEST(Latent, TheScaleFollowsYarnsMagnitude) {
  HyperParameters p = LatentEquations{16, 2, 0, 8, 128, 64, 128}.parameters("absorbed");
  EXPECT_NEAR(settings_of(p).scale, 0.0721688, 1e-7);
  p.set("rope_scaling", std::string("yarn"));
  p.set("rope_scaling_factor", 40.0);
  p.set("rope_original_context", 4096.0);
  EXPECT_NEAR(settings_of(p).scale, 0.0721688, 1e-7) << "without mscale_all_dim the scale stays";
  for (const auto& [mscale, scale] : {std::pair{0.707, 0.1147214}, {1.0, 0.1352338}}) {
    p.set("rope_mscale", mscale);
    p.set("rope_mscale_all_dim", mscale);
    EXPECT_NEAR(settings_of(p).scale, scale, 1e-7);
    EXPECT_EQ(settings_of(p).rope.magnitude, 1.0f);
  }
  const std::vector<float> f = settings_of(p).rope.inverse_frequency;
  EXPECT_NEAR(f[10] / 0.056234133, 1, 1e-6);
  EXPECT_NEAR(f[16] / 0.0055, 1, 1e-6);
  EXPECT_NEAR(f[31] / 3.3338036e-6, 1, 1e-6);
}

TEST(Latent, WrongSettingsAreNamed) {
  auto backend = make_reference_backend(1);
  const LatentEquations e{16, 2, 0, 8, 4, 6, 5, "rms", 1e-6};
  RandomWeights weights(*backend, {});
  const auto refusal = [&](const HyperParameters& p) {
    auto room = Latent::create({.hidden = 16}, p, weights, *backend);
    return room.ok() ? "accepted" : room.error().message;
  };
  const auto changed = [&](const char* name, HyperParameters::Value value) {
    HyperParameters p = e.parameters("absorbed");
    p.set(name, std::move(value));
    return refusal(p);
  };
  EXPECT_EQ(refusal(HyperParameters("m.gguf")), "m.gguf: attention setting heads is missing");
  EXPECT_THAT(changed("latent_rank", int64_t{0}), HasSubstr("latent_rank is 0"));
  EXPECT_THAT(changed("rope_dim", int64_t{7}), HasSubstr("rope_dim is 7, expected an even number"));
  EXPECT_THAT(changed("nope_dim", int64_t{0}), HasSubstr("nope_dim is 0"));
  EXPECT_THAT(changed("value_dim", int64_t{1} << 40), HasSubstr("value_dim is 1099511627776"));
  EXPECT_THAT(changed("query_rank", int64_t{-1}), HasSubstr("query_rank is -1"));
  EXPECT_THAT(changed("latent_norm", std::string("batch")), HasSubstr("latent_norm is \"batch\", expected none, rms or layer"));
  EXPECT_THAT(changed("norm_epsilon", -1.0), HasSubstr("norm_epsilon"));
  EXPECT_THAT(changed("form", std::string("naive")), HasSubstr("form is \"naive\", expected prompt, absorbed, expanded or auto"));
  EXPECT_THAT(changed("scale", 0.0), HasSubstr("scale is 0"));
}

TEST(Latent, TensorsOfAnotherShapeAreNamed) {
  auto backend = make_reference_backend(1);
  const LatentEquations e{20, 3, 0, 13, 7, 6, 5, "rms", 1e-6, true};
  const auto refusal = [&](const char* role, std::vector<float> values) {
    GivenWeights weights = random_weights(*backend, e, {});
    weights.give(role, std::move(values));
    auto room = Latent::create({.hidden = 20}, e.parameters("absorbed"), weights, *backend);
    return room.ok() ? "accepted" : room.error().message;
  };
  EXPECT_THAT(refusal("latent_down", std::vector<float>(13 * 20)),
              HasSubstr("latent_down: expected 19 rows (latent_rank 13 + rope_dim 6) of 20"));
  EXPECT_THAT(refusal("latent_up", {1}), HasSubstr("expected 36 rows (heads 3 * (nope_dim 7 + value_dim 5)) of 13"));
  EXPECT_THAT(refusal("query", {1}), HasSubstr("heads 3 * (nope_dim 7 + rope_dim 6)"));
  EXPECT_THAT(refusal("key_up", {1}), HasSubstr("key_up: expected 39 rows (heads 3 * latent_rank 13) of 7"));
}

TEST(Latent, CostsFollowTheEquations) {
  auto backend = make_reference_backend(1);
  RandomWeights weights(*backend, {});
  // The decoder of the MTLA paper.
  const LatentEquations paper{512, 8, 0, 256, 64, 32, 64, "rms", 1e-6};
  auto room = std::move(Latent::create({.hidden = 512}, paper.parameters("absorbed"), weights, *backend)).value();
  EXPECT_EQ(room->context_flops(1000), 8704 * 1000);
  EXPECT_EQ(room->context_bytes_read(1000, {.cache_dtype = DType::kBF16}), 288 * 2 * 1000);
  EXPECT_EQ(room->flops_per_token(), 2 * (512 * 768 + 512 * 288 + 8 * 256 * 128 + 512 * 512));
  EXPECT_EQ(room->state_layout({}).signature(), "latent f16 288 per_token;");
  EXPECT_EQ(state_bytes(room->state_layout({}), 1000), 288 * 2 * 1000);
  EXPECT_EQ(room->state_layout({.cache_dtype = DType::kQ8_0}).regions[0].dtype, DType::kQ8_0);
  const LatentEquations odd{16, 2, 0, 8, 4, 6, 5};
  auto small = std::move(Latent::create({.hidden = 16}, odd.parameters("absorbed"), weights, *backend)).value();
  EXPECT_EQ(small->state_layout({.cache_dtype = DType::kQ8_0}).regions[0].dtype, DType::kF16) << "14 is no block";
}

}  // namespace
}  // namespace quipu
