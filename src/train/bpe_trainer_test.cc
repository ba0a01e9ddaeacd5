#include "train/bpe_trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "text/tokenizer_json.h"

namespace quipu {
namespace {

using nlohmann::json;
using testing::HasSubstr;

// What Hugging Face `tokenizers` learnt from the same text (tools/make_bpe_golden.py).
const json& golden() {
  static const json root = json::parse(std::ifstream(QUIPU_SOURCE_DIR "/src/train/golden/bpe.json"));
  return root;
}

std::string learnt(std::string_view text, const BpeTrainingOptions& options, size_t part = 1 << 20) {
  auto trainer = BpeTrainer::create(options);
  EXPECT_TRUE(trainer.ok());
  for (size_t at = 0; at < text.size(); at += part) EXPECT_TRUE(trainer->add(text.substr(at, part)).ok());
  EXPECT_TRUE(trainer->end_text().ok());
  EXPECT_TRUE(trainer->learn({}).ok());
  return trainer->tokenizer_json();
}

class BpeGolden : public testing::TestWithParam<std::string> {
 protected:
  BpeTrainingOptions options() const {
    BpeTrainingOptions out;
    out.vocab_size = golden()[GetParam()]["vocab_size"];
    out.llama3_pattern = GetParam() == "llama3";
    return out;
  }
  std::string text() const { return golden()["text"]; }
};

TEST_P(BpeGolden, LearnsTheVocabularyAndMergesThatHuggingFaceLearns) {
  const json ours = json::parse(learnt(text(), options()));
  const json& theirs = golden()[GetParam()];
  EXPECT_EQ(ours["model"]["vocab"], theirs["vocab"]);
  EXPECT_EQ(ours["model"]["merges"], theirs["merges"]);
}

TEST_P(BpeGolden, OurTokenizerReadsTheFileAndGivesHuggingFacesIds) {
  auto tokenizer = parse_tokenizer_json(learnt(text(), options()));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  for (const json& one : golden()[GetParam()]["cases"]) {
    auto ids = (*tokenizer)->encode(one["text"].get<std::string>(), {.add_special = false, .parse_special = false});
    ASSERT_TRUE(ids.ok());
    EXPECT_EQ(json(*ids), one["ids"]) << one["text"];
    EXPECT_EQ((*tokenizer)->decode(*ids), one["text"].get<std::string>());
  }
}

TEST_P(BpeGolden, DoesNotDependOnHowTheTextComesInParts) {
  const std::string whole = learnt(text(), options());
  for (const size_t part : {1, 7, 1000}) EXPECT_EQ(learnt(text(), options(), part), whole) << part;
}

INSTANTIATE_TEST_SUITE_P(Patterns, BpeGolden, testing::Values("gpt2", "llama3"));

TEST(BpeTrainer, LongTextsInManyBlocksCountAsOneWouldExpect) {
  // 5 MB in lines: blocks are cut between lines, so the counts are those of one line times their number.
  std::string line = golden()["text"], many;
  while (many.size() < (5u << 20)) many += "cords and knots, knots and cords 12 34\n";
  const json ours = json::parse(learnt(many, {.vocab_size = 280}));
  EXPECT_EQ(ours["model"]["vocab"].size(), 274u);  // as Hugging Face finds in the same text
  auto tokenizer = parse_tokenizer_json(ours.dump());
  EXPECT_EQ((*tokenizer)->encode("cords and knots", {.add_special = false})->size(), 3u);
}

TEST(BpeTrainer, ATextWithFewPairsGivesASmallerVocabulary) {
  auto trainer = BpeTrainer::create({.vocab_size = 1000});
  ASSERT_TRUE(trainer->add("ab ab ab").ok());
  ASSERT_TRUE(trainer->end_text().ok());
  ASSERT_TRUE(trainer->learn({}).ok());
  EXPECT_EQ(trainer->vocabulary(), 257 + 2);  // "ab", " ab"
}

TEST(BpeTrainer, ForgetsTheRarestWordsWhenThereAreTooMany) {
  auto trainer = BpeTrainer::create({.vocab_size = 300, .max_words = 1000});
  std::string text;
  for (int i = 0; i < 400000; ++i) text += "often w" + std::to_string(i) + "x\n";
  ASSERT_TRUE(trainer->add(text).ok());
  ASSERT_TRUE(trainer->end_text().ok());
  EXPECT_LE(trainer->words(), 1000);
  EXPECT_GT(trainer->forgotten_words(), 100000);
  ASSERT_TRUE(trainer->learn({}).ok());
  auto tokenizer = parse_tokenizer_json(trainer->tokenizer_json());
  EXPECT_EQ((*tokenizer)->encode("often", {.add_special = false})->size(), 1u);
}

TEST(BpeTrainer, RefusesWhatCannotBe) {
  EXPECT_THAT(BpeTrainer::create({.vocab_size = 256}).error().message, HasSubstr("expected 257"));
  EXPECT_THAT(BpeTrainer::create({.special_tokens = {"a", "a"}}).error().message, HasSubstr("given twice"));
  EXPECT_THAT(BpeTrainer::create({.special_tokens = {""}}).error().message, HasSubstr("empty"));
  auto trainer = BpeTrainer::create({});
  EXPECT_THAT(trainer->learn({}).error().message, HasSubstr("no words"));
}

TEST(BpeTrainer, StopsWhenAsked) {
  auto trainer = BpeTrainer::create({.vocab_size = 400});
  ASSERT_TRUE(trainer->add(golden()["text"].get<std::string>()).ok());
  ASSERT_TRUE(trainer->end_text().ok());
  EXPECT_THAT(trainer->learn([](int64_t, int64_t) { return false; }).error().message, HasSubstr("interrupted"));
}

}  // namespace
}  // namespace quipu
