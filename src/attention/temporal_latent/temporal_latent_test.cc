#include "attention/temporal_latent/temporal_latent.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "attention/latent/latent.h"
#include "attention/random_weights.h"
#include "attention/shared/latent_equations.h"
#include "backend/reference/reference_backend.h"
#include "tensor/quant_blocks.h"

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

HyperParameters parameters_of(const LatentEquations& e, const char* form = "absorbed") {
  HyperParameters p = e.parameters(form);
  p.set("stride", e.stride);
  p.set("merge", std::string(e.unit ? "unit" : "learned"));
  return p;
}

GivenWeights random_weights(Backend& backend, const LatentEquations& e) {
  const RandomWeights random(backend, {});
  GivenWeights weights(backend);
  const auto matrix = [&](const char* role, int64_t rows, int64_t cols) {
    weights.give(role, random.matrix_values(role, rows, cols));
  };
  matrix("query", e.heads * (e.nope + e.rope), e.hidden);
  matrix("latent_down", e.rank + e.rope, e.hidden);
  matrix("latent_up", e.heads * (e.nope + e.value), e.rank);
  matrix("output", e.hidden, e.heads * e.value);
  if (e.norm != "none") weights.give("latent_norm", random.vector_values("latent_norm", e.rank));
  if (e.norm == "layer") weights.give("latent_norm_bias", random.vector_values("latent_norm_bias", e.rank));
  if (e.unit) return weights;
  for (const std::string role : {"hypernet_fc_c", "hypernet_fc_p"}) {
    weights.give(role, random.matrix_values(role, e.rank / 4, e.rank));
    weights.give(role + "_bias", random.vector_values(role + "_bias", e.rank / 4));
  }
  return weights;
}

std::unique_ptr<Attention> make_room(const LatentEquations& e, WeightSource& weights, Backend& backend,
                                     const char* form = "absorbed") {
  auto room = TemporalLatent::create({.hidden = e.hidden}, parameters_of(e, form), weights, backend);
  CHECK(room.ok()) << room.error().message;
  return std::move(room).value();
}

struct Config {
  std::string name;
  LatentEquations equations;
};

void PrintTo(const Config& config, std::ostream* out) { *out << config.name; }

class TemporalLatentRoom : public testing::TestWithParam<Config> {};

TEST_P(TemporalLatentRoom, BothFormsComputeThePublishedEquationsHoweverTheTokensCome) {
  LatentEquations e = GetParam().equations;
  auto backend = make_reference_backend(2);
  GivenWeights weights = random_weights(*backend, e);
  e.weights = &weights;
  const std::vector<float> x = random_input(215, e.hidden);   // at stride 3 past a page of closed rows
  const Matrix wanted = e.output(rows_of(x, e.hidden));
  for (const char* form : {"absorbed", "expanded", "auto"}) {
    auto room = make_room(e, weights, *backend, form);
    for (const std::vector<int64_t>& chunks : {std::vector<int64_t>{215}, {1}, {40, 1, 7}}) {
      EXPECT_LT(largest_relative_error(SequenceRun(*room, *backend, x, e.hidden, chunks).out, wanted), 1e-5) << form;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, TemporalLatentRoom,
    testing::Values(Config{"stride_two_layer", {20, 3, 0, 12, 7, 6, 5, "layer", 1e-5, true, 1e4, 2, false}},
                    Config{"stride_three_rms_half_split", {16, 2, 0, 40, 6, 4, 9, "rms", 1e-6, false, 1e4, 3, false}},
                    Config{"stride_four_no_norm", {10, 4, 0, 8, 5, 4, 3, "none", 0, true, 1e4, 4, false}},
                    Config{"stride_one_learned", {10, 2, 0, 8, 5, 4, 3, "layer", 1e-5, true, 1e4, 1, false}},
                    Config{"stride_five_unit", {10, 2, 0, 8, 5, 4, 3, "layer", 1e-5, true, 1e4, 5, true}}),
    [](const auto& test) { return test.param.name; });

TEST(TemporalLatent, StrideOneWithUnitWeightsIsLatentAttention) {
  auto backend = make_reference_backend(1);
  const LatentEquations e{20, 3, 0, 13, 7, 6, 5, "rms", 1e-6, true, 1e4, 1, true};
  GivenWeights weights = random_weights(*backend, e);
  const std::vector<float> x = random_input(150, 20);
  for (const char* form : {"absorbed", "expanded"}) {
    auto merged = make_room(e, weights, *backend, form);
    auto latent = std::move(Latent::create({.hidden = 20}, e.parameters(form), weights, *backend)).value();
    const std::vector<float> wanted = SequenceRun(*latent, *backend, x, 20, {31}).out;
    EXPECT_LT(largest_relative_error(SequenceRun(*merged, *backend, x, 20, {31}).out, rows_of(wanted, 20)), 1e-6) << form;
  }
  // The weights matter: learned ones at stride 1 are something else.
  LatentEquations learned = e;
  learned.rank = 12;
  learned.unit = false;
  GivenWeights other = random_weights(*backend, learned);
  auto unlike = make_room(learned, other, *backend);
  auto latent = std::move(Latent::create({.hidden = 20}, learned.parameters("absorbed"), other, *backend)).value();
  EXPECT_GT(largest_relative_error(SequenceRun(*unlike, *backend, x, 20, {31}).out,
                                   rows_of(SequenceRun(*latent, *backend, x, 20, {31}).out, 20)),
            0.01);
}

// Numbers of the official module, printed to six digits.
struct Worked {
  std::unique_ptr<Backend> backend = make_reference_backend(1);
  GivenWeights weights{*backend};
  LatentEquations shape{4, 2, 0, 4, 2, 2, 2, "layer", 1e-5, true, 1e4, 2, false};

  Worked() {
    weights.give("query", worked_matrix(1, 8, 4));
    weights.give("latent_down", worked_matrix(2, 6, 4));
    weights.give("latent_norm", {1, 1, 1, 1});
    weights.give("latent_norm_bias", {0, 0, 0, 0});
    weights.give("latent_up", worked_matrix(3, 8, 4));
    weights.give("output", worked_matrix(4, 4, 4));
    weights.give("hypernet_fc_c", {0, 1.5f, -2.5f, -1.0f});
    weights.give("hypernet_fc_c_bias", {.3f});
    weights.give("hypernet_fc_p", {.5f, 2.0f, -2.0f, -.5f});
    weights.give("hypernet_fc_p_bias", {-.4f});
  }
};

const std::vector<std::vector<int64_t>> kWorkedChunks = {{5}, {1}, {3, 2}, {2}, {4, 1}, {1, 4}};

TEST(TemporalLatent, TheWorkedExampleComesOut) {
  Worked worked;
  const Matrix wanted = {{-.013660, .029125, -.005524, -.013389},
                         {-.526477, -.012386, -.295122, -.518766},
                         {-.070976, -.151543, -.155249, -.067520},
                         {-.190293, -.219584, -.088827, -.168488},
                         {-.164320, .097593, .056253, -.190632}};
  for (const char* form : {"absorbed", "expanded"}) {
    auto room = make_room(worked.shape, worked.weights, *worked.backend, form);
    for (const std::vector<int64_t>& chunks : kWorkedChunks) {
      EXPECT_LT(largest_relative_error(SequenceRun(*room, *worked.backend, worked_input(), 4, chunks).out, wanted), 2e-6)
          << form << " " << chunks[0];
    }
  }
}

// Closed rows 0 and 1 and the open one, each with the rotary key of its last token.
TEST(TemporalLatent, TheWorkedExampleLeavesTheRowsOfTheOfficialModule) {
  Worked worked;
  auto room = make_room(worked.shape, worked.weights, *worked.backend);
  const Matrix wanted = {{.609698, .273324, -1.604558, .721536, .002877, .235832},
                         {-.640180, .678037, .751522, -.789379, -.084833, -.063665},
                         {1.027165, -1.639860, .450511, .162184, .694907, .192624}};
  for (const std::vector<int64_t>& chunks : kWorkedChunks) {
    const SequenceRun run(*room, *worked.backend, worked_input(), 4, chunks);
    const float* rows = reinterpret_cast<const float*>(run.state[0].region(0).pages[0]);
    EXPECT_EQ(run.state[0].region(0).rows, 3);
    EXPECT_LT(largest_relative_error({rows, rows + 18}, wanted), 1e-6) << chunks[0];
    const float* open = reinterpret_cast<const float*>(run.state[0].region(1).pages[0]);
    EXPECT_LT(largest_relative_error({open, open + 6}, {wanted[2]}), 1e-6) << chunks[0];
  }
}

// What the paper's text and one careless reading of the code would give: they must not.
TEST(TemporalLatent, TheWorkedExamplesWrongWeightsAreNotOurs) {
  Worked worked;
  auto room = make_room(worked.shape, worked.weights, *worked.backend);
  const SequenceRun run(*room, *worked.backend, worked_input(), 4, {5});
  const float* rows = reinterpret_cast<const float*>(run.state[0].region(0).pages[0]);
  const Matrix c = {{1.105702, -1.572900, .545064, -.077866},  {.598574, .350888, -1.713160, .763698},
                    {-1.618471, 1.043014, .539490, .035966},   {.333324, .333324, .999971, -1.666618},
                    {1.030545, -1.645256, .451993, .162718}};
  const auto row_error = [&](const std::vector<double>& w, size_t row) {
    std::vector<double> merged(4);
    for (size_t t = 2 * row; t < std::min<size_t>(5, 2 * row + 2); ++t) {
      for (size_t i = 0; i < 4; ++i) merged[i] += w[t] * c[t][i];
    }
    return largest_relative_error({rows + 6 * row, rows + 6 * row + 4}, {merged});
  };
  const std::vector<double> right = {.037858, .948653, .495294, .484330, .996720};
  const std::vector<double> one_based_chunks = {.414404, .577302, .575058, .732550, .999917};
  const std::vector<double> code_per_token = {.037858, .577302, .575058, .839830, .999392};
  for (const size_t row : {0, 1, 2}) {
    EXPECT_LT(row_error(right, row), 2e-6) << row;
    EXPECT_GT(row_error(one_based_chunks, row), 1e-3) << row;
    EXPECT_GT(row_error(code_per_token, row), 1e-3) << row;
  }
}

TEST(TemporalLatent, TheOpenRowIsRoundedOnceWhenItCloses) {
  Worked worked;
  auto room = make_room(worked.shape, worked.weights, *worked.backend);
  const SequenceRun exact(*room, *worked.backend, worked_input(), 4, {1});
  const SequenceRun rounded(*room, *worked.backend, worked_input(), 4, {1}, DType::kBF16);
  const float* wanted = reinterpret_cast<const float*>(exact.state[0].region(0).pages[0]);
  std::vector<std::byte> row(12);
  for (int64_t i = 0; i < 3; ++i) {
    quantise_row(row.data(), DType::kBF16, wanted + 6 * i, 6);
    const std::byte* found = rounded.state[0].region(0).pages[0] + 12 * i;
    EXPECT_TRUE(std::equal(row.begin(), row.end(), found)) << i;
  }
  const float* open = reinterpret_cast<const float*>(rounded.state[0].region(1).pages[0]);
  EXPECT_TRUE(std::equal(open, open + 6, wanted + 12)) << "the open row has all its bits";
}

TEST(TemporalLatent, CostsFollowTheEquations) {
  auto backend = make_reference_backend(1);
  RandomWeights weights(*backend, {});
  for (const int64_t stride : {2, 3, 4}) {   // the decoder of the paper
    const LatentEquations paper{512, 8, 0, 256, 64, 32, 64, "layer", 1e-5, true, 1e4, stride, false};
    auto room = make_room(paper, weights, *backend);
    const int64_t rows = (1000 + stride - 1) / stride;
    EXPECT_EQ(room->context_flops(1000), 8704 * rows);
    EXPECT_EQ(room->context_bytes_read(1000, {.cache_dtype = DType::kBF16}), 288 * 2 * rows);
    const StateLayout layout = room->state_layout({});
    EXPECT_EQ(state_bytes(layout, 1000), 288 * 2 * rows + 288 * 4) << "and the open row in fp32";
    EXPECT_EQ(layout.rewind, Rewind::kStrideBoundary);
    EXPECT_EQ(layout.stride, stride);
  }
}

TEST(TemporalLatent, WrongSettingsAndTensorsAreNamed) {
  auto backend = make_reference_backend(1);
  const LatentEquations e{20, 3, 0, 12, 7, 6, 5, "layer", 1e-5, true, 1e4, 2, false};
  GivenWeights weights = random_weights(*backend, e);
  const auto refusal = [&](const HyperParameters& p, WeightSource& source) {
    auto room = TemporalLatent::create({.hidden = 20}, p, source, *backend);
    return room.ok() ? "accepted" : room.error().message;
  };
  const auto changed = [&](const char* name, HyperParameters::Value value) {
    HyperParameters p = parameters_of(e);
    p.set(name, std::move(value));
    return refusal(p, weights);
  };
  EXPECT_EQ(refusal(parameters_of(e), weights), "accepted");
  EXPECT_EQ(refusal(e.parameters("absorbed"), weights), "test: attention setting stride is missing");
  EXPECT_THAT(changed("stride", int64_t{0}), HasSubstr("stride is 0"));
  EXPECT_THAT(changed("merge", std::string("mean")), HasSubstr("merge is \"mean\", expected learned or unit"));
  EXPECT_THAT(changed("hyper_dim", int64_t{0}), HasSubstr("hyper_dim is 0"));
  EXPECT_THAT(changed("latent_rank", int64_t{0}), HasSubstr("latent_rank is 0"));
  EXPECT_THAT(changed("latent_rank", int64_t{13}), HasSubstr("hyper_dim is missing, and latent_rank 13 is no multiple of 4"));
  EXPECT_THAT(changed("hyper_dim", int64_t{4}), HasSubstr("hypernet_fc_c: expected 4 rows (hyper_dim) of 12"));
  LatentEquations unit = e;
  unit.unit = true;
  GivenWeights without = random_weights(*backend, unit);
  EXPECT_THAT(refusal(parameters_of(e), without), HasSubstr("hypernet_fc_c is missing"));
}

}  // namespace
}  // namespace quipu
