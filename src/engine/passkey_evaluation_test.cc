#include "engine/passkey_evaluation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "engine/init_model.h"
#include "engine/load_runtime.h"
#include "engine/passkey_demo.h"
#include "engine/reproduce_passkey.h"
#include "train/run_config.h"

namespace quipu {
namespace {

using testing::HasSubstr;

// A model with random weights: what it answers is nonsense, and the same nonsense however it is asked.
class PasskeyReading : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "passkey_reading";
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    std::ofstream(folder_ + "/config.json") << R"({"model_type": "quipu", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 320,
      "intermediate_size": 48, "max_position_embeddings": 65536, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
      "attention": {"room": "infini", "heads": 2, "kv_heads": 2, "head_dim": 16, "rope_theta": 10000.0, "segment_tokens": 64,
                    "rule": "linear", "window": "previous"}})";
    ASSERT_TRUE(init_model(folder_ + "/config.json", folder_ + "/model", {.seed = 3, .tokenizer = {}}).ok());
    EngineOptions options;
    options.threads = 1;
    options.max_chunk = 8192;
    auto source = open_model(folder_ + "/model");
    ASSERT_TRUE(source.ok()) << source.error().message;
    runtime_ = std::move(load_runtime(*source, options)).value();
    engine_ = std::move(Engine::load(folder_ + "/model", options)).value();
  }
  PasskeyEvaluation evaluation(const PasskeyKind& kind = {}, int64_t rows = 2048) {
    PasskeyEvaluationOptions options;
    options.seed = 5;
    options.share = 2;
    options.rows = rows;
    return {runtime_, std::move(PasskeyText::create(kind)).value(), options};
  }
  // The question as one text, read by a session of its own.
  std::vector<int32_t> alone(const PasskeyEvaluation& asked, const PasskeyCell& cell, int64_t question, const PasskeyKind& kind = {}) {
    const PasskeyText text = std::move(PasskeyText::create(kind)).value();
    const PasskeyQuestion q = text.question(cell.tokens, cell.depth, asked.key(question), asked.haystack_seed(question));
    auto session = std::move(engine_->new_session(cell.tokens + kind.digits)).value();
    EXPECT_TRUE(session->feed(std::span(q.tokens).first(static_cast<size_t>(q.answer_begin))).ok());
    std::vector<int32_t> given;
    for (int64_t digit = 0; digit < kind.digits; ++digit) {
      const auto logits = session->logits().first(static_cast<size_t>(text.vocabulary()));
      given.push_back(static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
      EXPECT_TRUE(session->feed({&given.back(), 1}).ok());
    }
    return given;
  }
  std::string folder_;
  std::shared_ptr<Runtime> runtime_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(PasskeyReading, SharedReadingGivesTheAnswersOfReadingAlone) {
  for (const PasskeyKind& kind : {PasskeyKind{}, PasskeyKind{.bytes = true, .identifier = true, .digits = 7}}) {
    PasskeyEvaluation asked = evaluation(kind, 500);
    // Lengths fall now and then, so that what is shared has to begin anew.
    for (const PasskeyCell& cell : {PasskeyCell{400, 0, 5}, PasskeyCell{1111, 0, 5}, PasskeyCell{1500, 0, 3}, PasskeyCell{600, 0.5, 5},
                                    PasskeyCell{1100, 0.5, 2}, PasskeyCell{900, 1, 5}, PasskeyCell{500, 0, 4},
                                    PasskeyCell{550, 0.3, 5, PasskeyMemory::kOwn, 3}, PasskeyCell{560, 0, 4, PasskeyMemory::kOwn, 2}}) {
      const auto answers = asked.run(cell);
      ASSERT_TRUE(answers.ok()) << answers.error().message;
      ASSERT_EQ(static_cast<int64_t>(answers->given.size()), cell.samples);
      for (int64_t question = 0; question < cell.samples; ++question) {
        EXPECT_EQ(answers->given[static_cast<size_t>(question)], alone(asked, cell, cell.first + question, kind))
            << cell.tokens << " tokens, depth " << cell.depth << ", question " << question;
      }
    }
  }
}

TEST_F(PasskeyReading, ReadsWhatQuestionsShareOnce) {
  PasskeyEvaluation asked = evaluation();
  const auto first = asked.run({2000, 0.5, 12});
  const auto second = asked.run({2000, 1, 12});
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_LT(first->tokens_read, 6 * 1000 + 12 * 1100) << "six haystacks up to the middle, twelve from there on";
  EXPECT_LT(second->tokens_read, 6 * 1000 + 12 * 100) << "six haystacks from the middle to the end";
}

TEST_F(PasskeyReading, CountsDigitsAndBytes) {
  PasskeyEvaluation asked = evaluation();
  const auto answers = asked.run({300, 0.5, 4});
  ASSERT_TRUE(answers.ok());
  const PasskeyText text = std::move(PasskeyText::create({})).value();
  EXPECT_EQ(answers->samples, 4);
  EXPECT_EQ(answers->digits, 20);
  EXPECT_LE(answers->digits_right, 20);
  double bytes = 0;
  for (int64_t question = 0; question < 4; ++question) {
    const PasskeyQuestion q = text.question(300, 0.5, asked.key(question), asked.haystack_seed(question));
    std::vector<int32_t> read(q.tokens.begin(), q.tokens.begin() + q.answer_begin);
    const auto& given = answers->given[static_cast<size_t>(question)];
    read.insert(read.end(), given.begin(), given.end() - 1);
    for (const int32_t token : read) bytes += static_cast<double>(text.tokenizer().decode({&token, 1}).size());
  }
  EXPECT_NEAR(answers->text_bytes, bytes / 4, 4 * 3) << "decode() writes three bytes for a byte that is no text";
  EXPECT_GT(answers->state_bytes, 0);
}

// What a model remembers goes where its memory goes. With the needle in the first segment of a text of many segments, the
// exchange of memories is an exchange of answers.
TEST_F(PasskeyReading, ForeignMemoryIsThatOfTheNextQuestion) {
  PasskeyEvaluation asked = evaluation();
  const PasskeyCell own{1000, 0.5, 1};
  PasskeyCell foreign = own;
  foreign.memory = PasskeyMemory::kForeign;
  EXPECT_EQ(asked.run(own)->given, asked.run(foreign)->given) << "one question: its own memory";
  PasskeyEvaluationOptions options;
  options.seed = 5;
  options.share = 4;
  PasskeyEvaluation same(runtime_, std::move(PasskeyText::create({})).value(), options);
  const auto before = same.run({1000, 0, 4, PasskeyMemory::kOwn});
  const auto after = same.run({1000, 0, 4, PasskeyMemory::kForeign});
  ASSERT_TRUE(before.ok() && after.ok());
  // One haystack: windows that were filled again after the exchange know nothing of whose they were.
  EXPECT_NE(before->given[0], before->given[1]);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(after->given[i], before->given[(i + 1) % 4]) << i;
}

// The model that comes with the project: with its own memory it knows its key, with the next question's that one's.
TEST(PasskeyModel, KnowsTheKeyWhoseMemoryItHas) {
  auto source = open_model(std::string(QUIPU_SOURCE_DIR) + "/models/passkey");
  ASSERT_TRUE(source.ok()) << source.error().message;
  EngineOptions engine;
  engine.threads = 1;
  engine.max_chunk = 4096;
  auto runtime = load_runtime(*source, engine);
  ASSERT_TRUE(runtime.ok()) << runtime.error().message;
  PasskeyEvaluationOptions options;
  options.share = 4;
  PasskeyEvaluation evaluation(*runtime, std::move(PasskeyText::create({})).value(), options);
  const auto own = evaluation.run({2000, 0.5, 4, PasskeyMemory::kOwn});
  ASSERT_TRUE(own.ok()) << own.error().message;
  EXPECT_EQ(own->digits_right, 20);
  EXPECT_EQ(own->answers_right, 4);
  EXPECT_LT(own->foreign_right, 10);
  const auto foreign = evaluation.run({2000, 0.5, 4, PasskeyMemory::kForeign});
  ASSERT_TRUE(foreign.ok()) << foreign.error().message;
  EXPECT_EQ(foreign->foreign_right, 20);
  EXPECT_EQ(foreign->answers_right, 0);
  EXPECT_LT(foreign->digits_right, 10);
}

TEST_F(PasskeyReading, RefusesLengthsThatCannotBe) {
  PasskeyEvaluation asked = evaluation();
  EXPECT_THAT(asked.run({20, 0, 1}).error().message, HasSubstr("expected 66 to"));
}

TEST(PasskeyRecipes, AreRunConfigurations) {
  ASSERT_FALSE(passkey_recipes().empty());
  for (const PasskeyRecipe& recipe : passkey_recipes()) {
    const auto config = parse_run_config("recipe.toml", passkey_training_text(recipe, "out"));
    ASSERT_TRUE(config.ok()) << recipe.name << ": " << config.error().message;
    EXPECT_EQ(config->data.task, "passkey");
    EXPECT_LE(config->train.sequence, 5120) << recipe.name << ": trained on short texts";
    EXPECT_EQ(config->data.task_settings.values.contains("repeat_max"), recipe.repeats) << recipe.name;
  }
}

TEST(PasskeyDemo, SaysWhereItLookedForItsModel) {
  EXPECT_THAT(find_own_model("no-such-model").error().message, HasSubstr("share/quipu/models/no-such-model"));
}

}  // namespace
}  // namespace quipu
