// The public face: what a program gets from a file, and what it is told when the file is not what it should be.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "end_to_end/tiny_model.h"
#include "engine/available_memory.h"
#include "engine/roof.h"
#include "formats/gguf/gguf_file.h"
#include "formats/gguf/gguf_writer.h"
#include "tensor/quant_blocks.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace quipu {
namespace {

std::string tiny_file(const TemporaryFolder& folder, const std::string& architecture = "llama", DType dtype = DType::kQ8_0) {
  const std::string path = folder / (architecture + ".gguf");
  TinyModel::make(architecture, 3).write_gguf(path, dtype, true);
  return path;
}

template <class T>
void expect_error(const Result<T>& result, ErrorClass error_class, const std::string& part) {
  ASSERT_FALSE(result.ok()) << part;
  EXPECT_EQ(result.error().error_class, error_class) << result.error().message;
  EXPECT_NE(result.error().message.find(part), std::string::npos) << result.error().message;
  EXPECT_EQ(result.error().message.find('\n'), std::string::npos);
}

TEST(Engine, LoadsFeedsAndGeneratesFromOneFile) {
  TemporaryFolder folder;
  double progress = 0;
  EngineOptions options;
  options.threads = 2;
  options.on_progress = [&](double fraction) {
    EXPECT_GE(fraction, progress);
    progress = fraction;
  };
  auto engine = Engine::load(tiny_file(folder), options);
  ASSERT_TRUE(engine.ok()) << engine.error().message;
  EXPECT_EQ(progress, 1.0);
  ASSERT_NE((*engine)->chat_template(), nullptr);
  auto text = (*engine)->chat_template()->render({{"user", "abc", "", ""}}, {});
  ASSERT_TRUE(text.ok());
  auto ids = (*engine)->tokenizer().encode(*text, {.add_special = true, .parse_special = true});
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(*ids, (std::vector<int32_t>{257, 258, 'c', 256}));   // <|user|> ab c <|end|>: bytes are their own ids

  auto session = (*engine)->new_session(0);
  ASSERT_TRUE(session.ok());
  EXPECT_EQ((*session)->context(), 4096);
  ASSERT_TRUE((*session)->feed(*ids).ok());
  GenerateOptions generate;
  generate.max_tokens = 12;
  generate.ignore_end = true;
  std::string streamed;
  auto result = (*session)->generate(generate, [&](std::string_view piece) { streamed += piece; });
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(result->text, streamed);
  EXPECT_EQ(result->tokens.size(), 12u);
}

TEST(Engine, StopsAtStopStringsWithoutShowingThem) {
  TemporaryFolder folder;
  auto engine = Engine::load(tiny_file(folder), {});
  ASSERT_TRUE(engine.ok());
  const std::vector<int32_t> prompt = {1, 2, 3};
  GenerateOptions generate;
  generate.max_tokens = 30;
  generate.ignore_end = true;
  auto free_run = (*engine)->new_session(100);
  ASSERT_TRUE((*free_run)->feed(prompt).ok());
  const std::string text = (*free_run)->generate(generate, {})->text;
  ASSERT_GE(text.size(), 8u);
  // Whole characters from the middle of what it says anyway.
  size_t begin = text.size() / 2;
  while ((static_cast<unsigned char>(text[begin]) & 0xc0) == 0x80) ++begin;
  generate.stop = {text.substr(begin)};
  auto stopped = (*engine)->new_session(100);
  ASSERT_TRUE((*stopped)->feed(prompt).ok());
  std::string streamed;
  auto result = (*stopped)->generate(generate, [&](std::string_view piece) { streamed += piece; });
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(result->finish, FinishReason::kStop);
  EXPECT_EQ(streamed, text.substr(0, text.find(generate.stop[0])));
  EXPECT_EQ(streamed.find(generate.stop[0]), std::string::npos);
}

TEST(Engine, SessionsOutliveTheEngineAndStepTogether) {
  TemporaryFolder folder;
  auto engine = Engine::load(tiny_file(folder, "qwen3"), {});
  ASSERT_TRUE(engine.ok());
  auto a = (*engine)->new_session(64), b = (*engine)->new_session(64);
  ASSERT_TRUE((*a)->feed(std::vector<int32_t>{1, 2, 3}).ok());
  ASSERT_TRUE((*b)->feed(std::vector<int32_t>{9}).ok());
  Session* const both[] = {a->get(), b->get()};
  const int32_t next[] = {4, 5};
  ASSERT_TRUE((*engine)->step(both, next).ok());
  EXPECT_EQ((*a)->tokens(), 4);
  EXPECT_EQ((*b)->tokens(), 2);
  engine->reset();
  EXPECT_TRUE((*a)->feed(std::vector<int32_t>{6}).ok());
}

TEST(Engine, InspectAndCostAgreeWithTheLoadedModelWithoutReadingWeights) {
  for (const char* architecture : {"llama", "gemma3"}) {
    TemporaryFolder folder;
    const std::string path = tiny_file(folder, architecture);
    auto facts = Engine::inspect(path);
    auto engine = Engine::load(path, {});
    ASSERT_TRUE(facts.ok() && engine.ok());
    const ModelFacts& loaded = (*engine)->facts();
    EXPECT_EQ(facts->parameters, loaded.parameters);
    EXPECT_EQ(facts->quantisation, loaded.quantisation);
    EXPECT_EQ(facts->state_bytes_per_token, loaded.state_bytes_per_token);
    EXPECT_EQ(facts->layers, 3);
    EXPECT_EQ(facts->tokenizer, "byte-level BPE (gpt-2), 296 tokens");
    EXPECT_TRUE(facts->has_chat_template);
    const int64_t contexts[] = {1, 100, 5000};
    auto costs = Engine::cost(path, contexts);
    ASSERT_TRUE(costs.ok());
    for (const ContextCost& cost : *costs) {
      EXPECT_EQ(cost.state_bytes, (*engine)->cost_at(cost.tokens).state_bytes);
      EXPECT_GE(cost.state_bytes_allocated, cost.state_bytes);
      EXPECT_GT(cost.bytes_read_per_token, 0);
    }
  }
  TemporaryFolder folder;
  auto facts = Engine::inspect(tiny_file(folder));
  EXPECT_EQ(facts->state_bytes_per_token, 3 * 2 * 2 * 16 * 2);   // layers, k and v, kv_heads, head_dim, f16
}

TEST(Engine, SaysWhenACacheTypeDoesNotFitTheHeads) {
  TemporaryFolder folder;
  const std::string path = tiny_file(folder);   // heads of 16
  auto plain = Engine::inspect(path, DType::kF16), blocks = Engine::inspect(path, DType::kQ8_0);
  ASSERT_TRUE(plain.ok() && blocks.ok());
  EXPECT_EQ(blocks->warnings.size(), plain->warnings.size() + 1);
  EXPECT_NE(blocks->warnings.back().find("3 of 3 layers keep their context as f16"), std::string::npos) << blocks->warnings.back();
}

TEST(Engine, QuantiseWritesFilesThatLoadAndReportsFallbacks) {
  TemporaryFolder folder;
  const std::string in = folder / "f32.gguf";
  TinyModel::make("qwen2", 4).write_gguf(in, DType::kF32, true);
  auto before = Engine::inspect(in);
  ASSERT_TRUE(before.ok());
  uint64_t last = 0;
  auto report = Engine::quantise(in, folder / "q8.gguf", {.type = "bf16", .on_progress = [&](uint64_t done, uint64_t total) {
    EXPECT_LE(done, total);
    last = done;
  }});
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(last, report->bytes_before);
  EXPECT_LT(report->bytes_after, report->bytes_before);
  EXPECT_TRUE(report->notes.empty());
  auto after = Engine::inspect(folder / "q8.gguf");
  ASSERT_TRUE(after.ok());
  EXPECT_EQ(after->quantisation, "BF16");
  EXPECT_EQ(after->parameters, before->parameters);
  EXPECT_EQ(after->tokenizer, before->tokenizer);
  auto file = read_gguf(folder / "q8.gguf");
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(file->tensors.find("blk.0.attn_norm.weight")->view.dtype, DType::kF32);
  EXPECT_EQ(file->tensors.find("blk.0.attn_q.bias")->view.dtype, DType::kF32);
  EXPECT_EQ(file->metadata.require_u32("general.file_type").value(), 32u);

  // Rows of 48, 80 and 96 are no whole blocks of 256: q5_0 where 32 divides them, f16 elsewhere.
  report = Engine::quantise(in, folder / "q4k.gguf", {.type = "Q4_K"});
  ASSERT_TRUE(report.ok()) << report.error().message;
  ASSERT_FALSE(report->notes.empty());
  EXPECT_NE(report->notes[0].find("in place of the type asked for (q4_k_m)"), std::string::npos) << report->notes[0];
  auto loaded = Engine::load(folder / "q4k.gguf", {});
  EXPECT_TRUE(loaded.ok()) << (loaded.ok() ? "" : loaded.error().message);

  expect_error(Engine::quantise(in, in, {.type = "q8_0"}), ErrorClass::kUsage, "is the file to be read");
  expect_error(Engine::quantise(in, folder / "x", {.type = "i32"}), ErrorClass::kUsage, "i32");
}

// Llama 3.2 1B as Q4_K_M is known to hold 17 Q6_K matrices: the values and down projections of 8 of its 16 layers, and the
// output.
TEST(Engine, QuantiseMixesTypesAsLlamaQuantizeDoes) {
  TemporaryFolder folder;
  const std::string in = folder / "in.gguf";
  GgufHeader header;
  std::vector<std::string> names = {"token_embd.weight", "output.weight"};
  for (int layer = 0; layer < 16; ++layer) {
    for (const char* role : {"attn_q", "attn_v", "attn_output", "attn_kv_b", "ffn_down"}) {
      names.push_back("blk." + std::to_string(layer) + "." + role + ".weight");
    }
  }
  for (const std::string& name : names) ASSERT_TRUE(header.add_tensor(name, DType::kF32, {1, 256}).ok());
  auto writer = GgufWriter::create(in, std::move(header));
  ASSERT_TRUE(writer.ok());
  const std::vector<float> row(256, 0.5f);
  for (size_t i = 0; i < names.size(); ++i) ASSERT_TRUE(writer->write(std::as_bytes(std::span(row))).ok());
  ASSERT_TRUE(writer->commit().ok());

  const auto types = [&](const std::string& type, bool pure) {
    const std::string out = folder / (type + (pure ? "p" : ""));
    auto report = Engine::quantise(in, out, {.type = type, .pure = pure});
    EXPECT_TRUE(report.ok()) << report.error().message;
    std::map<std::string, DType> result;
    auto file = read_gguf(out);
    for (const NamedTensor& tensor : file->tensors.tensors()) result[tensor.name] = tensor.view.dtype;
    return result;
  };
  const auto mixed = types("Q4_K_M", false);
  for (int layer = 0; layer < 16; ++layer) {
    const bool fine = std::set<int>{0, 1, 4, 7, 10, 13, 14, 15}.contains(layer);
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    EXPECT_EQ(mixed.at(prefix + "attn_v.weight"), fine ? DType::kQ6_K : DType::kQ4_K) << layer;
    EXPECT_EQ(mixed.at(prefix + "ffn_down.weight"), fine ? DType::kQ6_K : DType::kQ4_K) << layer;
    EXPECT_EQ(mixed.at(prefix + "attn_q.weight"), DType::kQ4_K);
    EXPECT_EQ(mixed.at(prefix + "attn_kv_b.weight"), DType::kQ8_0);
  }
  EXPECT_EQ(mixed.at("output.weight"), DType::kQ6_K);
  EXPECT_EQ(mixed.at("token_embd.weight"), DType::kQ4_K);
  EXPECT_EQ(types("q2_k", false).at("blk.3.attn_output.weight"), DType::kQ3_K);
  EXPECT_EQ(types("q3_k_m", false).at("blk.1.attn_v.weight"), DType::kQ5_K);
  EXPECT_EQ(types("q3_k_m", false).at("blk.2.attn_v.weight"), DType::kQ4_K);
  EXPECT_EQ(types("q4_k_m", true).at("blk.0.attn_v.weight"), DType::kQ4_K);
}

TEST(Engine, QuantisedRowsEqualTheEncodersOwn) {
  TemporaryFolder folder;
  const TinyModel model = TinyModel::make("llama", 6);
  model.write_gguf(folder / "in.gguf");
  ASSERT_TRUE(Engine::quantise(folder / "in.gguf", folder / "out.gguf", {.type = "q8_0"}).ok());
  auto in = read_gguf(folder / "in.gguf"), out = read_gguf(folder / "out.gguf");
  const NamedTensor* source = in->tensors.find("blk.1.attn_output.weight");   // [48, 96]
  const NamedTensor* made = out->tensors.find("blk.1.attn_output.weight");
  ASSERT_EQ(made->view.dtype, DType::kQ8_0);
  std::vector<std::byte> expected(made->view.bytes.size());
  const auto* values = reinterpret_cast<const float*>(source->view.bytes.data());
  for (int64_t r = 0; r < 48; ++r) quantise_row(expected.data() + r * row_bytes(DType::kQ8_0, 96), DType::kQ8_0, values + r * 96, 96);
  EXPECT_TRUE(std::ranges::equal(made->view.bytes, expected));
}

TEST(Engine, RefusesWhatIsNotAModelByName) {
  TemporaryFolder folder;
  std::ofstream(folder / "page.bin") << "<!DOCTYPE html><html></html>";
  std::filesystem::create_directories(folder / "empty");
  expect_error(Engine::load(folder / "absent", {}), ErrorClass::kBadInput, "absent");
  expect_error(Engine::load(folder / "page.bin", {}), ErrorClass::kBadInput, "neither a GGUF file");
  expect_error(Engine::load(folder / "empty", {}), ErrorClass::kBadInput, "config.json");
  expect_error(Engine::load("/dev/zero", {}), ErrorClass::kBadInput, "/dev/zero");
  EngineOptions options;
  options.max_chunk = 0;
  expect_error(Engine::load(tiny_file(folder), options), ErrorClass::kUsage, "chunk");
  options = {};
  options.cache_dtype = DType::kQ4_0;
  expect_error(Engine::load(tiny_file(folder), options), ErrorClass::kUsage, "cache type q4_0");
  auto engine = Engine::load(tiny_file(folder), {});
  ASSERT_TRUE(engine.ok());
  expect_error((*engine)->new_session(-1), ErrorClass::kUsage, "context");
}

TEST(Engine, AContextThatDoesNotFitInMemoryIsRefusedWithTheNumbers) {
  TemporaryFolder folder;
  auto engine = Engine::load(tiny_file(folder), {});
  ASSERT_TRUE(engine.ok());
  if (!available_memory().has_value()) GTEST_SKIP() << "this system does not say how much memory is available";
  // 384 bytes a token: 2^31 tokens take 824 GB.
  if (*available_memory() > uint64_t{800} << 30) GTEST_SKIP() << "this machine would have the memory";
  expect_error((*engine)->new_session(kMaxContext), ErrorClass::kFailed, "824.63 GB of memory (384 bytes a token)");
}

TEST(Engine, TensorsThatDoNotFitTheConfigurationAreNamedWithBothShapes) {
  TemporaryFolder folder;
  TinyModel model = TinyModel::make("llama", 3);
  auto& key = model.tensors["model.layers.1.self_attn.k_proj.weight"];
  key.shape = {16, 48};
  key.values.resize(16 * 48);
  model.write_folder(folder / "hf");
  const auto plan = Engine::cost(folder / "hf", std::vector<int64_t>{1});
  expect_error(plan, ErrorClass::kBadInput, "tensor model.layers.1.self_attn.k_proj.weight is [16, 48], expected [32, 48] (");
  model.tensors.erase("model.layers.1.self_attn.k_proj.weight");
  model.write_folder(folder / "hf");
  expect_error(Engine::cost(folder / "hf", std::vector<int64_t>{1}), ErrorClass::kBadInput,
               "tensor model.layers.1.self_attn.k_proj.weight is missing, expected [32, 48]");
}

TEST(Engine, NormsThatHoldNanGiveAWarning) {
  TemporaryFolder folder;
  TinyModel model = TinyModel::make("llama", 3);
  model.tensors["model.layers.2.input_layernorm.weight"].values[5] = NAN;
  model.write_gguf(folder / "nan.gguf", DType::kF32, true);
  auto facts = Engine::inspect(folder / "nan.gguf");
  ASSERT_TRUE(facts.ok());
  ASSERT_EQ(facts->warnings.size(), 1u);
  EXPECT_NE(facts->warnings[0].find("blk.2.attn_norm.weight holds 1 NaN"), std::string::npos) << facts->warnings[0];
}

TEST(Roof, IsAPositiveNumberWithinItsSpread) {
  const MemoryRoof roof = measure_memory_roof(2, 0.05);
  EXPECT_GT(roof.gigabytes_per_second, 0.1);
  EXPECT_LE(roof.low, roof.gigabytes_per_second);
  EXPECT_GE(roof.high, roof.gigabytes_per_second);
  EXPECT_EQ(roof.threads, 2);
}

}  // namespace
}  // namespace quipu
