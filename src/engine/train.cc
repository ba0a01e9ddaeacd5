#include "engine/train.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "backend/cpu/cpu_training.h"
#include "base/byte_reader.h"
#include "base/clock.h"
#include "base/cpu_features.h"
#include "base/random.h"
#include "base/text_file.h"
#include "formats/safetensors/safetensors_file.h"
#include "text/tokenizer_json.h"
#include "train/corpus.h"
#include "train/task.h"

namespace quipu {
namespace {

namespace fs = std::filesystem;

int64_t peak_bytes_so_far() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

// What this process holds now; the peak so far when the system does not say.
int64_t resident_bytes() {
  int64_t pages = 0, resident = 0;
  std::FILE* file = std::fopen("/proc/self/statm", "re");
  const bool read = file != nullptr && std::fscanf(file, "%" SCNd64 " %" SCNd64, &pages, &resident) == 2;
  if (file != nullptr) std::fclose(file);
  return read ? resident * sysconf(_SC_PAGESIZE) : peak_bytes_so_far();
}

struct ModelText {
  std::string file, json;
  ModelConfig config;
};

Result<ModelText> read_model_text(const ModelSection& model, const std::string& config_file) {
  ModelText out;
  if (!model.config_json.empty()) {
    out.file = config_file + " [model.config]";
    out.json = model.config_json;
  } else {
    out.file = model.config;
    ASSIGN_OR_RETURN(out.json, read_text_file(out.file));
  }
  ASSIGN_OR_RETURN(out.config, read_hf_config(out.file, out.json));
  return out;
}

// Of the first layer that has a memory.
int64_t first_segment_tokens(const ModelConfig& config) {
  for (const LayerConfig& layer : config.layers) {
    if (const int64_t tokens = segment_tokens(layer); tokens > 0) return tokens;
  }
  return 0;
}

struct Data {
  std::unique_ptr<SampleSource> training, held_out;
  std::string tokenizer_json;  // empty: none is known
};

Result<Data> task_data(const RunConfig& run, int64_t segment) {
  Data out;
  TaskOptions options{
      .sequence = run.train.sequence, .seed = run.train.seed, .held_out = false, .segment = segment, .file = run.file};
  ASSIGN_OR_RETURN(std::unique_ptr<Task> task, make_task(run.data.task, run.data.task_settings, options));
  options.held_out = true;
  ASSIGN_OR_RETURN(std::unique_ptr<Task> held_out, make_task(run.data.task, run.data.task_settings, options));
  out.tokenizer_json = task->tokenizer_json();
  out.training = std::move(task);
  out.held_out = std::move(held_out);
  return out;
}

Result<int32_t> end_token(const DataSection& data, const std::string& file, const Tokenizer& tokenizer) {
  if (data.end_token_given) {
    if (data.end_token.empty()) return -1;
    const auto found = tokenizer.find(data.end_token);
    if (found.has_value()) return *found;
    return bad_input(file + ": data.end_token " + printable(data.end_token) + " is no token of " + data.tokenizer);
  }
  if (tokenizer.eos().has_value()) return *tokenizer.eos();
  return tokenizer.end_of_generation().empty() ? -1 : tokenizer.end_of_generation().front();
}

Result<Data> corpus_data(const RunConfig& run, TrainProgramObserver& observer) {
  Data out;
  TokeniseOptions options;
  std::shared_ptr<const Tokenizer> tokenizer;
  if (!run.data.tokenizer.empty()) {
    if (run.data.tokenizer == "bytes") {
      out.tokenizer_json = word_tokenizer_json({});
      ASSIGN_OR_RETURN(tokenizer, parse_tokenizer_json(out.tokenizer_json, {.name = "the byte tokenizer"}));
    } else {
      ASSIGN_OR_RETURN(tokenizer, load_tokenizer_json(run.data.tokenizer));
      const bool folder = fs::is_directory(run.data.tokenizer);
      ASSIGN_OR_RETURN(out.tokenizer_json,
                       read_text_file(folder ? run.data.tokenizer + "/tokenizer.json" : run.data.tokenizer));
    }
    options.tokenizer = tokenizer.get();
    ASSIGN_OR_RETURN(options.end_token, end_token(run.data, run.file, *tokenizer));
  }
  options.document_separator = run.data.document_separator;
  options.extensions = run.data.extensions;
  options.cache = run.data.cache;
  options.on_progress = [&observer](uint64_t done, uint64_t total) {
    observer.tokenising(done, total);
    return !observer.should_stop();
  };
  ASSIGN_OR_RETURN(Corpus corpus, open_corpus(run.data.train, options));
  Corpus held_out;
  if (!run.data.held_out.empty()) {
    ASSIGN_OR_RETURN(held_out, open_corpus(run.data.held_out, options));
  } else if (run.data.held_out_fraction > 0) {
    ASSIGN_OR_RETURN(held_out, split_held_out(corpus, run.data.held_out_fraction, run.train.seed));
  }
  const bool evaluates = !held_out.documents.empty();
  ASSIGN_OR_RETURN(out.training, CorpusSource::create(std::move(corpus), run.train.sequence, run.train.seed,
                                                      run.file + ": data.train"));
  if (evaluates) {
    ASSIGN_OR_RETURN(out.held_out, CorpusSource::create(std::move(held_out), run.train.sequence, run.train.seed,
                                                        run.file + ": what is held out"));
  } else if (!run.data.held_out.empty()) {
    return bad_input(run.file + ": data.held_out has no documents");
  }
  return out;
}

// What products reach here: the same operation training uses, on matrices that fit no cache of one core but are not
// small.
double measure_product_roof(TrainingOps<float>& ops) {
  constexpr int64_t kRows = 1024, kSize = 1024;
  constexpr double kSeconds = 0.25;
  std::vector<float> x(kRows * kSize), w(kSize * kSize), y(kRows * kSize);
  RandomStream random(1, 1);
  for (float& value : x) value = static_cast<float>(random.uniform() - 0.5);
  for (float& value : w) value = static_cast<float>(random.uniform() - 0.5);
  double best = 0;
  const double start = monotonic_seconds();
  while (monotonic_seconds() - start < kSeconds) {
    const double before = monotonic_seconds();
    ops.matmul(MatrixView<float>(y.data(), kRows, kSize), MatrixView<const float>(x.data(), kRows, kSize),
               MatrixView<const float>(w.data(), kSize, kSize));
    best = std::max(best, 2.0 * kRows * kSize * kSize / (monotonic_seconds() - before));
  }
  return best;
}

// The largest a micro-batch takes: of whole rows, or of those that the run begins with, goes on with and ends with, whose shorter
// sequences each have a memory, a last segment and a last block of their own.
TrainMemory largest_memory(const RunConfig& run, int ranks, const TrainableModel<float>& model, const SampleSource& source) {
  constexpr int64_t kBatches = 8, kStages = 4;
  const int64_t share = std::max<int64_t>(run.train.batch / ranks, 1);
  const int64_t micro = run.train.micro_batch > 0 ? std::min(run.train.micro_batch, share) : share;
  std::vector<int64_t> offsets;
  for (int64_t i = 0; i <= micro; ++i) offsets.push_back(i * run.train.sequence);
  TrainMemory largest = model.memory(offsets);
  for (int64_t stage = 0; stage <= kStages; ++stage) {
    for (int64_t batch = 0; batch < kBatches; ++batch) {
      offsets.assign(1, 0);
      for (int64_t i = batch * micro; i < (batch + 1) * micro; ++i) {
        const TrainSample sample = source.sample(i, static_cast<double>(stage) / kStages);
        for (const int64_t length : sample.lengths) offsets.push_back(offsets.back() + length);
      }
      const TrainMemory memory = model.memory(offsets);
      if (memory.total() > largest.total()) largest = memory;
    }
  }
  return largest;
}

Result<std::string> resume_path(const TrainRequest& request, const std::string& folder) {
  if (!request.checkpoint.empty()) return request.checkpoint;
  const std::vector<std::string> all = find_checkpoints(folder);
  if (request.resume) {
    if (all.empty()) return bad_input(folder + ": has no checkpoint to resume from; run without --resume");
    return all.back();
  }
  if (!all.empty() && !request.fresh) {
    return usage_error(folder + ": holds checkpoints of an earlier run (" + fs::path(all.back()).filename().string() +
                       "); --resume continues it, --fresh starts over and removes them");
  }
  return std::string();
}

Result<void> write_model_folder(const std::string& folder, const TrainableModel<float>& model, const ModelText& text,
                                const Data& data) {
  RETURN_IF_ERROR(write_weights(folder, model));
  RETURN_IF_ERROR(write_text_file(folder + "/config.json", text.json));
  if (data.tokenizer_json.empty()) return {};
  return write_text_file(folder + "/tokenizer.json", data.tokenizer_json);
}

Result<TrainOutcome> train_as_rank(const TrainRequest& request, TrainProgramObserver& observer, const RunConfig& run,
                                   Ranks& ranks) {
  TrainOutcome out;
  TrainPlan& plan = out.plan;
  ASSIGN_OR_RETURN(const ModelText text, read_model_text(run.model, run.file));
  const std::string& folder = run.output.folder;
  ASSIGN_OR_RETURN(plan.resumed_from, resume_path(request, folder));
  // Texts are tokenised by rank 0 alone; the others find the cache.
  if (ranks.rank() != 0) RETURN_IF_ERROR(ranks.meet());
  Data data;
  if (run.data.task.empty()) {
    ASSIGN_OR_RETURN(data, corpus_data(run, observer));
  } else {
    ASSIGN_OR_RETURN(data, task_data(run, first_segment_tokens(text.config)));
  }
  if (ranks.rank() == 0) RETURN_IF_ERROR(ranks.meet());

  CpuTrainingOptions machine;
  ASSIGN_OR_RETURN(machine.isa, chosen_isa());
  machine.threads =
      static_cast<int>(run.train.threads > 0 ? run.train.threads : std::max(available_cores() / ranks.size(), 1));
  machine.precision = run.train.bfloat16 ? MatmulPrecision::kBfloat16 : MatmulPrecision::kFull;
  ASSIGN_OR_RETURN(const std::unique_ptr<TrainingOps<float>> ops, make_cpu_training_ops(machine));
  plan.roof_flops = measure_product_roof(*ops);
  const int64_t base_bytes = resident_bytes();
  ASSIGN_OR_RETURN(const auto model,
                   TrainableModel<float>::create(text.config, *ops, {.recompute = run.train.recompute}));
  if (run.model.init.empty()) {
    model->initialise(static_cast<uint64_t>(run.model.seed), run.model.deviation);
  } else {
    ASSIGN_OR_RETURN(const TensorFile weights, read_safetensors(run.model.init));
    RETURN_IF_ERROR(model->load(weights));
  }
  const TrainerParts parts{.config = &run,
                           .model = model.get(),
                           .training = data.training.get(),
                           .held_out = data.held_out.get(),
                           .ranks = &ranks,
                           .roof_flops = plan.roof_flops};
  ASSIGN_OR_RETURN(const std::unique_ptr<Trainer> trainer, Trainer::create(parts));
  if (!plan.resumed_from.empty()) RETURN_IF_ERROR(trainer->resume(plan.resumed_from));
  if (request.fresh && ranks.rank() == 0) {
    for (const std::string& old : find_checkpoints(folder)) std::remove(old.c_str());
  }
  RETURN_IF_ERROR(ranks.meet());

  const TrainMemory memory = largest_memory(run, ranks.size(), *model, *data.training);
  plan.parameters = model->parameter_count();
  plan.layers = static_cast<int64_t>(text.config.layers.size());
  plan.hidden = text.config.hidden;
  plan.data = data.training->description();
  if (data.held_out != nullptr) plan.held_out = data.held_out->description();
  plan.products = ops->name();
  plan.threads = ops->threads();
  plan.ranks = ranks.size();
  plan.rank = ranks.rank();
  plan.steps = run.train.steps;
  plan.first_step = trainer->step();
  plan.tokens_per_step = run.train.batch * run.train.sequence;
  plan.weight_bytes = memory.weights;
  plan.gradient_bytes = memory.gradients;
  plan.moment_bytes = Optimizer::bytes(*model);
  plan.activation_bytes = memory.saved + memory.scratch + memory.products;
  plan.peak_bytes = base_bytes + memory.total() + plan.moment_bytes + ranks.scratch_bytes();
  plan.folder = folder;
  observer.planned(plan);

  ASSIGN_OR_RETURN(out.summary, trainer->run(observer));
  if (ranks.rank() == 0) {
    out.model_folder = folder + "/model";
    RETURN_IF_ERROR(write_model_folder(out.model_folder, *model, text, data));
  }
  out.peak_bytes = peak_bytes_so_far();
  return out;
}

}  // namespace

Result<TrainOutcome> train(const TrainRequest& request, TrainProgramObserver& observer) {
  ASSIGN_OR_RETURN(const RunConfig run, read_run_config(request.config, request.overrides));
  ASSIGN_OR_RETURN(const std::unique_ptr<Ranks> ranks, join_ranks([&observer] { return observer.should_stop(); }));
  Result<TrainOutcome> outcome = train_as_rank(request, observer, run, *ranks);
  if (!outcome.ok()) ranks->abandon();
  return outcome;
}

}  // namespace quipu
