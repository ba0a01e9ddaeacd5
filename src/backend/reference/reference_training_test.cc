// Every backward of the reference operations against central differences, the linear ones also by the adjoint identity
// <J x, y> = <x, J^T y>.
#include "backend/reference/reference_training.h"

#include <gtest/gtest.h>

#include <cmath>

#include "ops/gradient_check_for_test.h"

namespace quipu {
namespace {

using Values = std::vector<double>;
using Matrix = MatrixView<double>;

Matrix view(Values& values, int64_t rows) { return {values.data(), rows, static_cast<int64_t>(values.size()) / rows}; }

struct Ops : testing::Test {
  std::unique_ptr<TrainingOps<double>> owned = make_reference_training_ops();
  TrainingOps<double>& ops = *owned;
};
using ReferenceTraining = Ops;

TEST_F(ReferenceTraining, MatmulBackwardIsTheGradientOfEveryWeightBiasAndTheInput) {
  constexpr int64_t kRows = 5, kCols = 7, kWide = 3, kNarrow = 4;
  Values x = random_doubles(kRows * kCols, 1), w1 = random_doubles(kWide * kCols, 2), w2 = random_doubles(kNarrow * kCols, 3);
  Values bias = random_doubles(kWide, 4), c1 = random_doubles(kRows * kWide, 5), c2 = random_doubles(kRows * kNarrow, 6);
  Values y1(c1.size()), y2(c2.size());
  const auto loss = [&] {
    const LinearForward<double> outputs[] = {{view(y1, kRows), view(w1, kWide), bias.data()}, {view(y2, kRows), view(w2, kNarrow)}};
    ops.matmul(outputs, view(x, kRows));
    return dot_of(y1, c1) + dot_of(y2, c2);
  };
  Values dx(x.size(), 9.0), dw1(w1.size()), dw2(w2.size()), dbias(bias.size());
  const LinearBackward<double> outputs[] = {{view(c1, kRows), view(w1, kWide), view(dw1, kWide), dbias.data()},
                                            {view(c2, kRows), view(w2, kNarrow), view(dw2, kNarrow)}};
  ops.matmul_backward(view(dx, kRows), outputs, view(x, kRows));
  expect_gradient("x", loss, x, dx);
  expect_gradient("w1", loss, w1, dw1);
  expect_gradient("w2", loss, w2, dw2);
  expect_gradient("bias", loss, bias, dbias);

  // Weight gradients add up; the input's only when asked.
  const Values first = dw1, first_x = dx;
  ops.matmul_backward(view(dx, kRows), outputs, view(x, kRows), Gradient::kAdd);
  for (size_t i = 0; i < first.size(); ++i) EXPECT_NEAR(dw1[i], 2 * first[i], 1e-12);
  for (size_t i = 0; i < first_x.size(); ++i) EXPECT_NEAR(dx[i], 2 * first_x[i], 1e-12);
}

TEST_F(ReferenceTraining, MatmulAndItsBackwardAreAdjoint) {
  Values x = random_doubles(6 * 5, 1), w = random_doubles(4 * 5, 2), y = random_doubles(6 * 4, 3), wx(24), wty(30), dw(20);
  ops.matmul(view(wx, 6), view(x, 6), view(w, 4));
  ops.matmul_backward(view(wty, 6), LinearBackward<double>{view(y, 6), view(w, 4), view(dw, 4)}, view(x, 6));
  EXPECT_NEAR(dot_of(wx, y), dot_of(x, wty), 1e-12);
  EXPECT_NEAR(dot_of(wx, y), dot_of(w, dw), 1e-12);
}

TEST_F(ReferenceTraining, BatchedGemmMultipliesInAllThreeOrders) {
  // [1 2 3; 4 5 6] [1 0; 2 1; 0 3] = [5 11; 14 23]; numbers by hand.
  const Values a{1, 2, 3, 4, 5, 6}, a_t{1, 4, 2, 5, 3, 6}, b{1, 0, 2, 1, 0, 3}, b_t{1, 2, 0, 0, 1, 3};
  const Values expected{5, 11, 14, 23};
  const auto run = [&](GemmKind kind, const Values& left, const Values& right) {
    Values c{1, 1, 1, 1, 1, 1, 1, 1};
    // The same product twice: the second member reads from step 0.
    ops.batched_gemm({.kind = kind, .m = 2, .n = 2, .k = 3, .c = c.data(), .a = left.data(), .b = right.data(), .c_ld = 2,
                      .a_ld = kind == GemmKind::kTN ? 2 : 3, .b_ld = kind == GemmKind::kNT ? 3 : 2, .c_step = 4, .batch = 2,
                      .alpha = 2.0, .beta = 0.5});
    for (size_t i = 0; i < 8; ++i) EXPECT_DOUBLE_EQ(c[i], 2 * expected[i % 4] + 0.5) << static_cast<int>(kind) << " " << i;
  };
  run(GemmKind::kNN, a, b);
  run(GemmKind::kNT, a, b_t);
  run(GemmKind::kTN, a_t, b);
}

TEST_F(ReferenceTraining, EmbedAndGatherAreAdjointToTheirBackwards) {
  Values table = random_doubles(6 * 3, 1), y = random_doubles(5 * 3, 2), out(15), dtable(18);
  const std::vector<int32_t> ids{4, 0, 4, 5, 4};
  ops.embed(view(out, 5), ids, view(table, 6), 1.5);
  ops.embed_backward(view(dtable, 6), ids, view(y, 5), 1.5);
  EXPECT_NEAR(dot_of(out, y), dot_of(table, dtable), 1e-12);
  EXPECT_EQ(out[0], 1.5 * table[12]);

  const std::vector<int32_t> index{3, 1, 5};
  Values gathered(9), back(18), cotangent = random_doubles(9, 3);
  ops.gather_rows(view(gathered, 3), view(table, 6), index);
  ops.scatter_add_rows(view(back, 6), view(cotangent, 3), index);
  EXPECT_NEAR(dot_of(gathered, cotangent), dot_of(table, back), 1e-12);
  const Values factor{2.0, 0.5, -1.0};
  ops.scatter_add_rows(view(back, 6), view(cotangent, 3), index, factor);
  EXPECT_NEAR(back[9], 3 * cotangent[0], 1e-12);
  EXPECT_NEAR(back[15], 0.0, 1e-12);
}

TEST_F(ReferenceTraining, NormBackwardsAreGradients) {
  constexpr int64_t kRows = 4, kCols = 9;
  Values x = random_doubles(kRows * kCols, 1, 2.0), weight = random_doubles(kCols, 2), bias = random_doubles(kCols, 3);
  Values c = random_doubles(kRows * kCols, 4), out(c.size()), scale(kRows), moments(2 * kRows);
  const auto rms = [&] {
    ops.rms_norm(view(out, kRows), scale, view(x, kRows), weight, 1e-2);
    return dot_of(out, c);
  };
  rms();
  Values dx(x.size()), dweight(weight.size()), dbias(bias.size());
  ops.rms_norm_backward(view(dx, kRows), dweight, view(c, kRows), {view(x, kRows), scale, weight});
  expect_gradient("rms x", rms, x, dx);
  expect_gradient("rms weight", rms, weight, dweight);

  const auto layer = [&] {
    ops.layer_norm(view(out, kRows), view(moments, kRows), view(x, kRows), {weight, bias, 1e-2});
    return dot_of(out, c);
  };
  layer();
  std::fill(dweight.begin(), dweight.end(), 0.0);
  Values added(x.size(), 1.0);
  ops.layer_norm_backward(view(added, kRows), {dweight, dbias}, view(c, kRows), {view(x, kRows), moments, weight}, Gradient::kAdd);
  for (size_t i = 0; i < dx.size(); ++i) dx[i] = added[i] - 1.0;
  expect_gradient("layer x", layer, x, dx);
  expect_gradient("layer weight", layer, weight, dweight);
  expect_gradient("layer bias", layer, bias, dbias);
}

TEST_F(ReferenceTraining, RopeBackwardIsTheTransposeInBothLayouts) {
  const std::vector<int64_t> positions{0, 3, 1000};
  const std::vector<float> frequency{1.0f, 0.3f, 0.01f};
  for (const bool interleaved : {false, true}) {
    Values x = random_doubles(3 * 16, 1), y = random_doubles(3 * 16, 2), forward = x, back = y;
    const RopeOptions options{.interleaved = interleaved, .rotary_dim = 6, .magnitude = 1.25f};
    ops.rope(view(forward, 3), 8, positions, frequency, options, Direction::kForward);
    ops.rope(view(back, 3), 8, positions, frequency, options, Direction::kBackward);
    EXPECT_NEAR(dot_of(forward, y), dot_of(x, back), 1e-12) << interleaved;
  }
  // RoFormer's pairs at position 1, theta 1e4 (numbers of the MLA dossier, 1.7).
  Values half{1, 2, 3, 4}, pairs{1, 2, 3, 4};
  const std::vector<float> slow{1.0f, 0.01f};
  const std::vector<int64_t> one{1};
  ops.rope(view(half, 1), 4, one, slow, {.rotary_dim = 4}, Direction::kForward);
  ops.rope(view(pairs, 1), 4, one, slow, {.interleaved = true, .rotary_dim = 4}, Direction::kForward);
  const Values expected_half{-1.9841106, 1.9599007, 2.4623779, 4.0197997}, expected_pairs{-1.1426397, 1.9220756, 2.9598507, 4.0297995};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(half[i], expected_half[i], 1e-6);
    EXPECT_NEAR(pairs[i], expected_pairs[i], 1e-6);
  }
}

TEST_F(ReferenceTraining, GatedActivationBackwardIsAGradient) {
  for (const GateActivation activation : {GateActivation::kSilu, GateActivation::kGeluTanh}) {
    Values gate = random_doubles(20, 1, 2.0), up = random_doubles(20, 2), c = random_doubles(20, 3), out(20), dgate(20), dup(20);
    const auto loss = [&] {
      ops.gated_activation(view(out, 4), view(gate, 4), view(up, 4), activation);
      return dot_of(out, c);
    };
    ops.gated_activation_backward(view(dgate, 4), view(dup, 4), view(c, 4), {view(gate, 4), view(up, 4)}, activation);
    expect_gradient("gate", loss, gate, dgate);
    expect_gradient("up", loss, up, dup);
  }
}

struct AttentionCase {
  const char* name;
  int64_t heads, kv_heads, key_dim, value_dim, window;
  double softcap;
  bool self;
};

// Two sequences and, with `self`, ranges that leave the open chunk of three to the self key.
void check_attention(TrainingOps<double>& ops, const AttentionCase& a) {
  SCOPED_TRACE(a.name);
  constexpr int64_t kRows = 11;
  const std::vector<AttentionSlice> slices{{0, 7, 0, 7}, {7, 4, 7, 4}};
  std::vector<KeyRange> visible;
  for (const AttentionSlice& slice : slices) {
    for (int64_t i = 0; i < slice.queries; ++i) {
      const int64_t end = a.self ? i / 3 * 3 : i + 1;
      visible.push_back({static_cast<int32_t>(a.window > 0 ? std::max<int64_t>(0, end - a.window) : 0), static_cast<int32_t>(end)});
    }
  }
  const AttentionPattern pattern{.slices = slices, .visible = visible, .heads = a.heads, .kv_heads = a.kv_heads, .key_dim = a.key_dim,
                                 .value_dim = a.value_dim, .scale = 0.7, .softcap = a.softcap};
  Values q = random_doubles(kRows * a.heads * a.key_dim, 1), k = random_doubles(kRows * a.kv_heads * a.key_dim, 2);
  Values v = random_doubles(kRows * a.kv_heads * a.value_dim, 3), c = random_doubles(kRows * a.heads * a.value_dim, 4);
  Values self_k = random_doubles(static_cast<int64_t>(k.size()), 5), self_v = random_doubles(static_cast<int64_t>(v.size()), 6);
  Values out(c.size()), lse(kRows * a.heads);
  const auto inputs = [&] {
    AttentionInputs<double> in{view(q, kRows), view(k, kRows), view(v, kRows)};
    if (a.self) {
      in.self_k = view(self_k, kRows);
      in.self_v = view(self_v, kRows);
    }
    return in;
  };
  const auto loss = [&] {
    ops.attention(view(out, kRows), view(lse, kRows), inputs(), pattern);
    return dot_of(out, c);
  };
  loss();
  Values dq(q.size()), dk(k.size(), 5.0), dv(v.size(), 5.0), dself_k(k.size()), dself_v(v.size());
  AttentionGradients<double> gradients{view(dq, kRows), view(dk, kRows), view(dv, kRows)};
  if (a.self) {
    gradients.dself_k = view(dself_k, kRows);
    gradients.dself_v = view(dself_v, kRows);
  }
  ops.attention_backward(gradients, view(c, kRows), inputs(), {view(out, kRows), view(lse, kRows)}, pattern);
  expect_gradient("q", loss, q, dq);
  expect_gradient("k", loss, k, dk);
  expect_gradient("v", loss, v, dv);
  if (!a.self) return;
  expect_gradient("self k", loss, self_k, dself_k);
  expect_gradient("self v", loss, self_v, dself_v);
}

TEST_F(ReferenceTraining, AttentionBackwardIsAGradientForGroupsWindowsCapsAndSelfKeys) {
  check_attention(ops, {"multi head", 2, 2, 4, 4, 0, 0.0, false});
  check_attention(ops, {"grouped, wide values", 4, 2, 3, 5, 0, 0.0, false});
  check_attention(ops, {"multi query, window", 3, 1, 5, 2, 3, 0.0, false});
  check_attention(ops, {"softcap", 2, 1, 4, 3, 0, 1.5, false});
  check_attention(ops, {"self keys", 4, 2, 3, 4, 0, 0.0, true});
}

TEST_F(ReferenceTraining, ARowThatSeesNothingGivesNothing) {
  Values q = random_doubles(6, 1), k = random_doubles(6, 2), v = random_doubles(6, 3), out(6, 1.0), lse(2);
  const std::vector<AttentionSlice> slices{{0, 2, 0, 2}};
  const std::vector<KeyRange> visible{{0, 0}, {0, 1}};
  ops.attention(view(out, 2), view(lse, 2), {view(q, 2), view(k, 2), view(v, 2)},
                {.slices = slices, .visible = visible, .heads = 1, .kv_heads = 1, .key_dim = 3, .value_dim = 3});
  EXPECT_EQ(lse[0], -INFINITY);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(out[i], 0.0);
    EXPECT_DOUBLE_EQ(out[3 + i], v[i]);   // one key: probability 1
  }
}

TEST_F(ReferenceTraining, CrossEntropyBackwardIsAGradientWithWeightsIgnoredRowsZLossAndCap) {
  constexpr int64_t kRows = 5, kCols = 7;
  Values logits = random_doubles(kRows * kCols, 1, 2.0);
  const Values weights{0.5, 1.0, 2.0, 1.5, 0.0};
  const std::vector<int32_t> targets{3, -1, 0, 6, 2};
  const LossOptions options{.backward = true, .z_loss = 0.1, .logit_scale = 0.5, .softcap = 3.0};
  const auto loss = [&] {
    Values copy = logits;
    LossOptions forward = options;
    forward.backward = false;
    const LossSums sums = ops.softmax_cross_entropy(view(copy, kRows), {}, {targets, weights}, forward);
    EXPECT_EQ(copy, logits);
    return sums.weighted + sums.z;
  };
  Values gradient = logits, rows(kRows);
  std::vector<int32_t> predictions(kRows);
  const LossSums sums = ops.softmax_cross_entropy(view(gradient, kRows), {rows, predictions}, {targets, weights}, options);
  expect_gradient("logits", loss, logits, gradient, 35);
  EXPECT_EQ(sums.rows, 4);
  EXPECT_DOUBLE_EQ(sums.weight, 4.0);
  EXPECT_EQ(rows[1], 0.0);
  for (int64_t c = 0; c < kCols; ++c) EXPECT_EQ(gradient[static_cast<size_t>(kCols + c)], 0.0);
}

TEST_F(ReferenceTraining, CrossEntropyOfEqualLogitsIsTheLogarithmOfTheirNumber) {
  Values logits(8, 3.0), rows(1);
  const std::vector<int32_t> target{5};
  ops.softmax_cross_entropy(view(logits, 1), {rows, {}}, {target, {}}, {});
  EXPECT_NEAR(rows[0], std::log(8.0), 1e-14);
  EXPECT_NEAR(logits[5], 1.0 / 8 - 1, 1e-14);
}

TEST_F(ReferenceTraining, AdamWTakesTheStepsOfPyTorch) {
  // torch.optim.AdamW(lr 0.1, betas (0.9, 0.95), eps 1e-8, weight_decay 0.1) on [1, -2] with gradients [0.5, 0.1], [-0.25, 0.3].
  Values w{1.0, -2.0}, m(2), v(2);
  const Values first{0.5, 0.1}, second{-0.25, 0.3};
  ops.adamw(w, {first, m, v}, {.rate = 0.1, .decay = 0.1, .step = 1});
  EXPECT_NEAR(w[0], 0.890000002, 1e-12);
  EXPECT_NEAR(w[1], -2.07999999, 1e-12);
  ops.adamw(w, {second, m, v}, {.rate = 0.1, .decay = 0.1, .step = 2});
  EXPECT_NEAR(w[0], 0.854263057856, 1e-11);
  EXPECT_NEAR(w[1], -2.15006920005, 1e-11);
}

}  // namespace
}  // namespace quipu
