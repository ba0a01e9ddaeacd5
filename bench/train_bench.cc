// Times one training step (forward, backward, optimiser) of a model of 25 million parameters, 512 wide, and states it against
// the machine's matrix roof and the memory plan, both measured in the same run. The loss is checked: it must fall.
//   train_bench [fp32|bf16] [threads] [steps] [sequences] [sequence tokens] [recompute]
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
  const int64_t steps = number(3, 5), sequences = number(4, 8), length = number(5, 1024);
  const auto isa = chosen_isa();
  if (!isa.ok()) {
    std::fprintf(stderr, "%s\n", isa.error().message.c_str());
    return 2;
  }
  auto ops = make_cpu_training_ops({.threads = static_cast<int>(number(2, 0)), .isa = *isa,
                                    .precision = bf16 ? MatmulPrecision::kBfloat16 : MatmulPrecision::kFull});
  const double before = peak_gibibytes();
  auto model = TrainableModel<float>::create(bench_config(), **ops, {.recompute = number(6, 0) != 0});
  if (!model.ok()) {
    std::fprintf(stderr, "%s\n", model.error().message.c_str());
    return 1;
  }
  TrainableModel<float>& m = **model;
  m.initialise(1);
  std::vector<int64_t> offsets;
  for (int64_t i = 0; i <= sequences; ++i) offsets.push_back(i * length);
  const size_t rows = static_cast<size_t>(sequences * length);
  std::vector<int32_t> tokens(rows), targets(rows);
  RandomStream random(1, 1);
  // Something to learn: each token decides the next one, up to a choice of two.
  for (size_t i = 0; i < rows; ++i) {
    tokens[i] = i == 0 ? 0 : static_cast<int32_t>((tokens[i - 1] * 5 + 1 + 7 * static_cast<int32_t>(random.below(2))) % 8192);
    if (i > 0) targets[i - 1] = tokens[i];
  }
  targets.back() = -1;
  const std::vector<float> weights(rows, 1.0f / static_cast<float>(rows));
  std::vector<float> first(m.weights().size()), second(m.weights().size());
  const TrainMemory memory = m.memory(offsets);
  const double planned = static_cast<double>(memory.total() + 2 * memory.weights) / (1 << 30);
  const double flops = m.step_flops(offsets);
  const double roof = cpu::matrix_roof(*isa, bf16, (*ops)->threads());
  std::printf("%s, %d threads: %.1fM parameters, %lld x %lld tokens, %.1f GFLOP a step; matrix roof %.0f GFLOP/s\n", (*ops)->name().c_str(),
              (*ops)->threads(), static_cast<double>(m.parameter_count()) * 1e-6, static_cast<long long>(sequences),
              static_cast<long long>(length), flops * 1e-9, roof * 1e-9);
  std::vector<double> seconds;
  double first_loss = 0, loss = 0;
  for (int64_t step = 1; step <= steps + 1; ++step) {
    const double start = monotonic_seconds();
    m.zero_gradients();
    const auto result = m.forward_backward({tokens, targets, weights, offsets});
    if (!result.ok()) {
      std::fprintf(stderr, "%s\n", result.error().message.c_str());
      return 1;
    }
    const double norm = std::sqrt((*ops)->squared_norm(m.gradients()));
    (*ops)->adamw(m.weights(), {m.gradients(), first, second}, {.rate = 1e-3, .gradient_scale = std::min(1.0, 1.0 / norm), .step = step});
    const double took = monotonic_seconds() - start;
    loss = result->mean();
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
  std::printf("train 25M %s %s %d thr: %.0f tokens/s (%.3f s, fastest %.3f, n=%zu), %.1f %% of the roof (%.0f to %.0f GFLOP/s), "
              "memory %.2f GiB of %.2f planned, loss %.3f to %.3f %s\n",
              bf16 ? "bf16" : "fp32", std::string(isa_name(*isa)).c_str(), (*ops)->threads(), static_cast<double>(rows) / median, median,
              seconds.front(), seconds.size(), 100 * flops / median / std::max(roof, again), std::min(roof, again) * 1e-9,
              std::max(roof, again) * 1e-9, held, planned, first_loss, loss, ok ? "ok" : "WRONG");
  return ok ? 0 : 1;
}

}  // namespace
}  // namespace quipu

int main(int argc, char** argv) { return quipu::run(argc, argv); }
