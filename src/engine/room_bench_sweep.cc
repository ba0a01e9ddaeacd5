#include "engine/room_bench_sweep.h"

#include <sys/stat.h>

#include <algorithm>
#include <map>

#include "base/byte_reader.h"
#include "base/clock.h"
#include "base/median.h"
#include "engine/available_memory.h"
#include "engine/cost_plan.h"
#include "engine/cost_rooms.h"
#include "engine/room_bench.h"

namespace quipu {
namespace {

constexpr int64_t kMaxSteps = 96;  // decoded after the depth, per case
constexpr int64_t kLeastGroups = 3;
constexpr double kCaseSeconds = 4;  // of steps per case, once the least number is done
constexpr uint64_t kMostMemory = uint64_t{8} << 30;

Result<ModelConfig> sweep_shape(const std::string& shape) {
  if (auto known = bench_shape(shape); known.ok()) return known;
  struct stat facts{};
  if (stat(shape.c_str(), &facts) == 0) {
    ASSIGN_OR_RETURN(DescribedModel described, describe_model(shape));
    return std::move(described.config);
  }
  return usage_error("--shape: " + printable(shape, 200) + " is none of " + bench_shape_names() +
                     ", and no file of that name");
}

bool interrupted(const SweepOptions& options) { return options.interrupted != nullptr && *options.interrupted; }

// Runs steps in groups, so that layers that let in some tokens are averaged, and takes the median of the groups.
Result<void> measure_decode(RoomRunner& runner, const SweepOptions& options, SweepCase& result) {
  ASSIGN_OR_RETURN(const double first, runner.step());  // warms caches; not counted
  const int64_t group = first < 0.03 ? 8 : first < 0.2 ? 4 : 1;
  std::vector<double> rates;
  const double start = monotonic_seconds();
  while (result.decode_steps + group < kMaxSteps) {
    if (interrupted(options)) return failed("interrupted");
    double seconds = 0;
    for (int64_t i = 0; i < group; ++i) {
      ASSIGN_OR_RETURN(const double one, runner.step());
      seconds += one;
    }
    result.decode_steps += group;
    rates.push_back(static_cast<double>(group * result.batch) / seconds);
    if (static_cast<int64_t>(rates.size()) >= kLeastGroups && monotonic_seconds() - start > kCaseSeconds) break;
  }
  if (!runner.logits_finite())
    return failed(result.name + ": logits are not finite after " + std::to_string(result.context) + " tokens");
  result.decode_tokens_per_second = median_of(rates);
  result.decode_low = *std::min_element(rates.begin(), rates.end());
  result.decode_high = *std::max_element(rates.begin(), rates.end());
  return {};
}

class Sweep {
 public:
  Sweep(const SweepOptions& options, SweepReport& report)
      : options_(options), report_(report), start_(monotonic_seconds()) {}

  // Lists every case with a guess of its work, in relative units.
  Result<void> plan(const ModelConfig& shape) {
    VariantOptions variant_options{
        .segment_tokens = options_.segment_tokens, .windows = false, .own = false, .depths = options_.depths};
    for (const std::string& key : options_.rooms) variant_options.windows |= key.find("window") != std::string::npos;
    ASSIGN_OR_RETURN(std::vector<RoomVariant> all, room_variants(shape, variant_options));
    RETURN_IF_ERROR(choose(all));
    ASSIGN_OR_RETURN(report_.rules, rule_texts(shape, variant_options));
    for (const RoomVariant& variant : variants_) {
      ASSIGN_OR_RETURN(const CostPlan plan, CostPlan::create(variant.config, {options_.cache_dtype, 2}));
      double work = static_cast<double>(plan.parameters()) * 2e-9;  // making and packing the weights
      for (const int64_t batch : options_.batches) {
        for (const int64_t context : options_.contexts) {
          work += 0.2 + static_cast<double>(plan.state_bytes(context)) * static_cast<double>(batch) * 3e-9;
        }
      }
      work_.push_back(work);
    }
    return {};
  }

  Result<void> run() {
    double done = 0, total = 0;
    for (const double work : work_) total += work;
    for (size_t i = 0; i < variants_.size(); ++i) {
      const double cases = static_cast<double>(options_.batches.size() * options_.contexts.size());
      RETURN_IF_ERROR(run_variant(variants_[i], [&](double share, const std::string& next) {
        if (options_.on_progress) options_.on_progress(done + work_[i] * share / cases, total, next);
      }));
      done += work_[i];
      if (report_.interrupted) return {};
    }
    return {};
  }

 private:
  // Those asked for; with one key also its form with mixture of depths.
  Result<void> choose(std::vector<RoomVariant>& all) {
    for (const std::string& key : options_.rooms) {
      const auto matches = [&](const RoomVariant& variant) {
        return variant.key == key || variant.key == key + "+mod";
      };
      if (std::any_of(all.begin(), all.end(), matches)) continue;
      return usage_error("--rooms: " + printable(key) + " is none of " + sweep_room_keys() +
                         " (each also with +mod), or this shape has no such form");
    }
    for (RoomVariant& variant : all) {
      const auto asked = [&](const std::string& key) { return variant.key == key || variant.key == key + "+mod"; };
      if (options_.rooms.empty() || std::any_of(options_.rooms.begin(), options_.rooms.end(), asked)) {
        variants_.push_back(std::move(variant));
      }
    }
    return {};
  }

  double used() const { return monotonic_seconds() - start_; }
  bool out_of_time() const { return used() > options_.budget_seconds; }

  SweepCase& add_case(const RoomVariant& variant, int64_t context, int64_t batch, std::string skipped = {}) {
    SweepCase one;
    one.name = variant.name;
    one.key = variant.key;
    one.depths = variant.depths;
    one.context = context;
    one.batch = batch;
    one.skipped = std::move(skipped);
    report_.cases.push_back(std::move(one));
    return report_.cases.back();
  }

  std::string time_reason() const {
    return "the time budget of " + std::to_string(static_cast<int64_t>(options_.budget_seconds)) + " s is used up";
  }

  template <class Progress>
  Result<void> run_variant(const RoomVariant& variant, const Progress& progress) {
    std::unique_ptr<RoomRunner> runner;
    prompts_.clear();
    double case_number = 0;
    for (const int64_t batch : options_.batches) {
      for (const int64_t context : options_.contexts) {
        progress(case_number++,
                 variant.name + ", " + std::to_string(context) + " tokens, batch " + std::to_string(batch));
        if (interrupted(options_)) {
          report_.interrupted = true;
          return {};
        }
        if (out_of_time()) {
          add_case(variant, context, batch, time_reason());
          continue;
        }
        if (runner == nullptr) {
          const RunnerOptions options{.cache_dtype = options_.cache_dtype, .threads = options_.threads, .seed = 1};
          ASSIGN_OR_RETURN(runner, RoomRunner::create(variant.config, options));
          report_.backend = runner->backend_name();
          report_.threads = runner->threads();
        }
        const Result<void> outcome = run_case(*runner, variant, context, batch);
        if (outcome.ok()) continue;
        if (!interrupted(options_)) return outcome;
        report_.cases.pop_back();
        report_.interrupted = true;
        return {};
      }
    }
    return {};
  }

  Result<void> run_case(RoomRunner& runner, const RoomVariant& variant, int64_t context, int64_t batch) {
    const uint64_t need = runner.weight_bytes() + runner.state_bytes_needed(batch, context + kMaxSteps);
    if (need > report_.memory_limit) {
      add_case(variant, context, batch,
               "needs " + bytes_text(static_cast<double>(need)) + ", the limit is " +
                   bytes_text(static_cast<double>(report_.memory_limit)));
      return {};
    }
    SweepCase& result = add_case(variant, context, batch);
    RETURN_IF_ERROR(runner.begin(batch, context + kMaxSteps + 1));
    report_.peak_per_case = reset_peak_memory() && report_.peak_per_case;
    RETURN_IF_ERROR(fill(runner, result));
    result.state_bytes = runner.state_bytes(context);
    RETURN_IF_ERROR(measure_decode(runner, options_, result));
    result.held_bytes = static_cast<uint64_t>(runner.held_bytes());
    result.peak_bytes = peak_memory();
    result.routed_share = runner.routed_share();
    return runner.begin(0, 1);  // gives the states back
  }

  // Brings every sequence to result.context tokens; measures a prompt on the way where that is new.
  Result<void> fill(RoomRunner& runner, SweepCase& result) {
    const int64_t prompt = std::min(result.context, options_.prompt_tokens);
    const bool fixed = !runner.grows();
    const auto known = prompts_.find(prompt);
    const bool real = fixed || (result.context <= prompt && result.batch == 1);
    if (known == prompts_.end() || real) {
      ASSIGN_OR_RETURN(const double seconds, runner.feed({.tokens = prompt, .interrupted = options_.interrupted}));
      if (known == prompts_.end()) prompts_[prompt] = static_cast<double>(prompt) / seconds;
      if (!real) RETURN_IF_ERROR(runner.begin(result.batch, result.context + kMaxSteps + 1));
    }
    result.prompt_tokens = prompt;
    result.prompt_tokens_per_second = prompts_[prompt];
    if (fixed) {
      result.filled = prompt == result.context ? "prompt" : "prompt of " + std::to_string(prompt);
      return runner.copy_first();
    }
    if (real) {
      result.filled = "prompt";
      return {};
    }
    result.filled = "random rows";
    return runner.fill(result.context);
  }

  const SweepOptions& options_;
  SweepReport& report_;
  double start_;
  std::vector<RoomVariant> variants_;
  std::vector<double> work_;
  std::map<int64_t, double> prompts_;  // tokens per second of this variant's prompts, by length
};

}  // namespace

std::string sweep_shapes() { return bench_shape_names(); }

std::string sweep_room_keys() {
  const auto shape = bench_shape("mtla");
  CHECK(shape.ok());
  const auto variants = room_variants(*shape, {.own = false, .depths = false});
  CHECK(variants.ok());
  std::string keys;
  for (const RoomVariant& variant : *variants) keys += (keys.empty() ? "" : ", ") + variant.key;
  return keys;
}

Result<SweepReport> sweep_rooms(const SweepOptions& options) {
  SweepReport report;
  report.shape = options.shape;
  ASSIGN_OR_RETURN(const ModelConfig shape, sweep_shape(options.shape));
  ASSIGN_OR_RETURN(const AttentionOutline outline, attention_outline(shape.layers.front()));
  report.shape_text = std::to_string(shape.layers.size()) + " layers of width " + std::to_string(shape.hidden) + ", " +
                      std::to_string(outline.heads) + " heads of " + std::to_string(outline.head_dim) +
                      ", vocabulary " + std::to_string(shape.vocabulary);
  const uint64_t available = available_memory().value_or(kMostMemory);
  report.memory_limit = options.memory_limit > 0 ? options.memory_limit : std::min(kMostMemory, available / 3 * 2);
  Sweep sweep(options, report);
  RETURN_IF_ERROR(sweep.plan(shape));
  RETURN_IF_ERROR(sweep.run());
  return report;
}

}  // namespace quipu
