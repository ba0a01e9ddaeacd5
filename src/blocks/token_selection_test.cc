#include "blocks/token_selection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/random.h"

namespace quipu {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// Worked example of the specification, 5.5.
const std::vector<float> kScores = {0.3f, -1.2f, 2.0f, 0.1f, -0.4f, 1.5f, -0.7f, 0.9f};

TEST(TokenSelection, TakesTheWorkedExamplesTwoHighest) { EXPECT_THAT(select_top_k(kScores, 2), ElementsAre(2, 5)); }

TEST(TokenSelection, ComparingWithTheLastValueWouldLoseAToken) {
  // The bug seen elsewhere: strictly above the second largest score, 1.5, is only token 2.
  std::vector<int64_t> strictly;
  for (size_t i = 0; i < kScores.size(); ++i) {
    if (kScores[i] > 1.5f) strictly.push_back(static_cast<int64_t>(i));
  }
  EXPECT_THAT(strictly, ElementsAre(2));
  EXPECT_NE(select_top_k(kScores, 2), strictly);
}

TEST(TokenSelection, TheThresholdOfAnUntrainedRouterDisagreesOnThreeOfEight) {
  std::vector<int64_t> threshold;
  for (size_t i = 0; i < kScores.size(); ++i) {
    if (kScores[i] > 0.0f) threshold.push_back(static_cast<int64_t>(i));
  }
  EXPECT_THAT(threshold, ElementsAre(0, 2, 3, 5, 7));
  EXPECT_EQ(selection_disagreement(select_top_k(kScores, 2), threshold, 8), 3.0 / 8.0);
  EXPECT_EQ(selection_disagreement(threshold, threshold, 8), 0.0);
}

TEST(TokenSelection, OfEqualScoresTheEarlierTokenWins) {
  EXPECT_THAT(select_top_k(std::vector<float>{1, 2, 1, 2, 1, 2}, 2), ElementsAre(1, 3));
  EXPECT_THAT(select_top_k(std::vector<float>{1, 2, 1, 2, 1, 2}, 4), ElementsAre(0, 1, 3, 5));
  EXPECT_THAT(select_top_k(std::vector<float>(5, 0.0f), 3), ElementsAre(0, 1, 2));
  EXPECT_THAT(select_top_k(std::vector<float>{0.0f, -0.0f, 0.0f}, 2), ElementsAre(0, 1));
}

TEST(TokenSelection, TakesExactlyTheCapacityWhateverTheScores) {
  RandomStream random(3, 1);
  for (int64_t count = 0; count < 40; ++count) {
    std::vector<float> scores;
    for (int64_t i = 0; i < count; ++i) scores.push_back(static_cast<float>(random.below(5)));
    for (int64_t capacity = 0; capacity <= count + 2; ++capacity) {
      const std::vector<int64_t> taken = select_top_k(scores, capacity);
      ASSERT_EQ(static_cast<int64_t>(taken.size()), std::min(capacity, count));
      // No token left out is better than one taken, and of equals it comes later.
      std::vector<bool> in(static_cast<size_t>(count));
      for (const int64_t t : taken) in[static_cast<size_t>(t)] = true;
      for (const int64_t t : taken) {
        for (int64_t other = 0; other < count; ++other) {
          if (in[static_cast<size_t>(other)]) continue;
          const float a = scores[static_cast<size_t>(t)], b = scores[static_cast<size_t>(other)];
          ASSERT_TRUE(a > b || (a == b && t < other));
        }
      }
    }
  }
}

TEST(TokenSelection, ScoresThatAreNotNumbersComeLast) {
  const float nan = std::nanf("");
  EXPECT_THAT(select_top_k(std::vector<float>{nan, -3, nan, 4}, 2), ElementsAre(1, 3));
  EXPECT_THAT(select_top_k(std::vector<float>{nan, nan, nan}, 2), ElementsAre(0, 1));
}

TEST(TokenSelection, CapacityIsRoundedUpToWholeTokens) {
  EXPECT_EQ(capacity_tokens(0.125, 2048), 256);
  EXPECT_EQ(capacity_tokens(0.125, 1), 1) << "never none, as int(0.125 * 1) would be";
  EXPECT_EQ(capacity_tokens(0.125, 9), 2);
  EXPECT_EQ(capacity_tokens(0.07, 100), 7) << "rounding of the product is no token";
  EXPECT_EQ(capacity_tokens(1.0, 77), 77);
  EXPECT_EQ(capacity_tokens(0.5, 0), 0);
  EXPECT_THAT(select_top_k(kScores, 0), IsEmpty());
}

TEST(TokenSelection, TheAuxiliaryLossIsTheWorkedExamples) {
  std::vector<float> gradient(kScores.size());
  const double loss = auxiliary_router_loss(gradient, kScores, std::vector<int64_t>{2, 5});
  EXPECT_NEAR(loss, 0.543466, 5e-7);
  const std::vector<double> wanted = {0.071805, 0.028934, -0.014900, 0.065622, 0.050164, -0.022803, 0.041477, 0.088869};
  for (size_t i = 0; i < wanted.size(); ++i) EXPECT_NEAR(gradient[i], wanted[i], 5e-7) << i;
  std::vector<float> far(2);
  EXPECT_EQ(auxiliary_router_loss(far, std::vector<float>{-1000, 1000}, std::vector<int64_t>{0}), 1000.0);
}

}  // namespace
}  // namespace quipu
