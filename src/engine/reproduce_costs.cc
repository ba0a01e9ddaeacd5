// quipu reproduce costs. What is exact is worked out from the states the rooms declare; what is a speed is measured,
// the two sides of a ratio in turns, so that what else the machine does hits both.
#include <algorithm>
#include <cmath>
#include <sstream>

#include "base/median.h"
#include "engine/available_memory.h"
#include "engine/cost_plan.h"
#include "engine/cost_rooms.h"
#include "engine/reproduce.h"
#include "engine/room_bench.h"

namespace quipu {
namespace {

constexpr int64_t kMillion = int64_t{1} << 20;

std::string number(int64_t value) { return std::to_string(value); }

std::string short_number(double value) {
  std::ostringstream text;
  text.precision(3);
  text << value;
  return text.str();
}

LayerConfig layer_of(std::string room, HyperParameters parameters, int64_t inner) {
  LayerConfig layer;
  layer.room = std::move(room);
  layer.attention = std::move(parameters);
  layer.feed_forward.inner = inner;
  layer.summary = layer.room;
  return layer;
}

// A model of equal layers.
ModelConfig model_of(int64_t hidden, int64_t layers, const LayerConfig& layer) {
  ModelConfig config;
  config.origin = "reproduce costs";
  config.architecture = "quipu";
  config.hidden = hidden;
  config.vocabulary = 8000;
  config.trained_context = int64_t{1} << 24;
  config.norm_epsilon = 1e-6;
  config.tied_output = true;
  config.layers.assign(static_cast<size_t>(layers), layer);
  return config;
}

HyperParameters heads_of(int64_t heads, int64_t kv_heads, int64_t dim) {
  HyperParameters p("reproduce costs");
  p.set("heads", heads);
  p.set("kv_heads", kv_heads);
  p.set("head_dim", dim);
  p.set("rope_theta", 1e4);
  return p;
}

// Elements of the regions with these names, or of all.
Result<double> elements(const ModelConfig& config, int64_t tokens, std::vector<std::string> names = {}) {
  ASSIGN_OR_RETURN(const CostPlan plan, CostPlan::create(config, {DType::kF16, 2}));
  double total = 0;
  for (const RegionBytes& region : plan.regions(tokens)) {
    const bool asked = names.empty() || std::find(names.begin(), names.end(), region.name) != names.end();
    if (asked) total += static_cast<double>(region.elements);
  }
  return total;
}

Claim exact(std::string claim, double published, double ours, std::string unit, std::string note) {
  return {std::move(claim), published, ours, std::move(unit), ours == published, std::move(note)};
}
Claim at_least(std::string claim, double published, double ours, std::string unit, std::string note) {
  return {std::move(claim), published, ours, std::move(unit), ours >= published, std::move(note)};
}
Claim at_most(std::string claim, double published, double ours, std::string unit, std::string note) {
  return {std::move(claim), published, ours, std::move(unit), ours <= published, std::move(note)};
}

ModelConfig infini_model(int64_t hidden, int64_t layers, int64_t heads, int64_t inner, std::string_view rule,
                         int64_t segment) {
  HyperParameters p = heads_of(heads, heads, hidden / heads);
  p.set("segment_tokens", segment);
  p.set("rule", std::string(rule));
  p.set("feature", std::string(rule == "delta_true" ? "silu_l2" : "elu1"));
  return model_of(hidden, layers, layer_of("infini", std::move(p), inner));
}

// The five memory sizes of the Infini paper's table, all out of states that rooms of this engine declare:
// Transformer-XL and RMT keep keys and values of so many tokens in every layer, the Memorizing Transformer also those
// of 65,000 in one.
Result<void> infini_sizes(std::vector<Claim>& claims) {
  const ModelConfig mha = model_of(1024, 12, layer_of("grouped_query", heads_of(8, 8, 128), 4096));
  ModelConfig one_layer = mha;
  one_layer.layers.resize(1);
  ASSIGN_OR_RETURN(const double xl, elements(mha, 2048));
  ASSIGN_OR_RETURN(const double neighbours, elements(one_layer, 65000));
  ASSIGN_OR_RETURN(const double summary, elements(mha, 100));
  claims.push_back(exact("Infini paper: memory of Transformer-XL, printed as 50M", 50331648, xl, "elements",
                         "12 layers, 2,048 tokens"));
  claims.push_back(exact("Infini paper: memory of the Memorizing Transformer, printed as 183M", 183451648,
                         xl + neighbours, "elements", "the same and 65,000 tokens of one layer"));
  claims.push_back(
      exact("Infini paper: memory of RMT, printed as 2.5M", 2457600, summary, "elements", "100 summary vectors"));
  for (const std::string_view rule : {"linear", "delta"}) {
    const ModelConfig infini = infini_model(1024, 12, 8, 4096, rule, 2048);
    ASSIGN_OR_RETURN(const double memory, elements(infini, kMillion, {"memory", "norm"}));
    claims.push_back(
        exact("Infini paper: memory of Infini-Transformer, rule " + std::string(rule) + ", printed as 1.6M", 1585152,
              memory, "elements", "memory of closed segments alone, as the paper counts"));
  }
  const ModelConfig infini = infini_model(1024, 12, 8, 4096, "linear", 2048);
  ASSIGN_OR_RETURN(const CostPlan plan, CostPlan::create(infini, {DType::kF16, 2}));
  ASSIGN_OR_RETURN(const CostPlan plain, CostPlan::create(mha, {DType::kF16, 2}));
  double memory = 0;
  for (const RegionBytes& region : plan.regions(kMillion)) {
    if (region.name == "memory" || region.name == "norm") memory += static_cast<double>(region.bytes);
  }
  const double all = static_cast<double>(plan.state_bytes(kMillion)),
               kept = static_cast<double>(plain.state_bytes(kMillion));
  claims.push_back(at_least("Infini: state at least 114 times smaller, memory alone against an MHA cache of 1M tokens",
                            114, kept / memory, "x", bytes_text(memory) + " against " + bytes_text(kept)));
  claims.push_back(at_least("Infini: state at least 114 times smaller, local window and open segment included", 114,
                            kept / all, "x", bytes_text(all) + " against " + bytes_text(kept)));
  claims.push_back(
      at_least("Infini: state at least 114 times smaller than the Memorizing Transformer's, window included", 114,
               (xl + neighbours) * 2 / all, "x", "the paper's 114 leaves out the window every decoding model holds"));
  return {};
}

// DeepSeek-V2's keys and values per token.                                                        [2405.04434, table 9
// and 2.1.4]
Result<void> deepseek_sizes(std::vector<Claim>& claims) {
  const auto latent = [](int64_t heads) {
    HyperParameters p("reproduce costs");
    p.set("heads", heads);
    p.set("latent_rank", int64_t{512});
    p.set("nope_dim", int64_t{128});
    p.set("rope_dim", int64_t{64});
    p.set("value_dim", int64_t{128});
    p.set("latent_norm", std::string("rms"));
    p.set("norm_epsilon", 1e-6);
    p.set("rope_theta", 1e4);
    return layer_of("latent", std::move(p), 1024);
  };
  const auto heads = [](int64_t count, int64_t kv_heads) {
    return layer_of("grouped_query", heads_of(count, kv_heads, 128), 1024);
  };
  ASSIGN_OR_RETURN(const double small_mla, elements(model_of(2048, 27, latent(16)), 1));
  ASSIGN_OR_RETURN(const double small_mha, elements(model_of(2048, 27, heads(16, 16)), 1));
  ASSIGN_OR_RETURN(const double large_mla, elements(model_of(5120, 60, latent(128)), 1));
  ASSIGN_OR_RETURN(const double own_mha, elements(model_of(5120, 60, heads(128, 128)), 1));
  ASSIGN_OR_RETURN(const double ablation_mha, elements(model_of(7168, 60, heads(56, 56)), 1));
  ASSIGN_OR_RETURN(const double deepseek_67b, elements(model_of(8192, 95, heads(64, 8)), 1));
  const auto printed = [](double value) { return std::round(value / 100) / 10; };
  claims.push_back(exact("DeepSeek-V2 paper: KV elements per token, small MHA", 110.6, printed(small_mha), "thousand",
                         "16 heads of 128, 27 layers"));
  claims.push_back(exact("DeepSeek-V2 paper: KV elements per token, small MLA", 15.6, printed(small_mla), "thousand",
                         "rank 512, rope 64, 27 layers"));
  claims.push_back(exact("DeepSeek-V2 paper: KV elements per token, large MHA", 860.2, printed(ablation_mha),
                         "thousand", "60 layers of 7,168 wide keys"));
  claims.push_back(exact("DeepSeek-V2 paper: KV elements per token, large MLA", 34.6, printed(large_mla), "thousand",
                         "rank 512, rope 64, 60 layers"));
  claims.push_back(at_least("DeepSeek-V2: state at least 93.3 % smaller than its MHA form", 93.3,
                            100 * (1 - large_mla / own_mha), "%", "128 heads of 128, same bytes an element"));
  // The 93.3 % itself: against DeepSeek 67B in bf16, with the latent at the 6 bits the paper deploys it with.
  const double as_printed = std::round(1000 * (1 - large_mla * 6 / (deepseek_67b * 16))) / 10;
  claims.push_back(exact("DeepSeek-V2: 93.3 % smaller than DeepSeek 67B, as the paper counts", 93.3, as_printed, "%",
                         "6 bits an element against grouped-query in 16 bits; " +
                             short_number(100 * (1 - large_mla / deepseek_67b)) + " % at equal bits"));
  return {};
}

double mean_of(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

class Measurements {
 public:
  Measurements(const ReproduceOptions& options, std::vector<Claim>& claims) : options_(options), claims_(claims) {}

  Result<void> temporal_latent();
  Result<void> infini();
  Result<void> depths();

 private:
  struct Setting {
    DType dtype;
    int64_t context, batch;
    bool quick;  // measured in a quick run, too
  };
  void say(const std::string& what, double share) const {
    if (options_.on_progress) options_.on_progress(what, share);
  }
  Result<void> check_interrupt() const {
    if (options_.interrupted != nullptr && *options_.interrupted) return failed("interrupted");
    return {};
  }
  Result<std::unique_ptr<RoomRunner>> runner(const ModelConfig& config, DType dtype) const {
    return RoomRunner::create(config, {.cache_dtype = dtype, .threads = options_.threads, .seed = 1});
  }
  // Steps all runners in turns; seconds of each.
  Result<std::vector<std::vector<double>>> in_turns(std::span<const std::unique_ptr<RoomRunner>> runners,
                                                    int64_t rounds) const;
  Result<void> temporal_latent_at(const Setting& setting);
  Result<void> infini_at(std::string_view rule, int64_t hidden, int64_t layers);
  Result<void> depths_at(int64_t context, int64_t batch);

  const ReproduceOptions& options_;
  std::vector<Claim>& claims_;
};

Result<std::vector<std::vector<double>>> Measurements::in_turns(std::span<const std::unique_ptr<RoomRunner>> runners,
                                                                int64_t rounds) const {
  std::vector<std::vector<double>> seconds(runners.size());
  for (int64_t round = -1; round < rounds; ++round) {  // the first warms caches and page tables
    for (size_t i = 0; i < runners.size(); ++i) {
      RETURN_IF_ERROR(check_interrupt());
      ASSIGN_OR_RETURN(const double one, runners[i]->step());
      if (round >= 0) seconds[i].push_back(one);
    }
  }
  for (const auto& one : runners) {
    if (!one->logits_finite()) return failed("logits are not finite");
  }
  return seconds;
}

// The paper's regime is many hypotheses of long prompts at equal batch, in fp32; bf16 is what the cache of a model in 16
// bits usually is, and MHA is as fast with it as with f16.
Result<void> Measurements::temporal_latent() {
  const Setting settings[] = {
      {DType::kF32, 1024, 50, false}, {DType::kF32, 2048, 50, true},   {DType::kF32, 3072, 50, false},
      {DType::kBF16, 1024, 50, false}, {DType::kBF16, 2048, 50, true},  {DType::kBF16, 3072, 50, false},
      {DType::kBF16, 32768, 4, true}, {DType::kBF16, 131072, 1, false},
  };
  double done = 0;
  for (const Setting& setting : settings) {
    if (options_.quick && !setting.quick) continue;
    say("MTLA against MHA, " + std::string(dtype_name(setting.dtype)) + ", " + number(setting.context) +
            " tokens, batch " + number(setting.batch),
        0.05 + 0.4 * done++ / (options_.quick ? 3 : 8));
    RETURN_IF_ERROR(temporal_latent_at(setting));
  }
  return {};
}

Result<void> Measurements::temporal_latent_at(const Setting& setting) {
  struct Published {
    int64_t stride;
    double speed, memory;
  };
  constexpr Published kPublished[] = {{2, 4.29, 6.58}, {3, 5.34, 8.28}, {4, 5.78, 9.71}};
  ASSIGN_OR_RETURN(const ModelConfig shape, bench_shape("mtla"));
  ASSIGN_OR_RETURN(std::vector<RoomVariant> variants,
                   room_variants(shape, {.windows = false, .own = false, .depths = false}));
  std::vector<std::unique_ptr<RoomRunner>> runners;
  const int64_t rounds = options_.quick ? 5 : 9;
  for (const char* key : {"mha", "mtla2", "mtla3", "mtla4"}) {
    const auto at = std::find_if(variants.begin(), variants.end(), [&](const RoomVariant& v) { return v.key == key; });
    CHECK(at != variants.end()) << key;
    ASSIGN_OR_RETURN(auto made, runner(at->config, setting.dtype));
    RETURN_IF_ERROR(made->begin(setting.batch, setting.context + rounds + 1));
    RETURN_IF_ERROR(made->fill(setting.context));
    runners.push_back(std::move(made));
  }
  ASSIGN_OR_RETURN(const auto seconds, in_turns(runners, rounds));
  const std::string where = std::string(dtype_name(setting.dtype)) + " cache, " + number(setting.context) +
                            " tokens, batch " + number(setting.batch);
  const double slow = median_of(seconds[0]);
  for (size_t i = 0; i < 3; ++i) {
    const Published& p = kPublished[i];
    const double fast = median_of(seconds[i + 1]);
    const std::string name = "MTLA s=" + number(p.stride) + " against MHA, " + where;
    claims_.push_back(at_least(name + ": decode speed at least", p.speed, slow / fast, "x",
                               short_number(1000 * slow) + " ms a step against " + short_number(1000 * fast) + " ms"));
    const double more = static_cast<double>(runners[0]->state_bytes(setting.context));
    const double less = static_cast<double>(runners[i + 1]->state_bytes(setting.context));
    claims_.push_back(at_least(name + ": state smaller at least", p.memory, more / less, "x",
                               bytes_text(more) + " a sequence against " + bytes_text(less)));
  }
  return {};
}

Result<void> Measurements::infini() {
  double done = 0;
  const std::string_view rules[] = {"linear", "delta", "delta_true"};
  for (const std::string_view rule : rules) {
    if (options_.quick && rule != "linear") continue;
    say("Infini " + std::string(rule) + ", a prompt of 1M tokens", 0.5 + 0.35 * done++ / (options_.quick ? 1 : 3));
    RETURN_IF_ERROR(infini_at(rule, 256, 2));
  }
  return {};
}

// Two sequences of one model, one 32k tokens long and one 1M, both read token by token from an empty state.
Result<void> Measurements::infini_at(std::string_view rule, int64_t hidden, int64_t layers) {
  constexpr int64_t kShort = 32768, kRounds = 200;
  const ModelConfig config = infini_model(hidden, layers, hidden / 64, 4 * hidden, rule, 2048);
  std::vector<std::unique_ptr<RoomRunner>> runners;
  double prompt_seconds = 0;
  for (const int64_t tokens : {kShort, kMillion}) {
    ASSIGN_OR_RETURN(auto made, runner(config, DType::kF16));
    RETURN_IF_ERROR(made->begin(1, tokens + kRounds + 1));
    ASSIGN_OR_RETURN(prompt_seconds, made->feed({.tokens = tokens, .interrupted = options_.interrupted}));
    runners.push_back(std::move(made));
  }
  ASSIGN_OR_RETURN(const auto seconds, in_turns(runners, kRounds));
  const double early = median_of(seconds[0]), late = median_of(seconds[1]);
  const std::string name = "Infini " + std::string(rule) + ": ";
  claims_.push_back(
      at_most(name + "decode time from 32k to 1M tokens changes by at most", 5, 100 * std::abs(late / early - 1), "%",
              short_number(1e3 * early) + " ms a token at 32k, " + short_number(1e3 * late) + " ms at 1M; read at " +
                  short_number(static_cast<double>(kMillion) / prompt_seconds) + " tokens/s"));
  const double held_early = static_cast<double>(runners[0]->held_bytes()),
               held_late = static_cast<double>(runners[1]->held_bytes());
  claims_.push_back(at_most(name + "memory from 32k to 1M tokens changes by at most", 5,
                            100 * std::abs(held_late / held_early - 1), "%", bytes_text(held_late) + " held at both"));
  return {};
}

Result<void> Measurements::depths() {
  struct Depth {
    int64_t context, batch;
    bool quick;
  };
  const Depth settings[] = {{4096, 1, true}, {32768, 1, false}, {4096, 8, false}};
  double done = 0;
  for (const Depth& setting : settings) {
    if (options_.quick && !setting.quick) continue;
    say("Mixture-of-Depths, " + number(setting.context) + " tokens, batch " + number(setting.batch),
        0.88 + 0.1 * done++ / (options_.quick ? 1 : 3));
    RETURN_IF_ERROR(depths_at(setting.context, setting.batch));
  }
  return {};
}

Result<void> Measurements::depths_at(int64_t context, int64_t batch) {
  ASSIGN_OR_RETURN(const ModelConfig shape, bench_shape("mtla"));
  ASSIGN_OR_RETURN(std::vector<RoomVariant> variants, room_variants(shape, {.windows = false, .own = false}));
  const int64_t rounds = options_.quick ? 100 : 300;
  std::vector<std::unique_ptr<RoomRunner>> runners;
  for (const char* key : {"mha", "mha+mod"}) {
    const auto at = std::find_if(variants.begin(), variants.end(), [&](const RoomVariant& v) { return v.key == key; });
    CHECK(at != variants.end()) << key;
    ASSIGN_OR_RETURN(auto made, runner(at->config, DType::kF16));
    RETURN_IF_ERROR(made->begin(batch, context + rounds + 1));
    RETURN_IF_ERROR(made->fill(context));
    runners.push_back(std::move(made));
  }
  const double before = runners[1]->routed_share();
  ASSIGN_OR_RETURN(const auto seconds, in_turns(runners, rounds));
  // Means: a step is fast or slow by which layers its tokens enter.
  const double dense = mean_of(seconds[0]), routed = mean_of(seconds[1]);
  const double steps = static_cast<double>(rounds + 1), seen = static_cast<double>(context);
  const double share = (runners[1]->routed_share() * (seen + steps) - before * seen) / steps;
  claims_.push_back(at_least("Mixture-of-Depths, 12.5 % in every other layer, MHA, " + number(context) +
                                 " tokens, batch " + number(batch) + ": decode step faster at least",
                             1.5, dense / routed, "x",
                             short_number(1e3 * dense) + " ms against " + short_number(1e3 * routed) + " ms; " +
                                 short_number(100 * share) + " % of the tokens were let in"));
  return {};
}

}  // namespace

Result<std::vector<Claim>> reproduce_costs(const ReproduceOptions& options) {
  std::vector<Claim> claims;
  RETURN_IF_ERROR(infini_sizes(claims));
  RETURN_IF_ERROR(deepseek_sizes(claims));
  Measurements measurements(options, claims);
  RETURN_IF_ERROR(measurements.temporal_latent());
  RETURN_IF_ERROR(measurements.infini());
  RETURN_IF_ERROR(measurements.depths());
  return claims;
}

}  // namespace quipu
