// Small random models written by the tests themselves: the same weights as a Hugging Face folder and as a GGUF file.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "end_to_end/backends_under_test.h"
#include "formats/gguf/gguf_writer.h"
#include "generate/model_session.h"
#include "tensor/view.h"

namespace quipu {

struct TinyModel {
  struct Tensor {
    Shape shape;
    std::vector<float> values;
  };
  std::string architecture;              // llama, qwen2, qwen3, gemma3
  int64_t hidden = 48, layers = 3, heads = 6, kv_heads = 2, head_dim = 16, inner = 80, vocabulary = 300, window = 0;
  bool tied = false;
  std::map<std::string, Tensor> tensors;  // by Hugging Face name, half-split rotary rows, Gemma norms as weight - 1
  std::string config_json;

  // Random norms around 1, random biases where the architecture has them, attention sharp enough to matter.
  static TinyModel make(const std::string& architecture, uint64_t seed);

  // Matrices in `dtype`, the rest f32. The folder is made.
  void write_folder(const std::string& folder) const;
  void write_gguf(const std::string& path, DType dtype = DType::kF32, bool with_tokenizer = false) const;
};

// A folder of its own for one test, removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct RuntimeOptions {
  DType cache_dtype = DType::kF16;
  int64_t max_chunk = 32;
};

// Reads a GGUF file or a folder into a runtime without a tokenizer. A failure fails the test and gives nullptr.
std::shared_ptr<Runtime> load_runtime(const std::string& path, std::unique_ptr<Backend> backend, RuntimeOptions options = {});

std::vector<int32_t> random_ids(int64_t count, int64_t vocabulary, uint64_t seed);

// Logits of all ids, row by row.
std::vector<float> all_logits(std::shared_ptr<Runtime> runtime, const std::vector<int32_t>& ids);

}  // namespace quipu
