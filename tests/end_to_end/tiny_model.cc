#include "end_to_end/tiny_model.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/mapped_file.h"
#include "base/random.h"
#include "base/utf8.h"
#include "formats/gguf/gguf_file.h"
#include "formats/safetensors/safetensors_file.h"
#include "formats/safetensors/safetensors_writer.h"
#include "model/config.h"
#include "tensor/quant_blocks.h"

namespace quipu {
namespace {

// Our own table, written from the converters' documentation, so that a slip in model/names.cc is seen.
std::string gguf_name(const std::string& name, bool gemma) {
  if (name == "model.embed_tokens.weight") return "token_embd.weight";
  if (name == "model.norm.weight") return "output_norm.weight";
  if (name == "lm_head.weight") return "output.weight";
  const size_t layer = std::string("model.layers.").size();
  const size_t dot = name.find('.', layer);
  const std::string rest = name.substr(dot + 1);
  const std::map<std::string, std::string> table = {
      {"input_layernorm.weight", "attn_norm.weight"},
      {"post_attention_layernorm.weight", gemma ? "post_attention_norm.weight" : "ffn_norm.weight"},
      {"pre_feedforward_layernorm.weight", "ffn_norm.weight"},
      {"post_feedforward_layernorm.weight", "post_ffw_norm.weight"},
      {"self_attn.q_proj.weight", "attn_q.weight"}, {"self_attn.q_proj.bias", "attn_q.bias"},
      {"self_attn.k_proj.weight", "attn_k.weight"}, {"self_attn.k_proj.bias", "attn_k.bias"},
      {"self_attn.v_proj.weight", "attn_v.weight"}, {"self_attn.v_proj.bias", "attn_v.bias"},
      {"self_attn.o_proj.weight", "attn_output.weight"},
      {"self_attn.q_norm.weight", "attn_q_norm.weight"}, {"self_attn.k_norm.weight", "attn_k_norm.weight"},
      {"mlp.gate_proj.weight", "ffn_gate.weight"}, {"mlp.up_proj.weight", "ffn_up.weight"},
      {"mlp.down_proj.weight", "ffn_down.weight"}};
  return "blk." + name.substr(layer, dot - layer) + "." + table.at(rest);
}

// Rows of each head from half-split to interleaved pairs: new[2j] = old[j], new[2j+1] = old[j + d/2].
std::vector<float> interleave_rows(const std::vector<float>& values, int64_t head_dim, int64_t cols) {
  std::vector<float> result(values.size());
  const int64_t rows = static_cast<int64_t>(values.size()) / cols;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t in_head = row % head_dim;
    const int64_t old = row - in_head + in_head / 2 + (in_head % 2) * head_dim / 2;
    std::memcpy(result.data() + row * cols, values.data() + old * cols, static_cast<size_t>(cols) * sizeof(float));
  }
  return result;
}

std::string config_text_of(const TinyModel& m) {
  const std::map<std::string, std::string> classes = {{"llama", "LlamaForCausalLM"}, {"mistral", "MistralForCausalLM"},
                                                      {"qwen2", "Qwen2ForCausalLM"}, {"qwen3", "Qwen3ForCausalLM"},
                                                      {"gemma3", "Gemma3ForCausalLM"}};
  const bool gemma = m.architecture == "gemma3";
  std::string text = "{\"architectures\": [\"" + classes.at(m.architecture) + "\"]";
  const auto add = [&](const std::string& key, const std::string& value) { text += ", \"" + key + "\": " + value; };
  add("hidden_size", std::to_string(m.hidden));
  add("num_hidden_layers", std::to_string(m.layers));
  add("num_attention_heads", std::to_string(m.heads));
  add("num_key_value_heads", std::to_string(m.kv_heads));
  add("head_dim", std::to_string(m.head_dim));
  add("intermediate_size", std::to_string(m.inner));
  add("vocab_size", std::to_string(m.vocabulary));
  add("max_position_embeddings", "4096");
  add("rms_norm_eps", "1e-5");
  add("rope_theta", gemma ? "1000000.0" : "10000.0");
  add("tie_word_embeddings", m.tied ? "true" : "false");
  add(gemma ? "hidden_activation" : "hidden_act", gemma ? "\"gelu_pytorch_tanh\"" : "\"silu\"");
  if (m.window > 0) add("sliding_window", std::to_string(m.window));
  if (gemma) {
    add("rope_local_base_freq", "10000.0");
    add("sliding_window_pattern", "2");
    add("query_pre_attn_scalar", std::to_string(m.head_dim));
  }
  return text + "}";
}

std::string byte_token(int byte) {
  // GPT-2's alphabet: printable bytes stand for themselves, the others for U+0100 and up in order.
  static const std::vector<std::string> kTable = [] {
    std::vector<std::string> table(256);
    char32_t next = 256;
    for (int b = 0; b < 256; ++b) {
      const bool shown = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      utf8_append(table[static_cast<size_t>(b)], shown ? static_cast<char32_t>(b) : next++);
    }
    return table;
  }();
  return kTable[static_cast<size_t>(byte)];
}

void set_tokenizer(GgufHeader& header, int64_t vocabulary) {
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  for (int b = 0; b < 256; ++b) tokens.push_back(byte_token(b));
  types.assign(256, 1);
  tokens.insert(tokens.end(), {"<|end|>", "<|user|>"});
  types.insert(types.end(), {3, 3});
  while (static_cast<int64_t>(tokens.size()) < vocabulary - 4) {   // the embedding has a few rows more
    tokens.push_back("<unused" + std::to_string(tokens.size()) + ">");
    types.push_back(5);
  }
  tokens[258] = "ab";
  types[258] = 1;
  const std::vector<std::string_view> views(tokens.begin(), tokens.end());
  const std::vector<std::string_view> merges = {"a b"};
  EXPECT_TRUE(header.set_string("tokenizer.ggml.model", "gpt2").ok());
  EXPECT_TRUE(header.set_string("tokenizer.ggml.pre", "gpt-2").ok());
  EXPECT_TRUE(header.set_strings("tokenizer.ggml.tokens", views).ok());
  EXPECT_TRUE(header.set_i32s("tokenizer.ggml.token_type", types).ok());
  EXPECT_TRUE(header.set_strings("tokenizer.ggml.merges", merges).ok());
  EXPECT_TRUE(header.set_u32("tokenizer.ggml.eos_token_id", 256).ok());
  EXPECT_TRUE(header.set_string("tokenizer.chat_template",
                                "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}").ok());
}

}  // namespace

TinyModel TinyModel::make(const std::string& architecture, uint64_t seed) {
  TinyModel m;
  m.architecture = architecture;
  m.tied = architecture == "gemma3" || architecture == "qwen3";
  const bool gemma = architecture == "gemma3";
  if (gemma || architecture == "mistral") m.window = 24;
  RandomStream random(seed, 7);
  const auto fill = [&](const std::string& name, Shape shape, double spread, double mean) {
    Tensor tensor{shape, std::vector<float>(static_cast<size_t>(element_count(shape)))};
    for (float& value : tensor.values) value = static_cast<float>(mean + spread * random.normal());
    m.tensors[name] = std::move(tensor);
  };
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t cols, double gain = 1.0) {
    fill(name, {rows, cols}, gain / std::sqrt(static_cast<double>(cols)), 0);
  };
  const double norm_mean = gemma ? 0 : 1;
  fill("model.embed_tokens.weight", {m.vocabulary, m.hidden}, gemma ? 0.15 : 1.0, 0);
  fill("model.norm.weight", {m.hidden}, 0.2, norm_mean);
  if (!m.tied) matrix("lm_head.weight", m.vocabulary, m.hidden);
  for (int64_t i = 0; i < m.layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    for (const char* name : {"input_layernorm", "post_attention_layernorm"}) fill(layer + name + ".weight", {m.hidden}, 0.2, norm_mean);
    if (gemma) {
      for (const char* name : {"pre_feedforward_layernorm", "post_feedforward_layernorm"}) {
        fill(layer + name + ".weight", {m.hidden}, 0.2, norm_mean);
      }
    }
    const std::string attention = layer + "self_attn.";
    matrix(attention + "q_proj.weight", m.heads * m.head_dim, m.hidden, 2.0);
    matrix(attention + "k_proj.weight", m.kv_heads * m.head_dim, m.hidden, 2.0);
    matrix(attention + "v_proj.weight", m.kv_heads * m.head_dim, m.hidden);
    matrix(attention + "o_proj.weight", m.hidden, m.heads * m.head_dim);
    if (architecture == "qwen2") {
      fill(attention + "q_proj.bias", {m.heads * m.head_dim}, 0.5, 0);
      fill(attention + "k_proj.bias", {m.kv_heads * m.head_dim}, 0.5, 0);
      fill(attention + "v_proj.bias", {m.kv_heads * m.head_dim}, 0.5, 0);
    }
    if (gemma || architecture == "qwen3") {
      fill(attention + "q_norm.weight", {m.head_dim}, 0.2, norm_mean);
      fill(attention + "k_norm.weight", {m.head_dim}, 0.2, norm_mean);
    }
    matrix(layer + "mlp.gate_proj.weight", m.inner, m.hidden);
    matrix(layer + "mlp.up_proj.weight", m.inner, m.hidden);
    matrix(layer + "mlp.down_proj.weight", m.hidden, m.inner);
  }
  m.config_json = config_text_of(m);
  return m;
}

void TinyModel::write_folder(const std::string& folder) const {
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/config.json") << config_json;
  std::vector<SafetensorsTensor> list;
  for (const auto& [name, tensor] : tensors) {
    list.push_back({name, {DType::kF32, tensor.shape, std::as_bytes(std::span(tensor.values))}});
  }
  const auto written = write_safetensors(folder + "/model.safetensors", list);
  ASSERT_TRUE(written.ok()) << written.error().message;
}

void TinyModel::write_gguf(const std::string& path, DType dtype, bool with_tokenizer) const {
  const bool gemma = architecture == "gemma3";
  const std::string arch = architecture == "mistral" ? "llama" : architecture;
  GgufHeader header;
  const auto u32 = [&](const std::string& key, int64_t value) {
    ASSERT_TRUE(header.set_u32(arch + "." + key, static_cast<uint32_t>(value)).ok());
  };
  ASSERT_TRUE(header.set_string("general.architecture", arch).ok());
  ASSERT_TRUE(header.set_string("general.name", "tiny " + architecture).ok());
  u32("block_count", layers);
  u32("context_length", 4096);
  u32("embedding_length", hidden);
  u32("feed_forward_length", inner);
  u32("attention.head_count", heads);
  u32("attention.head_count_kv", kv_heads);
  u32("attention.key_length", head_dim);
  u32("attention.value_length", head_dim);
  ASSERT_TRUE(header.set_f32(arch + ".attention.layer_norm_rms_epsilon", 1e-5f).ok());
  ASSERT_TRUE(header.set_f32(arch + ".rope.freq_base", gemma ? 1e6f : 1e4f).ok());
  if (window > 0) u32("attention.sliding_window", window);
  if (gemma) u32("attention.sliding_window_pattern", 2);
  if (with_tokenizer) set_tokenizer(header, vocabulary);

  std::vector<std::vector<std::byte>> data;
  for (const auto& [name, tensor] : tensors) {
    std::vector<float> values = tensor.values;
    const int64_t cols = tensor.shape.size() == 1 ? 1 : tensor.shape[1];
    const bool rotated = name.find("q_proj") != std::string::npos || name.find("k_proj") != std::string::npos;
    if (arch == "llama" && rotated) values = interleave_rows(values, head_dim, cols);
    if (gemma && name.ends_with("norm.weight")) {
      for (float& value : values) value += 1;
    }
    const bool plain = tensor.shape.size() == 1 || cols % traits(dtype).block_elements != 0;
    const DType type = plain ? DType::kF32 : dtype;
    const int64_t row = tensor.shape.back();
    std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(type, row) * (element_count(tensor.shape) / row)));
    if (type == DType::kF32) {
      std::memcpy(bytes.data(), values.data(), bytes.size());
    } else {
      for (int64_t r = 0; r < tensor.shape[0]; ++r) {
        quantise_row(bytes.data() + r * row_bytes(type, row), type, values.data() + r * row, row);
      }
    }
    ASSERT_TRUE(header.add_tensor(gguf_name(name, gemma), type, tensor.shape).ok());
    data.push_back(std::move(bytes));
  }
  auto writer = GgufWriter::create(path, std::move(header));
  ASSERT_TRUE(writer.ok()) << writer.error().message;
  for (const auto& bytes : data) ASSERT_TRUE(writer->write(bytes).ok());
  ASSERT_TRUE(writer->commit().ok());
}

TemporaryFolder::TemporaryFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "quipu_test_XXXXXX").string();
  EXPECT_NE(mkdtemp(name.data()), nullptr);
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::shared_ptr<Runtime> load_runtime(const std::string& path, std::unique_ptr<Backend> backend, RuntimeOptions options) {
  auto runtime = std::make_shared<Runtime>();
  runtime->backend = std::move(backend);
  runtime->state = {options.cache_dtype, options.max_chunk};
  Result<std::unique_ptr<Model>> model = failed("not read");
  if (std::filesystem::is_directory(path)) {
    auto file = read_safetensors(path);
    auto config_file = MappedFile::open(path + "/config.json");
    if (file.ok() && config_file.ok()) {
      const auto bytes = (*config_file)->bytes();
      auto config = read_hf_config(path + "/config.json", {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
      if (config.ok()) {
        model = Model::load(*config, *file, NameStyle::kHuggingFace, *runtime->backend, {});
      } else {
        model = config.error();
      }
    }
  } else if (auto file = read_gguf(path); file.ok()) {
    const NamedTensor* embedding = file->tensors.find("token_embd.weight");
    const GgufModelFacts facts{embedding == nullptr ? 0 : embedding->view.shape[0],
                               file->tensors.find("output.weight") != nullptr, {}};
    auto config = read_gguf_config(file->metadata, facts);
    if (config.ok()) {
      model = Model::load(*config, file->tensors, NameStyle::kGguf, *runtime->backend, {});
    } else {
      model = config.error();
    }
  } else {
    model = file.error();
  }
  EXPECT_TRUE(model.ok()) << path << ": " << (model.ok() ? "" : model.error().message);
  if (!model.ok()) return nullptr;
  runtime->model = std::move(*model);
  return runtime;
}

std::vector<int32_t> random_ids(int64_t count, int64_t vocabulary, uint64_t seed) {
  RandomStream random(seed, 99);
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) id = static_cast<int32_t>(random.below(static_cast<uint64_t>(vocabulary)));
  return ids;
}

std::vector<float> all_logits(std::shared_ptr<Runtime> runtime, const std::vector<int32_t>& ids) {
  auto session = ModelSession::create(std::move(runtime), static_cast<int64_t>(ids.size()));
  EXPECT_TRUE(session.ok());
  std::vector<float> all;
  const auto fed = (*session)->feed_with_logits(
      ids, [&](int64_t, std::span<const float> logits) { all.insert(all.end(), logits.begin(), logits.end()); });
  EXPECT_TRUE(fed.ok()) << (fed.ok() ? "" : fed.error().message);
  return all;
}

}  // namespace quipu
