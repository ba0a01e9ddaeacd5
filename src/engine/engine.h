// Engine: the public face. Programs (apps/) see this folder and base/ only; it is the only place that names concrete
// back ends.
//
//   auto engine = Engine::load("model.gguf", {});            // or a Hugging Face folder
//   auto session = (*engine)->new_session(4096);
//   (*session)->feed(tokens);                                // prompt, in chunks
//   (*session)->generate(options, on_piece);                 // streams text
//
// An Engine and its sessions are used by one thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "generate/session.h"
#include "tensor/dtype.h"

namespace quipu {

class Tokenizer;      // text/tokenizer.h
class ChatTemplate;   // text/chat_template.h

struct EngineOptions {
  int threads = 0;                     // 0: one per available core
  bool exact_activations = false;      // fp32 activations throughout (slower), for comparisons
  bool reference_backend = false;      // the naive double-precision oracle (very slow)
  DType cache_dtype = DType::kF16;     // f32, f16, bf16, q8_0
  int64_t max_chunk = 512;             // rows of one prompt step
  // Called while weights load: fraction 0..1. May be empty.
  std::function<void(double fraction)> on_progress;
};

// Plain facts about a loaded model, for inspect, memory plans and closing lines.
struct TensorFacts {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;          // slowest dimension first
  uint64_t bytes = 0;
};

struct ModelFacts {
  std::string path;
  std::string name;                    // general.name or folder name
  std::string architecture;            // "llama", "qwen3", ...
  std::string file_format;             // "GGUF v3", "safetensors"
  std::string quantisation;            // "Q4_1", "BF16", or a mix such as "Q4_K + Q6_K"
  int64_t parameters = 0;
  uint64_t weight_bytes = 0;           // in the file
  // Heads of the first layer; kv_heads and head_dim are 0 where its room knows no such thing.
  int64_t layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, feed_forward = 0, vocabulary = 0;
  int64_t trained_context = 0;
  std::vector<std::string> layer_rooms;      // the room of every layer, e.g. "grouped_query"
  std::vector<std::string> layer_settings;   // its whole numbers and words: "heads 8, latent_rank 256"
  double state_bytes_per_token = 0;    // at long context, in the cache dtype asked for
  std::string tokenizer;               // "byte-level BPE (smollm), 49152 tokens"; "none" when there are no files of one
  bool has_chat_template = false;
  std::vector<TensorFacts> tensors;
  std::vector<std::string> warnings;
};

// What N tokens of context cost this model.
struct ContextCost {
  int64_t tokens = 0;
  uint64_t state_bytes = 0;            // exact
  uint64_t state_bytes_allocated = 0;  // in whole pages
  double flops_per_token = 0;          // of one more token at this depth
  double bytes_read_per_token = 0;     // weights and state
};

struct QuantiseOptions {
  std::string type;        // one of Engine::quantise_types(); upper or lower case
  bool pure = false;       // every matrix that type: no exceptions for layers whose errors reach far
  std::function<void(uint64_t done, uint64_t total)> on_progress = {};   // bytes of source tensors
};

// What quantise() did that its caller may not expect.
struct QuantiseReport {
  uint64_t bytes_before = 0, bytes_after = 0;   // of all tensors
  std::vector<std::string> notes;               // "30 tensors have rows of 576, ...: q5_0 instead of q4_k"
};

class Engine {
 public:
  virtual ~Engine() = default;
  // path: a GGUF file, a safetensors folder in Hugging Face layout, or one of its files.
  static Result<std::unique_ptr<Engine>> load(const std::string& path, const EngineOptions& options);
  // Facts without loading weights.
  static Result<ModelFacts> inspect(const std::string& path, DType cache_dtype = DType::kF16);
  // Cost table without loading weights.
  static Result<std::vector<ContextCost>> cost(const std::string& path, std::span<const int64_t> contexts,
                                               DType cache_dtype = DType::kF16);
  // The tokenizer alone.
  static Result<std::shared_ptr<const Tokenizer>> load_tokenizer(const std::string& path);
  // Writes a GGUF copy of a GGUF file with matrices re-encoded, as llama-quantize does: norms and biases keep their type;
  // the output matrix (or a tied embedding) stays at 6 bits or more, the up-projections of latents at 8; rows that are not
  // whole blocks of a type take a neighbouring one (the report says which).
  static Result<QuantiseReport> quantise(const std::string& in, const std::string& out, const QuantiseOptions& options);
  static std::string quantise_types();   // "f32, f16, ..., q4_k_m, ...", for messages

  virtual const ModelFacts& facts() const = 0;
  // A model without a tokenizer (random weights, say) can be measured, but not talked to.
  virtual bool has_tokenizer() const = 0;
  virtual const Tokenizer& tokenizer() const = 0;          // has_tokenizer() (CHECKed)
  virtual const ChatTemplate* chat_template() const = 0;   // nullptr: the file has none (or it was refused: warnings)
  virtual std::string backend_name() const = 0;            // "cpu avx512"
  virtual int threads() const = 0;
  virtual ContextCost cost_at(int64_t tokens) const = 0;
  virtual double load_seconds() const = 0;
  virtual uint64_t packed_weight_bytes() const = 0;
  virtual uint64_t working_bytes() const = 0;   // scratch of a prompt step

  // context: most tokens the session will hold; 0 means the trained context (at most 8192).
  virtual Result<std::unique_ptr<Session>> new_session(int64_t context) = 0;

  // One step over several sessions at once, one next token each (continuous batching); logits as after feed().
  // sessions.size() == ids.size(); sessions are distinct and of this engine.
  virtual Result<void> step(std::span<Session* const> sessions, std::span<const int32_t> ids) = 0;
};

}  // namespace quipu
