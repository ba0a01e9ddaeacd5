// The room against arrays that other people's equations produced in float64 (numpy), which lie beside the checkout.
#include <cstring>
#include <filesystem>
#include <string>

#include "attention/infini/layer_for_test.h"
#include "backend/cpu/cpu_backend.h"
#include "formats/safetensors/safetensors_file.h"

namespace quipu {
namespace {

const std::string kFile = std::string(QUIPU_SOURCE_DIR) + "/../shared/golden/infini_delta.safetensors";

std::vector<float> floats(const TensorFile& file, const char* name) {
  const NamedTensor* tensor = file.find(name);
  CHECK(tensor != nullptr && tensor->view.dtype == DType::kF32) << name;
  std::vector<float> values(static_cast<size_t>(element_count(tensor->view.shape)));
  std::memcpy(values.data(), tensor->view.bytes.data(), tensor->view.bytes.size());
  return values;
}

std::vector<double> doubles(const TensorFile& file, const char* name) {
  const std::vector<float> values = floats(file, name);
  return {values.begin(), values.end()};
}

class InfiniGolden : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(kFile)) GTEST_SKIP() << "no golden file at " << kFile;
    auto read = read_safetensors(kFile);
    ASSERT_TRUE(read.ok()) << read.error().message;
    file_ = std::make_unique<TensorFile>(std::move(read).value());
  }
  std::string text(const char* key) const { return file_->metadata().find(key)->second; }
  int64_t number(const char* key) const { return std::stoll(text(key)); }

  InfiniLayer layer(std::unique_ptr<Backend> backend) const {
    HyperParameters p("golden");
    p.set("heads", number("num_attention_heads"));
    p.set("kv_heads", number("num_key_value_heads"));
    p.set("head_dim", number("head_dim"));
    p.set("segment_tokens", number("segment_tokens"));
    p.set("rule", text("memory_rule"));
    p.set("rope_theta", std::stod(text("rope_theta")));
    return InfiniLayer(number("hidden_size"), p,
                       {{"query", floats(*file_, "q_proj.weight")},
                        {"key", floats(*file_, "k_proj.weight")},
                        {"value", floats(*file_, "v_proj.weight")},
                        {"output", floats(*file_, "o_proj.weight")},
                        {"memory_gate", floats(*file_, "memory_gate")}},
                       std::move(backend));
  }
  void expect_golden(InfiniLayer layer) const {
    const std::vector<float> x = floats(*file_, "input");
    const int64_t hidden = number("hidden_size"), tokens = static_cast<int64_t>(x.size()) / hidden;
    for (const int64_t chunk : {tokens, int64_t{1}, int64_t{5}, int64_t{8}}) {
      layer.begin_again();
      std::vector<float> out;
      for (int64_t row = 0; row < tokens; row += chunk) {
        const int64_t end = std::min(tokens, row + chunk);
        const std::vector<float> piece = layer.feed({x.begin() + row * hidden, x.begin() + end * hidden});
        out.insert(out.end(), piece.begin(), piece.end());
      }
      EXPECT_LE(relative_error(out, doubles(*file_, "output")), 1e-5) << "chunks of " << chunk;
      EXPECT_LE(relative_error(layer.memory(), doubles(*file_, "final_memory")), 1e-5) << "chunks of " << chunk;
      EXPECT_LE(relative_error(layer.norm(), doubles(*file_, "final_norm")), 1e-5) << "chunks of " << chunk;
    }
  }
  std::unique_ptr<TensorFile> file_;
};

TEST_F(InfiniGolden, TheReferenceBackEndGivesItsNumbers) { expect_golden(layer(make_reference_backend(1))); }

TEST_F(InfiniGolden, TheCpuBackEndGivesItsNumbersAtEveryInstructionSet) {
  for (const Isa isa : available_isas()) {
    SCOPED_TRACE(isa_name(isa));
    auto backend = make_cpu_backend({.threads = 2, .isa = isa});
    ASSERT_TRUE(backend.ok());
    expect_golden(layer(std::move(backend).value()));
  }
}

}  // namespace
}  // namespace quipu
