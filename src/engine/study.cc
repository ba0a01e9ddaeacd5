#include "engine/study.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "backend/cpu/cpu_training.h"
#include "base/byte_reader.h"
#include "base/clock.h"
#include "base/cpu_features.h"
#include "base/median.h"
#include "base/random.h"
#include "base/text_file.h"
#include "engine/cost_plan.h"
#include "engine/room_bench.h"
#include "engine/train.h"
#include "engine/train_tokenizer.h"
#include "formats/safetensors/safetensors_file.h"
#include "model/training.h"
#include "text/tokenizer_json.h"
#include "train/corpus.h"

namespace quipu {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr int64_t kTokenizerTexts = 4;        // one text in so many teaches the tokenizer
constexpr int64_t kHeldOutDocuments = 48;     // the longest of them
constexpr int64_t kFirstPositions = 128;      // the first slice of positions; the next ones double

std::string number(int64_t value) { return std::to_string(value); }

Result<void> make_folder(const std::string& path) {
  std::error_code code;
  fs::create_directories(path, code);
  if (code) return failed(path + ": cannot make the folder: " + code.message());
  return {};
}

bool interrupted(const ReproduceOptions& options) { return options.interrupted != nullptr && *options.interrupted; }
Error stopped() { return failed("interrupted; the same command goes on from here"); }

// --- configurations ----------------------------------------------------------------------------------------------------

std::string config_text(const StudyShape& shape, const StudyModel& model, int64_t inner) {
  ordered_json json = {{"model_type", "quipu"},
                       {"architectures", {"QuipuForCausalLM"}},
                       {"hidden_size", shape.hidden},
                       {"num_hidden_layers", shape.layers},
                       {"vocab_size", shape.vocabulary},
                       {"intermediate_size", inner},
                       {"hidden_act", "silu"},
                       {"max_position_embeddings", 1 << 20},
                       {"rms_norm_eps", 1e-6},
                       {"tie_word_embeddings", true},
                       {"attention", ordered_json::parse(model.attention)}};
  if (!model.mixture_of_depths.empty()) {
    ordered_json routed = ordered_json::array();
    for (int64_t layer = 1; layer < shape.layers; layer += 2) routed.push_back(layer);
    json["layers"] = {{{"layers", routed}, {"mixture_of_depths", ordered_json::parse(model.mixture_of_depths)}}};
  }
  return json.dump(1) + "\n";
}

Result<int64_t> parameters_of(const StudyShape& shape, const StudyModel& model, int64_t inner) {
  ASSIGN_OR_RETURN(const ModelConfig config, read_hf_config(model.name, config_text(shape, model, inner)));
  ASSIGN_OR_RETURN(const CostPlan plan, CostPlan::create(config, {}));
  return plan.parameters();
}

// The width of the feed-forward parts with which the model has about `parameters`: they grow by a line.
Result<int64_t> inner_for(const StudyShape& shape, const StudyModel& model, int64_t parameters) {
  ASSIGN_OR_RETURN(const int64_t one, parameters_of(shape, model, 1));
  ASSIGN_OR_RETURN(const int64_t two, parameters_of(shape, model, 2));
  return std::max<int64_t>(1, 1 + (parameters - one + (two - one) / 2) / (two - one));
}

// --- the corpus --------------------------------------------------------------------------------------------------------

Result<std::vector<std::string>> text_files(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(folder, code)) files.push_back(entry.path().string());
  if (code || files.empty()) {
    return bad_input(folder + ": no texts there; tools/fetch_corpus makes the corpus (or name another: --corpus FOLDER with train/ and "
                              "held_out/)");
  }
  std::ranges::sort(files);
  return files;
}

Result<void> make_tokenizer(const StudyShape& shape, const std::string& path) {
  if (fs::exists(path)) return {};
  ASSIGN_OR_RETURN(const std::vector<std::string> all, text_files(shape.corpus + "/train"));
  TokenizerTraining request;
  for (size_t i = 0; i < all.size(); i += static_cast<size_t>(kTokenizerTexts)) request.files.push_back(all[i]);
  request.out = path;
  request.options.vocab_size = shape.vocabulary;
  const auto made = train_tokenizer(request, [](const char*, uint64_t, uint64_t) { return true; });
  if (!made.ok()) return made.error();
  return {};
}

struct HeldOut {
  std::vector<std::vector<int32_t>> documents;   // their first tokens, the longest documents
  std::vector<double> log_share;                 // of every token in the training texts, one added to every count
};

Result<HeldOut> held_out_of(const StudyShape& shape, const std::string& work) {
  ASSIGN_OR_RETURN(const auto tokenizer, load_tokenizer_json(work + "/tokenizer.json"));
  TokeniseOptions options;
  options.tokenizer = tokenizer.get();
  options.end_token = tokenizer->eos().value_or(-1);
  options.extensions = {".txt"};
  options.cache = work + "/tokens";
  ASSIGN_OR_RETURN(const Corpus training, open_corpus({shape.corpus + "/train"}, options));
  ASSIGN_OR_RETURN(const Corpus corpus, open_corpus({shape.corpus + "/held_out"}, options));
  HeldOut out;
  std::vector<double> counts(static_cast<size_t>(shape.vocabulary), 1.0);
  double total = static_cast<double>(shape.vocabulary);
  for (const TokenFile& file : training.files) {
    for (int64_t i = 0; i < file.tokens(); ++i) counts[static_cast<size_t>(file.token(i))] += 1;
    total += static_cast<double>(file.tokens());
  }
  for (const double count : counts) out.log_share.push_back(std::log(count / total));
  std::vector<Document> documents;
  for (const Document& document : corpus.documents) {
    if (document.tokens() > shape.least) documents.push_back(document);
  }
  std::ranges::stable_sort(documents, std::greater<>(), &Document::tokens);
  if (documents.size() > static_cast<size_t>(kHeldOutDocuments)) documents.resize(static_cast<size_t>(kHeldOutDocuments));
  if (documents.empty()) return bad_input(shape.corpus + "/held_out: no document has more than " + number(shape.least) + " tokens");
  for (const Document& document : documents) {
    const TokenFile& file = corpus.files[static_cast<size_t>(document.file)];
    std::vector<int32_t>& tokens = out.documents.emplace_back();
    for (int64_t i = document.begin; i < std::min(document.end, document.begin + shape.longest + 1); ++i) tokens.push_back(file.token(i));
  }
  return out;
}

void shuffle(std::vector<int32_t>& tokens, uint64_t seed) {
  RandomStream random(seed, tokens.size());
  for (size_t i = tokens.size(); i > 1; --i) std::swap(tokens[i - 1], tokens[random.below(i)]);
}

// The same documents, tokens of each in random order, as a token file.
Result<std::string> shuffled_corpus(const StudyShape& shape, const std::string& work) {
  const std::string path = work + "/shuffled.tokens";
  if (fs::exists(path)) return path;
  ASSIGN_OR_RETURN(const auto tokenizer, load_tokenizer_json(work + "/tokenizer.json"));
  TokeniseOptions options;
  options.tokenizer = tokenizer.get();
  options.end_token = -1;
  options.extensions = {".txt"};
  options.cache = work + "/tokens";
  ASSIGN_OR_RETURN(const Corpus corpus, open_corpus({shape.corpus + "/train"}, options));
  ASSIGN_OR_RETURN(TokenFileWriter writer, TokenFileWriter::create(path, {.vocabulary = shape.vocabulary, .fingerprint = 0}));
  for (size_t d = 0; d < corpus.documents.size(); ++d) {
    const Document& document = corpus.documents[d];
    std::vector<int32_t> tokens;
    for (int64_t i = document.begin; i < document.end; ++i) tokens.push_back(corpus.files[static_cast<size_t>(document.file)].token(i));
    shuffle(tokens, d);
    RETURN_IF_ERROR(writer.append(tokens));
    writer.end_document();
  }
  RETURN_IF_ERROR(writer.commit());
  return path;
}

// --- cells ---------------------------------------------------------------------------------------------------------------

ordered_json slices_json(const std::vector<StudySlice>& slices) {
  ordered_json list = ordered_json::array();
  for (const StudySlice& s : slices) list.push_back({{"from", s.from}, {"to", s.to}, {"loss", s.loss}, {"tokens", s.tokens}});
  return list;
}
std::vector<StudySlice> slices_of(const ordered_json& json) {
  std::vector<StudySlice> slices;
  for (const auto& s : json) slices.push_back({s.at("from"), s.at("to"), s.at("loss"), s.at("tokens")});
  return slices;
}

ordered_json cell_json(const StudyCell& c) {
  ordered_json json = {{"model", c.model}, {"seed", c.seed}, {"parameters", c.parameters}, {"steps", c.steps}, {"tokens", c.tokens},
                       {"training_seconds", c.seconds}, {"loss", c.loss}, {"unigram_loss", c.unigram_loss},
                       {"loss_by_position", slices_json(c.positions)}};
  if (!c.places.empty()) json["loss_by_place_in_chunk"] = slices_json(c.places);
  if (c.routed_differing >= 0) json["routed_differing"] = c.routed_differing;
  return json;
}

Result<StudyCell> read_cell(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, read_text_file(path));
  try {
    const ordered_json json = ordered_json::parse(text);
    StudyCell c;
    c.model = json.at("model");
    c.seed = json.at("seed");
    c.parameters = json.at("parameters");
    c.steps = json.at("steps");
    c.tokens = json.at("tokens");
    c.seconds = json.at("training_seconds");
    c.loss = json.at("loss");
    c.unigram_loss = json.at("unigram_loss");
    c.positions = slices_of(json.at("loss_by_position"));
    if (json.contains("loss_by_place_in_chunk")) c.places = slices_of(json.at("loss_by_place_in_chunk"));
    c.routed_differing = json.value("routed_differing", -1.0);
    return c;
  } catch (const nlohmann::json::exception& error) {
    return bad_input(path + ": not a cell of an earlier run: " + printable(error.what(), 200) + "; remove it to measure it again");
  }
}

// Losses of held-out rows, gathered by position and by place within a chunk.
struct Tally {
  explicit Tally(const StudyShape& shape, int64_t stride) {
    for (int64_t from = 0, to = kFirstPositions; from < shape.longest; from = to, to *= 2) positions.push_back({from, std::min(to, shape.longest), 0, 0});
    for (int64_t place = 0; stride > 1 && place < stride; ++place) places.push_back({place, place + 1, 0, 0});
  }
  void add(int64_t position, double loss) {
    for (StudySlice& slice : positions) {
      if (position >= slice.from && position < slice.to) slice.loss += loss, ++slice.tokens;
    }
    if (!places.empty()) {
      StudySlice& place = places[static_cast<size_t>(position) % places.size()];
      place.loss += loss, ++place.tokens;
    }
  }
  static void divide(std::vector<StudySlice>& slices) {
    for (StudySlice& s : slices) s.loss = s.tokens > 0 ? s.loss / static_cast<double>(s.tokens) : 0;
  }
  std::vector<StudySlice> positions, places;
};

class Progress final : public TrainProgramObserver {
 public:
  Progress(const ReproduceOptions& options, std::string name, double from, double to)
      : options_(options), name_(std::move(name)), from_(from), to_(to) {}
  void stepped(const StepReport& r) override {
    std::ostringstream what;
    what.precision(3);
    what << "training " << name_ << ", step " << r.step << " of " << r.steps << ", loss " << r.loss;
    const double share = static_cast<double>(r.step) / static_cast<double>(r.steps);
    if (options_.on_progress) options_.on_progress(what.str(), from_ + (to_ - from_) * share);
  }
  bool should_stop() override { return interrupted(options_); }

 private:
  const ReproduceOptions& options_;
  std::string name_;
  double from_, to_;
};

class Study {
 public:
  Study(const StudyShape& shape, const std::vector<StudyModel>& models, const ReproduceOptions& options)
      : shape_(shape), models_(models), options_(options), work_(options.work) {}
  Result<std::vector<StudyModelResult>> run();

 private:
  struct Planned {
    int64_t inner = 0, steps = 0;
    double step_flops = 0;         // of training, per token
    std::string config;            // path
  };
  bool wanted(const StudyModel& model) const {
    return options_.only.empty() || std::ranges::find(options_.only, model.name) != options_.only.end();
  }
  Result<Planned> plan(const StudyModel& model);
  Result<StudyCell> cell(const StudyModel& model, const Planned& planned, int64_t seed, double from, double to);
  Result<void> evaluate(StudyCell& out, const StudyModel& model, const Planned& planned, const std::string& folder);
  Result<std::vector<StudySpeed>> decode(const StudyModel& model, const Planned& planned);
  Result<const HeldOut*> held_out();

  const StudyShape& shape_;
  const std::vector<StudyModel>& models_;
  const ReproduceOptions& options_;
  std::string work_;
  int64_t parameters_ = 0;         // of the first model
  double operations_ = 0;          // of its training
  std::optional<HeldOut> held_out_;
};

Result<const HeldOut*> Study::held_out() {
  if (!held_out_.has_value()) {
    ASSIGN_OR_RETURN(held_out_, held_out_of(shape_, work_));
  }
  return &*held_out_;
}

Result<std::unique_ptr<TrainingOps<float>>> training_ops(const ReproduceOptions& options) {
  CpuTrainingOptions machine;
  ASSIGN_OR_RETURN(machine.isa, chosen_isa());
  machine.threads = options.threads;
  machine.precision = MatmulPrecision::kBfloat16;
  return make_cpu_training_ops(machine);
}

Result<Study::Planned> Study::plan(const StudyModel& model) {
  Planned out;
  out.inner = shape_.inner;
  if (shape_.equal_parameters && parameters_ > 0) {
    ASSIGN_OR_RETURN(out.inner, inner_for(shape_, model, parameters_));
  }
  out.config = work_ + "/" + model.name + ".json";
  RETURN_IF_ERROR(write_text_file(out.config, config_text(shape_, model, out.inner)));
  ASSIGN_OR_RETURN(const ModelConfig config, read_hf_config(out.config, config_text(shape_, model, out.inner)));
  if (parameters_ == 0) {
    ASSIGN_OR_RETURN(parameters_, parameters_of(shape_, model, out.inner));
  }
  ASSIGN_OR_RETURN(const auto ops, training_ops(options_));
  ASSIGN_OR_RETURN(const auto trainable, TrainableModel<float>::create(config, *ops, {}));
  const int64_t offsets[] = {0, shape_.sequence};
  out.step_flops = trainable->step_flops(offsets) / static_cast<double>(shape_.sequence);
  out.steps = shape_.steps;
  if (operations_ == 0) operations_ = out.step_flops;
  if (shape_.equal_operations) out.steps = std::llround(static_cast<double>(shape_.steps) * operations_ / out.step_flops);
  return out;
}

Result<StudyCell> Study::cell(const StudyModel& model, const Planned& planned, int64_t seed, double from, double to) {
  const std::string name = model.name + "-" + number(seed), path = work_ + "/" + name + ".cell.json";
  if (fs::exists(path)) {
    ASSIGN_OR_RETURN(StudyCell there, read_cell(path));
    if (there.steps != planned.steps) {
      return usage_error(path + ": trained for " + number(there.steps) + " steps, asked for " + number(planned.steps) +
                         "; another --work keeps both, or remove it to train again");
    }
    return there;
  }
  const std::string folder = work_ + "/" + name, file = folder + ".toml";
  std::string texts = shape_.corpus + "/train";
  if (model.shuffled) {
    ASSIGN_OR_RETURN(texts, shuffled_corpus(shape_, work_));
  }
  std::ostringstream text;
  text << "# Made by quipu reproduce " << shape_.name << ".\n[model]\nconfig = " << ordered_json(fs::absolute(planned.config).string()) << "\ndeviation = " << shape_.deviation << "\n[data]\ntrain = "
       << ordered_json(fs::absolute(texts).string()) << "\nextensions = [\".txt\"]\ncache = \"tokens\"\n"
       << (model.shuffled ? "" : "tokenizer = \"tokenizer.json\"\n")
       << "[train]\nsteps = " << planned.steps << "\nbatch = " << shape_.batch << "\nmicro_batch = 1\nsequence = " << shape_.sequence << "\nseed = " << seed
       << "\nprecision = \"bf16\"\n[optimizer]\nlearning_rate = " << shape_.learning_rate << "\nwarmup_steps = " << std::max<int64_t>(planned.steps / 10, 1)
       << "\n[output]\nfolder = " << ordered_json(name) << "\ncheckpoint_minutes = 2\nkeep = 1\ntensorboard = false\n";
  RETURN_IF_ERROR(write_text_file(file, text.str()));
  TrainRequest request;
  request.config = file;
  request.resume = !find_checkpoints(folder).empty();
  if (options_.threads > 0) request.overrides.emplace_back("train.threads", number(options_.threads));
  Progress progress(options_, name, from, to);
  ASSIGN_OR_RETURN(const TrainOutcome outcome, train(request, progress));
  if (outcome.summary.stopped_early) return stopped();
  StudyCell out;
  out.model = model.name;
  out.seed = seed;
  out.parameters = outcome.plan.parameters;
  out.steps = outcome.summary.step;
  out.tokens = outcome.summary.tokens;
  out.seconds = outcome.summary.seconds;
  RETURN_IF_ERROR(evaluate(out, model, planned, outcome.model_folder));
  RETURN_IF_ERROR(write_text_file(path, cell_json(out).dump(1) + "\n"));
  return out;
}

Result<void> Study::evaluate(StudyCell& out, const StudyModel& model, const Planned& planned, const std::string& folder) {
  ASSIGN_OR_RETURN(const ModelConfig config, read_hf_config(planned.config, config_text(shape_, model, planned.inner)));
  ASSIGN_OR_RETURN(const auto ops, training_ops(options_));
  ASSIGN_OR_RETURN(const auto trainable, TrainableModel<float>::create(config, *ops, {}));
  ASSIGN_OR_RETURN(const TensorFile weights, read_safetensors(folder + "/model.safetensors"));
  RETURN_IF_ERROR(trainable->load(weights));
  ASSIGN_OR_RETURN(const HeldOut* held, held_out());
  Tally tally(shape_, model.stride);
  double sum = 0, unigram = 0, counted = 0;
  RoutingCounts routing;
  for (size_t d = 0; d < held->documents.size(); ++d) {
    if (interrupted(options_)) return stopped();
    std::vector<int32_t> tokens = held->documents[d];
    if (model.shuffled) shuffle(tokens, d);
    const std::vector<int32_t> targets(tokens.begin() + 1, tokens.end());
    tokens.pop_back();
    const int64_t offsets[] = {0, static_cast<int64_t>(tokens.size())};
    std::vector<float> losses(tokens.size());
    TrainOptions settings;
    settings.serving = true;       // routers decide as they will when the model is used
    settings.routing = &routing;
    const auto asked = trainable->evaluate({tokens, targets, {}, offsets}, {.losses = losses, .predictions = {}}, settings);
    if (!asked.ok()) return asked.error();
    for (size_t i = 0; i < losses.size(); ++i) {
      tally.add(static_cast<int64_t>(i), static_cast<double>(losses[i]));
      if (static_cast<int64_t>(i) >= shape_.sequence) continue;
      sum += static_cast<double>(losses[i]);
      unigram -= held->log_share[static_cast<size_t>(targets[i])];
      counted += 1;
    }
  }
  out.loss = sum / counted;
  out.unigram_loss = unigram / counted;
  if (!std::isfinite(out.loss)) return failed(model.name + ": its held-out loss is not a number");
  Tally::divide(tally.positions);
  Tally::divide(tally.places);
  out.positions = std::move(tally.positions);
  out.places = std::move(tally.places);
  if (routing.rows > 0) out.routed_differing = static_cast<double>(routing.differing) / static_cast<double>(routing.rows);
  return {};
}

Result<std::vector<StudySpeed>> Study::decode(const StudyModel& model, const Planned& planned) {
  // A round is too short to outlast a moment in which the machine does something else, or wakes up: the middle one counts.
  constexpr int kSteps = 33, kLeastRounds = 3, kMostRounds = 15;
  constexpr double kSeconds = 0.5;
  constexpr int64_t kPiece = 512;  // a window has room for so much beyond itself
  const std::string path = work_ + "/" + model.name + ".decode.json";
  std::vector<StudySpeed> speeds;
  if (fs::exists(path)) {
    ASSIGN_OR_RETURN(const std::string text, read_text_file(path));
    try {
      for (const auto& s : ordered_json::parse(text)) speeds.push_back({s.at("context"), s.at("tokens_per_second"), s.at("state_bytes")});
      return speeds;
    } catch (const nlohmann::json::exception& error) {
      return bad_input(path + ": not the speeds of an earlier run: " + printable(error.what(), 200) + "; remove it to measure them again");
    }
  }
  ASSIGN_OR_RETURN(const ModelConfig config, read_hf_config(planned.config, config_text(shape_, model, planned.inner)));
  ASSIGN_OR_RETURN(const auto runner, RoomRunner::create(config, {.threads = options_.threads}));
  ordered_json list = ordered_json::array();
  for (const int64_t context : shape_.contexts) {
    std::vector<double> rounds;
    const double start = monotonic_seconds();
    for (int round = 0; round < kLeastRounds || (round < kMostRounds && monotonic_seconds() - start < kSeconds); ++round) {
      RETURN_IF_ERROR(runner->begin(1, context + kSteps + 1));
      for (int64_t filled = kPiece; filled < context; filled += kPiece) RETURN_IF_ERROR(runner->fill(filled));
      RETURN_IF_ERROR(runner->fill(context));
      std::vector<double> seconds;
      for (int step = 0; step < kSteps; ++step) {
        if (interrupted(options_)) return stopped();
        ASSIGN_OR_RETURN(const double took, runner->step());
        seconds.push_back(took);
      }
      rounds.push_back(median_of(seconds));
    }
    const StudySpeed speed{context, 1 / median_of(rounds), runner->state_bytes(context)};
    speeds.push_back(speed);
    list.push_back({{"context", context}, {"tokens_per_second", speed.tokens_per_second}, {"state_bytes", speed.state_bytes}});
  }
  RETURN_IF_ERROR(write_text_file(path, list.dump(1) + "\n"));
  return speeds;
}

Result<std::vector<StudyModelResult>> Study::run() {
  if (work_.empty()) return usage_error("reproduce " + shape_.name + " needs a folder to work in");
  std::string names;
  for (const StudyModel& model : models_) names += (names.empty() ? "" : ", ") + model.name;
  for (const std::string& name : options_.only) {
    const bool known = name == "decode" || std::ranges::any_of(models_, [&](const StudyModel& m) { return m.name == name; });
    if (!known) return usage_error("--only names a model that is none of these: " + names + "; or decode");
  }
  RETURN_IF_ERROR(make_folder(work_));
  if (options_.on_progress) options_.on_progress("learning the tokenizer", 0);
  RETURN_IF_ERROR(make_tokenizer(shape_, work_ + "/tokenizer.json"));
  std::vector<Planned> plans;
  std::vector<StudyModelResult> results;
  double cells = 0, done = 0;
  for (const StudyModel& model : models_) {
    ASSIGN_OR_RETURN(plans.emplace_back(), plan(model));
    results.push_back({.model = model, .cells = {}, .decode = {}, .state_bytes_per_token = 0, .training_flops = plans.back().step_flops});
    if (wanted(model)) cells += static_cast<double>(model.seeds);
  }
  // The first seed of every model before the second of any: a study that is stopped early has a row for each.
  for (int64_t seed = 1; seed <= std::ranges::max(models_, {}, &StudyModel::seeds).seeds; ++seed) {
    for (size_t i = 0; i < models_.size(); ++i) {
      const StudyModel& model = models_[i];
      if (seed > model.seeds) continue;
      const bool there = fs::exists(work_ + "/" + model.name + "-" + number(seed) + ".cell.json");
      if (!there && !wanted(model)) continue;
      ASSIGN_OR_RETURN(StudyCell made, cell(model, plans[i], seed, done / std::max(cells, 1.0), std::min(1.0, (done + 1) / std::max(cells, 1.0))));
      results[i].cells.push_back(std::move(made));
      if (wanted(model)) done += 1;
      if (!there) RETURN_IF_ERROR(write_study(shape_, results, options_));
    }
  }
  const bool speeds = options_.only.empty() || std::ranges::find(options_.only, "decode") != options_.only.end();
  for (size_t i = 0; i < models_.size(); ++i) {
    if (models_[i].shuffled) continue;
    const bool there = fs::exists(work_ + "/" + models_[i].name + ".decode.json");
    if (!there && !speeds) continue;
    if (options_.on_progress) options_.on_progress("decoding with " + models_[i].label, 1);
    ASSIGN_OR_RETURN(results[i].decode, decode(models_[i], plans[i]));
    const StudySpeed& longest = results[i].decode.back();
    results[i].state_bytes_per_token = static_cast<double>(longest.state_bytes) / static_cast<double>(longest.context);
  }
  RETURN_IF_ERROR(write_study(shape_, results, options_));
  return results;
}

}  // namespace

double StudyModelResult::mean_loss() const {
  double sum = 0;
  for (const StudyCell& cell : cells) sum += cell.loss;
  return cells.empty() ? 0 : sum / static_cast<double>(cells.size());
}
double StudyModelResult::spread() const {
  if (cells.empty()) return 0;
  const auto [least, most] = std::ranges::minmax(cells, {}, &StudyCell::loss);
  return most.loss - least.loss;
}

Result<std::vector<StudyModelResult>> run_study(const StudyShape& shape, const std::vector<StudyModel>& models, const ReproduceOptions& options) {
  return Study(shape, models, options).run();
}

}  // namespace quipu
