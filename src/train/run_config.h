// RunConfig: what one training run does, read from a TOML file and checked. docs/training.md explains every key.
//
//   [model]     what is trained            [data]      on what            [train]     how long, how precisely
//   [optimizer] with which steps           [evaluate]  held-out loss      [output]    where everything goes
//
// An unknown key, a value of the wrong kind or out of range, and keys that contradict each other are errors that name
// the file, the key and its line. Relative paths are relative to the folder of the TOML file.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"

namespace quipu {

struct ModelSection {
  std::string config;       // path of a config.json of our kind ...
  std::string config_json;  // ... or its text, when the TOML file holds it as the table [model.config]
  std::string init;         // folder of weights to start from; empty: random
  int64_t seed = 0;         // of random weights; the run's seed unless given
  double deviation = 0.02;  // of random matrices
};

// A task's own settings as written: the task reads and checks them (train/task.h).
struct TaskSettings {
  struct Value {
    std::variant<int64_t, double, bool, std::string> value;
    int64_t line = 0;
  };
  std::map<std::string, Value> values;
};

struct DataSection {
  std::vector<std::string> train;     // token files, text files, folders of texts
  std::vector<std::string> held_out;  // the same, for evaluation only
  double held_out_fraction = 0;       // of the documents of `train`, when held_out is empty
  std::string tokenizer;              // path of a tokenizer.json, or "bytes"
  std::string cache;                  // folder of tokenised texts; empty: output.folder/cache
  std::string document_separator;     // cuts a text file into documents; empty: a file is one document
  std::vector<std::string> extensions = {".txt", ".md"};  // what is read of a folder
  std::string end_token;  // put behind every document: a token of the tokenizer, or "" for none
  bool end_token_given = false;
  std::string task;            // generated data instead of `train`
  TaskSettings task_settings;  // [data.TASK]
};

struct TrainSection {
  int64_t steps = 0;
  int64_t sequence = 512;   // tokens
  int64_t batch = 8;        // sequences per step, over all ranks
  int64_t micro_batch = 0;  // sequences per forward pass; 0: the whole share of a rank
  int64_t seed = 1;
  bool bfloat16 = false;   // products in bf16, sums in fp32
  bool recompute = false;  // activations of a layer computed again in the backward pass
  double z_loss = 0;
  double write_penalty = 0;           // weight of the mean strength of write gates, at the end of its rise
  double write_penalty_start = 0.35;  // share of the run before it rises from 0
  double router_loss = 0.01;          // weight of the routers' own losses (Mixture-of-Depths)
  int64_t threads = 0;                // 0: one per available core
};

enum class ScheduleKind { kConstant, kCosine, kWsd };

struct OptimizerSection {
  double learning_rate = 1e-3;
  double gate_learning_rate = 0;  // of gates (Infini); 0: ten times learning_rate
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
  double weight_decay = 0.1;
  double clip = 1.0;  // largest global norm of the gradient; 0: not clipped
  ScheduleKind schedule = ScheduleKind::kCosine;
  int64_t warmup_steps = 0;
  int64_t decay_steps = 0;      // wsd: steps of the final decay
  double final_fraction = 0.1;  // of the learning rate, at the end of cosine and wsd
};

struct EvaluateSection {
  int64_t every = 0;       // steps; 0: only at the end (when there is anything held out)
  int64_t sequences = 32;  // at most, per evaluation
};

struct OutputSection {
  std::string folder;
  double checkpoint_minutes = 10;
  int64_t checkpoint_steps = 0;  // also every so many steps; 0: by time only
  int64_t keep = 2;              // checkpoints
  int64_t log_steps = 10;
  bool tensorboard = true, report = true;
};

struct RunConfig {
  std::string file;  // as given
  std::string text;  // of the file: its fingerprint goes into checkpoints
  ModelSection model;
  DataSection data;
  TrainSection train;
  OptimizerSection optimizer;
  EvaluateSection evaluate;
  OutputSection output;
};

// What the command line says instead of the file: "train.steps" = "200".
using ConfigOverrides = std::vector<std::pair<std::string, std::string>>;

Result<RunConfig> read_run_config(const std::string& path, const ConfigOverrides& overrides = {});
// file: its name in messages, and the folder that relative paths count from.
Result<RunConfig> parse_run_config(const std::string& file, std::string_view text,
                                   const ConfigOverrides& overrides = {});

}  // namespace quipu
