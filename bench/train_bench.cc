// Times one training step (forward, backward, optimiser) of a model of 25 million parameters, 512 wide, and states it against
// the machine's matrix roof and the memory plan, both measured in the same run. The loss is checked: it must fall.
//   train_bench [fp32|bf16] [threads] [steps] [sequences] [sequence tokens] [micro-batch sequences] [recompute] [model]
// model: 25m, or passkey (4 layers, 128 wide, Infini-attention: the model of `quipu reproduce passkey`).
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "backend/cpu/cpu_training.h"
#include "backend/cpu/matrix_roof.h"
#include "base/clock.h"
#include "base/random.h"
#include "model/training.h"

namespace quipu {
namespace {

ModelConfig passkey_config() {
  ModelConfig c;
  c.origin = "bench";
  c.architecture = "quipu";
  c.hidden = 128;
  c.vocabulary = 256;
  c.trained_context = 8192;
  c.norm_epsilon = 1e-6;
  c.tied_output = true;
  for (int i = 0; i < 4; ++i) {
    LayerConfig layer;
    layer.room = "infini";
    layer.attention.set("heads", int64_t{4});
    layer.attention.set("kv_heads", int64_t{4});
    layer.attention.set("head_dim", int64_t{32});
    layer.attention.set("rope_theta", 1e4);
    layer.attention.set("segment_tokens", int64_t{128});
    layer.attention.set("rule", std::string("linear"));
    layer.attention.set("window", std::string("previous"));
    layer.attention.set("write_gate", std::string("hard"));
    layer.feed_forward.inner = 344;
    c.layers.push_back(layer);
  }
  return c;
}

ModelConfig bench_config() {
  ModelConfig c;
  c.origin = "bench";
  c.architecture = "llama";
  c.hidden = 512;
  c.vocabulary = 8192;
  c.trained_context = 4096;
  c.norm_epsilon = 1e-6;
  c.tied_output = true;
  for (int i = 0; i < 8; ++i) {
    LayerConfig layer;
    layer.room = "grouped_query";
    layer.attention.set("heads", int64_t{8});
    layer.attention.set("kv_heads", int64_t{8});
    layer.attention.set("head_dim", int64_t{64});
    layer.attention.set("rope_theta", 1e4);
    layer.feed_forward.inner = 1408;
    c.layers.push_back(layer);
  }
  return c;
}

double peak_gibibytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / (1024.0 * 1024.0);
}

int run(int argc, char** argv) {
  const auto number = [&](int i, int64_t otherwise) { return argc > i ? std::atoll(argv[i]) : otherwise; };
  const bool bf16 = argc > 1 && std::strcmp(argv[1], "bf16") == 0;
  const int64_t steps = number(3, 5), sequences = number(4, 8), length = number(5, 1024), together = number(6, sequences);
  const bool passkey = argc > 8 && std::strcmp(argv[8], "passkey") == 0;
  if (together < 1 || sequences % together != 0) {
    std::fprintf(stderr, "%lld sequences do not divide into micro-batches of %lld\n", static_cast<long long>(sequences), static_cast<long long>(together));
    return 2;
  }
  const auto isa = chosen_isa();
  if (!isa.ok()) {
    std::fprintf(stderr, "%s\n", isa.error().message.c_str());
    return 2;
  }
  auto ops = make_cpu_training_ops({.threads = static_cast<int>(number(2, 0)), .isa = *isa,
                                    .precision = bf16 ? MatmulPrecision::kBfloat16 : MatmulPrecision::kFull});
  const double before = peak_gibibytes();
  auto model = TrainableModel<float>::create(passkey ? passkey_config() : bench_config(), **ops, {.recompute = number(7, 0) != 0});
  if (!model.ok()) {
    std::fprintf(stderr, "%s\n", model.error().message.c_str());
    return 1;
  }
  TrainableModel<float>& m = **model;
  m.initialise(1);
  std::vector<int64_t> offsets;
  for (int64_t i = 0; i <= together; ++i) offsets.push_back(i * length);
  const size_t rows = static_cast<size_t>(sequences * length);
  std::vector<int32_t> tokens(rows), targets(rows);
  RandomStream random(1, 1);
  // Something to learn: each token decides the next one, up to a choice of two.
  const int32_t vocabulary = passkey ? 256 : 8192;
  for (size_t i = 0; i < rows; ++i) {
    tokens[i] = i == 0 ? 0 : static_cast<int32_t>((tokens[i - 1] * 5 + 1 + 7 * static_cast<int32_t>(random.below(2))) % vocabulary);
    if (i > 0) targets[i - 1] = tokens[i];
  }
  targets.back() = -1;
  const std::vector<float> weights(rows, 1.0f / static_cast<float>(rows));
  const auto moments = [&] { return Buffer::allocate(m.weights().size() * sizeof(float)).value(); };
  const Buffer first = moments(), second = moments();
  const TrainMemory memory = m.memory(offsets);
  const double planned = static_cast<double>(memory.total() + 2 * memory.weights) / (1 << 30);
  const double flops = m.step_flops(offsets) * static_cast<double>(sequences / together);
  const double roof = cpu::matrix_roof(*isa, bf16, (*ops)->threads());
  std::printf("%s, %d threads: %.1fM parameters, %lld x %lld tokens, %.1f GFLOP a step; matrix roof %.0f GFLOP/s\n", (*ops)->name().c_str(),
              (*ops)->threads(), static_cast<double>(m.parameter_count()) * 1e-6, static_cast<long long>(sequences),
              static_cast<long long>(length), flops * 1e-9, roof * 1e-9);
  std::vector<double> seconds;
  double first_loss = 0, loss = 0;
  for (int64_t step = 1; step <= steps + 1; ++step) {
    const double start = monotonic_seconds();
    m.zero_gradients();
    double sum = 0, weight = 0;
    const size_t micro = static_cast<size_t>(together * length);
    for (size_t at = 0; at < rows; at += micro) {
      const auto part = [&](const auto& all) { return std::span(all).subspan(at, micro); };
      const auto result = m.forward_backward({part(tokens), part(targets), part(weights), offsets});
      if (!result.ok()) {
        std::fprintf(stderr, "%s\n", result.error().message.c_str());
        return 1;
      }
      sum += result->sums.weighted;
      weight += result->sums.weight;
    }
    const double norm = std::sqrt((*ops)->squared_norm(m.gradients()));
    (*ops)->adamw(m.weights(), {m.gradients(), {first.as<float>(), m.weights().size()}, {second.as<float>(), m.weights().size()}}, {.rate = 1e-3, .gradient_scale = std::min(1.0, 1.0 / norm), .step = step});
    const double took = monotonic_seconds() - start;
    loss = sum / weight;
    if (step == 1) first_loss = loss;
    if (step > 1) seconds.push_back(took);   // the first step touches its memory for the first time
    std::printf("  step %lld: loss %.4f, %.3f s, %.0f tokens/s, %.1f %% of the roof\n", static_cast<long long>(step), loss, took,
                static_cast<double>(rows) / took, 100 * flops / took / roof);
    std::fflush(stdout);
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2], again = cpu::matrix_roof(*isa, bf16, (*ops)->threads());
  const double held = peak_gibibytes() - before;
  const bool ok = std::isfinite(loss) && loss < first_loss;
  std::printf("train %s %s %s %d thr: %.0f tokens/s (%.3f s, fastest %.3f, n=%zu), %.1f %% of the roof (%.0f to %.0f GFLOP/s), "
              "memory %.2f GiB of %.2f planned, loss %.3f to %.3f %s\n",
              passkey ? "passkey" : "25M", bf16 ? "bf16" : "fp32", std::string(isa_name(*isa)).c_str(), (*ops)->threads(), static_cast<double>(rows) / median, median,
              seconds.front(), seconds.size(), 100 * flops / median / std::max(roof, again), std::min(roof, again) * 1e-9,
              std::max(roof, again) * 1e-9, held, planned, first_loss, loss, ok ? "ok" : "WRONG");
  return ok ? 0 : 1;
}

}  // namespace
}  // namespace quipu

int main(int argc, char** argv) { return quipu::run(argc, argv); }
