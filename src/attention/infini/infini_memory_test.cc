// Worked numbers: queries, keys and values written down, memories, reads and mixtures computed by hand or in exact
// fractions (printed to six digits).
#include <cmath>
#include <string>

#include "attention/infini/layer_for_test.h"
#include "attention/shared/memory_tile.h"
#include "base/random.h"

namespace quipu {
namespace {

using Rows = std::vector<std::vector<float>>;

constexpr int64_t kHidden = 8;  // query 0-1, key 2-3, value 4-5, write strength 6, write gate 7
constexpr float kShut = -200.0f, kOpen = 200.0f;

// A layer of one head of 2 whose projections pick the parts of x, so that a test says what q, k and v are.
struct Bare {
  Bare(const std::string& rule, int64_t segment_tokens, float gate) : parameters("test") {
    parameters.set("heads", int64_t{1});
    parameters.set("kv_heads", int64_t{1});
    parameters.set("head_dim", int64_t{2});
    parameters.set("rope_dim", int64_t{0});
    parameters.set("rule", rule);
    parameters.set("segment_tokens", segment_tokens);
    weights["query"] = picks({0, 1});
    weights["key"] = picks({2, 3});
    weights["value"] = picks({4, 5});
    weights["output"] = std::vector<float>(kHidden * 2);
    weights["output"][0] = weights["output"][3] = 1.0f;  // results in columns 0 and 1
    weights["memory_gate"] = {gate};
    weights["write_strength"] = picks({6});
    weights["write_gate"] = picks({7});
  }
  static std::vector<float> picks(std::vector<int64_t> columns) {
    std::vector<float> matrix(columns.size() * kHidden);
    for (size_t row = 0; row < columns.size(); ++row) matrix[row * kHidden + static_cast<size_t>(columns[row])] = 1.0f;
    return matrix;
  }
  InfiniLayer layer() const { return InfiniLayer(kHidden, parameters, weights); }

  HyperParameters parameters;
  GivenWeights::Map weights;
};

std::vector<float> tokens(const Rows& q, const Rows& k, const Rows& v, const std::vector<float>& strength = {},
                          const std::vector<float>& write = {}) {
  std::vector<float> x(k.size() * kHidden);
  for (size_t t = 0; t < k.size(); ++t) {
    float* row = x.data() + t * kHidden;
    for (size_t c = 0; c < 2; ++c) {
      row[c] = q.empty() ? 0.0f : q[t][c];
      row[2 + c] = k[t][c];
      row[4 + c] = v[t][c];
    }
    row[6] = strength.empty() ? 0.0f : strength[t];
    row[7] = write.empty() ? 0.0f : write[t];
  }
  return x;
}

std::vector<float> results(const std::vector<float>& out) {
  std::vector<float> picked;
  for (size_t row = 0; row < out.size(); row += kHidden) picked.insert(picked.end(), {out[row], out[row + 1]});
  return picked;
}

// What a token with query q reads; it is then part of the sequence.
std::vector<float> read(InfiniLayer& layer, std::vector<float> q) {
  return results(layer.feed(tokens({q}, {{0, 0}}, {{0, 0}})));
}

void expect_near(const std::vector<float>& got, const std::vector<double>& wanted, double tolerance = 1e-6) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(double{got[i]}, wanted[i], tolerance) << "element " << i;
}

const Rows kKeys1 = {{0, 1}, {2, 0}, {1, 1}}, kValues1 = {{1, 0}, {0, 2}, {-1, 1}};
const Rows kQueries2 = {{0, 0}, {1, 0}, {0, 2}}, kKeys2 = {{1, 0}, {0, 0}, {0, 2}},
           kValues2 = {{2, 1}, {0, -1}, {1, 1}};

TEST(InfiniMemory, LinearUpdateAndReadGiveTheWorkedNumbers) {
  InfiniLayer layer = Bare("linear", 3, kOpen).layer();
  const std::vector<float> first = results(layer.feed(tokens(kQueries2, kKeys1, kValues1)));
  expect_near(first, {0, 0, 0, 0, 0, 0});  // an empty memory reads zero
  expect_near(layer.memory(), {-1, 8, 0, 4});
  expect_near(layer.norm(), {6, 5});
  expect_near(results(layer.feed(tokens(kQueries2, kKeys2, kValues2))),
              {-0.090909, 1.090909, -0.117647, 1.176471, -0.047619, 0.952381});
  expect_near(layer.memory(), {4, 10, 5, 7});
  expect_near(layer.norm(), {10, 10});
  expect_near(read(layer, {1, 1}), {0.45, 0.85});
}

TEST(InfiniMemory, NegativeNumbersGoThroughTheExponential) {
  InfiniLayer layer = Bare("linear", 2, kOpen).layer();
  layer.feed(tokens({}, {{-1, 0.5f}, {0.25f, -2}}, {{1, 2}, {3, -1}}));
  expect_near(layer.memory(), {4.117879, -0.514241, 1.906006, 2.864665});
  expect_near(layer.norm(), {1.617879, 1.635335});
  expect_near(read(layer, {-0.5f, 1}), {1.483933, 1.274100});
}

TEST(InfiniMemory, DeltaWritesWhatIsNotYetKnown) {
  InfiniLayer layer = Bare("delta", 3, kOpen).layer();
  layer.feed(tokens({}, kKeys1, kValues1));
  expect_near(layer.memory(), {-1, 8, 0, 4});
  layer.feed(tokens({}, kKeys2, kValues2));
  expect_near(layer.memory(), {4.373822, 5.603769, 5.351413, 1.875477});
  expect_near(layer.norm(), {10, 10});
  expect_near(read(layer, {1, 1}), {0.486262, 0.373962});
}

TEST(InfiniMemory, TheGateMixesMemoryAndLocalAttention) {
  const std::vector<std::pair<float, std::vector<double>>> cases = {
      {kShut, {2, 1, 1.339523, 0.339523, 1, 0.894285}},
      {0.0f, {0.954545, 1.045455, 0.610938, 0.757997, 0.476190, 0.923333}},
      {2.0f, {0.158333, 1.080072, 0.056052, 1.076704, 0.077260, 0.945456}},
      {-2.0f, {1.750758, 1.010837, 1.165824, 0.439290, 0.875121, 0.901210}}};
  for (const auto& [gate, mixed] : cases) {
    InfiniLayer layer = Bare("delta", 3, gate).layer();
    layer.feed(tokens({}, kKeys1, kValues1));
    expect_near(results(layer.feed(tokens(kQueries2, kKeys2, kValues2))), mixed);
  }
}

TEST(InfiniMemory, TheFirstSegmentIsGatedUnlessToldOtherwise) {
  Bare bare("linear", 3, 0.0f);
  const std::vector<double> local = {2, 1, 1.339523, 0.339523, 1, 0.894285};
  std::vector<double> half = local;
  for (double& value : half) value /= 2;
  InfiniLayer gated = bare.layer();
  expect_near(results(gated.feed(tokens(kQueries2, kKeys2, kValues2))), half);
  bare.parameters.set("first_segment", std::string("local"));
  InfiniLayer ungated = bare.layer();
  expect_near(results(ungated.feed(tokens(kQueries2, kKeys2, kValues2))), local);
}

TEST(InfiniMemory, PaperDeltaReadsHalfOfWhatIsRepeated) {
  InfiniLayer layer = Bare("delta", 1, kOpen).layer();
  const std::vector<float> token = tokens({{1, 0}}, {{1, 0}}, {{4, -2}});
  expect_near(results(layer.feed(token)), {0, 0});
  expect_near(layer.memory(), {8, -4, 4, -2});
  expect_near(layer.norm(), {2, 1});
  expect_near(results(layer.feed(token)), {4, -2});
  expect_near(layer.memory(), {8, -4, 4, -2});
  expect_near(layer.norm(), {4, 2});
  for (int segments = 3; segments < 40; ++segments) {
    expect_near(results(layer.feed(token)), {2, -1});
    const double half = segments / 2.0;
    expect_near(layer.memory(), {half * 8, -half * 4, half * 4, -half * 2}, 1e-4);
  }
}

// The features of elu1 cannot be given freely: x + 1 and the length come between. Keys (3/5, 4/5) and (1, 0) as unit
// features come from pre-images ln of them scaled: exp(x) for x <= 0 gives any number in (0, 1], then the length is 1.
TEST(InfiniMemory, TrueDeltaIsSequentialAndEqualsItsTriangularForm) {
  const float nearly_zero = -60.0f;  // exp: 9e-27
  const std::vector<float> k1 = {0.0f, nearly_zero}, k2 = {std::log(0.6f), std::log(0.8f)};
  const std::vector<float> strengths = {kOpen, 0.0f};  // sigmoid: 1 and 1/2
  const auto written = [&](int64_t segment_tokens) {
    InfiniLayer layer = Bare("delta_true", segment_tokens, kOpen).layer();
    layer.feed(tokens({}, {k1, k2}, {{1, 2}, {3, 4}}, strengths));
    return layer;
  };
  // U = A^-1 diag(b) V with A = [[1, 0], [0.3, 1]] is [[1, 2], [1.2, 1.4]]; S = K^T U. A simultaneous update would
  // give [[1.9, 3.2], [1.2, 1.6]].
  for (const int64_t segment_tokens : {1, 2}) {
    InfiniLayer layer = written(segment_tokens);
    expect_near(layer.memory(), {1.72, 2.84, 0.96, 1.12});
    EXPECT_TRUE(layer.norm().empty());
    expect_near(read(layer, k2), {1.8, 2.6});
  }
  InfiniLayer layer = written(2);
  expect_near(read(layer, k1), {1.72, 2.84});
  InfiniLayer one = Bare("delta_true", 1, kOpen).layer();
  one.feed(tokens({}, {k1}, {{1, 2}}, {kOpen}));
  expect_near(one.memory(), {1, 2, 0, 0});
}

TEST(InfiniMemory, AHardGatesZeroLeavesEveryBit) {
  for (const char* rule : {"linear", "delta", "delta_true"}) {
    for (const char* accumulation : {"fp32", "compensated"}) {
      if (rule == std::string("delta_true") && accumulation == std::string("compensated")) continue;
      Bare bare(rule, 3, kOpen);
      bare.parameters.set("write_gate", std::string("hard"));
      bare.parameters.set("accumulation", std::string(accumulation));
      InfiniLayer layer = bare.layer();
      layer.feed(tokens({}, kKeys1, kValues1, {1, 1, 1}, {0.4f, 1, kOpen}));
      const std::vector<float> memory = layer.memory(), norm = layer.norm();
      EXPECT_NE(memory[1], 0.0f);
      // So large that what the delta rule knows of it is no number, nor is zero times that.
      const Rows keys = {{3e38f, 3e38f}, {0, 0}, {3e38f, 2}};
      // 1.2 sigmoid(x) - 0.1 is below zero from x = -2.4 down.
      for (int segment = 0; segment < 50; ++segment) {
        layer.feed(tokens({}, keys, kValues2, {1, 2, 3}, {-2.5f, -3, kShut}));
      }
      EXPECT_EQ(layer.memory(), memory) << rule;
      EXPECT_EQ(layer.norm(), norm) << rule;
    }
  }
}

TEST(InfiniMemory, WriteGatesScaleWhatIsWritten) {
  for (const bool hard : {false, true}) {
    Bare bare("linear", 1, kOpen);
    bare.parameters.set("write_gate", std::string(hard ? "hard" : "soft"));
    InfiniLayer layer = bare.layer();
    layer.feed(tokens({}, {{0, 1}}, {{3, -5}}, {}, {1.0f}));
    const double open = 1 / (1 + std::exp(-1.0)), weight = hard ? 1.2 * open - 0.1 : open;
    expect_near(layer.norm(), {weight, 2 * weight});
    expect_near(layer.memory(), {3 * weight, -5 * weight, 6 * weight, -10 * weight});
  }
}

TEST(InfiniMemory, CompensatedSumsKeepWhatSinglePrecisionLoses) {
  // A first write of 2^24 leaves no room for the ones that follow.
  for (const bool compensated : {false, true}) {
    Bare bare("linear", 1, kOpen);
    bare.parameters.set("accumulation", std::string(compensated ? "compensated" : "fp32"));
    InfiniLayer layer = bare.layer();
    layer.feed(tokens({}, {{0, 0}}, {{16777216.0f, 1}}));
    for (int i = 0; i < 1000; ++i) layer.feed(tokens({}, {{0, 0}}, {{1, 1}}));
    EXPECT_EQ(layer.memory()[0], compensated ? 16777216.0f + 1000 : 16777216.0f);
  }
}

TEST(InfiniMemory, ARoutedLayerCountsSegmentsInOriginalPositions) {
  Bare bare("linear", 4, kOpen);
  InfiniLayer layer = bare.layer();
  // Positions 1 and 2 are in the first segment, whose end the layer never sees; 9 is two segments on.
  layer.feed(tokens({}, {{0, 1}, {2, 0}}, {{1, 0}, {0, 2}}), {1, 2});
  expect_near(layer.memory(), {0, 0, 0, 0});
  expect_near(results(layer.feed(tokens({{1, 1}}, {{1, 1}}, {{-1, 1}}), {9})), {1 * 6.0 / 14, 2 * 8.0 / 14});
  expect_near(layer.memory(), {1, 6, 2, 2});
  layer.feed(tokens({}, {{1, 1}}, {{-1, 1}}), {11});
  expect_near(layer.norm(), {4 + 4.0, 3 + 4.0});  // position 11 ended the segment
}

TEST(InfiniMemory, TilesGiveTheSameBitsOnEveryInstructionSet) {
  RandomStream random(7, 7);
  const auto draw = [&](int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = static_cast<float>(random.normal());
    return values;
  };
  constexpr int64_t kFeatures = 13;
  for (const Isa isa : available_isas()) {
    SCOPED_TRACE(isa_name(isa));
    for (int64_t columns = 1; columns <= kTileColumns; ++columns) {
      for (size_t batch = 0; batch <= kTileBatch; ++batch) {
        const std::vector<float> tile = draw(kFeatures * columns);
        std::vector<std::vector<float>> feature, value;
        std::vector<float> out(kTileBatch * kTileColumns, 9.0f), expected_out = out, written = tile, expected = tile;
        TileRead reads[kTileBatch];
        TileWrite writes[kTileBatch];
        for (size_t n = 0; n < batch; ++n) {
          feature.push_back(draw(kFeatures));
          value.push_back(draw(columns));
        }
        for (size_t n = 0; n < batch; ++n) {
          reads[n] = {feature[n].data(), out.data() + static_cast<int64_t>(n) * columns};
          writes[n] = {feature[n].data(), value[n].data()};
          for (int64_t c = 0; c < columns; ++c) {
            float sum = 0.0f;
            for (int64_t i = 0; i < kFeatures; ++i) {
              const size_t at = static_cast<size_t>(i * columns + c);
              sum += feature[n][static_cast<size_t>(i)] * tile[at];
              expected[at] += feature[n][static_cast<size_t>(i)] * value[n][static_cast<size_t>(c)];
            }
            expected_out[n * static_cast<size_t>(columns) + static_cast<size_t>(c)] = sum;
          }
        }
        tile_read({reads, batch}, tile.data(), kFeatures, columns, isa);
        tile_write(written.data(), {writes, batch}, kFeatures, columns, isa);
        ASSERT_EQ(out, expected_out) << columns << " columns, " << batch;
        ASSERT_EQ(written, expected) << columns << " columns, " << batch;
      }
    }
  }
}

TEST(InfiniMemory, TheWindowHoldsTheNeighbouringSegmentOnly) {
  Bare bare("linear", 4, kShut);
  bare.parameters.set("window", std::string("previous"));
  const std::vector<float> token = tokens({{0, 0}}, {{0, 0}}, {{8, 4}});   // equal scores: the mean of what is seen
  for (const int64_t next : {5, 9}) {
    InfiniLayer layer = bare.layer();
    layer.feed(tokens({{0, 0}}, {{0, 0}}, {{2, 2}}), {1});
    const bool neighbours = next == 5;
    expect_near(results(layer.feed(token, {next})), {neighbours ? 5.0 : 8.0, neighbours ? 3.0 : 4.0});
  }
}

TEST(InfiniMemory, FeatureMapsGiveTheirDefinitions) {
  const float x[] = {2, -1};
  float out[12];
  apply_features(FeatureMap{.feature = Feature::kDpfp, .dim = 2, .nu = 3}, out, x);  // r = [2, 0, 0, 1]
  expect_near({out, out + 12}, {0, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0});
  apply_features(FeatureMap{.feature = Feature::kSiluL2, .dim = 2}, out, x);
  const double a = 2 / (1 + std::exp(-2.0)), b = -1 / (1 + std::exp(1.0)), length = std::sqrt(a * a + b * b);
  expect_near({out, out + 2}, {a / length, b / length});
  apply_features(FeatureMap{.dim = 2, .unit = true}, out, x);
  const double e = std::exp(-1.0), unit = std::sqrt(9 + e * e);
  expect_near({out, out + 2}, {3 / unit, e / unit});
  const float zero[] = {0, 0};
  apply_features(FeatureMap{.feature = Feature::kSiluL2, .dim = 2}, out, zero);
  expect_near({out, out + 2}, {0, 0});
}

}  // namespace
}  // namespace quipu
