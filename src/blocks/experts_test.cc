// Routing against numbers worked out by hand, and the whole part against plain loops in double.
#include "blocks/experts.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "attention/random_weights.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/reference/reference_backend.h"

namespace quipu {
namespace {

struct Choice {
  std::vector<int32_t> chosen;
  std::vector<float> weight;
};

Choice choose(std::vector<float> logits, const std::vector<float>& correction, const ExpertsSettings& settings) {
  Choice choice;
  choice.chosen.resize(static_cast<size_t>(settings.per_token));
  choice.weight.resize(choice.chosen.size());
  std::vector<float> room(logits.size() + static_cast<size_t>(settings.groups));
  choose_experts(choice.chosen, choice.weight, logits, room, correction, settings);
  return choice;
}

ExpertsSettings six_in_three_groups() {
  ExpertsSettings s;
  s.experts = 6;
  s.per_token = 2;
  s.inner = 4;
  s.groups = 3;
  return s;
}

// Logits whose softmax is 1/15 * (5, 1, 4, 2, 2, 1).
const std::vector<float> kLogits = {std::log(5.0f), 0.0f, std::log(4.0f), std::log(2.0f), std::log(2.0f), 0.0f};

TEST(ChooseExperts, GreedyTakesTheBestOfAllAndKeepsTheirProbabilities) {
  ExpertsSettings s = six_in_three_groups();
  s.groups_kept = 3;
  s.scaling = 1.5;
  const Choice choice = choose(kLogits, {}, s);
  EXPECT_EQ(choice.chosen, (std::vector<int32_t>{0, 2}));
  EXPECT_NEAR(choice.weight[0], 1.5 * 5 / 15, 1e-6);
  EXPECT_NEAR(choice.weight[1], 1.5 * 4 / 15, 1e-6);
}

TEST(ChooseExperts, OneGroupIsKeptByItsBestExpert) {
  ExpertsSettings s = six_in_three_groups();
  s.groups_kept = 1;  // {0, 1} by its 5/15, although {2, 3} holds more
  const Choice choice = choose(kLogits, {}, s);
  EXPECT_EQ(choice.chosen, (std::vector<int32_t>{0, 1}));
  EXPECT_NEAR(choice.weight[1], 1.0 / 15, 1e-6);
}

TEST(ChooseExperts, OrByTheSumOfItsTwoBest) {
  ExpertsSettings s = six_in_three_groups();
  s.groups_kept = 1;
  s.group_top_two = true;
  s.sigmoid = true;
  // Sigmoids: 0.9, 0.1, 0.7, 0.6, 0.2, 0.3: sums of groups 1.0, 1.3, 0.5.
  const auto logit = [](double p) { return static_cast<float>(std::log(p / (1 - p))); };
  const std::vector<float> logits = {logit(0.9), logit(0.1), logit(0.7), logit(0.6), logit(0.2), logit(0.3)};
  const Choice choice = choose(logits, {}, s);
  EXPECT_EQ(choice.chosen, (std::vector<int32_t>{2, 3}));
  EXPECT_NEAR(choice.weight[0], 0.7, 1e-6);
}

TEST(ChooseExperts, TheCorrectionChoosesButDoesNotWeigh) {
  ExpertsSettings s = six_in_three_groups();
  s.groups_kept = 3;
  s.sigmoid = true;
  s.correction = true;
  s.normalise = true;
  s.scaling = 2.5;
  const std::vector<float> logits(6, 0.0f);  // all 0.5
  const Choice choice = choose(logits, {0, 0.1f, -0.2f, 0, 0.3f, 0}, s);
  EXPECT_EQ(choice.chosen, (std::vector<int32_t>{1, 4}));
  EXPECT_NEAR(choice.weight[0], 2.5 * 0.5, 1e-6) << "halves of the sum of the scores, without the correction";
  EXPECT_NEAR(choice.weight[1], 2.5 * 0.5, 1e-6);
}

TEST(ChooseExperts, OfEqualsTheFirstWins) {
  ExpertsSettings s = six_in_three_groups();
  s.groups_kept = 1;
  EXPECT_EQ(choose(std::vector<float>(6, 1.0f), {}, s).chosen, (std::vector<int32_t>{0, 1}));
}

TEST(CheckExperts, EveryNumberThatDoesNotFitIsNamed) {
  const auto refusal = [](auto change) {
    ExpertsSettings s = six_in_three_groups();
    s.groups_kept = 1;
    change(s);
    const auto result = check_experts(s);
    return result.ok() ? std::string("accepted") : result.error().message;
  };
  using S = ExpertsSettings;
  EXPECT_EQ(refusal([](S&) {}), "accepted");
  EXPECT_EQ(refusal([](S& s) { s.groups = 4; }),
            "number of expert groups is 4, expected a divisor of the number of experts 6");
  EXPECT_EQ(refusal([](S& s) { s.groups_kept = 4; }),
            "number of expert groups kept is 4, expected 1 to the number of groups 3");
  EXPECT_EQ(refusal([](S& s) { s.per_token = 3; }),
            "number of experts per token is 3, expected 1 to 2 (the experts of the groups kept)");
  EXPECT_NE(refusal([](S& s) { s.experts = 0; }).find("number of experts is 0"), std::string::npos);
  EXPECT_NE(refusal([](S& s) { s.inner = 0; }).find("width of an expert is 0"), std::string::npos);
  EXPECT_NE(refusal([](S& s) { s.scaling = NAN; }).find("scaling of the experts"), std::string::npos);
}

constexpr int64_t kHidden = 20, kRows = 37;

ExpertsSettings tiny() {
  ExpertsSettings s;
  s.experts = 8;
  s.per_token = 3;
  s.inner = 12;
  s.shared_inner = 7;
  s.groups = 4;
  s.groups_kept = 2;
  s.group_top_two = s.sigmoid = s.correction = s.normalise = true;
  s.scaling = 2.5;
  return s;
}

std::vector<float> input() {
  RandomStream random(3, 4);
  std::vector<float> x(kRows * kHidden);
  for (float& value : x) value = static_cast<float>(random.normal());
  return x;
}

// The rows [begin, begin + count) alone.
std::vector<float> run(Backend& backend, int64_t begin, int64_t count) {
  RandomWeights weights(backend, {});
  auto made = Experts::create(tiny(), kHidden, GateActivation::kSilu, weights, backend);
  EXPECT_TRUE(made.ok());
  std::vector<float> x = input(), out(static_cast<size_t>(count * kHidden));
  Arena scratch;
  EXPECT_TRUE(scratch.reserve(static_cast<size_t>((*made)->scratch_bytes(count))).ok());
  (*made)->forward(backend, {out.data(), count, kHidden}, {x.data() + begin * kHidden, count, kHidden}, scratch);
  return out;
}

// From the equations in the header, all in double.
std::vector<double> expected() {
  auto backend = make_reference_backend(1);
  const RandomWeights weights(*backend, {});
  const ExpertsSettings s = tiny();
  const auto mlp = [&](const std::string& role, int64_t inner, const float* x) {
    const auto gate = weights.matrix_values(role + ".gate", inner, kHidden),
               up = weights.matrix_values(role + ".up", inner, kHidden),
               down = weights.matrix_values(role + ".down", kHidden, inner);
    std::vector<double> y(kHidden);
    for (int64_t i = 0; i < inner; ++i) {
      double g = 0, u = 0;
      for (int64_t c = 0; c < kHidden; ++c) {
        g += double{gate[static_cast<size_t>(i * kHidden + c)]} * x[c];
        u += double{up[static_cast<size_t>(i * kHidden + c)]} * x[c];
      }
      for (int64_t c = 0; c < kHidden; ++c)
        y[static_cast<size_t>(c)] += down[static_cast<size_t>(c * inner + i)] * g / (1 + std::exp(-g)) * u;
    }
    return y;
  };
  const auto router = weights.matrix_values("experts.router", s.experts, kHidden);
  const auto correction = weights.vector_values("experts.correction", s.experts);
  const std::vector<float> x = input();
  std::vector<double> out;
  for (int64_t row = 0; row < kRows; ++row) {
    const float* in = x.data() + row * kHidden;
    std::vector<double> score(8), choice(8);
    for (size_t e = 0; e < 8; ++e) {
      double sum = 0;
      for (size_t c = 0; c < kHidden; ++c) sum += double{router[e * kHidden + c]} * in[c];
      score[e] = 1 / (1 + std::exp(-sum));
      choice[e] = score[e] + correction[e];
    }
    const auto group = [&](size_t g) { return choice[2 * g] + choice[2 * g + 1]; };
    const auto rank = [](auto better, size_t self, size_t count) {  // how many are better
      size_t n = 0;
      for (size_t i = 0; i < count; ++i) n += i != self && better(i, self);
      return n;
    };
    const auto kept = [&](size_t e) {
      return rank([&](size_t a, size_t b) { return group(a) > group(b); }, e / 2, 4) < 2;
    };
    double total = 0;
    std::vector<double> y = mlp("shared_experts", s.shared_inner, in);
    std::vector<size_t> used;
    for (size_t e = 0; e < 8; ++e) {
      if (kept(e) && rank([&](size_t a, size_t b) { return kept(a) && choice[a] > choice[b]; }, e, 8) < 3)
        used.push_back(e);
    }
    for (const size_t e : used) total += score[e];
    for (const size_t e : used) {
      const auto part = mlp("experts." + std::to_string(e), s.inner, in);
      for (size_t c = 0; c < kHidden; ++c) y[c] += 2.5 * score[e] / total * part[c];
    }
    out.insert(out.end(), y.begin(), y.end());
  }
  return out;
}

std::vector<std::unique_ptr<Backend>> backends() {
  std::vector<std::unique_ptr<Backend>> all;
  all.push_back(make_reference_backend(2));
  for (const Isa isa : available_isas()) {
    CpuBackendOptions options;
    options.threads = 2;
    options.isa = isa;
    options.activations = Activations::kExact;
    all.push_back(std::move(make_cpu_backend(options).value()));
  }
  return all;
}

TEST(Experts, FollowTheEquationsOnEveryBackEnd) {
  const std::vector<double> want = expected();
  double largest = 0;
  for (const double value : want) largest = std::max(largest, std::abs(value));
  for (const auto& backend : backends()) {
    const std::vector<float> got = run(*backend, 0, kRows);
    double error = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      const double off = std::abs(got[i] - want[i]);
      error = off <= error ? error : off;
    }
    EXPECT_LE(error / largest, 1e-6) << backend->name();  // sums of at most 20 terms in fp32, three in a row
  }
}

TEST(Experts, ARowDoesNotDependOnTheOthers) {
  for (const auto& backend : backends()) {
    const std::vector<float> together = run(*backend, 0, kRows);
    for (const auto& [begin, count] : {std::pair<int64_t, int64_t>{0, 1}, {5, 1}, {7, 30}, {36, 1}}) {
      const std::vector<float> alone = run(*backend, begin, count);
      EXPECT_EQ(0, std::memcmp(alone.data(), together.data() + begin * kHidden, alone.size() * sizeof(float)))
          << backend->name() << " rows " << begin << "+" << count;
    }
  }
}

}  // namespace
}  // namespace quipu
