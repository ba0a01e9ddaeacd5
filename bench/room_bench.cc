// Times one layer of each room: decode steps and prompts, as shares of the machine's own roofs, measured in the same run: the
// read roof of memory, the fp32 multiply-add roof of the instruction set and, with AMX, the roof of its bf16 tiles, which holds
// for products of bf16 weights and for latent rows not kept in f32. Every step's answer is first checked against
// the reference back end on a copy of the same state.
//   room_bench [--isa NAME] [--threads N] [--context N] [--prompt N] [--only TEXT] [--json FILE]
// --prompt: prompts of that many tokens, in whole chunks of 512, and no decoding.
// A state is filled with random rows instead of by a prompt, and so many states take turns that none stays in a cache.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "attention/random_weights.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/matrix_roof.h"
#include "backend/reference/reference_backend.h"
#include "base/clock.h"
#include "base/random.h"
#include "kernels/fma_peak.h"
#include "engine/roof.h"
#include "tensor/float16.h"
#include "tensor/quant_blocks.h"

namespace quipu {
namespace {

constexpr double kTurnBytes = 400e6;   // of states that take turns
constexpr int64_t kMostTurns = 24;
constexpr int64_t kChunk = 512;
constexpr int64_t kShortContext = 64;

// Weights that a bf16 file would hold.
class HalfWeights final : public WeightSource {
 public:
  explicit HalfWeights(Backend& backend) : backend_(backend), random_(backend, {}) {}
  bool has(std::string_view) const override { return false; }
  Result<std::unique_ptr<PackedMatrix>> matrix(std::string_view role, int64_t rows, int64_t cols, std::string_view) override {
    const std::vector<float> values = random_.matrix_values(role, rows, cols);
    std::vector<uint16_t> halves(values.size());
    std::transform(values.begin(), values.end(), halves.begin(), f32_to_bf16);
    return backend_.pack({DType::kBF16, rows, cols, std::as_bytes(std::span(halves))});
  }
  Result<std::vector<float>> vector(std::string_view role, int64_t length, std::string_view) override {
    return random_.vector_values(role, length);
  }
  Result<std::vector<float>> dense(std::string_view role, int64_t rows, int64_t cols, std::string_view) override {
    std::vector<float> values = random_.matrix_values(role, rows, cols);
    for (float& value : values) value = bf16_to_f32(f32_to_bf16(value));
    return values;
  }

 private:
  Backend& backend_;
  RandomWeights random_;
};

// Measured again before each case: on a shared machine they move.
struct Roofs {
  double bytes_per_second = 0, flops_per_second = 0, tile_flops_per_second = 0;
};

struct Case {
  std::string name, room;
  int64_t hidden = 0;
  HyperParameters parameters;
  int64_t context = 0, batch = 1;
  DType dtype = DType::kF16;
  double pair_flops = 0;      // of one query row with one visible context row in a prompt; 0: no prompt is timed
  int64_t prompt = 2048;
  int64_t steps = 64;         // of decoding, at most
  HyperParameters bare = HyperParameters();   // grouped_query with the same weights, for a state that does not grow: times them
};

struct Outcome {
  std::string name, kind;
  int64_t context = 0, batch = 0;
  double milliseconds = 0, low = 0, high = 0, bytes = 0, flops = 0, error = 0;
  double share = 0;             // of the roof: what the phases (weights, then context) take at least, over the time
  double context_share = 0;     // decode: the same for what a context of that length adds to a context of 64
  Roofs roofs = {};
  std::string bound = {};       // of the phase that takes longest at the roof
};

// Fills the rows of `tokens` more tokens, whatever they mean.
void fill_state(LayerState& state, int64_t tokens, uint64_t seed) {
  CHECK(state.prepare_append(tokens).ok());
  RandomStream random(seed, 9);
  for (size_t i = 0; i < state.regions(); ++i) {
    RegionState& region = state.region(i);
    const RegionSpec& spec = region.spec;
    if (spec.growth == Growth::kFixed) continue;
    std::vector<float> row(static_cast<size_t>(spec.row_elements));
    std::vector<std::byte> page(static_cast<size_t>(spec.page_bytes()));
    for (int64_t r = 0; r < kPageRows; ++r) {
      for (float& value : row) value = static_cast<float>(random.normal());
      quantise_row(page.data() + r * spec.bytes_per_row(), spec.dtype, row.data(), spec.row_elements);
    }
    region.rows = spec.rows_after(state.tokens() + tokens);
    for (int64_t p = 0; p * kPageRows < region.rows; ++p) std::memcpy(region.pages[static_cast<size_t>(p)], page.data(), page.size());
  }
  state.advance(tokens);
}

class Layer {
 public:
  Layer(const Case& test, Backend& backend) : test_(test), backend_(backend) {
    HalfWeights weights(backend);
    auto created = find_room(test.room).value()->create({.hidden = test.hidden}, test.parameters, weights, backend);
    CHECK(created.ok()) << created.error().message;
    room_ = std::move(created).value();
  }
  const Attention& room() const { return *room_; }
  StateLayout layout() const { return room_->state_layout({test_.dtype, kChunk}); }
  LayerState new_state(PagePool& pool, int64_t context) const { return std::move(LayerState::create(layout(), context, pool)).value(); }

  // `rows` more tokens of each of the states [first, first + batch).
  void step(std::vector<float>& out, const std::vector<float>& x, std::vector<LayerState>& states, size_t first, int64_t batch,
            int64_t rows) {
    slices_.clear();
    positions_.clear();
    for (int64_t b = 0; b < batch; ++b) {
      LayerState& state = states[first + static_cast<size_t>(b)];
      CHECK(state.prepare_append(rows).ok());
      slices_.push_back({&state, b * rows, rows});
      for (int64_t i = 0; i < rows; ++i) positions_.push_back(state.tokens() + i);
    }
    const int64_t all = batch * rows;
    CHECK(arena_.reserve(static_cast<size_t>(room_->scratch_bytes(all))).ok());
    room_->forward(backend_, {out.data(), all, test_.hidden}, {x.data(), all, test_.hidden}, {slices_, positions_}, arena_);
  }

 private:
  const Case& test_;
  Backend& backend_;
  std::unique_ptr<Attention> room_;
  std::vector<SequenceSlice> slices_;
  std::vector<int64_t> positions_;
  Arena arena_;
};

Roofs measure_roofs(Backend& backend) {
  Roofs roofs{.bytes_per_second = measure_memory_roof(backend.threads(), 0.15).gigabytes_per_second * 1e9};
  const FmaPeak peak = fma_peak(backend.isa());
  constexpr int64_t kRounds = 500000;
  std::vector<double> rates;
  double sink = 0;
  for (int i = 0; i < 5; ++i) {
    const double start = monotonic_seconds();
    std::vector<double> results(static_cast<size_t>(backend.threads()));
    backend.pool().parallel_for(backend.threads(), [&](int64_t t) { results[static_cast<size_t>(t)] = peak.run(kRounds); });
    rates.push_back(static_cast<double>(peak.flops_per_round * kRounds * backend.threads()) / (monotonic_seconds() - start));
    for (const double result : results) sink += result;
  }
  CHECK(std::isfinite(sink));
  std::sort(rates.begin(), rates.end());
  roofs.flops_per_second = rates[rates.size() / 2];
  roofs.tile_flops_per_second = backend.isa() == Isa::kAmx ? cpu::matrix_roof(Isa::kAmx, true, backend.threads()) : roofs.flops_per_second;
  return roofs;
}

std::vector<float> normals(int64_t count, uint64_t seed) {
  RandomStream random(seed, 1);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = static_cast<float>(random.normal());
  return values;
}

double relative_error(const std::vector<float>& got, const std::vector<float>& wanted) {
  double error = 0, largest = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double difference = std::fabs(double{got[i]} - wanted[i]);
    error = difference <= error ? error : difference;   // NaN stays
    largest = std::max(largest, std::fabs(double{wanted[i]}));
  }
  return error / largest;
}

void take_times(Outcome& outcome, std::vector<double>& seconds) {
  std::sort(seconds.begin(), seconds.end());
  outcome.milliseconds = seconds[seconds.size() / 2] * 1e3;
  outcome.low = seconds.front() * 1e3;
  outcome.high = seconds.back() * 1e3;
}

struct Phase {
  double bytes = 0, flops = 0;
  bool tiles = false;   // flops are bf16 products
  double matrix_seconds(const Roofs& roofs) const { return flops / (tiles ? roofs.tile_flops_per_second : roofs.flops_per_second); }
  double seconds(const Roofs& roofs) const { return std::max(bytes / roofs.bytes_per_second, matrix_seconds(roofs)); }
  bool memory_bound(const Roofs& roofs) const { return bytes / roofs.bytes_per_second > matrix_seconds(roofs); }
};

bool latent_tiles(const Case& test) { return test.dtype != DType::kF32 && (test.room == "latent" || test.room == "temporal_latent"); }

void judge(Outcome& outcome, const Phase& weights, const Phase& context, const Roofs& roofs) {
  outcome.roofs = roofs;
  outcome.bytes = weights.bytes + context.bytes;
  outcome.flops = weights.flops + context.flops;
  const Phase& longest = weights.seconds(roofs) > context.seconds(roofs) ? weights : context;
  outcome.bound = longest.memory_bound(roofs) ? "memory" : "matrix";
  outcome.share = (weights.seconds(roofs) + context.seconds(roofs)) / (outcome.milliseconds * 1e-3);
}

bool grows(const Layer& layer) {
  for (const RegionSpec& region : layer.layout().regions) {
    if (region.growth != Growth::kFixed) return true;
  }
  return false;
}

// Median seconds of decode steps on states that take turns; `outcome`, unless null, gets the spread.
double decode_seconds(const Case& test, Layer& layer, std::vector<LayerState>& states, int64_t turns, const std::vector<float>& x,
                      Outcome* outcome) {
  std::vector<float> out(static_cast<size_t>(test.batch * test.hidden));
  std::vector<double> seconds;
  const double begin = monotonic_seconds();
  for (int64_t i = 0; i < test.steps && (i < turns + 5 || monotonic_seconds() - begin < 2.0); ++i) {
    const double start = monotonic_seconds();
    layer.step(out, x, states, static_cast<size_t>(i % turns * test.batch), test.batch, 1);
    if (i > 0) seconds.push_back(monotonic_seconds() - start);
  }
  Outcome ignored;
  take_times(outcome == nullptr ? ignored : *outcome, seconds);
  return (outcome == nullptr ? ignored : *outcome).milliseconds * 1e-3;
}

Outcome bench_decode(const Case& test, Backend& backend, Backend& reference) {
  Layer layer(test, backend);
  PagePool pool;
  const double bytes_each = static_cast<double>(state_bytes_allocated(layer.layout(), test.context)) * static_cast<double>(test.batch);
  const int64_t turns = std::clamp<int64_t>(static_cast<int64_t>(kTurnBytes / bytes_each) + 1, 1, grows(layer) ? kMostTurns : test.steps);
  std::vector<LayerState> states;
  const auto x = normals(std::max(test.batch, kChunk) * test.hidden, 2);
  std::vector<float> out(x.size());
  for (int64_t i = 0; i < turns * test.batch; ++i) {
    if (!grows(layer) && i > 0) {   // a memory of fixed size: what one prompt left, copied
      states.push_back(std::move(states[0].fork()).value());
      CHECK(states.back().prepare_append(1).ok());
      continue;
    }
    states.push_back(layer.new_state(pool, test.context + test.steps + 2 * kChunk));
    if (grows(layer)) {
      fill_state(states.back(), test.context, static_cast<uint64_t>(i));
    } else {
      for (int64_t done = 0; done < test.context; done += kChunk) layer.step(out, x, states, 0, 1, std::min(kChunk, test.context - done));
    }
  }
  Outcome outcome{.name = test.name, .kind = "decode", .context = test.context, .batch = test.batch};
  {
    Case single = test;
    Layer exact(single, reference);
    std::vector<LayerState> copies;
    copies.push_back(std::move(states[0].fork()).value());
    copies.push_back(std::move(states[0].fork()).value());
    std::vector<float> wanted(static_cast<size_t>(test.hidden)), got(wanted.size());
    exact.step(wanted, x, copies, 0, 1, 1);
    layer.step(got, x, copies, 1, 1, 1);
    outcome.error = relative_error(got, wanted);
  }
  const Roofs roofs = measure_roofs(backend);
  const double seconds = decode_seconds(test, layer, states, turns, x, &outcome);
  const double batch = static_cast<double>(test.batch);
  const auto context = [&](int64_t tokens) {
    return Phase{batch * static_cast<double>(layer.room().context_bytes_read(tokens, {test.dtype, kChunk})),
                 batch * static_cast<double>(layer.room().context_flops(tokens)), latent_tiles(test)};
  };
  const Phase weights{static_cast<double>(layer.room().weight_bytes()), batch * static_cast<double>(layer.room().flops_per_token()), true};
  judge(outcome, weights, context(test.context), roofs);
  // What the layer takes apart from its context: itself on a short one, or its projections alone.
  Case bare = test;
  if (!grows(layer)) {
    bare.room = "grouped_query";
    bare.parameters = test.bare;
  }
  Layer rest(bare, backend);
  std::vector<LayerState> brief;
  for (int64_t i = 0; i < test.batch; ++i) {
    brief.push_back(rest.new_state(pool, kShortContext + test.steps + 1));
    fill_state(brief.back(), kShortContext, 1);
  }
  const double rest_seconds = decode_seconds(bare, rest, brief, 1, x, nullptr);
  const Phase all = context(test.context), little = grows(layer) ? context(kShortContext) : Phase{};
  outcome.context_share = Phase{all.bytes - little.bytes, all.flops - little.flops, all.tiles}.seconds(roofs) / (seconds - rest_seconds);
  return outcome;
}

// A prompt in chunks of kChunk on an empty state. The reference checks the first rows.
Outcome bench_prompt(const Case& test, Backend& backend, Backend& reference) {
  Layer layer(test, backend);
  PagePool pool;
  const auto x = normals(kChunk * test.hidden, 3);
  std::vector<float> out(x.size());
  Outcome outcome{.name = test.name, .kind = "prompt", .context = test.prompt, .batch = 1};
  {
    constexpr int64_t kChecked = 200;
    Layer exact(test, reference);
    std::vector<LayerState> states;
    states.push_back(exact.new_state(pool, kChunk));
    states.push_back(layer.new_state(pool, kChunk));
    std::vector<float> wanted(static_cast<size_t>(kChecked * test.hidden)), got(wanted.size());
    exact.step(wanted, x, states, 0, 1, kChecked);
    layer.step(got, x, states, 1, 1, kChecked);
    outcome.error = relative_error(got, wanted);
  }
  const Roofs roofs = measure_roofs(backend);
  std::vector<double> seconds;
  for (int run = 0; run < 4; ++run) {
    std::vector<LayerState> states;
    states.push_back(layer.new_state(pool, test.prompt));
    const double start = monotonic_seconds();
    for (int64_t done = 0; done < test.prompt; done += kChunk) layer.step(out, x, states, 0, 1, kChunk);
    if (run > 0) seconds.push_back(monotonic_seconds() - start);
  }
  take_times(outcome, seconds);
  const double tokens = static_cast<double>(test.prompt);
  judge(outcome, {static_cast<double>(layer.room().weight_bytes()), tokens * static_cast<double>(layer.room().flops_per_token()), true},
        {0.0, test.pair_flops * tokens * tokens / 2, test.dtype != DType::kF32}, roofs);
  return outcome;
}

HyperParameters mla(int64_t heads, int64_t rank, int64_t nope, int64_t rope, int64_t value, const char* norm) {
  HyperParameters p("bench");
  p.set("heads", heads);
  p.set("latent_rank", rank);
  p.set("nope_dim", nope);
  p.set("rope_dim", rope);
  p.set("value_dim", value);
  p.set("latent_norm", std::string(norm));
  p.set("norm_epsilon", 1e-6);
  p.set("rope_theta", 1e4);
  p.set("rope_interleaved", true);
  p.set("form", std::string("auto"));
  return p;
}

HyperParameters gqa(int64_t heads, int64_t kv_heads, int64_t dim) {
  HyperParameters p("bench");
  p.set("heads", heads);
  p.set("kv_heads", kv_heads);
  p.set("head_dim", dim);
  p.set("rope_theta", 1e4);
  return p;
}

std::vector<Case> cases(int64_t context) {
  std::vector<Case> list;
  const HyperParameters deepseek = mla(16, 512, 128, 64, 128, "rms");
  const double deepseek_pair = 2.0 * 16 * (128 + 64 + 128), paper_pair = 2.0 * 8 * (64 + 32 + 64);
  list.push_back({"mla deepseek-v2-lite", "latent", 2048, deepseek, context, 1, DType::kF16, deepseek_pair});
  list.push_back({"mla deepseek-v2-lite bf16", "latent", 2048, deepseek, context, 1, DType::kBF16});
  list.push_back({"mla deepseek-v2-lite q8_0", "latent", 2048, deepseek, context, 1, DType::kQ8_0});
  list.push_back({"mla deepseek-v2-lite f32", "latent", 2048, deepseek, context, 1, DType::kF32});
  list.push_back({"mha 16 x 128", "grouped_query", 2048, gqa(16, 16, 128), context, 1, DType::kF16, 2.0 * 16 * 256});
  list.push_back({"gqa 16/4 x 128", "grouped_query", 2048, gqa(16, 4, 128), context, 1, DType::kF16, 2.0 * 16 * 256});
  list.push_back({"mha mtla-paper", "grouped_query", 512, gqa(8, 8, 64), context, 1, DType::kF16, 2.0 * 8 * 128});
  list.push_back({"mla mtla-paper", "latent", 512, mla(8, 256, 64, 32, 64, "layer"), context, 1, DType::kF16, paper_pair});
  list.push_back({"mla mtla-paper bf16", "latent", 512, mla(8, 256, 64, 32, 64, "layer"), context, 1, DType::kBF16});
  for (const int64_t stride : {2, 3, 4}) {
    HyperParameters p = mla(8, 256, 64, 32, 64, "layer");
    p.set("stride", stride);
    const std::string name = "mtla mtla-paper s=" + std::to_string(stride);
    list.push_back({name, "temporal_latent", 512, p, context, 1, DType::kF16, paper_pair / static_cast<double>(stride)});
    list.push_back({name + " bf16", "temporal_latent", 512, p, context, 1, DType::kBF16});
    list.push_back({name, "temporal_latent", 512, p, 3072, 32, DType::kF16});
    list.push_back({name + " bf16", "temporal_latent", 512, p, 3072, 32, DType::kBF16});
  }
  list.push_back({"mha mtla-paper", "grouped_query", 512, gqa(8, 8, 64), 3072, 32, DType::kF16});
  for (const char* rule : {"linear", "delta", "delta_true"}) {
    HyperParameters p = gqa(16, 4, 128);
    p.set("rule", std::string(rule));
    p.set("segment_tokens", int64_t{512});
    const std::string name = std::string("infini ") + rule;
    // Ends where a segment does, so that the local window is as full as context_bytes_read() counts it.
    constexpr int64_t kSegmentSteps = 32;
    for (const int64_t batch : {1, 32}) {
      list.push_back({name, "infini", 2048, p, 2048 + 512 - kSegmentSteps, batch, DType::kF16,
                      batch == 1 ? 2.0 * 16 * 256 * 512 / 2048 : 0.0, 2048, kSegmentSteps, gqa(16, 4, 128)});
    }
  }
  return list;
}

std::string json_line(const Outcome& o) {
  char line[768];
  std::snprintf(line, sizeof(line),
                "  {\"name\": \"%s\", \"kind\": \"%s\", \"context\": %lld, \"batch\": %lld, \"milliseconds\": %.4f, \"low\": %.4f, "
                "\"high\": %.4f, \"gigabytes_per_second\": %.2f, \"gflops\": %.1f, \"read_roof_gigabytes_per_second\": %.1f, \"fma_roof_gflops\": %.1f, \"tile_roof_gflops\": %.1f, \"bound\": \"%s\", \"share_of_roof\": %.3f, \"context_share_of_roof\": %.3f, "
                "\"largest_relative_error\": %.2e}",
                o.name.c_str(), o.kind.c_str(), static_cast<long long>(o.context), static_cast<long long>(o.batch), o.milliseconds,
                o.low, o.high, o.bytes / o.milliseconds * 1e-6, o.flops / o.milliseconds * 1e-6, o.roofs.bytes_per_second * 1e-9,
                o.roofs.flops_per_second * 1e-9, o.roofs.tile_flops_per_second * 1e-9, o.bound.c_str(), o.share, o.context_share,
                o.error);
  return line;
}

int run(Isa isa, int threads, int64_t context, int64_t prompt, const std::string& only, const char* json) {
  auto made = make_cpu_backend({.threads = threads, .isa = isa});
  if (!made.ok()) {
    std::fprintf(stderr, "%s\n", made.error().message.c_str());
    return 2;
  }
  Backend& backend = **made;
  const auto reference = make_reference_backend(backend.threads());
  std::printf("%s, %d threads\n", backend.name().c_str(), backend.threads());
  std::vector<Outcome> outcomes;
  for (Case& test : cases(context)) {
    if (test.name.find(only) == std::string::npos) continue;
    const auto report = [&](const Outcome& o) {
      std::printf("%s %-26s %6lld x %-3lld %9.3f ms (%.3f-%.3f)  %6.2f GB/s %7.1f GFLOP/s (roofs %.1f, %.0f, %.0f)  "
                  "%3.0f %% of the %s roof, context alone %3.0f %%  error %.1e\n",
                  o.kind.c_str(), o.name.c_str(), static_cast<long long>(o.context), static_cast<long long>(o.batch), o.milliseconds,
                  o.low, o.high, o.bytes / o.milliseconds * 1e-6, o.flops / o.milliseconds * 1e-6, o.roofs.bytes_per_second * 1e-9,
                  o.roofs.flops_per_second * 1e-9, o.roofs.tile_flops_per_second * 1e-9, 100 * o.share, o.bound.c_str(), 100 * o.context_share, o.error);
      std::fflush(stdout);
      outcomes.push_back(o);
    };
    if (prompt == 0) report(bench_decode(test, backend, *reference));
    test.prompt = prompt == 0 ? test.prompt : prompt;
    if (test.pair_flops > 0) report(bench_prompt(test, backend, *reference));
  }
  bool good = true;
  for (const Outcome& o : outcomes) good = good && o.error < 2e-2;   // f16 rows and rounded activations; NaN is not good
  if (json != nullptr) {
    std::ofstream file(json);
    file << "{\"backend\": \"" << backend.name() << "\", \"threads\": " << backend.threads() << ", \"results\": [\n";
    for (size_t i = 0; i < outcomes.size(); ++i) file << json_line(outcomes[i]) << (i + 1 < outcomes.size() ? ",\n" : "\n");
    file << "]}\n";
  }
  if (!good) std::fprintf(stderr, "an answer differs from the reference back end's\n");
  return good ? 0 : 1;
}

}  // namespace
}  // namespace quipu

int main(int argc, char** argv) {
  using namespace quipu;
  const Result<Isa> chosen = chosen_isa();
  if (!chosen.ok()) {
    std::fprintf(stderr, "%s\n", chosen.error().message.c_str());
    return 2;
  }
  Isa isa = *chosen;
  int threads = 0;
  int64_t context = 32768, prompt = 0;
  std::string only;
  const char* json = nullptr;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--isa") {
      const auto named = isa_from_name(value);
      if (!named.ok()) {
        std::fprintf(stderr, "%s\n", named.error().message.c_str());
        return 2;
      }
      isa = *named;
    } else if (flag == "--threads") {
      threads = std::atoi(value.c_str());
    } else if (flag == "--context") {
      context = std::max<int64_t>(1, std::atoll(value.c_str()));
    } else if (flag == "--prompt") {
      prompt = (std::max<int64_t>(1, std::atoll(value.c_str())) + kChunk - 1) / kChunk * kChunk;
    } else if (flag == "--only") {
      only = value;
    } else if (flag == "--json") {
      json = argv[i + 1];
    } else {
      std::fprintf(stderr, "usage: room_bench [--isa NAME] [--threads N] [--context N] [--prompt N] [--only TEXT] [--json FILE]\n");
      return 2;
    }
  }
  return run(isa, threads, context, prompt, only, json);
}
