#include "attention/infini_latent/infini_latent.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <charconv>
#include <cmath>
#include <cstring>

#include "attention/random_weights.h"
#include "attention/shared/latent_equations.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/reference/reference_backend.h"
#include "formats/safetensors/safetensors_file.h"

namespace quipu {
namespace {

using testing::HasSubstr;

std::vector<float> floats(const NamedTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(element_count(tensor.view.shape)));
  std::memcpy(values.data(), tensor.view.bytes.data(), tensor.view.bytes.size());
  return values;
}

HyperParameters::Value parsed(const std::string& text) {
  int64_t whole = 0;
  double number = 0;
  const char* end = text.data() + text.size();
  if (std::from_chars(text.data(), end, whole).ptr == end) return whole;
  if (std::from_chars(text.data(), end, number).ptr == end) return number;
  return text;
}

// Largest |got - wanted| / largest |wanted|; huge when the sizes differ or something is not a number.
double relative_error(const std::vector<float>& got, const std::vector<float>& wanted) {
  double error = got.size() == wanted.size() && !wanted.empty() ? 0.0 : 1e30, size = 0;
  for (size_t i = 0; i < std::min(got.size(), wanted.size()); ++i) {
    const double difference = std::abs(double{got[i]} - wanted[i]);
    error = difference <= 1e30 ? std::max(error, difference) : 1e30;
    size = std::max(size, double{std::abs(wanted[i])});
  }
  return error / size;
}

// One golden file: the equations in numpy, float64 (make_golden.py).
class Golden {
 public:
  explicit Golden(const std::string& name)
      : file_(std::move(read_safetensors(std::string(QUIPU_SOURCE_DIR) + "/src/attention/infini_latent/golden/" + name +
                                         ".safetensors"))
                  .value()) {
    for (const auto& [key, value] : file_.metadata()) settings_.set(key, parsed(value));
  }
  HyperParameters settings() const { return settings_; }
  std::vector<float> tensor(const std::string& name) const { return floats(*file_.find(name)); }
  bool has(const std::string& name) const { return file_.find(name) != nullptr; }
  int64_t hidden() const { return file_.find("input")->view.shape[1]; }
  std::unique_ptr<Attention> room(Backend& backend) const {
    GivenWeights weights(backend);
    for (const NamedTensor& tensor : file_.tensors()) weights.give(tensor.name, floats(tensor));
    auto room = InfiniLatent::create({.hidden = hidden()}, settings_, weights, backend);
    CHECK(room.ok()) << room.error().message;
    return std::move(room).value();
  }

 private:
  TensorFile file_;
  HyperParameters settings_{"golden"};
};

const char* const kGoldens[] = {"per_head_linear", "per_head_delta_window", "per_head_delta_true",
                                "latent_linear",   "latent_delta_dpfp",     "latent_delta_true_projected"};

TEST(InfiniLatent, IsItsEquationsOnEveryBackEndAndInEveryChunking) {
  std::vector<std::unique_ptr<Backend>> backends;
  backends.push_back(make_reference_backend(1));
  for (const Isa isa : available_isas()) {
    auto made = make_cpu_backend({.threads = 2, .isa = isa, .activations = Activations::kExact});
    ASSERT_TRUE(made.ok());
    backends.push_back(std::move(made).value());
  }
  for (const char* name : kGoldens) {
    const Golden golden(name);
    for (const auto& backend : backends) {
      const auto room = golden.room(*backend);
      for (const std::vector<int64_t>& chunks : {std::vector<int64_t>{34}, {1}, {3, 1, 5}}) {
        SCOPED_TRACE(std::string(name) + " on " + backend->name() + ", chunks of " + std::to_string(chunks[0]));
        const SequenceRun run(*room, *backend, golden.tensor("input"), golden.hidden(), chunks);
        EXPECT_LE(relative_error(run.out, golden.tensor("attended")), 1e-5);
        const std::vector<StateTensor> shown = room->state_tensors(run.state[0]);
        ASSERT_EQ(shown.size(), golden.has("final_norm") ? 2u : 1u);
        for (const StateTensor& tensor : shown) {
          EXPECT_LE(relative_error(tensor.values, golden.tensor(tensor.name)), 1e-5) << tensor.name;
        }
      }
    }
  }
}

HyperParameters deepseek_like(const std::string& memory) {
  HyperParameters p("config.json");
  p.set("heads", int64_t{2});
  p.set("latent_rank", int64_t{512});
  p.set("nope_dim", int64_t{128});
  p.set("rope_dim", int64_t{64});
  p.set("value_dim", int64_t{128});
  p.set("latent_norm", std::string("rms"));
  p.set("norm_epsilon", 1e-6);
  p.set("rope_theta", 1e4);
  p.set("memory", memory);
  p.set("rule", std::string("linear"));
  p.set("segment_tokens", int64_t{64});
  return p;
}

Result<std::unique_ptr<Attention>> created(const HyperParameters& p, Backend& backend) {
  RandomWeights weights(backend, {});
  return InfiniLatent::create({.hidden = 16}, p, weights, backend);
}

TEST(InfiniLatent, TakesTheStateTheFormulasSay) {
  auto backend = make_reference_backend(1);
  const auto elements = [&](const HyperParameters& p) {
    auto room = created(p, *backend);
    CHECK(room.ok()) << room.error().message;
    int64_t count = 0;
    for (const RegionSpec& region : (*room)->state_layout({}).regions) {
      if (region.name == "memory" || region.name == "norm") count += region.row_elements;
    }
    return count;
  };
  // Spec 4.1: H 128 129 elements for memories per head; rank (rank + 1) = 262,656 for one of all heads; 64 513 with
  // keys of 64.
  EXPECT_EQ(elements(deepseek_like("per_head")), 2 * 128 * 129);
  EXPECT_EQ(elements(deepseek_like("latent")), 262656);
  HyperParameters projected = deepseek_like("latent");
  projected.set("memory_key_dim", int64_t{64});
  EXPECT_EQ(elements(projected), 64 * 513);
  // The local window: rows of rank + rope width, one page of 64.
  auto room = created(deepseek_like("latent"), *backend);
  const StateLayout layout = (*room)->state_layout({.cache_dtype = DType::kF16});
  EXPECT_EQ(layout.regions[0].page_bytes(), 64 * 576 * 2);
  EXPECT_EQ(layout.rewind, Rewind::kNever);
}

// Small random rooms for identities.
struct SmallRoom {
  std::unique_ptr<Backend> backend = make_reference_backend(1);
  HyperParameters p{"test"};
  explicit SmallRoom(const std::string& memory, const std::string& rule, int64_t segment) {
    for (const auto& [key, value] : {std::pair<const char*, int64_t>{"heads", 3},
                                     {"latent_rank", 9},
                                     {"nope_dim", 5},
                                     {"rope_dim", 4},
                                     {"value_dim", 6},
                                     {"segment_tokens", segment}}) {
      p.set(key, value);
    }
    p.set("latent_norm", std::string("none"));
    p.set("rope_theta", 1e4);
    p.set("memory", memory);
    p.set("rule", rule);
  }
  std::vector<float> run(const std::vector<float>& x) const {
    RandomWeights weights(*backend, {});
    auto room = InfiniLatent::create({.hidden = 12}, p, weights, *backend);
    CHECK(room.ok()) << room.error().message;
    return SequenceRun(**room, *backend, x, 12, {7}).out;
  }
};

std::vector<float> random_input(int64_t tokens) {
  RandomStream random(4, 4);
  std::vector<float> x(static_cast<size_t>(tokens * 12));
  for (float& value : x) value = static_cast<float>(random.normal());
  return x;
}

TEST(InfiniLatent, TheTrueDeltaRuleOverTheSameTokensIsTheSameMemoryInSegmentsOfAnyLength) {
  // 24 tokens close the last segment of each of these lengths.
  for (const char* memory : {"per_head", "latent"}) {
    std::vector<std::vector<float>> memories;
    for (const int64_t segment : {3, 8, 12}) {
      SmallRoom small(memory, "delta_true", segment);
      RandomWeights weights(*small.backend, {});
      auto room = InfiniLatent::create({.hidden = 12}, small.p, weights, *small.backend);
      ASSERT_TRUE(room.ok());
      const SequenceRun run(**room, *small.backend, random_input(24), 12, {7});
      memories.push_back((*room)->state_tensors(run.state[0]).at(0).values);
    }
    EXPECT_LE(relative_error(memories[1], memories[0]), 1e-5) << memory;
    EXPECT_LE(relative_error(memories[2], memories[0]), 1e-5) << memory;
  }
}

TEST(InfiniLatent, TheTwoLayoutsOfTheMemoryAreDifferentModels) {
  const std::vector<float> x = random_input(30);
  EXPECT_GT(relative_error(SmallRoom("latent", "linear", 8).run(x), SmallRoom("per_head", "linear", 8).run(x)), 1e-3);
}

TEST(InfiniLatent, ASequenceWithinAnUngatedFirstSegmentIsLatentAttention) {
  const std::vector<float> x = random_input(20);
  SmallRoom small("latent", "delta", 32);
  small.p.set("first_segment", std::string("local"));
  const RandomWeights random(*small.backend, {});
  GivenWeights weights(*small.backend);
  weights.give("query", random.matrix_values("query", 27, 12));
  weights.give("latent_down", random.matrix_values("latent_down", 13, 12));
  weights.give("latent_up", random.matrix_values("latent_up", 33, 9));
  weights.give("output", random.matrix_values("output", 12, 18));
  const LatentEquations equations{
      .hidden = 12, .heads = 3, .query_rank = 0, .rank = 9, .nope = 5, .rope = 4, .value = 6, .weights = &weights};
  LatentEquations::Matrix rows;
  for (auto it = x.begin(); it != x.end(); it += 12) rows.emplace_back(it, it + 12);
  EXPECT_LE(largest_relative_error(small.run(x), equations.output(rows)), 1e-5);
}

TEST(InfiniLatent, BadSettingsAreRefusedByName) {
  auto backend = make_reference_backend(1);
  const auto refused = [&](const std::string& key, HyperParameters::Value value, const std::string& memory = "latent") {
    HyperParameters p = deepseek_like(memory);
    p.set(key, std::move(value));
    const auto room = created(p, *backend);
    ASSERT_FALSE(room.ok()) << key;
    EXPECT_EQ(room.error().error_class, ErrorClass::kBadInput);
    EXPECT_THAT(room.error().message, HasSubstr(key));
    EXPECT_THAT(room.error().message, HasSubstr("config.json"));
  };
  refused("memory", std::string("joint"));
  refused("memory", int64_t{1});
  refused("memory_key_dim", int64_t{0});
  refused("memory_key_dim", int64_t{4}, "per_head");
  refused("form", std::string("expanded"));
  refused("latent_rank", int64_t{0});
  refused("rope_dim", int64_t{3});
  refused("segment_tokens", int64_t{0});
  refused("rule", std::string("hebb"));
  refused("feature", std::string("silu_l2"));
  refused("norm", std::string("none"));
}

}  // namespace
}  // namespace quipu
