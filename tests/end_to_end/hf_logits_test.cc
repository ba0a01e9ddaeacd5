// Logits against Hugging Face transformers on small random models: every architecture, both spellings of the
// configuration, every back end and instruction set. Goldens: tools/make_hf_goldens.py (float32, eager attention).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "end_to_end/backends_under_test.h"
#include "formats/safetensors/safetensors_file.h"
#include "generate/model_session.h"
#include "model/config.h"

namespace quipu {
namespace {

const char* const kModels[] = {
    "llama", "llama_bias", "llama3_rope_scaling", "mistral", "qwen2", "qwen3", "gemma3", "gemma3_linear_rope",
    // latents: with and without low-rank queries, experts, YaRN; both rotary layouts
    "deepseek_v2_dense", "deepseek_v2_dense_qlora_yarn", "deepseek_v2_moe_qlora", "deepseek_v2_moe_yarn",
    "deepseek_v3_dense_halves", "deepseek_v3_dense_qlora", "deepseek_v3_dense_qlora_yarn_halves",
    "deepseek_v3_dense_yarn", "deepseek_v3_moe", "deepseek_v3_moe_qlora_halves", "deepseek_v3_moe_qlora_yarn",
    "deepseek_v3_moe_yarn_halves"};

std::string folder_of(const std::string& model) {
  return std::string(QUIPU_SOURCE_DIR) + "/tests/end_to_end/hf/" + model;
}

ModelConfig config_of(const std::string& path) {
  auto file = MappedFile::open(path);
  EXPECT_TRUE(file.ok());
  const auto bytes = (*file)->bytes();
  auto config = read_hf_config(path, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  EXPECT_TRUE(config.ok()) << (config.ok() ? "" : config.error().message);
  return config.ok() ? *config : ModelConfig{};
}

template <class T>
std::vector<T> values_of(const TensorFile& file, const std::string& name) {
  const NamedTensor* tensor = file.find(name);
  EXPECT_NE(tensor, nullptr) << name;
  std::vector<T> values(tensor->view.bytes.size() / sizeof(T));
  std::memcpy(values.data(), tensor->view.bytes.data(), tensor->view.bytes.size());
  return values;
}

std::shared_ptr<Runtime> load(const std::string& model, const std::string& config_name, const NamedBackend& backend) {
  auto file = read_safetensors(folder_of(model));
  EXPECT_TRUE(file.ok()) << (file.ok() ? "" : file.error().message);
  auto runtime = std::make_shared<Runtime>();
  runtime->backend = backend.make();
  auto loaded = Model::load(config_of(folder_of(model) + "/" + config_name), *file, NameStyle::kHuggingFace,
                            *runtime->backend, {});
  EXPECT_TRUE(loaded.ok()) << (loaded.ok() ? "" : loaded.error().message);
  if (!loaded.ok()) return nullptr;
  runtime->model = std::move(*loaded);
  runtime->state.cache_dtype = DType::kF32;
  runtime->state.max_chunk = 33;  // 65 tokens are two chunks, the second shorter
  return runtime;
}

// max |difference| over all rows, relative to max |golden|. NaN gives infinity.
double relative_error(Runtime& runtime, std::shared_ptr<Runtime> shared, const std::vector<int32_t>& ids,
                      const std::vector<float>& golden) {
  auto session = ModelSession::create(std::move(shared), 128);
  EXPECT_TRUE(session.ok());
  double largest = 0, difference = 0;
  const size_t vocabulary = static_cast<size_t>(runtime.vocabulary());
  EXPECT_EQ(golden.size(), ids.size() * vocabulary);
  const auto fed = (*session)->feed_with_logits(ids, [&](int64_t row, std::span<const float> logits) {
    for (size_t i = 0; i < vocabulary; ++i) {
      const double want = golden[static_cast<size_t>(row) * vocabulary + i];
      const double off = std::abs(logits[i] - want);
      largest = std::max(largest, std::abs(want));
      difference = off <= difference ? difference : off;  // NaN sticks
    }
  });
  EXPECT_TRUE(fed.ok());
  const double relative = difference / largest;
  return std::isfinite(relative) ? relative : INFINITY;
}

void compare(const std::string& model, const std::string& config_name, const NamedBackend& backend) {
  SCOPED_TRACE(model + " " + config_name + " " + backend.name);
  auto runtime = load(model, config_name, backend);
  ASSERT_NE(runtime, nullptr);
  auto golden = read_safetensors(folder_of(model) + "/golden.safetensors");
  ASSERT_TRUE(golden.ok()) << golden.error().message;
  for (const char* length : {"17", "65"}) {
    const double error = relative_error(*runtime, runtime, values_of<int32_t>(*golden, std::string("ids_") + length),
                                        values_of<float>(*golden, std::string("logits_") + length));
    // Goldens are float32 themselves: their own rounding over a few layers is near 1e-6. 1e-4 is what is promised.
    EXPECT_LE(error, 1e-4) << length << " tokens";
    testing::Test::RecordProperty(model + "_" + length, std::to_string(error));
  }
}

TEST(HfLogits, EveryArchitectureAgreesOnEveryBackEnd) {
  for (const NamedBackend& backend : backends_under_test()) {
    for (const char* model : kModels) compare(model, "config.json", backend);
  }
}

TEST(HfLogits, OlderSpellingsOfTheConfigurationMeanTheSame) {
  const NamedBackend backend = backends_under_test().back();
  for (const char* model : kModels) compare(model, "config_legacy.json", backend);
}

TEST(HfLogits, TheReferenceIsMuchCloserThanPromised) {
  const NamedBackend backend = backends_under_test().front();
  for (const char* model : kModels) {
    auto runtime = load(model, "config.json", backend);
    ASSERT_NE(runtime, nullptr);
    auto golden = read_safetensors(folder_of(model) + "/golden.safetensors");
    ASSERT_TRUE(golden.ok());
    const double error = relative_error(*runtime, runtime, values_of<int32_t>(*golden, "ids_65"),
                                        values_of<float>(*golden, "logits_65"));
    EXPECT_LE(error, 2e-5) << model;  // 65 tokens, 4 layers: a wrong epsilon or scale would show long before 1e-4
  }
}

}  // namespace
}  // namespace quipu
