#include "train/run_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace quipu {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kSmall[] = R"([model]
config = "config.json"
[data]
train = "text.txt"
tokenizer = "bytes"
[train]
steps = 100
[output]
folder = "out"
)";

std::string error_of(const std::string& text, const ConfigOverrides& overrides = {}) {
  auto config = parse_run_config("/runs/a.toml", text, overrides);
  return config.ok() ? "no error" : config.error().message;
}
std::string with(const std::string& section, const std::string& line) {
  std::string text = kSmall;
  const std::string head = "[" + section + "]\n";
  const size_t at = text.find(head);
  return at == std::string::npos ? text + head + line + "\n" : text.insert(at + head.size(), line + "\n");
}

TEST(RunConfig, PathsCountFromTheFolderOfTheFile) {
  auto config = parse_run_config("/runs/a.toml", kSmall);
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_EQ(config->model.config, "/runs/config.json");
  EXPECT_THAT(config->data.train, ElementsAre("/runs/text.txt"));
  EXPECT_EQ(config->data.tokenizer, "bytes");
  EXPECT_EQ(config->data.cache, "/runs/out/cache");
  EXPECT_EQ(config->optimizer.gate_learning_rate, 10 * config->optimizer.learning_rate);
}

TEST(RunConfig, ReadsEveryKindOfValue) {
  auto config = parse_run_config(
      "a.toml", with("optimizer", "betas = [0.8, 0.9]\nschedule = \"wsd\"\ndecay_steps = 10\nclip = 2") +
                    "[evaluate]\nsequences = 3\n");
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_EQ(config->optimizer.beta1, 0.8);
  EXPECT_EQ(config->optimizer.beta2, 0.9);
  EXPECT_EQ(config->optimizer.schedule, ScheduleKind::kWsd);
  EXPECT_EQ(config->optimizer.decay_steps, 10);
  EXPECT_EQ(config->optimizer.clip, 2);
  EXPECT_EQ(config->evaluate.sequences, 3);
}

TEST(RunConfig, UnknownKeysAreNamedWithTheirLine) {
  EXPECT_THAT(error_of(with("train", "step = 3")),
              AllOf(HasSubstr("/runs/a.toml:7: unknown key train.step"), HasSubstr("steps")));
  EXPECT_THAT(error_of(std::string(kSmall) + "[modle]\n"),
              AllOf(HasSubstr(":10: unknown key modle"), HasSubstr("model")));
  EXPECT_THAT(error_of(with("output", "folders = 1")), HasSubstr("unknown key output.folders"));
}

TEST(RunConfig, ContradictionsAreNamed) {
  EXPECT_THAT(error_of(with("data", "task = \"copy\"")),
              AllOf(HasSubstr("a.toml:4: data.task contradicts data.train")));
  EXPECT_THAT(error_of(with("train", "batch = 8\nmicro_batch = 3")),
              HasSubstr("train.micro_batch is 3, expected a divisor of train.batch, 8"));
  EXPECT_THAT(error_of(with("data", "held_out = \"x\"\nheld_out_fraction = 0.1")),
              HasSubstr("data.held_out_fraction contradicts"));
  EXPECT_THAT(error_of(with("optimizer", "decay_steps = 5")),
              HasSubstr("optimizer.decay_steps needs optimizer.schedule = \"wsd\""));
  EXPECT_THAT(error_of(with("optimizer", "schedule = \"constant\"\nfinal_fraction = 0.1")), HasSubstr("contradicts"));
  EXPECT_THAT(error_of(with("optimizer", "warmup_steps = 101")), HasSubstr("more than train.steps, 100"));
  EXPECT_THAT(error_of(with("model", "init = \"w\"\nseed = 1")), HasSubstr("model.seed contradicts model.init"));
  EXPECT_THAT(error_of(with("model", "init = \"w\"\ndeviation = 0.1")), HasSubstr("model.deviation contradicts model.init"));
  EXPECT_THAT(error_of(with("evaluate", "every = 10")), HasSubstr("evaluate.every needs something held out"));
}

TEST(RunConfig, WrongKindsAndRangesAreNamed) {
  EXPECT_THAT(error_of(with("train", "batch = \"8\"")),
              HasSubstr("a.toml:7: train.batch is a text, expected a whole number"));
  EXPECT_THAT(error_of(with("train", "batch = 0")), HasSubstr("train.batch is 0, expected 1 to"));
  EXPECT_THAT(error_of(with("train", "batch = 1.5")), HasSubstr("is a fraction, expected a whole number"));
  EXPECT_THAT(error_of(with("optimizer", "learning_rate = nan")), HasSubstr("learning_rate is nan"));
  EXPECT_THAT(error_of(with("optimizer", "learning_rate = -1")), HasSubstr("learning_rate is -1"));
  EXPECT_THAT(error_of(with("optimizer", "betas = [0.9]")), HasSubstr("expected two numbers"));
  EXPECT_THAT(error_of(with("optimizer", "betas = [0.9, 1.0]")), HasSubstr("less than 1"));
  EXPECT_THAT(error_of(with("optimizer", "schedule = \"linear\"")), HasSubstr("expected one of constant, cosine, wsd"));
  EXPECT_THAT(error_of(with("train", "recompute = 1")), HasSubstr("expected true or false"));
  EXPECT_THAT(error_of("train = 3\n"), HasSubstr("train is a whole number, expected a section [train]"));
  EXPECT_THAT(error_of("[model\n"), HasSubstr("a.toml:1: not TOML"));
  EXPECT_THAT(error_of("[train]\n[data]\n[model]\n"), HasSubstr("train.steps is missing"));
}

TEST(RunConfig, TheCommandLineReplacesKeys) {
  auto config = parse_run_config(
      "a.toml", kSmall, {{"train.steps", "7"}, {"output.folder", "elsewhere"}, {"optimizer.betas", "[0.5, 0.6]"}});
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_EQ(config->train.steps, 7);
  EXPECT_EQ(config->output.folder, "elsewhere");
  EXPECT_EQ(config->optimizer.beta1, 0.5);
  EXPECT_THAT(error_of(kSmall, {{"train.stps", "7"}}), HasSubstr("unknown key train.stps"));
  EXPECT_THAT(error_of(kSmall, {{"steps", "7"}}), HasSubstr("section and a key"));
}

TEST(RunConfig, AModelMayStandInTheFileItself) {
  std::string text = kSmall;
  text.replace(text.find("config = "), std::string("config = \"config.json\"").size(), "");
  text +=
      "[model.config]\nmodel_type = \"quipu\"\nhidden_size = 64\nrms_norm_eps = 1e-6\n[model.config.attention]\nroom = "
      "\"infini\"\n";
  auto config = parse_run_config("a.toml", text);
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_THAT(config->model.config_json, AllOf(HasSubstr("\"hidden_size\""), HasSubstr("infini")));
}

TEST(RunConfig, EveryKeyStandsInTheManual) {
  // The keys the reader knows, as its own message lists them.
  auto file = read_run_config(QUIPU_SOURCE_DIR "/docs/training.md");
  ASSERT_FALSE(file.ok());  // it is no TOML: but it must be there
  std::string manual;
  {
    std::FILE* in = std::fopen(QUIPU_SOURCE_DIR "/docs/training.md", "rb");
    ASSERT_NE(in, nullptr);
    char buffer[4096];
    while (const size_t count = std::fread(buffer, 1, sizeof buffer, in)) manual.append(buffer, count);
    std::fclose(in);
  }
  for (const char* section : {"model", "data", "train", "optimizer", "evaluate", "output"}) {
    const std::string message = error_of(with(section, "no_such_key = 1"));
    const size_t at = message.find("known here: ");
    ASSERT_NE(at, std::string::npos) << message;
    std::string list = message.substr(at + 12) + ",";
    while (!list.empty()) {
      const std::string key = list.substr(0, list.find(','));
      EXPECT_NE(manual.find("`" + key + "`"), std::string::npos) << section << "." << key;
      list.erase(0, std::min(list.find(',') + 2, list.size()));
    }
  }
}

}  // namespace
}  // namespace quipu
