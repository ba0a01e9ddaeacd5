#include "train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <sstream>

#include "base/byte_reader.h"
#include "base/clock.h"
#include "base/number_text.h"
#include "formats/safetensors/safetensors_writer.h"
#include "formats/state_file/hash128.h"
#include "train/schedule.h"

namespace quipu {
namespace {

double unix_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string whole_text(int64_t value) { return std::to_string(value); }

// "1 thread", "2 threads".
std::string counted(int64_t count, const std::string& what) { return whole_text(count) + " " + what + (count == 1 ? "" : "s"); }
std::string short_text(double value) {
  std::ostringstream text;
  text.precision(5);
  text << value;
  return text.str();
}

}  // namespace

struct Trainer::Batch {
  std::vector<int32_t> tokens, targets;
  std::vector<float> weights, repeats;
  std::vector<int64_t> offsets = {0};
  std::vector<int64_t> answer_rows, answer_ends;
  bool any_repeats = false;
  double weight = 0;  // of the rows that count

  void add(const TrainSample& sample) {
    const int64_t base = static_cast<int64_t>(tokens.size());
    tokens.insert(tokens.end(), sample.tokens.begin(), sample.tokens.end());
    targets.insert(targets.end(), sample.targets.begin(), sample.targets.end());
    for (int64_t row = 0; row < sample.rows(); ++row) {
      const float one = sample.weights.empty() ? 1.0f : sample.weights[static_cast<size_t>(row)];
      const bool counts = sample.targets[static_cast<size_t>(row)] >= 0;
      weights.push_back(counts ? one : 0.0f);
      if (counts) weight += one;
    }
    any_repeats = any_repeats || !sample.write_repeats.empty();
    repeats.insert(repeats.end(), sample.write_repeats.begin(), sample.write_repeats.end());
    repeats.resize(tokens.size(), 1.0f);
    for (const int64_t length : sample.lengths) offsets.push_back(offsets.back() + length);
    const int64_t answers = static_cast<int64_t>(answer_rows.size());
    for (const int64_t row : sample.answer_rows) answer_rows.push_back(base + row);
    for (const int64_t end : sample.answer_ends) answer_ends.push_back(answers + end);
  }
  TrainBatch view() const { return {.tokens = tokens, .targets = targets, .weights = weights, .offsets = offsets}; }
  // share: of the step's micro-batches and ranks, because what layers add to the loss is a mean of its own.
  TrainOptions options(const TrainSection& train, double share, double progress) const {
    TrainOptions out;
    out.z_loss = train.z_loss;
    out.router_loss = share * train.router_loss;
    const double risen = (progress - train.write_penalty_start) / (1 - train.write_penalty_start);
    out.write_penalty = share * train.write_penalty * std::max(risen, 0.0);
    if (any_repeats) out.write_repeats = repeats;
    return out;
  }
};

Result<std::unique_ptr<Trainer>> Trainer::create(const TrainerParts& parts) {
  const RunConfig& config = *parts.config;
  const int64_t ranks = parts.ranks->size(), batch = config.train.batch;
  if (batch % ranks != 0) {
    return usage_error(config.file + ": train.batch is " + whole_text(batch) + ", expected a multiple of the " +
                       whole_text(ranks) + " ranks");
  }
  const int64_t share = batch / ranks, micro = config.train.micro_batch;
  if (micro > 0 && share % micro != 0) {
    return usage_error(config.file + ": train.micro_batch is " + whole_text(micro) +
                       ", expected a divisor of a rank's share of the batch, " + whole_text(share));
  }
  const int64_t vocabulary = parts.model->config().vocabulary;
  for (const SampleSource* source : {parts.training, parts.held_out}) {
    if (source == nullptr || source->vocabulary() <= vocabulary) continue;
    return bad_input(config.file + ": the data have tokens up to " + whole_text(source->vocabulary() - 1) +
                     ", the model a vocabulary of " + whole_text(vocabulary) + "; set vocab_size to at least " +
                     whole_text(source->vocabulary()));
  }
  ASSIGN_OR_RETURN(Optimizer optimizer, Optimizer::create(*parts.model, config.optimizer));
  std::unique_ptr<Trainer> trainer(new Trainer(parts, std::move(optimizer)));
  trainer->state_.seed = config.train.seed;
  trainer->state_.model = hash128(config_text(parts.model->config())).text();
  trainer->state_.data = trainer->data_fingerprint();
  return trainer;
}

std::string Trainer::data_fingerprint() const {
  std::ostringstream text;
  text << parts_.training->description() << " sequence=" << config_.train.sequence << " batch=" << config_.train.batch;
  for (const auto& [key, setting] : config_.data.task_settings.values) {
    text << " " << key << "=";
    std::visit([&](const auto& value) { text << value; }, setting.value);
  }
  return text.str();
}

Result<void> Trainer::resume(const std::string& path) {
  ASSIGN_OR_RETURN(const CheckpointState read, read_checkpoint(path, *parts_.model, optimizer_));
  if (read.model != state_.model)
    return bad_input(path + ": belongs to a model of another configuration than model.config");
  if (read.seed != state_.seed) {
    return bad_input(path + ": was written with train.seed = " + whole_text(read.seed) + ", now it is " +
                     whole_text(state_.seed) + "; a run continues with its own seed");
  }
  if (read.data != state_.data) {
    return bad_input(path + ": was written while training on other data: " + printable(read.data, 300) +
                     "; now: " + printable(state_.data, 300) +
                     ". Start anew in another output.folder, with model.init to keep the weights");
  }
  state_ = read;
  return {};
}

Result<std::vector<Trainer::Batch>> Trainer::draw_step() {
  const int64_t share = config_.train.batch / parts_.ranks->size();
  const int64_t micro = config_.train.micro_batch > 0 ? config_.train.micro_batch : share;
  const int64_t first = state_.samples + share * parts_.ranks->rank();
  std::vector<Batch> batches(static_cast<size_t>(share / micro));
  for (int64_t i = 0; i < share; ++i) {
    batches[static_cast<size_t>(i / micro)].add(parts_.training->sample(first + i, progress()));
  }
  // Weights become shares of the whole step, so that gradients of micro-batches and ranks just add up to that of the
  // mean.
  double weight = 0;
  for (const Batch& batch : batches) weight += batch.weight;
  RETURN_IF_ERROR(parts_.ranks->sum(std::span<double>(&weight, 1)));
  for (Batch& batch : batches) {
    for (float& one : batch.weights) one = weight > 0 ? static_cast<float>(one / weight) : 0.0f;
  }
  return batches;
}

Result<Trainer::StepOutcome> Trainer::train_step() {
  TrainableModel<float>& model = *parts_.model;
  ASSIGN_OR_RETURN(const std::vector<Batch> batches, draw_step());
  model.zero_gradients();
  StepOutcome out;
  double sums[2] = {0, 0};  // loss, tokens: over ranks
  const double share = 1.0 / static_cast<double>(static_cast<int64_t>(batches.size()) * parts_.ranks->size());
  for (const Batch& batch : batches) {
    ASSIGN_OR_RETURN(const StepLoss loss,
                     model.forward_backward(batch.view(), batch.options(config_.train, share, progress())));
    sums[0] += loss.sums.weighted;
    sums[1] += static_cast<double>(batch.tokens.size());
    out.flops += model.step_flops(batch.offsets);
  }
  RETURN_IF_ERROR(parts_.ranks->sum(std::span<double>(sums)));
  RETURN_IF_ERROR(parts_.ranks->sum(model.gradients()));
  out.loss = sums[0];
  out.tokens = static_cast<int64_t>(sums[1]);
  out.gradient_norm = optimizer_.gradient_norm();
  if (!std::isfinite(out.loss) || !std::isfinite(out.gradient_norm)) {
    RETURN_IF_ERROR(save_bad_batch(batches, out.loss, out.gradient_norm));
  }
  optimizer_.apply(state_.step, schedule_factor(config_.optimizer, state_.step, config_.train.steps),
                   out.gradient_norm);
  ++state_.step;
  state_.samples += config_.train.batch;
  state_.tokens += out.tokens;
  return out;
}

// Always an error: says where the batch is and what to try. The weights are still those before the step.
Result<void> Trainer::save_bad_batch(const std::vector<Batch>& batches, double loss, double norm) const {
  const std::string path = config_.output.folder + "/bad-batch-step-" + whole_text(state_.step) + "-rank-" +
                           whole_text(parts_.ranks->rank()) + ".safetensors";
  Batch all;
  std::vector<int64_t> offsets = {0};
  for (const Batch& batch : batches) {
    all.tokens.insert(all.tokens.end(), batch.tokens.begin(), batch.tokens.end());
    all.targets.insert(all.targets.end(), batch.targets.begin(), batch.targets.end());
    all.weights.insert(all.weights.end(), batch.weights.begin(), batch.weights.end());
    const int64_t base = offsets.back();
    for (size_t i = 1; i < batch.offsets.size(); ++i) offsets.push_back(base + batch.offsets[i]);
  }
  const int64_t rows = static_cast<int64_t>(all.tokens.size());
  const SafetensorsTensor tensors[] = {
      {"offsets", {DType::kI64, {static_cast<int64_t>(offsets.size())}, std::as_bytes(std::span(offsets))}},
      {"targets", {DType::kI32, {rows}, std::as_bytes(std::span(all.targets))}},
      {"tokens", {DType::kI32, {rows}, std::as_bytes(std::span(all.tokens))}},
      {"weights", {DType::kF32, {rows}, std::as_bytes(std::span(all.weights))}},
  };
  const Result<void> written = write_safetensors(path, tensors, {{"step", whole_text(state_.step)}});
  return failed(
      "step " + whole_text(state_.step) + ": the loss is " + short_text(loss) + " and the norm of the gradient " +
      short_text(norm) +
      (written.ok() ? "; the batch is in " + path : "; the batch could not be saved: " + written.error().message) +
      ". Checkpoints are as they were; a lower optimizer.learning_rate or more warmup_steps may help");
}

Result<Evaluation> Trainer::evaluate() {
  CHECK(parts_.held_out != nullptr);
  int64_t count = config_.evaluate.sequences;
  if (parts_.held_out->samples_per_epoch() > 0) count = std::min(count, parts_.held_out->samples_per_epoch());
  double sums[7] = {};  // loss, weight, tokens, answer tokens, right ones, answers, right ones
  std::vector<int32_t> predictions;
  for (int64_t i = parts_.ranks->rank(); i < count; i += parts_.ranks->size()) {
    Batch batch;
    batch.add(parts_.held_out->sample(i, 1.0));
    predictions.resize(batch.tokens.size());
    TrainOptions options = batch.options(config_.train, 0, 0);
    options.z_loss = 0;
    options.serving = true;
    ASSIGN_OR_RETURN(const StepLoss loss,
                     parts_.model->evaluate(batch.view(), {.losses = {}, .predictions = predictions}, options));
    sums[0] += loss.sums.weighted;
    sums[1] += loss.sums.weight;
    sums[2] += static_cast<double>(loss.sums.rows);
    int64_t begin = 0;
    for (const int64_t end : batch.answer_ends) {
      bool whole = true;
      for (int64_t a = begin; a < end; ++a) {
        const size_t row = static_cast<size_t>(batch.answer_rows[static_cast<size_t>(a)]);
        const bool right = predictions[row] == batch.targets[row];
        sums[3] += 1;
        sums[4] += right ? 1 : 0;
        whole = whole && right;
      }
      sums[5] += 1;
      sums[6] += whole ? 1 : 0;
      begin = end;
    }
  }
  RETURN_IF_ERROR(parts_.ranks->sum(std::span<double>(sums)));
  Evaluation out;
  out.loss = sums[1] > 0 ? sums[0] / sums[1] : 0;
  out.tokens = static_cast<int64_t>(sums[2]);
  out.questions = static_cast<int64_t>(sums[5]);
  out.answer_accuracy = sums[3] > 0 ? sums[4] / sums[3] : 0;
  out.exact = sums[5] > 0 ? sums[6] / sums[5] : 0;
  return out;
}

Result<void> Trainer::open_logs() {
  if (parts_.ranks->rank() != 0) return {};
  std::error_code code;
  std::filesystem::create_directories(config_.output.folder, code);
  if (code) return failed(printable(config_.output.folder, 400) + ": cannot make the folder: " + code.message());
  remove_unfinished(config_.output.folder);
  ASSIGN_OR_RETURN(MetricsLog log, MetricsLog::open(config_.output.folder, state_.step > 0 ? state_.step : -1));
  metrics_.emplace(std::move(log));
  if (config_.output.tensorboard) {
    ASSIGN_OR_RETURN(TensorBoardLog events, TensorBoardLog::create(config_.output.folder, unix_seconds()));
    tensorboard_.emplace(std::move(events));
  }
  return {};
}

Result<void> Trainer::log_step(const StepReport& r) {
  if (!metrics_.has_value()) return {};
  MetricsLine line{r.step,
                   {{"tokens", static_cast<double>(r.tokens)},
                    {"loss", r.loss},
                    {"learning_rate", r.learning_rate},
                    {"gradient_norm", r.gradient_norm},
                    {"tokens_per_second", r.tokens_per_second},
                    {"seconds", r.seconds}}};
  if (r.roof_share > 0) line.values.emplace_back("roof_share", r.roof_share);
  RETURN_IF_ERROR(metrics_->add(line));
  if (tensorboard_.has_value()) RETURN_IF_ERROR(tensorboard_->add(line, unix_seconds()));
  return {};
}

Result<void> Trainer::log_evaluation(TrainObserver& observer, TrainSummary& summary) {
  if (parts_.held_out == nullptr) return {};
  ASSIGN_OR_RETURN(const Evaluation evaluation, evaluate());
  summary.evaluation = evaluation;
  observer.evaluated(state_.step, evaluation);
  if (!metrics_.has_value()) return {};
  MetricsLine line{state_.step,
                   {{"held_out_loss", evaluation.loss}, {"held_out_tokens", static_cast<double>(evaluation.tokens)}}};
  if (evaluation.questions > 0) {
    line.values.emplace_back("held_out_answer_accuracy", evaluation.answer_accuracy);
    line.values.emplace_back("held_out_exact", evaluation.exact);
  }
  RETURN_IF_ERROR(metrics_->add(line));
  if (tensorboard_.has_value()) RETURN_IF_ERROR(tensorboard_->add(line, unix_seconds()));
  return {};
}

Result<void> Trainer::checkpoint(TrainObserver& observer, TrainSummary& summary) {
  if (parts_.ranks->rank() == 0) {
    ASSIGN_OR_RETURN(summary.checkpoint,
                     write_checkpoint(config_.output.folder, *parts_.model, optimizer_, state_, config_.output.keep));
    observer.saved(summary.checkpoint);
    RETURN_IF_ERROR(write_report());
  }
  return parts_.ranks->meet();
}

Result<void> Trainer::write_report() const {
  if (!config_.output.report || !metrics_.has_value()) return {};
  ReportFacts facts;
  facts.title = "Training run " + std::filesystem::path(config_.output.folder).lexically_normal().filename().string();
  facts.rows = {
      {"configuration", config_.file},
      {"model", grouped_count(parts_.model->parameter_count()) + " parameters, " +
                    whole_text(static_cast<int64_t>(parts_.model->config().layers.size())) + " layers of " +
                    whole_text(parts_.model->config().hidden)},
      {"data", parts_.training->description()},
      {"step", whole_text(state_.step) + " of " + whole_text(config_.train.steps) + ", " +
                   whole_text(config_.train.batch) + " x " + whole_text(config_.train.sequence) + " tokens each"},
      {"tokens", grouped_count(state_.tokens)},
      {"time", human_seconds(state_.seconds)},
      {"products", parts_.model->ops().name() + ", " + counted(parts_.model->ops().threads(), "thread") + ", " +
                       counted(parts_.ranks->size(), "rank")}};
  return write_html_report(config_.output.folder + "/report.html", facts, metrics_->history());
}

Result<TrainSummary> Trainer::run(TrainObserver& observer) {
  TrainSummary summary;
  RETURN_IF_ERROR(open_logs());
  const int64_t steps = config_.train.steps;
  const double start = monotonic_seconds(), before = state_.seconds;
  const int64_t first_step = state_.step, first_tokens = state_.tokens;
  double last_saved = start, last_report = start, flops = 0, loss = 0;
  int64_t reported_tokens = state_.tokens, unreported = 0, saved_step = state_.step;
  while (state_.step < steps) {
    // All ranks decide together, so that none waits for one that left.
    const bool due = monotonic_seconds() - last_saved > 60 * config_.output.checkpoint_minutes &&
                     config_.output.checkpoint_minutes > 0;
    double flags[2] = {observer.should_stop() ? 1.0 : 0.0, due && parts_.ranks->rank() == 0 ? 1.0 : 0.0};
    RETURN_IF_ERROR(parts_.ranks->sum(std::span<double>(flags)));
    summary.stopped_early = flags[0] > 0;
    const int64_t by_steps = config_.output.checkpoint_steps;
    if ((summary.stopped_early || flags[1] > 0 || (by_steps > 0 && state_.step % by_steps == 0)) &&
        state_.step > saved_step) {
      RETURN_IF_ERROR(checkpoint(observer, summary));
      saved_step = state_.step;
      last_saved = monotonic_seconds();
    }
    if (summary.stopped_early) break;
    ASSIGN_OR_RETURN(const StepOutcome step, train_step());
    const double now = monotonic_seconds();
    state_.seconds = before + now - start;
    flops += step.flops;
    loss += step.loss;
    ++unreported;
    summary.loss = step.loss;
    StepReport report{.step = state_.step, .steps = steps, .tokens = state_.tokens, .loss = step.loss};
    report.learning_rate = config_.optimizer.learning_rate * schedule_factor(config_.optimizer, state_.step - 1, steps);
    report.gradient_norm = step.gradient_norm;
    report.seconds = state_.seconds;
    report.seconds_left =
        (now - start) / static_cast<double>(state_.step - first_step) * static_cast<double>(steps - state_.step);
    report.tokens_per_second = static_cast<double>(state_.tokens - reported_tokens) / std::max(now - last_report, 1e-9);
    if (parts_.roof_flops > 0) report.roof_share = flops / std::max(now - last_report, 1e-9) / parts_.roof_flops;
    observer.stepped(report);
    if (state_.step % config_.output.log_steps == 0 || state_.step == steps) {
      report.loss = loss / static_cast<double>(unreported);  // the mean since the last line
      RETURN_IF_ERROR(log_step(report));
      reported_tokens = state_.tokens;
      unreported = 0;
      flops = loss = 0;
      last_report = monotonic_seconds();
    }
    if (config_.evaluate.every > 0 && state_.step % config_.evaluate.every == 0 && state_.step < steps) {
      RETURN_IF_ERROR(log_evaluation(observer, summary));
      last_report = monotonic_seconds();
    }
  }
  summary.step = state_.step;
  summary.tokens = state_.tokens;
  summary.seconds = monotonic_seconds() - start;
  summary.tokens_per_second = static_cast<double>(state_.tokens - first_tokens) / std::max(summary.seconds, 1e-9);
  if (!summary.stopped_early) RETURN_IF_ERROR(log_evaluation(observer, summary));
  if (state_.step > saved_step)
    RETURN_IF_ERROR(checkpoint(observer, summary));
  else if (parts_.ranks->rank() == 0)
    RETURN_IF_ERROR(write_report());
  return summary;
}

}  // namespace quipu
