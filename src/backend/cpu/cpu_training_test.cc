// The training operations of the CPU against the reference's, on every instruction set of the machine, at sizes around the
// edges of vectors, tiles, panels and blocks.
#include "backend/cpu/cpu_training.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "backend/cpu/amx_emulator_for_test.h"
#include "backend/reference/reference_training.h"
#include "ops/gradient_check_for_test.h"

namespace quipu {
namespace {

using testing::HasSubstr;

// The same numbers for both sides: floats, and their exact doubles.
struct Pair {
  std::vector<float> f;
  std::vector<double> d;
  int64_t rows = 0, cols = 0;
  Pair(int64_t rows_in, int64_t cols_in, uint64_t seed, double deviation = 1.0) : rows(rows_in), cols(cols_in) {
    for (const double value : random_doubles(rows * cols, seed, deviation)) f.push_back(static_cast<float>(value));
    d.assign(f.begin(), f.end());
  }
  MatrixView<float> fv() { return {f.data(), rows, cols}; }
  MatrixView<double> dv() { return {d.data(), rows, cols}; }
};

// Largest difference against the size of the whole result. Sums of n products of fp32 are off by about sqrt(n) epsilon of
// their terms, 6e-8 each; terms are about 1 here, so that a result that cancels is held to a tenth of that.
void expect_close(const std::string& what, std::span<const float> found, std::span<const double> expected, double tolerance = 2e-6) {
  ASSERT_EQ(found.size(), expected.size()) << what;
  double scale = 0.1;
  for (const double value : expected) scale = std::max(scale, std::abs(value));
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_FALSE(std::isnan(found[i])) << what << " " << i;
    ASSERT_NEAR(static_cast<double>(found[i]), expected[i], tolerance * scale) << what << ", element " << i << " of " << found.size();
  }
}
void expect_close(const std::string& what, const Pair& pair, double tolerance = 2e-6) { expect_close(what, pair.f, pair.d, tolerance); }

// One instruction set with fp32 products, beside the reference.
struct Sides {
  explicit Sides(Isa isa, MatmulPrecision precision = MatmulPrecision::kFull, int threads = 2) {
    auto made = make_cpu_training_ops({.threads = threads, .isa = isa, .precision = precision, .isa_is_emulated = true});
    CHECK(made.ok()) << made.error().message;
    cpu = std::move(*made);
  }
  std::unique_ptr<TrainingOps<float>> cpu;
  std::unique_ptr<TrainingOps<double>> reference = make_reference_training_ops();
};

class CpuTraining : public testing::TestWithParam<Isa> {};

TEST_P(CpuTraining, MatmulAndItsBackwardAgreeAtSizesAroundEveryEdge) {
  Sides s(GetParam());
  struct Size {
    int64_t rows, cols, wide, narrow;
  };
  for (const Size size : {Size{1, 1, 1, 1}, {3, 7, 5, 33}, {12, 16, 32, 31}, {13, 255, 64, 17}, {97, 257, 65, 100}, {200, 513, 40, 9}}) {
    const std::string at = " at " + std::to_string(size.rows) + "x" + std::to_string(size.cols);
    Pair x(size.rows, size.cols, 1), w1(size.wide, size.cols, 2), w2(size.narrow, size.cols, 3), bias(1, size.wide, 4);
    Pair y1(size.rows, size.wide, 5), y2(size.rows, size.narrow, 6);
    const LinearForward<float> f[] = {{y1.fv(), w1.fv(), bias.f.data()}, {y2.fv(), w2.fv()}};
    const LinearForward<double> d[] = {{y1.dv(), w1.dv(), bias.d.data()}, {y2.dv(), w2.dv()}};
    s.cpu->matmul(f, x.fv());
    s.reference->matmul(d, x.dv());
    expect_close("y1" + at, y1);
    expect_close("y2" + at, y2);

    Pair dy1(size.rows, size.wide, 7), dy2(size.rows, size.narrow, 8), dx(size.rows, size.cols, 9), dw1(size.wide, size.cols, 10);
    Pair dw2(size.narrow, size.cols, 11), dbias(1, size.wide, 12);
    for (const Gradient gradient : {Gradient::kWrite, Gradient::kAdd}) {
      const LinearBackward<float> fb[] = {{dy1.fv(), w1.fv(), dw1.fv(), dbias.f.data()}, {dy2.fv(), w2.fv(), dw2.fv()}};
      const LinearBackward<double> db[] = {{dy1.dv(), w1.dv(), dw1.dv(), dbias.d.data()}, {dy2.dv(), w2.dv(), dw2.dv()}};
      s.cpu->matmul_backward(dx.fv(), fb, x.fv(), gradient);
      s.reference->matmul_backward(dx.dv(), db, x.dv(), gradient);
      expect_close("dx" + at, dx);
      expect_close("dw1" + at, dw1);
      expect_close("dw2" + at, dw2);
      expect_close("dbias" + at, dbias);
    }
  }
}

TEST_P(CpuTraining, Bfloat16ProductsAreThoseOfRoundedFactors) {
  Sides s(GetParam(), MatmulPrecision::kBfloat16);
  struct Size {
    int64_t rows, cols, wide;
  };
  for (const Size size : {Size{1, 1, 1}, {32, 64, 32}, {50, 300, 40}, {33, 31, 65}, {100, 1030, 17}}) {
    const std::string at = " at " + std::to_string(size.rows) + "x" + std::to_string(size.cols) + "x" + std::to_string(size.wide);
    Pair x(size.rows, size.cols, 1), w(size.wide, size.cols, 2), bias(1, size.wide, 7), y(size.rows, size.wide, 3);
    Pair dx(size.rows, size.cols, 4), dw(size.wide, size.cols, 5), dy(size.rows, size.wide, 6);
    // Where factors are rounded each product is off by 2^-8 at most, random in sign, and is about 1; sums are exact beside that.
    // The largest of a result of n products each is above sqrt(n), so 8e-3 of it holds for any n.
    s.cpu->matmul(y.fv(), x.fv(), w.fv(), bias.f.data());
    s.reference->matmul(y.dv(), x.dv(), w.dv(), bias.d.data());
    expect_close("y" + at, y, 8e-3);
    s.cpu->matmul_backward(dx.fv(), LinearBackward<float>{dy.fv(), w.fv(), dw.fv()}, x.fv(), Gradient::kAdd);
    s.reference->matmul_backward(dx.dv(), LinearBackward<double>{dy.dv(), w.dv(), dw.dv()}, x.dv(), Gradient::kAdd);
    expect_close("dx" + at, dx, 8e-3);
    expect_close("dw" + at, dw, 8e-3);
  }
  // Factors that bfloat16 holds exactly give exact sums: a wrong place would show at once.
  constexpr int64_t kRows = 70, kCols = 90, kWide = 45;
  Pair x(kRows, kCols, 1), w(kWide, kCols, 2), y(kRows, kWide, 3), dx(kRows, kCols, 4), dw(kWide, kCols, 5);
  for (Pair* pair : {&x, &w}) {
    for (size_t i = 0; i < pair->f.size(); ++i) pair->d[i] = pair->f[i] = static_cast<float>(static_cast<int>(i * 37 % 17) - 8);
  }
  s.cpu->matmul(y.fv(), x.fv(), w.fv());
  s.reference->matmul(y.dv(), x.dv(), w.dv());
  expect_close("whole numbers", y, 0.0);
  for (size_t i = 0; i < y.f.size(); ++i) y.d[i] = y.f[i] = static_cast<float>(static_cast<int>(i * 29 % 13) - 6);
  std::fill(dw.f.begin(), dw.f.end(), 1.0f);
  dw.d.assign(dw.f.begin(), dw.f.end());
  s.cpu->matmul_backward(dx.fv(), LinearBackward<float>{y.fv(), w.fv(), dw.fv()}, x.fv());
  s.reference->matmul_backward(dx.dv(), LinearBackward<double>{y.dv(), w.dv(), dw.dv()}, x.dv());
  expect_close("whole dx", dx, 0.0);
  expect_close("whole dw", dw, 0.0);
  x.f[5] = std::numeric_limits<float>::quiet_NaN();
  s.cpu->matmul(y.fv(), x.fv(), w.fv());
  EXPECT_TRUE(std::isnan(y.f[0]));
  EXPECT_FALSE(std::isnan(y.f[kWide]));
}

TEST_P(CpuTraining, BatchedGemmAgreesInAllOrders) {
  Sides s(GetParam());
  constexpr int64_t kM = 14, kN = 35, kK = 300, kBatch = 3;
  for (const GemmKind kind : {GemmKind::kNN, GemmKind::kNT, GemmKind::kTN}) {
    for (const double beta : {0.0, 1.0, 0.5}) {
      Pair a(kBatch, kM * kK, 1), b(kBatch, kN * kK, 2), c(kBatch, kM * kN, 3);
      const auto fill = [&](auto& gemm, auto* cp, const auto* ap, const auto* bp) {
        gemm.kind = kind, gemm.m = kM, gemm.n = kN, gemm.k = kK, gemm.batch = kBatch;
        gemm.c = cp, gemm.a = ap, gemm.b = bp;
        gemm.c_ld = kN, gemm.a_ld = kind == GemmKind::kTN ? kM : kK, gemm.b_ld = kind == GemmKind::kNT ? kK : kN;
        gemm.c_step = kM * kN, gemm.a_step = kM * kK, gemm.b_step = kN * kK;
        gemm.alpha = static_cast<std::remove_reference_t<decltype(gemm.alpha)>>(0.7);
        gemm.beta = static_cast<std::remove_reference_t<decltype(gemm.beta)>>(beta);
      };
      BatchedGemm<float> f;
      BatchedGemm<double> d;
      fill(f, c.f.data(), a.f.data(), b.f.data());
      fill(d, c.d.data(), a.d.data(), b.d.data());
      s.cpu->batched_gemm(f);
      s.reference->batched_gemm(d);
      expect_close("kind " + std::to_string(static_cast<int>(kind)) + " beta " + std::to_string(beta), c);
    }
  }
}

TEST_P(CpuTraining, RowOperationsAgree) {
  Sides s(GetParam());
  for (const int64_t cols : {1, 15, 16, 33, 100}) {
    constexpr int64_t kRows = 300;
    const std::string at = " at " + std::to_string(cols);
    Pair x(kRows, cols, 1, 2.0), weight(1, cols, 2), bias(1, cols, 3), dy(kRows, cols, 4), out(kRows, cols, 5), scale(1, kRows, 6);
    Pair moments(kRows, 2, 7), dx(kRows, cols, 8), dweight(1, cols, 9), dbias(1, cols, 10);
    s.cpu->rms_norm(out.fv(), scale.f, x.fv(), weight.f, 0.01f);
    s.reference->rms_norm(out.dv(), scale.d, x.dv(), weight.d, static_cast<double>(0.01f));
    expect_close("rms" + at, out);
    s.cpu->rms_norm_backward(dx.fv(), dweight.f, dy.fv(), {x.fv(), scale.f, weight.f}, Gradient::kAdd);
    s.reference->rms_norm_backward(dx.dv(), dweight.d, dy.dv(), {x.dv(), scale.d, weight.d}, Gradient::kAdd);
    expect_close("rms dx" + at, dx);
    expect_close("rms dweight" + at, dweight);
    s.cpu->layer_norm(out.fv(), moments.fv(), x.fv(), {weight.f, bias.f, 0.01f});
    s.reference->layer_norm(out.dv(), moments.dv(), x.dv(), {weight.d, bias.d, static_cast<double>(0.01f)});
    expect_close("layer" + at, out);
    s.cpu->layer_norm_backward(dx.fv(), {dweight.f, dbias.f}, dy.fv(), {x.fv(), moments.f, weight.f});
    s.reference->layer_norm_backward(dx.dv(), {dweight.d, dbias.d}, dy.dv(), {x.dv(), moments.d, weight.d});
    expect_close("layer dx" + at, dx, 1e-5);
    expect_close("layer dweight" + at, dweight);
    expect_close("layer dbias" + at, dbias);
    Pair gate(kRows, cols, 11, 3.0), up(kRows, cols, 12);
    for (const GateActivation activation : {GateActivation::kSilu, GateActivation::kGeluTanh}) {
      s.cpu->gated_activation(out.fv(), gate.fv(), up.fv(), activation);
      s.reference->gated_activation(out.dv(), gate.dv(), up.dv(), activation);
      expect_close("gated" + at, out);
      Pair dgate(kRows, cols, 13), dup(kRows, cols, 14);
      s.cpu->gated_activation_backward(dgate.fv(), dup.fv(), dy.fv(), {gate.fv(), up.fv()}, activation);
      s.reference->gated_activation_backward(dgate.dv(), dup.dv(), dy.dv(), {gate.dv(), up.dv()}, activation);
      expect_close("dgate" + at, dgate);
      expect_close("dup" + at, dup);
    }
    s.cpu->add(out.fv(), x.fv(), 0.25f);
    s.reference->add(out.dv(), x.dv(), 0.25);
    expect_close("add" + at, out);
  }
}

// The norm before a part in one piece and the residual connection around it, or neither; and the same by parts.
struct NormRun {
  NormRun(bool there_in, int64_t rows, int64_t hidden)
      : there(there_in), weight(1, hidden, 91, 0.3), dweight(1, hidden, 92), scale(1, rows, 93), normed(rows, hidden, 94), dnormed(rows, hidden, 95) {
    for (size_t i = 0; i < weight.f.size(); ++i) weight.d[i] = weight.f[i] += 1.0f;
  }
  ResidualNorm<float> call() { return there ? ResidualNorm<float>{weight.f, 1e-2f, scale.f, dweight.f} : ResidualNorm<float>{}; }
  // What the part sees, what it is given back, and what follows from it.
  MatrixView<double> before(TrainingOps<double>& reference, Pair& x) {
    if (there) reference.rms_norm(normed.dv(), scale.d, x.dv(), weight.d, 1e-2f);
    return there ? normed.dv() : x.dv();
  }
  void after(TrainingOps<double>& reference, Pair& out, Pair& x) {
    if (there) reference.add(out.dv(), x.dv());
  }
  void backward(TrainingOps<double>& reference, Pair& dx, Pair& dout, Pair& x) {
    if (!there) return;
    dnormed.d = dx.d;
    dx.d = dout.d;
    reference.rms_norm_backward(dx.dv(), dweight.d, dnormed.dv(), {x.dv(), scale.d, weight.d}, Gradient::kAdd);
  }
  bool there;
  Pair weight, dweight, scale, normed, dnormed;
};

// A gated feed-forward part in one piece, and what it needs.
struct GatedRun {
  GatedRun(TrainingOps<float>& ops_in, int64_t rows, int64_t hidden, int64_t inner, GateActivation activation, bool with_norm = false)
      : ops(ops_in), norm(with_norm, rows, hidden), x(rows, hidden, 1), dout(rows, hidden, 2), gate(inner, hidden, 3, 2 / std::sqrt(static_cast<double>(hidden))),
        up(inner, hidden, 4, 1 / std::sqrt(static_cast<double>(hidden))), down(hidden, inner, 5, 1 / std::sqrt(static_cast<double>(inner))),
        out(rows, hidden, 6), dx(rows, hidden, 7), dgate(inner, hidden, 8), dup(inner, hidden, 9), ddown(hidden, inner, 10) {
    const FusedMemory memory = ops.gated_memory({.hidden = hidden, .inner = inner}, rows);
    saved = Buffer::allocate(static_cast<size_t>(memory.saved)).value();
    scratch = Buffer::allocate(static_cast<size_t>(memory.scratch)).value();
    // What is there must not matter.
    std::fill_n(saved.as<uint8_t>(), saved.size(), uint8_t{0xff});
    std::fill_n(scratch.as<uint8_t>(), scratch.size(), uint8_t{0xff});
    call = {gate.fv(), up.fv(), down.fv(), activation, norm.call(), {saved.data(), saved.size()}, {scratch.data(), scratch.size()}};
  }
  void run() {
    ops.gated(out.fv(), x.fv(), call);
    if (norm.there) dx.f = dout.f;
    ops.gated_backward(dx.fv(), {dgate.fv(), dup.fv(), ddown.fv()}, norm.there ? dx.fv() : dout.fv(), x.fv(), call);
  }
  // The same by parts, in double.
  void run_parts(TrainingOps<double>& reference) {
    Pair g(x.rows, gate.rows, 11), u(x.rows, gate.rows, 12), a(x.rows, gate.rows, 13), da(x.rows, gate.rows, 14);
    const LinearForward<double> wide[] = {{g.dv(), gate.dv()}, {u.dv(), up.dv()}};
    const MatrixView<double> seen = norm.before(reference, x);
    reference.matmul(wide, seen);
    reference.gated_activation(a.dv(), g.dv(), u.dv(), call.activation);
    reference.matmul(out.dv(), a.dv(), down.dv());
    norm.after(reference, out, x);
    reference.matmul_backward(da.dv(), LinearBackward<double>{dout.dv(), down.dv(), ddown.dv()}, a.dv());
    reference.gated_activation_backward(g.dv(), u.dv(), da.dv(), {g.dv(), u.dv()}, call.activation);
    const LinearBackward<double> back[] = {{g.dv(), gate.dv(), dgate.dv()}, {u.dv(), up.dv(), dup.dv()}};
    reference.matmul_backward(dx.dv(), back, seen);
    norm.backward(reference, dx, dout, x);
  }
  TrainingOps<float>& ops;
  NormRun norm;
  Pair x, dout, gate, up, down, out, dx, dgate, dup, ddown;
  Buffer saved, scratch;
  GatedCall<float> call;
};

TEST_P(CpuTraining, AGatedPartInOnePieceIsThatOfItsParts) {
  Sides s(GetParam(), MatmulPrecision::kBfloat16);
  ASSERT_EQ(s.cpu->fuses_gated({.hidden = 64, .inner = 96}), GetParam() == Isa::kAmx);
  EXPECT_FALSE(s.cpu->fuses_gated({.hidden = 64, .inner = 96, .bias = true}));
  EXPECT_FALSE(s.cpu->fuses_gated({.hidden = 48, .inner = 96}));
  EXPECT_FALSE(Sides(GetParam()).cpu->fuses_gated({.hidden = 64, .inner = 96})) << "fp32 stays exact";
  if (GetParam() != Isa::kAmx) return;
  struct Size {
    int64_t rows, hidden, inner;
  };
  // Parts of the depth (16 panels), of the rows (8 panels) and of a weight's gradient (8 by 11), and what is left of each; a last
  // panel of inner that is not whole, in a part of its own, too.
  for (const Size size : {Size{1, 32, 32}, {31, 32, 64}, {33, 96, 32}, {64, 64, 544}, {300, 64, 96}, {530, 544, 384}, {40, 32, 7},
                          {300, 128, 344}, {70, 64, 385}, {70, 64, 513}}) {
    for (const GateActivation activation : {GateActivation::kSilu, GateActivation::kGeluTanh}) {
      const std::string at = " at " + std::to_string(size.rows) + "x" + std::to_string(size.hidden) + "x" + std::to_string(size.inner);
      GatedRun run(*s.cpu, size.rows, size.hidden, size.inner, activation, activation == GateActivation::kSilu);
      run.run();
      run.run_parts(*s.reference);
      // Of every product both factors are off by 2^-9 at most, random in sign, and two of them follow one another through a
      // gate whose slope is at most 1.1: the factor of Bfloat16ProductsAreThoseOfRoundedFactors, twice.
      expect_close("out" + at, run.out, 1.6e-2);
      expect_close("dx" + at, run.dx, 1.6e-2);
      expect_close("dgate" + at, run.dgate, 1.6e-2);
      expect_close("dup" + at, run.dup, 1.6e-2);
      expect_close("ddown" + at, run.ddown, 1.6e-2);
      expect_close("dnorm" + at, run.norm.there ? run.norm.dweight : run.x, 1.6e-2);
    }
  }
  // A router plans for the most rows it may let in, and lets in fewer.
  FusedMemory before;
  for (int64_t rows = 1; rows < 2000; rows += 31) {
    const FusedMemory memory = s.cpu->gated_memory({.hidden = 512, .inner = 64}, rows);
    ASSERT_GE(memory.saved, before.saved) << rows;
    ASSERT_GE(memory.scratch, before.scratch) << rows;
    before = memory;
  }
  // Frozen weights are left alone, the others get the same.
  GatedRun all(*s.cpu, 70, 64, 96, GateActivation::kSilu), some(*s.cpu, 70, 64, 96, GateActivation::kSilu);
  all.run();
  const std::vector<float> frozen = some.dup.f;
  s.cpu->gated(some.out.fv(), some.x.fv(), some.call);
  s.cpu->gated_backward(some.dx.fv(), {some.dgate.fv(), {}, some.ddown.fv()}, some.dout.fv(), some.x.fv(), some.call);
  EXPECT_EQ(some.dup.f, frozen);
  EXPECT_EQ(some.dgate.f, all.dgate.f);
  EXPECT_EQ(some.ddown.f, all.ddown.f);
  // Written over is added to zeros, on whole cache lines and not; the norm's is added to in either case.
  for (const int64_t inner : {96, 344}) {
    GatedRun added(*s.cpu, 70, 64, inner, GateActivation::kSilu), written(*s.cpu, 70, 64, inner, GateActivation::kSilu);
    for (Pair* gradient : {&added.dgate, &added.dup, &added.ddown}) std::fill(gradient->f.begin(), gradient->f.end(), 0.0f);
    added.run();
    s.cpu->gated(written.out.fv(), written.x.fv(), written.call);
    s.cpu->gated_backward(written.dx.fv(), {written.dgate.fv(), written.dup.fv(), written.ddown.fv(), Gradient::kWrite}, written.dout.fv(),
                          written.x.fv(), written.call);
    EXPECT_EQ(written.dgate.f, added.dgate.f);
    EXPECT_EQ(written.dup.f, added.dup.f);
    EXPECT_EQ(written.ddown.f, added.ddown.f);
    EXPECT_EQ(written.norm.dweight.f, added.norm.dweight.f);
  }
}

struct SelfAttentionCase {
  const char* name;
  SelfAttentionShape shape;
  std::vector<int64_t> lengths;    // of the sequences
  bool norm;
  int64_t window;
  double softcap;
  RopeOptions rope;
};
// Attention with its projections in one piece, and what it needs.
struct SelfAttentionRun {
  SelfAttentionRun(TrainingOps<float>& ops_in, const SelfAttentionCase& c)
      : ops(ops_in), norm(c.norm, rows_of(c), c.shape.hidden), x(rows_of(c), c.shape.hidden, 1), dout(rows_of(c), c.shape.hidden, 2), query(weight(c.shape.heads * c.shape.key_dim, c.shape.hidden, 3)),
        key(weight(c.shape.kv_heads * c.shape.key_dim, c.shape.hidden, 4)), value(weight(c.shape.kv_heads * c.shape.value_dim, c.shape.hidden, 5)),
        output(weight(c.shape.hidden, c.shape.heads * c.shape.value_dim, 6)), out(x), dx(x), dquery(query), dkey(key), dvalue(value), doutput(output) {
    for (const int64_t length : c.lengths) {
      slices.push_back({offsets.back(), length, offsets.back(), length});
      offsets.push_back(offsets.back() + length);
      for (int64_t i = 0; i < length; ++i) {
        visible.push_back({static_cast<int32_t>(c.window > 0 ? std::max<int64_t>(0, i + 1 - c.window) : 0), static_cast<int32_t>(i + 1)});
        positions.push_back(i * 2 + i % 3);   // a router left some out
      }
    }
    for (int64_t i = 0; i < c.rope.rotary_dim / 2; ++i) frequency.push_back(static_cast<float>(std::pow(100.0, -static_cast<double>(i) / 16)));
    call = {.query = query.fv(), .key = key.fv(), .value = value.fv(), .output = output.fv(),
            .pattern = {.slices = slices, .visible = visible, .heads = c.shape.heads, .kv_heads = c.shape.kv_heads, .key_dim = c.shape.key_dim,
                        .value_dim = c.shape.value_dim, .scale = 1.5 / std::sqrt(static_cast<double>(c.shape.key_dim)), .softcap = c.softcap},
            .positions = positions, .inverse_frequency = frequency, .rope = c.rope, .norm = norm.call(), .saved = {}, .scratch = {}};
    if (!ops.fuses_self_attention(c.shape)) return;
    const FusedMemory memory = ops.self_attention_memory(c.shape, offsets);
    saved = Buffer::allocate(static_cast<size_t>(memory.saved)).value();
    scratch = Buffer::allocate(static_cast<size_t>(memory.scratch)).value();
    // What is there must not matter.
    std::fill_n(saved.as<uint8_t>(), saved.size(), uint8_t{0xff});
    std::fill_n(scratch.as<uint8_t>(), scratch.size(), uint8_t{0xff});
    call.saved = {saved.data(), saved.size()}, call.scratch = {scratch.data(), scratch.size()};
  }
  static int64_t rows_of(const SelfAttentionCase& c) {
    int64_t rows = 0;
    for (const int64_t length : c.lengths) rows += length;
    return rows;
  }
  static Pair weight(int64_t rows, int64_t cols, uint64_t seed) { return Pair(rows, cols, seed, 1 / std::sqrt(static_cast<double>(cols))); }
  void run() {
    ops.self_attention(out.fv(), x.fv(), call);
    std::fill_n(scratch.as<uint8_t>(), scratch.size(), uint8_t{0xff});
    if (norm.there) dx.f = dout.f;
    ops.self_attention_backward(dx.fv(), {dquery.fv(), dkey.fv(), dvalue.fv(), doutput.fv()}, norm.there ? dx.fv() : dout.fv(), x.fv(), call);
  }
  // The same by parts, in double.
  void run_parts(TrainingOps<double>& reference) {
    const AttentionPattern& p = call.pattern;
    Pair q(x.rows, query.rows, 11), k(x.rows, key.rows, 12), v(x.rows, value.rows, 13), attended(x.rows, output.cols, 14), lse(x.rows, p.heads, 15);
    const LinearForward<double> projections[] = {{q.dv(), query.dv()}, {k.dv(), key.dv()}, {v.dv(), value.dv()}};
    const MatrixView<double> seen = norm.before(reference, x);
    reference.matmul(projections, seen);
    reference.rope(q.dv(), p.key_dim, positions, frequency, call.rope, Direction::kForward);
    reference.rope(k.dv(), p.key_dim, positions, frequency, call.rope, Direction::kForward);
    const AttentionInputs<double> in{q.dv(), k.dv(), v.dv()};
    reference.attention(attended.dv(), lse.dv(), in, p);
    reference.matmul(out.dv(), attended.dv(), output.dv());
    norm.after(reference, out, x);
    Pair dattended = attended, dq = q, dk = k, dv = v;
    reference.matmul_backward(dattended.dv(), LinearBackward<double>{dout.dv(), output.dv(), doutput.dv()}, attended.dv());
    reference.attention_backward({dq.dv(), dk.dv(), dv.dv()}, dattended.dv(), in, {attended.dv(), lse.dv()}, p);
    reference.rope(dq.dv(), p.key_dim, positions, frequency, call.rope, Direction::kBackward);
    reference.rope(dk.dv(), p.key_dim, positions, frequency, call.rope, Direction::kBackward);
    const LinearBackward<double> back[] = {{dq.dv(), query.dv(), dquery.dv()}, {dk.dv(), key.dv(), dkey.dv()}, {dv.dv(), value.dv(), dvalue.dv()}};
    reference.matmul_backward(dx.dv(), back, seen);
    norm.backward(reference, dx, dout, x);
  }
  std::vector<Pair*> results() {
    std::vector<Pair*> all{&out, &dx, &dquery, &dkey, &dvalue, &doutput};
    if (norm.there) all.push_back(&norm.dweight);
    return all;
  }
  TrainingOps<float>& ops;
  NormRun norm;
  Pair x, dout, query, key, value, output, out, dx, dquery, dkey, dvalue, doutput;
  std::vector<int64_t> offsets{0}, positions;
  std::vector<AttentionSlice> slices;
  std::vector<KeyRange> visible;
  std::vector<float> frequency;
  Buffer saved, scratch;
  SelfAttentionCall<float> call;
};

TEST_P(CpuTraining, SelfAttentionInOnePieceIsThatOfItsParts) {
  Sides s(GetParam(), MatmulPrecision::kBfloat16);
  const SelfAttentionShape shape{.hidden = 64, .heads = 2, .kv_heads = 2, .key_dim = 32, .value_dim = 32};
  ASSERT_EQ(s.cpu->fuses_self_attention(shape), GetParam() == Isa::kAmx);
  for (const SelfAttentionShape not_this : {SelfAttentionShape{64, 2, 2, 32, 32, false}, {48, 2, 2, 32, 32}, {64, 2, 2, 40, 32}, {64, 2, 2, 32, 8}}) {
    EXPECT_FALSE(s.cpu->fuses_self_attention(not_this));
  }
  EXPECT_FALSE(Sides(GetParam()).cpu->fuses_self_attention(shape)) << "fp32 stays exact";
  if (GetParam() != Isa::kAmx) return;
  // Blocks of 64 rows, groups of 4 of them, depths in parts of at most 16 panels that begin inside a head or a projection, and what is left
  // of each; sequences of no rows, of one panel, of one row.
  const std::vector<int64_t> many{1, 0, 180, 32, 33, 64, 130};
  for (const SelfAttentionCase& c : {SelfAttentionCase{"multi head", shape, many, true, 0, 0.0, {.rotary_dim = 32}},
                                     {"one row", shape, {1}, true, 0, 0.0, {.interleaved = true, .rotary_dim = 16, .magnitude = 1.25f}},
                                     {"grouped, wide values", {96, 6, 2, 32, 96}, many, false, 0, 0.0, {.interleaved = true, .rotary_dim = 32}},
                                     {"multi query, window", {64, 3, 1, 64, 32}, many, true, 37, 0.0, {.rotary_dim = 34}},
                                     {"softcap, no rotation", {32, 2, 1, 96, 64}, {70, 300}, true, 0, 1.5, {}},
                                     {"wide", {544, 9, 9, 64, 64}, {390}, true, 0, 0.0, {.rotary_dim = 64}}}) {
    SCOPED_TRACE(c.name);
    SelfAttentionRun run(*s.cpu, c);
    run.run();
    run.run_parts(*s.reference);
    // Three roundings in a row of relative error 2^-9 at most and random in sign, through a softmax of scores of deviation 1.5:
    // the bounds of Bfloat16AttentionIsThatOfRoundedFactors and of a further product.
    for (const Pair* result : run.results()) expect_close("result of " + std::to_string(result->rows) + " rows", *result, 3e-2);
  }
  // Less memory for less, sequence by sequence.
  const std::vector<int64_t> longer{0, 100, 400}, shorter{0, 64, 300};
  EXPECT_GE(s.cpu->self_attention_memory(shape, longer).saved, s.cpu->self_attention_memory(shape, shorter).saved);
  EXPECT_GE(s.cpu->self_attention_memory(shape, longer).scratch, s.cpu->self_attention_memory(shape, shorter).scratch);
  // Frozen weights are left alone, the others get the same.
  const SelfAttentionCase c{"", shape, {70}, false, 0, 0.0, {.rotary_dim = 32}};
  SelfAttentionRun all(*s.cpu, c), some(*s.cpu, c);
  all.run();
  const std::vector<float> frozen = some.dkey.f;
  s.cpu->self_attention(some.out.fv(), some.x.fv(), some.call);
  s.cpu->self_attention_backward(some.dx.fv(), {some.dquery.fv(), {}, some.dvalue.fv(), some.doutput.fv()}, some.dout.fv(), some.x.fv(), some.call);
  EXPECT_EQ(some.dkey.f, frozen);
  EXPECT_EQ(some.dquery.f, all.dquery.f);
  EXPECT_EQ(some.dvalue.f, all.dvalue.f);
  EXPECT_EQ(some.doutput.f, all.doutput.f);
  // Written over is added to zeros.
  SelfAttentionRun added(*s.cpu, c), written(*s.cpu, c);
  for (Pair* gradient : {&added.dquery, &added.dkey, &added.dvalue, &added.doutput}) std::fill(gradient->f.begin(), gradient->f.end(), 0.0f);
  added.run();
  s.cpu->self_attention(written.out.fv(), written.x.fv(), written.call);
  s.cpu->self_attention_backward(written.dx.fv(), {written.dquery.fv(), written.dkey.fv(), written.dvalue.fv(), written.doutput.fv(), Gradient::kWrite},
                                 written.dout.fv(), written.x.fv(), written.call);
  EXPECT_EQ(written.dquery.f, added.dquery.f);
  EXPECT_EQ(written.dkey.f, added.dkey.f);
  EXPECT_EQ(written.dvalue.f, added.dvalue.f);
  EXPECT_EQ(written.doutput.f, added.doutput.f);
}

TEST_P(CpuTraining, TablesRoutesAndRotationsAgree) {
  Sides s(GetParam());
  Pair table(9, 40, 1), out(200, 40, 2), dtable(9, 40, 3);
  std::vector<int32_t> ids;
  for (int i = 0; i < 200; ++i) ids.push_back(i * i % 9);
  s.cpu->embed(out.fv(), ids, table.fv(), 1.5f);
  s.reference->embed(out.dv(), ids, table.dv(), 1.5);
  expect_close("embed", out);
  s.cpu->embed_backward(dtable.fv(), ids, out.fv(), 1.5f);
  s.reference->embed_backward(dtable.dv(), ids, out.dv(), 1.5);
  expect_close("embed backward", dtable);
  const std::vector<int32_t> index{150, 3, 60};
  Pair few(3, 40, 4), factor(1, 3, 5);
  s.cpu->scatter_add_rows(out.fv(), few.fv(), index, factor.f);
  s.reference->scatter_add_rows(out.dv(), few.dv(), index, factor.d);
  expect_close("scatter", out);
  s.cpu->gather_rows(few.fv(), out.fv(), index);
  s.reference->gather_rows(few.dv(), out.dv(), index);
  expect_close("gather", few);

  std::vector<int64_t> positions;
  for (int64_t i = 0; i < 200; ++i) positions.push_back(i * 7 % 311);
  const std::vector<float> frequency{1.0f, 0.5f, 0.25f, 0.125f, 0.0625f, 0.03f, 0.02f, 0.01f, 0.005f, 1.1f, 0.7f, 0.3f, 0.2f, 0.1f, 0.05f, 0.04f, 0.9f};
  for (const bool interleaved : {false, true}) {
    for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
      const RopeOptions options{.interleaved = interleaved, .rotary_dim = 34, .magnitude = 1.25f};
      s.cpu->rope(out.fv(), 40, positions, frequency, options, direction);
      s.reference->rope(out.dv(), 40, positions, frequency, options, direction);
      expect_close("rope", out);
    }
  }
}

struct AttentionCase {
  const char* name;
  int64_t heads, kv_heads, key_dim, value_dim, window;
  double softcap;
  int64_t stride;   // 0: no self keys; else chunks whose end the keys of later ones see
};

// out_tolerance: of results; gradient_tolerance: of gradients; of the largest.
void expect_attention_agrees(Sides& s, double out_tolerance, double gradient_tolerance) {
  for (const AttentionCase a : {AttentionCase{"multi head", 2, 2, 16, 16, 0, 0.0, 0}, {"grouped, wide values", 4, 2, 33, 70, 0, 0.0, 0},
                                {"multi query, window", 3, 1, 80, 8, 37, 0.0, 0}, {"softcap", 2, 1, 20, 12, 0, 1.5, 0},
                                {"self keys", 4, 2, 24, 40, 0, 0.0, 3}, {"deep keys", 1, 1, 300, 5, 100, 0.0, 0},
                                {"whole blocks", 1, 1, 64, 32, 0, 0.0, 0}}) {
    SCOPED_TRACE(a.name);
    constexpr int64_t kRows = 300;
    const std::vector<AttentionSlice> slices{{0, 1, 0, 1}, {1, 0, 1, 0}, {1, 180, 1, 180}, {181, 119, 181, 119}};
    std::vector<KeyRange> visible;
    for (const AttentionSlice& slice : slices) {
      for (int64_t i = 0; i < slice.queries; ++i) {
        const int64_t end = a.stride > 0 ? i / a.stride * a.stride : i + 1;
        visible.push_back({static_cast<int32_t>(a.window > 0 ? std::max<int64_t>(0, end - a.window) : 0), static_cast<int32_t>(end)});
      }
    }
    const AttentionPattern pattern{.slices = slices, .visible = visible, .heads = a.heads, .kv_heads = a.kv_heads, .key_dim = a.key_dim,
                                   .value_dim = a.value_dim, .scale = 1.5 / std::sqrt(static_cast<double>(a.key_dim)), .softcap = a.softcap};
    const int64_t keys = a.kv_heads * a.key_dim, values = a.kv_heads * a.value_dim;
    Pair q(kRows, a.heads * a.key_dim, 1), k(kRows, keys, 2), v(kRows, values, 3), self_k(kRows, keys, 4), self_v(kRows, values, 5);
    Pair out(kRows, a.heads * a.value_dim, 6), lse(kRows, a.heads, 7), dout(kRows, a.heads * a.value_dim, 8);
    Pair dq = q, dk = k, dv = v, dself_k = self_k, dself_v = self_v;
    AttentionInputs<float> f{q.fv(), k.fv(), v.fv()};
    AttentionInputs<double> d{q.dv(), k.dv(), v.dv()};
    AttentionGradients<float> fg{dq.fv(), dk.fv(), dv.fv()};
    AttentionGradients<double> dg{dq.dv(), dk.dv(), dv.dv()};
    if (a.stride > 0) {
      f.self_k = self_k.fv(), f.self_v = self_v.fv(), d.self_k = self_k.dv(), d.self_v = self_v.dv();
      fg.dself_k = dself_k.fv(), fg.dself_v = dself_v.fv(), dg.dself_k = dself_k.dv(), dg.dself_v = dself_v.dv();
    }
    s.cpu->attention(out.fv(), lse.fv(), f, pattern);
    s.reference->attention(out.dv(), lse.dv(), d, pattern);
    expect_close("out", out, out_tolerance);
    expect_close("log_sum_exp", lse, out_tolerance);
    s.cpu->attention_backward(fg, dout.fv(), f, {out.fv(), lse.fv()}, pattern);
    s.reference->attention_backward(dg, dout.dv(), d, {out.dv(), lse.dv()}, pattern);
    expect_close("dq", dq, gradient_tolerance);
    expect_close("dk", dk, gradient_tolerance);
    expect_close("dv", dv, gradient_tolerance);
    if (a.stride == 0) continue;
    expect_close("dself_k", dself_k, gradient_tolerance);
    expect_close("dself_v", dself_v, gradient_tolerance);
  }
}

TEST_P(CpuTraining, AttentionAgreesForEveryShapeAndPattern) {
  Sides s(GetParam());
  expect_attention_agrees(s, 2e-6, 5e-6);
}

// Scores of deviation 1.5 are sums of products whose factors are off by 2^-9 at most, random in sign: off by 1.5 * 2^-9 and
// a few times that at worst, as are the relative errors of probabilities; these are rounded once more, as are gradients.
TEST_P(CpuTraining, Bfloat16AttentionIsThatOfRoundedFactors) {
  Sides s(GetParam(), MatmulPrecision::kBfloat16);
  expect_attention_agrees(s, 1e-2, 2e-2);
}

TEST_P(CpuTraining, ANaNInQueriesOrLogitsReachesTheResult) {
  for (const MatmulPrecision precision : {MatmulPrecision::kFull, MatmulPrecision::kBfloat16}) {
    Sides s(GetParam(), precision);
    Pair q(70, 16, 1), k(70, 16, 2), v(70, 16, 3), out(70, 16, 4), lse(70, 1, 5);
    q.f[5 * 16 + 3] = std::numeric_limits<float>::quiet_NaN();
    const AttentionSlice slice{0, 70, 0, 70};
    std::vector<KeyRange> visible;
    for (int32_t i = 0; i < 70; ++i) visible.push_back({0, i + 1});
    s.cpu->attention(out.fv(), lse.fv(), {q.fv(), k.fv(), v.fv()},
                     {.slices = {&slice, 1}, .visible = visible, .heads = 1, .kv_heads = 1, .key_dim = 16, .value_dim = 16});
    EXPECT_TRUE(std::isnan(out.f[5 * 16]));
    EXPECT_FALSE(std::isnan(out.f[4 * 16]));
    EXPECT_FALSE(std::isnan(out.f[6 * 16]));
    Pair logits(1, 40, 6);
    logits.f[7] = std::numeric_limits<float>::quiet_NaN();
    const std::vector<int32_t> target{20};
    EXPECT_TRUE(std::isnan(s.cpu->softmax_cross_entropy(logits.fv(), {}, {target, {}}, {}).weighted));
  }
}

TEST_P(CpuTraining, CrossEntropyAgrees) {
  Sides s(GetParam());
  for (const int64_t cols : {1, 16, 37, 200}) {
    for (const double softcap : {0.0, 4.0}) {
      constexpr int64_t kRows = 130;
      Pair logits(kRows, cols, 1, 3.0), weights(1, kRows, 2), losses(1, kRows, 3);
      std::vector<int32_t> targets, found(kRows), expected(kRows);
      for (int64_t i = 0; i < kRows; ++i) targets.push_back(i % 7 == 3 ? -1 : static_cast<int32_t>(i * 31 % cols));
      const LossOptions options{.backward = true, .z_loss = 0.02, .logit_scale = 0.5, .softcap = softcap};
      const LossSums f = s.cpu->softmax_cross_entropy(logits.fv(), {losses.f, found}, {targets, weights.f}, options);
      const LossSums d = s.reference->softmax_cross_entropy(logits.dv(), {losses.d, expected}, {targets, weights.d}, options);
      expect_close("gradient", logits, 4e-6);
      expect_close("losses", losses, 4e-6);
      EXPECT_EQ(found, expected);
      EXPECT_NEAR(f.weighted, d.weighted, 1e-4);
      EXPECT_NEAR(f.z, d.z, 1e-4);
      EXPECT_DOUBLE_EQ(f.weight, d.weight);
      EXPECT_EQ(f.rows, d.rows);
      EXPECT_EQ(f.correct, d.correct);
    }
  }
}

TEST_P(CpuTraining, TheOutputsLossInOnePieceIsThatOfItsParts) {
  Sides s(GetParam(), MatmulPrecision::kBfloat16);
  ASSERT_EQ(s.cpu->fuses_output_loss({.hidden = 64, .vocabulary = 96}), GetParam() == Isa::kAmx);
  for (const OutputLossShape not_this : {OutputLossShape{48, 96}, {64, 100}, {64, 96, 1.0, 30.0}, {64, 96, -1.0}}) {
    EXPECT_FALSE(s.cpu->fuses_output_loss(not_this));
  }
  EXPECT_FALSE(Sides(GetParam()).cpu->fuses_output_loss({.hidden = 64, .vocabulary = 96})) << "fp32 stays exact";
  if (GetParam() != Isa::kAmx) return;
  struct Size {
    int64_t rows, hidden, vocabulary;
    bool whole;                    // numbers, which have many equal logits
  };
  // Blocks of 8 panels of rows, depths of 16, tasks of 8 by 16 panels of the gradient, and what is left of each.
  for (const Size size : {Size{1, 32, 32, false}, {31, 64, 96, true}, {33, 96, 544, false}, {300, 544, 64, false}, {530, 64, 576, true}}) {
    SCOPED_TRACE(std::to_string(size.rows) + "x" + std::to_string(size.hidden) + "x" + std::to_string(size.vocabulary));
    Pair x(size.rows, size.hidden, 1), w(size.vocabulary, size.hidden, 2), dw(size.vocabulary, size.hidden, 3), dx(size.rows, size.hidden, 4);
    Pair weights(1, size.rows, 5), losses(1, size.rows, 6), logits(size.rows, size.vocabulary, 7);
    for (Pair* pair : {&x, &w}) {
      for (size_t i = 0; i < pair->f.size() && size.whole; ++i) pair->d[i] = pair->f[i] = static_cast<float>(static_cast<int>(i * 37 % 11 % 5) - 2);
    }
    std::vector<int32_t> targets, found(static_cast<size_t>(size.rows)), expected(found);
    for (int64_t i = 0; i < size.rows; ++i) targets.push_back(i % 7 == 3 ? -1 : static_cast<int32_t>(i * 31 % size.vocabulary));
    const LossOptions options{.backward = true, .z_loss = 0.02, .logit_scale = size.whole ? 0.05 : 0.4};
    const OutputLossShape shape{size.hidden, size.vocabulary, options.logit_scale, 0.0};
    const Buffer scratch = Buffer::allocate(static_cast<size_t>(s.cpu->output_loss_bytes(shape, size.rows, true))).value();
    std::fill_n(scratch.as<uint8_t>(), scratch.size(), uint8_t{0xff});
    const OutputLossCall<float> call{w.fv(), dx.fv(), dw.fv(), Gradient::kAdd, {scratch.data(), scratch.size()}};
    const LossSums f = s.cpu->output_loss(call, {losses.f, found}, x.fv(), {targets, weights.f}, options);
    s.reference->matmul(logits.dv(), x.dv(), w.dv());
    const LossSums d = s.reference->softmax_cross_entropy(logits.dv(), {losses.d, expected}, {targets, weights.d}, options);
    s.reference->matmul_backward(dx.dv(), LinearBackward<double>{logits.dv(), w.dv(), dw.dv()}, x.dv());
    // Logits of factors off by 2^-9 each, the gradient rounded once more, another factor: the bound of two products in a row.
    expect_close("dx", dx, 1.6e-2);
    expect_close("dw", dw, 1.6e-2);
    expect_close("losses", losses, 1.6e-2);
    if (size.whole) {   // exact logits
      EXPECT_EQ(found, expected);
      EXPECT_EQ(f.correct, d.correct);
      expect_close("losses", losses, 4e-6);
    }
    EXPECT_NEAR(f.weighted, d.weighted, 1.6e-2 * static_cast<double>(size.rows));
    EXPECT_NEAR(f.z, d.z, 1.6e-2 * static_cast<double>(size.rows));
    EXPECT_DOUBLE_EQ(f.weight, d.weight);
    EXPECT_EQ(f.rows, d.rows);
    // The same by parts with the same roundings: a gradient may fall on the other side of one, 2^-8 of one product.
    Pair part_logits(size.rows, size.vocabulary, 8), part_dx = dx, part_dw(size.vocabulary, size.hidden, 3);
    s.cpu->matmul(part_logits.fv(), x.fv(), w.fv());
    s.cpu->softmax_cross_entropy(part_logits.fv(), {}, {targets, weights.f}, options);
    s.cpu->matmul_backward(part_dx.fv(), LinearBackward<float>{part_logits.fv(), w.fv(), part_dw.fv()}, x.fv());
    for (Pair* part : {&part_dx, &part_dw}) part->d.assign((part == &part_dx ? dx : dw).f.begin(), (part == &part_dx ? dx : dw).f.end());
    expect_close("dx by parts", part_dx, 1e-3);
    expect_close("dw by parts", part_dw, 1e-3);
    // Without backward the same losses, and nothing else is touched.
    LossOptions forward = options;
    forward.backward = false;
    const std::vector<float> before = losses.f;
    const int64_t less = s.cpu->output_loss_bytes(shape, size.rows, false);
    ASSERT_LE(less, static_cast<int64_t>(scratch.size()));
    EXPECT_EQ(s.cpu->output_loss({w.fv(), {}, {}, {}, {scratch.data(), static_cast<size_t>(less)}}, {losses.f, found}, x.fv(), {targets, weights.f}, forward).weighted,
              f.weighted);
    EXPECT_EQ(losses.f, before);
    // Written over is added to zeros.
    Pair added = dw, written = dw;
    std::fill(added.f.begin(), added.f.end(), 0.0f);
    s.cpu->output_loss({w.fv(), dx.fv(), added.fv(), Gradient::kAdd, call.scratch}, {}, x.fv(), {targets, weights.f}, options);
    s.cpu->output_loss({w.fv(), dx.fv(), written.fv(), Gradient::kWrite, call.scratch}, {}, x.fv(), {targets, weights.f}, options);
    EXPECT_EQ(written.f, added.f);
    // A frozen weight, from which only dx comes.
    const std::vector<float> dx_before = dx.f;
    std::fill(dx.f.begin(), dx.f.end(), 0.0f);
    s.cpu->output_loss({w.fv(), dx.fv(), {}, {}, call.scratch}, {}, x.fv(), {targets, weights.f}, options);
    EXPECT_EQ(dx.f, dx_before);
  }
  Pair x(40, 32, 1), w(64, 32, 2), dx(40, 32, 3);
  x.f[33] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<int32_t> targets(40, 5);
  const Buffer scratch = Buffer::allocate(static_cast<size_t>(s.cpu->output_loss_bytes({32, 64}, 40, true))).value();
  EXPECT_TRUE(std::isnan(s.cpu->output_loss({w.fv(), dx.fv(), {}, {}, {scratch.data(), scratch.size()}}, {}, x.fv(), {targets, {}}, {}).weighted));
  EXPECT_TRUE(std::isnan(dx.f[32]));
  EXPECT_FALSE(std::isnan(dx.f[0]));
}

TEST_P(CpuTraining, AdamWAndTheNormAgree) {
  Sides s(GetParam());
  constexpr int64_t kCount = 40001;
  Pair w(1, kCount, 1), g(1, kCount, 2), m(1, kCount, 3), v(1, kCount, 4);
  std::fill(m.f.begin(), m.f.end(), 0.0f);
  std::fill(v.f.begin(), v.f.end(), 0.0f);
  m.d.assign(m.f.begin(), m.f.end());
  v.d.assign(v.f.begin(), v.f.end());
  EXPECT_NEAR(s.cpu->squared_norm(g.f), s.reference->squared_norm(g.d), 1e-6 * static_cast<double>(kCount));
  for (int64_t step = 1; step <= 3; ++step) {
    const AdamSettings settings{.rate = 0.01, .decay = 0.1, .gradient_scale = 0.5, .step = step};
    s.cpu->adamw(w.f, {g.f, m.f, v.f}, settings);
    s.reference->adamw(w.d, {g.d, m.d, v.d}, settings);
  }
  expect_close("weights", w);
  expect_close("first moment", m);
  expect_close("second moment", v);
}

TEST_P(CpuTraining, NoResultDependsOnTheNumberOfThreads) {
  Pair x(700, 300, 1), w(90, 300, 2), dy(700, 90, 3), q(700, 32, 4), k(700, 16, 5), v(700, 16, 6);
  const std::vector<AttentionSlice> slices{{0, 300, 0, 300}, {300, 400, 300, 400}};
  std::vector<KeyRange> visible;
  for (const AttentionSlice& slice : slices) {
    for (int32_t i = 0; i < slice.queries; ++i) visible.push_back({0, i + 1});
  }
  for (const MatmulPrecision precision : {MatmulPrecision::kFull, MatmulPrecision::kBfloat16}) {
    std::vector<std::vector<float>> expected;
    for (const int threads : {1, 2, 3}) {
      Sides s(GetParam(), precision, threads);
      std::vector<std::vector<float>> results(14);
      const auto result = [&](size_t i, int64_t rows, int64_t cols) {
        results[i].assign(static_cast<size_t>(rows * cols), 0.0f);
        return MatrixView<float>(results[i].data(), rows, cols);
      };
      results[1].assign(90, 0.0f);
      s.cpu->matmul_backward(result(0, 700, 300), LinearBackward<float>{dy.fv(), w.fv(), result(2, 90, 300), results[1].data()}, x.fv());
      const AttentionPattern pattern{.slices = slices, .visible = visible, .heads = 2, .kv_heads = 1, .key_dim = 16, .value_dim = 16};
      const MatrixView<float> out = result(3, 700, 32), lse = result(4, 700, 2);
      s.cpu->attention(out, lse, {q.fv(), k.fv(), v.fv()}, pattern);
      s.cpu->attention_backward({result(5, 700, 32), result(6, 700, 16), result(7, 700, 16)}, out, {q.fv(), k.fv(), v.fv()}, {out, lse}, pattern);
      if (s.cpu->fuses_gated({.hidden = 64, .inner = 416})) {
        GatedRun gated(*s.cpu, 700, 64, 416, GateActivation::kSilu, true);
        gated.run();
        size_t at = 8;
        for (const Pair* pair : {&gated.out, &gated.dx, &gated.dgate, &gated.dup, &gated.ddown, &gated.norm.dweight}) results[at++] = pair->f;
      }
      if (const SelfAttentionShape shape{64, 4, 2, 32, 64}; s.cpu->fuses_self_attention(shape)) {
        SelfAttentionRun run(*s.cpu, {"", shape, {300, 400}, true, 0, 0.0, {.rotary_dim = 32}});
        run.run();
        for (const Pair* pair : run.results()) results.push_back(pair->f);
      }
      if (expected.empty()) expected = results;
      EXPECT_EQ(results, expected) << threads;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, CpuTraining, testing::ValuesIn(isas_under_test()),
                         [](const auto& test) { return std::string(isa_name(test.param)); });

TEST(CpuTrainingOps, AMachineWithoutTheInstructionsSaysSo) {
  if (best_isa() == Isa::kAmx) GTEST_SKIP() << "this machine has every instruction set";
  const auto ops = make_cpu_training_ops({.isa = Isa::kAmx});
  ASSERT_FALSE(ops.ok());
  EXPECT_THAT(ops.error().message, HasSubstr("this machine cannot run amx kernels"));
}

}  // namespace
}  // namespace quipu
