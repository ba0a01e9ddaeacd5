// The loop: learning, stopping and resuming, checkpoints, bad numbers.
#include "train/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "backend/cpu/cpu_training.h"
#include "formats/safetensors/safetensors_file.h"
#include "train/task.h"

namespace quipu {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

constexpr char kModel[] =
    R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "num_hidden_layers": 2,
  "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 257, "intermediate_size": 64, "hidden_act": "silu",
  "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true})";

class Stopper : public TrainObserver {
 public:
  explicit Stopper(int64_t after = -1) : after_(after) {}
  void stepped(const StepReport& report) override {
    losses.push_back(report.loss);
    step_ = report.step;
  }
  void saved(const std::string& path) override { checkpoints.push_back(path); }
  bool should_stop() override { return after_ >= 0 && step_ >= after_; }
  std::vector<double> losses;
  std::vector<std::string> checkpoints;

 private:
  int64_t after_, step_ = 0;
};

// One run with everything it needs; made anew for each process a test stands for.
struct Rig {
  explicit Rig(const RunConfig& run_config) : config(run_config) {
    ops = std::move(make_cpu_training_ops({.threads = 1})).value();
    model = std::move(TrainableModel<float>::create(std::move(read_hf_config("config.json", kModel)).value(), *ops, {}))
                .value();
    model->initialise(static_cast<uint64_t>(config.train.seed));
    const TaskSettings settings{{{"letters", {int64_t{4}, 0}}, {"alphabet", {int64_t{8}, 0}}}};
    training =
        std::move(make_task("copy", settings, {.sequence = config.train.sequence, .seed = config.train.seed})).value();
    held_out = std::move(make_task("copy", settings,
                                   {.sequence = config.train.sequence, .seed = config.train.seed, .held_out = true}))
                   .value();
    ranks = std::move(join_ranks([] { return false; })).value();
    trainer = std::move(Trainer::create({.config = &config,
                                         .model = model.get(),
                                         .training = training.get(),
                                         .held_out = held_out.get(),
                                         .ranks = ranks.get()}))
                  .value();
  }
  std::vector<float> weights() const { return {model->weights().begin(), model->weights().end()}; }

  RunConfig config;
  std::unique_ptr<TrainingOps<float>> ops;
  std::unique_ptr<TrainableModel<float>> model;
  std::unique_ptr<SampleSource> training, held_out;
  std::unique_ptr<Ranks> ranks;
  std::unique_ptr<Trainer> trainer;
};

class TrainerTest : public testing::Test {
 protected:
  TrainerTest()
      : folder_(fs::temp_directory_path() / ("quipu-trainer-" + std::to_string(getpid()) + "-" +
                                             testing::UnitTest::GetInstance()->current_test_info()->name())) {
    fs::create_directories(folder_);
    config_.file = "run.toml";
    config_.train.steps = 12;
    config_.train.sequence = 36;
    config_.train.batch = 4;
    config_.optimizer.learning_rate = 3e-3;
    config_.optimizer.warmup_steps = 4;
    config_.output.folder = folder_ / "out";
    config_.output.log_steps = 1;
    config_.evaluate.sequences = 4;
  }
  ~TrainerTest() override { fs::remove_all(folder_); }
  std::string checkpoint(int64_t step) const {
    char name[64];
    std::snprintf(name, sizeof name, "/checkpoint-%08lld.safetensors", static_cast<long long>(step));
    return config_.output.folder + name;
  }
  fs::path folder_;
  RunConfig config_;
};

TEST_F(TrainerTest, LearnsToCopy) {
  config_.train.steps = 300;
  config_.train.batch = 8;
  config_.optimizer.learning_rate = 1e-2;
  config_.optimizer.warmup_steps = 20;
  Rig run(config_);
  Stopper observer;
  auto summary = run.trainer->run(observer);
  ASSERT_TRUE(summary.ok()) << summary.error().message;
  EXPECT_NEAR(observer.losses[0], std::log(257.0), 0.3) << "a fresh model knows nothing";
  ASSERT_TRUE(summary->evaluation.has_value());
  EXPECT_GT(summary->evaluation->answer_accuracy, 0.9);
  EXPECT_EQ(summary->evaluation->questions, 16);
  EXPECT_EQ(summary->tokens, 300 * 8 * 36);
  EXPECT_TRUE(fs::exists(config_.output.folder + "/report.html"));
  EXPECT_TRUE(fs::exists(config_.output.folder + "/metrics.jsonl"));
}

TEST_F(TrainerTest, AStoppedRunGoesOnToTheSameBits) {
  Rig whole(config_);
  Stopper none;
  ASSERT_TRUE(whole.trainer->run(none).ok());

  RunConfig again = config_;
  again.output.folder = folder_ / "again";
  {
    Rig first(again);
    Stopper stop(5);
    auto summary = first.trainer->run(stop);
    ASSERT_TRUE(summary.ok()) << summary.error().message;
    EXPECT_TRUE(summary->stopped_early);
    EXPECT_EQ(summary->step, 5);
    EXPECT_THAT(summary->checkpoint, HasSubstr("checkpoint-00000005"));
  }
  Rig second(again);
  second.model->initialise(99);  // whatever was there is replaced
  ASSERT_TRUE(second.trainer->resume(find_checkpoints(again.output.folder).back()).ok());
  EXPECT_EQ(second.trainer->step(), 5);
  Stopper rest;
  ASSERT_TRUE(second.trainer->run(rest).ok());
  EXPECT_EQ(second.weights(), whole.weights());
  ASSERT_EQ(rest.losses.size(), 7u);
  for (size_t i = 0; i < 7; ++i) EXPECT_EQ(rest.losses[i], none.losses[i + 5]);
}

TEST_F(TrainerTest, MicroBatchesAddUpToTheBatch) {
  Rig whole(config_);
  config_.train.micro_batch = 1;
  config_.output.folder = folder_ / "micro";
  Rig parts(config_);
  Stopper a, b;
  ASSERT_TRUE(whole.trainer->run(a).ok());
  ASSERT_TRUE(parts.trainer->run(b).ok());
  // Sums in another order: differences of rounding, grown by 12 steps.
  for (size_t i = 0; i < a.losses.size(); ++i) EXPECT_NEAR(a.losses[i], b.losses[i], 1e-4 * a.losses[i]) << i;
}

TEST_F(TrainerTest, KeepsTheNewestCheckpoints) {
  config_.output.checkpoint_steps = 3;
  config_.output.keep = 2;
  Rig run(config_);
  Stopper observer;
  ASSERT_TRUE(run.trainer->run(observer).ok());
  EXPECT_EQ(observer.checkpoints.size(), 4u);  // 3, 6, 9, 12
  EXPECT_THAT(find_checkpoints(config_.output.folder), testing::ElementsAre(checkpoint(9), checkpoint(12)));
}

TEST_F(TrainerTest, ADamagedCheckpointIsRefusedAndChangesNothing) {
  config_.output.checkpoint_steps = 6;
  {
    Rig run(config_);
    Stopper observer;
    ASSERT_TRUE(run.trainer->run(observer).ok());
  }
  const auto size = fs::file_size(checkpoint(12));
  {
    std::fstream file(checkpoint(12), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(size / 2));
    file.put('\x55');
  }
  Rig run(config_);
  const std::vector<float> before = run.weights();
  EXPECT_THAT(run.trainer->resume(checkpoint(12)).error().message,
              AllOf(HasSubstr("checkpoint-00000012"), HasSubstr("damaged")));
  EXPECT_EQ(run.weights(), before);
  EXPECT_EQ(run.trainer->step(), 0);
  fs::resize_file(checkpoint(12), size - 1000);
  EXPECT_FALSE(run.trainer->resume(checkpoint(12)).ok());
  fs::resize_file(checkpoint(12), 5);
  EXPECT_FALSE(run.trainer->resume(checkpoint(12)).ok());
  ASSERT_TRUE(run.trainer->resume(checkpoint(6)).ok()) << "the one before is whole";
  EXPECT_EQ(run.trainer->step(), 6);
}

TEST_F(TrainerTest, ACheckpointOfAnotherRunIsRefused) {
  {
    Rig run(config_);
    Stopper observer;
    ASSERT_TRUE(run.trainer->run(observer).ok());
  }
  RunConfig other = config_;
  other.train.seed = 5;
  EXPECT_THAT(Rig(other).trainer->resume(checkpoint(12)).error().message, HasSubstr("train.seed = 1, now it is 5"));
  other = config_;
  other.train.batch = 8;
  EXPECT_THAT(Rig(other).trainer->resume(checkpoint(12)).error().message, HasSubstr("other data"));
  EXPECT_THAT(Rig(config_).trainer->resume(config_.output.folder + "/metrics.jsonl").error().message,
              HasSubstr("metrics.jsonl"));
}

TEST_F(TrainerTest, AFullDiskLeavesTheLastCheckpoint) {
  {
    Rig run(config_);
    Stopper stop(5);
    ASSERT_TRUE(run.trainer->run(stop).ok());
  }
  Rig run(config_);
  ASSERT_TRUE(run.trainer->resume(checkpoint(5)).ok());
  // No file may grow beyond half a checkpoint: what a full disk does, without filling one.
  rlimit old{}, small{};
  getrlimit(RLIMIT_FSIZE, &old);
  small = old;
  small.rlim_cur = fs::file_size(checkpoint(5)) / 2;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &small);
  Stopper observer;
  auto summary = run.trainer->run(observer);
  setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  ASSERT_FALSE(summary.ok());
  EXPECT_THAT(summary.error().message,
              AllOf(HasSubstr("checkpoint-00000012"), HasSubstr("nothing that was there is lost")));
  EXPECT_THAT(find_checkpoints(config_.output.folder), testing::ElementsAre(checkpoint(5)));
  for (const auto& entry : fs::directory_iterator(config_.output.folder)) EXPECT_NE(entry.path().extension(), ".tmp");
  Rig after(config_);
  EXPECT_TRUE(after.trainer->resume(checkpoint(5)).ok());
}

TEST_F(TrainerTest, ALossThatIsNoNumberStopsTheRunAndSavesTheBatch) {
  Rig run(config_);
  run.model->weights()[5] = std::numeric_limits<float>::infinity();
  const std::vector<float> before = run.weights();
  Stopper observer;
  auto summary = run.trainer->run(observer);
  ASSERT_FALSE(summary.ok());
  const std::string path = config_.output.folder + "/bad-batch-step-0-rank-0.safetensors";
  EXPECT_THAT(summary.error().message, AllOf(HasSubstr("step 0: the loss is"), HasSubstr(path)));
  auto file = read_safetensors(path);
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(file->find("tokens")->view.shape, (Shape{4 * 36}));
  EXPECT_EQ(file->find("offsets")->view.shape, (Shape{4 * 4 + 1}));
  EXPECT_EQ(std::memcmp(run.weights().data(), before.data(), before.size() * sizeof(float)), 0) << "no update was made";
  EXPECT_TRUE(find_checkpoints(config_.output.folder).empty());
}

TEST_F(TrainerTest, NormsAndBiasesAreNotDecayed) {
  config_.train.steps = 1;
  config_.optimizer.learning_rate = 1e-3;
  config_.optimizer.warmup_steps = 0;
  config_.optimizer.schedule = ScheduleKind::kConstant;
  config_.optimizer.weight_decay = 5;
  Rig decayed(config_);
  config_.optimizer.weight_decay = 0;
  config_.output.folder = folder_ / "plain";
  Rig plain(config_);
  const std::vector<float> start = plain.weights();
  Stopper a, b;
  ASSERT_TRUE(decayed.trainer->run(a).ok());
  ASSERT_TRUE(plain.trainer->run(b).ok());
  for (const NamedParameter& p : plain.model->parameters()) {
    const bool decays = p.group == ParameterGroup::kMatrix || p.group == ParameterGroup::kEmbedding;
    for (int64_t i = p.offset; i < p.offset + p.elements; ++i) {
      const size_t at = static_cast<size_t>(i);
      const double expected = decays ? 1e-3 * 5 * start[at] : 0;
      ASSERT_NEAR(plain.weights()[at] - decayed.weights()[at], expected, 1e-6) << p.name;
      if (i > p.offset + 3) break;
    }
  }
}

TEST_F(TrainerTest, WhatDoesNotFitIsRefusedAtTheStart) {
  Rig run(config_);
  RunConfig odd = config_;
  odd.train.micro_batch = 3;
  EXPECT_THAT(Trainer::create(
                  {.config = &odd, .model = run.model.get(), .training = run.training.get(), .ranks = run.ranks.get()})
                  .error()
                  .message,
              HasSubstr("train.micro_batch is 3, expected a divisor"));
  auto passkey = std::move(make_task("passkey", {}, {.sequence = 512, .seed = 1})).value();
  EXPECT_THAT(Trainer::create(
                  {.config = &config_, .model = run.model.get(), .training = passkey.get(), .ranks = run.ranks.get()})
                  .error()
                  .message,
              HasSubstr("the model a vocabulary of 257"));
}

}  // namespace
}  // namespace quipu
