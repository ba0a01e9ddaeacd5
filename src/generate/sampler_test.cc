#include "generate/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "generate/stop_text.h"

namespace quipu {
namespace {

SamplingOptions plain() {   // nothing but the softmax
  SamplingOptions options;
  options.temperature = 1;
  options.top_k = 0;
  options.top_p = 1;
  options.min_p = 0;
  return options;
}

int32_t drawn(const SamplingOptions& options, const std::vector<float>& logits, int64_t position,
              const std::vector<int32_t>& recent = {}) {
  Sampler sampler(options, static_cast<int64_t>(logits.size()));
  auto id = sampler.sample(logits, recent, position);
  EXPECT_TRUE(id.ok()) << (id.ok() ? "" : id.error().message);
  return id.ok() ? *id : -1;
}

std::vector<int64_t> counts(const SamplingOptions& options, const std::vector<float>& logits, int64_t draws) {
  std::vector<int64_t> result(logits.size(), 0);
  Sampler sampler(options, static_cast<int64_t>(logits.size()));
  for (int64_t position = 0; position < draws; ++position) ++result[static_cast<size_t>(*sampler.sample(logits, {}, position))];
  return result;
}

// Pearson's statistic of counts against probabilities; every probability must be above 0.
double chi_square(const std::vector<int64_t>& seen, const std::vector<double>& probability) {
  int64_t total = 0;
  for (const int64_t n : seen) total += n;
  double sum = 0;
  for (size_t i = 0; i < seen.size(); ++i) {
    if (probability[i] == 0) {
      EXPECT_EQ(seen[i], 0) << i;
      continue;
    }
    const double expected = probability[i] * static_cast<double>(total);
    sum += (static_cast<double>(seen[i]) - expected) * (static_cast<double>(seen[i]) - expected) / expected;
  }
  return sum;
}

std::vector<double> softmax(const std::vector<double>& logits, double temperature) {
  std::vector<double> p;
  double total = 0;
  for (const double l : logits) total += p.emplace_back(std::exp(l / temperature));
  for (double& v : p) v /= total;
  return p;
}

const std::vector<float> kLogits = {0.5f, 2.0f, -1.0f, 1.0f, 0.0f, 1.5f};
const std::vector<double> kWide = {0.5, 2.0, -1.0, 1.0, 0.0, 1.5};

TEST(Sampler, DrawsFollowTheSoftmaxAtAnyTemperature) {
  for (const double temperature : {0.5, 1.0, 2.0}) {
    SamplingOptions options = plain();
    options.temperature = temperature;
    options.seed = 42;
    // 5 degrees of freedom: 20.5 is passed by one stream in a thousand.
    EXPECT_LT(chi_square(counts(options, kLogits, 20000), softmax(kWide, temperature)), 20.5) << temperature;
  }
}

TEST(Sampler, TopKTopPAndMinPKeepTheLikeliestAndTheirProportions) {
  const std::vector<double> p = softmax(kWide, 1);   // order: 1, 5, 3, 0, 4, 2; p(1) = 0.43, p(5) = 0.26, p(3) = 0.16
  const double top3 = p[1] + p[5] + p[3];
  const std::vector<double> expected = {0, p[1] / top3, 0, p[3] / top3, 0, p[5] / top3};
  SamplingOptions k = plain(), mass = plain(), least = plain();
  k.top_k = 3;
  mass.top_p = 0.8;      // 0.43 + 0.26 < 0.8 <= 0.43 + 0.26 + 0.16
  least.min_p = 0.3;     // exp(1 - 2) = 0.37 stays, exp(0.5 - 2) = 0.22 goes
  for (const SamplingOptions& options : {k, mass, least}) {
    EXPECT_LT(chi_square(counts(options, kLogits, 20000), expected), 13.8);   // 2 degrees, one in a thousand
  }
}

TEST(Sampler, TopPOverALongTailEqualsTopPOverASortedList) {
  std::vector<float> logits(5000);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = -0.002f * static_cast<float>((i * 2657) % 5000);
  SamplingOptions options = plain();
  options.top_p = 0.5;
  // Ranks are exponential with mean 500: half the mass lies in the first 347 of the order.
  double total = 0, mass = 0;
  for (int r = 0; r < 5000; ++r) total += std::exp(-0.002 * r);
  int64_t kept = 0;
  while (mass < 0.5 * total) mass += std::exp(-0.002 * static_cast<double>(kept++));
  int64_t highest = 0;
  for (int64_t position = 0; position < 4000; ++position) {
    const int64_t rank = (drawn(options, logits, position) * int64_t{2657}) % 5000;
    highest = std::max(highest, rank);
    ASSERT_LT(rank, kept);
  }
  EXPECT_GT(highest, kept - 20);
}

TEST(Sampler, GreedyTakesTheLowestIdOfEqualLogits) {
  SamplingOptions options = plain();
  options.temperature = 0;
  EXPECT_EQ(drawn(options, {1, 3, 3, 2}, 0), 1);
  EXPECT_EQ(drawn(options, {-INFINITY, -5, -INFINITY}, 9), 1);
}

TEST(Sampler, ADrawDependsOnSeedAndPositionOnly) {
  SamplingOptions options = plain();
  options.seed = 7;
  Sampler sampler(options, 6);
  std::vector<int32_t> forward, backward(50);
  for (int64_t i = 0; i < 50; ++i) forward.push_back(*sampler.sample(kLogits, {}, i));
  for (int64_t i = 49; i >= 0; --i) backward[static_cast<size_t>(i)] = *sampler.sample(kLogits, {}, i);
  EXPECT_EQ(forward, backward);
  options.seed = 8;
  std::vector<int32_t> other;
  for (int64_t i = 0; i < 50; ++i) other.push_back(drawn(options, kLogits, i));
  EXPECT_NE(forward, other);
}

TEST(Sampler, RepeatPenaltyCountsATokenOnceAndOnlyRecentOnes) {
  SamplingOptions options = plain();
  options.temperature = 0;
  options.repeat_penalty = 2;
  options.repeat_last = 2;
  const std::vector<float> logits = {4, 3, -1};
  EXPECT_EQ(drawn(options, logits, 0, {0, 0}), 1);      // 4 / 2 = 2 < 3
  EXPECT_EQ(drawn(options, {4, 1.5f, -1}, 0, {0, 0}), 0);   // 2 > 1.5: divided once, not twice
  EXPECT_EQ(drawn(options, logits, 0, {0, 2, 2}), 0);   // the 0 is too long ago
  EXPECT_EQ(drawn(options, {-1, -1.5f, -9}, 0, {0, 2}), 1);   // -1 * 2 = -2 < -1.5
}

TEST(Sampler, DamagedLogitsAreAnErrorThatNamesThePosition) {
  for (const float bad : {NAN, INFINITY}) {
    Sampler sampler(plain(), 3);
    const auto result = sampler.sample(std::vector<float>{0, bad, 0}, {}, 123);
    ASSERT_FALSE(result.ok());
    EXPECT_NE(result.error().message.find("token 1 at position 123"), std::string::npos) << result.error().message;
  }
  Sampler sampler(plain(), 2);
  EXPECT_FALSE(sampler.sample(std::vector<float>{-INFINITY, -INFINITY}, {}, 0).ok());
}

TEST(Sampler, OptionsOutOfRangeAreNamed) {
  const auto refused = [](auto change, const char* name) {
    SamplingOptions options;
    change(options);
    const auto checked = check_sampling(options);
    ASSERT_FALSE(checked.ok()) << name;
    EXPECT_EQ(checked.error().error_class, ErrorClass::kUsage);
    EXPECT_NE(checked.error().message.find(name), std::string::npos) << checked.error().message;
  };
  EXPECT_TRUE(check_sampling({}).ok());
  for (const double bad : {-1.0, static_cast<double>(NAN)}) {
    refused([&](SamplingOptions& o) { o.temperature = bad; }, "temperature");
    refused([&](SamplingOptions& o) { o.top_p = bad; }, "top-p");
    refused([&](SamplingOptions& o) { o.min_p = bad; }, "min-p");
    refused([&](SamplingOptions& o) { o.repeat_penalty = bad; }, "repeat-penalty");
  }
  refused([](SamplingOptions& o) { o.top_p = 0; }, "top-p");
  refused([](SamplingOptions& o) { o.top_p = 1.1; }, "top-p");
  refused([](SamplingOptions& o) { o.top_k = -1; }, "top-k");
  refused([](SamplingOptions& o) { o.repeat_last = -1; }, "repeat-last");
}

// What a stream cut into pieces shows, and whether it stopped.
std::pair<std::string, bool> shown(const std::vector<std::string>& stops, const std::string& text, size_t piece) {
  auto stop = StopText::create(stops);
  EXPECT_TRUE(stop.ok());
  std::string out;
  for (size_t i = 0; i < text.size() && !stop->stopped(); i += piece) {
    out += stop->push(std::string_view(text).substr(i, piece));
    for (const std::string& s : stops) EXPECT_EQ(out.find(s), std::string::npos);
  }
  const bool stopped = stop->stopped();
  return {out + stop->flush(), stopped};
}

TEST(StopText, ShowsEverythingBeforeTheStopWhateverThePieces) {
  using Shown = std::pair<std::string, bool>;
  for (size_t piece = 1; piece <= 12; ++piece) {
    EXPECT_EQ(shown({"END"}, "hello EN END there", piece), Shown("hello EN ", true)) << piece;
    EXPECT_EQ(shown({"END"}, "hello EN", piece), Shown("hello EN", false)) << piece;
    EXPECT_EQ(shown({"aab"}, "aaaab", piece), Shown("aa", true)) << piece;
    EXPECT_EQ(shown({}, "anything", piece), Shown("anything", false)) << piece;
  }
  EXPECT_EQ(shown({"xyz", "b"}, "aby", 1), Shown("a", true));
}

TEST(StopText, HoldsBackOnlyWhatCouldBecomeAStop) {
  auto stop = StopText::create({"\n\n", "</s>"});
  ASSERT_TRUE(stop.ok());
  EXPECT_EQ(stop->push("one"), "one");
  EXPECT_EQ(stop->push(" two\n"), " two");
  EXPECT_EQ(stop->push("three</"), "\nthree");
  EXPECT_EQ(stop->push("b>"), "</b>");
  EXPECT_EQ(stop->push("\n"), "");
  EXPECT_EQ(stop->push("\nfour"), "");
  EXPECT_TRUE(stop->stopped());
  EXPECT_EQ(stop->push("five"), "");
  EXPECT_EQ(stop->flush(), "");
}

TEST(StopText, RefusesEmptyAndBrokenStops) {
  for (const char* bad : {"", "\xff"}) {
    const auto stop = StopText::create({"fine", bad});
    ASSERT_FALSE(stop.ok());
    EXPECT_EQ(stop.error().error_class, ErrorClass::kUsage);
  }
}

}  // namespace
}  // namespace quipu
