// Sessions over small random models: what must not change a result (file format, chunking, threads, batch neighbours,
// saving, forking, cutting back), and what must be refused.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>

#include "attention/allocation_count.h"
#include "end_to_end/tiny_model.h"
#include "formats/state_file/state_file.h"

namespace quipu {
namespace {

const char* const kArchitectures[] = {"llama", "mistral", "qwen2", "qwen3", "gemma3"};

std::unique_ptr<ModelSession> session_of(std::shared_ptr<Runtime> runtime, int64_t context = 256) {
  auto session = ModelSession::create(std::move(runtime), context);
  EXPECT_TRUE(session.ok()) << (session.ok() ? "" : session.error().message);
  return session.ok() ? std::move(*session) : nullptr;
}

std::vector<float> copy_of(std::span<const float> values) { return {values.begin(), values.end()}; }

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void expect_fed(ModelSession& session, std::span<const int32_t> ids) {
  const auto fed = session.feed(ids, {}, nullptr);
  ASSERT_TRUE(fed.ok()) << fed.error().message;
}

std::string read_all(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class TinyFile {
 public:
  explicit TinyFile(const std::string& architecture, uint64_t seed = 1, DType dtype = DType::kQ8_0)
      : path_(folder_ / "model.gguf") {
    TinyModel::make(architecture, seed).write_gguf(path_, dtype);
  }
  std::shared_ptr<Runtime> load(const NamedBackend& backend, int threads = 2, RuntimeOptions options = {}) const {
    return load_runtime(path_, backend.make(threads), options);
  }
  std::string operator/(const std::string& name) const { return folder_ / name; }

 private:
  TemporaryFolder folder_;
  std::string path_;
};

TEST(Formats, GgufAndHuggingFaceFilesOfTheSameWeightsGiveTheSameLogits) {
  const NamedBackend reference = backends_under_test().front();
  for (const char* architecture : kArchitectures) {
    SCOPED_TRACE(architecture);
    TemporaryFolder folder;
    const TinyModel model = TinyModel::make(architecture, 5);
    model.write_folder(folder / "hf");
    model.write_gguf(folder / "model.gguf");
    const std::vector<int32_t> ids = random_ids(70, model.vocabulary, 3);
    const RuntimeOptions options{DType::kF32, 32};
    auto a = load_runtime(folder / "hf", reference.make(), options);
    auto b = load_runtime(folder / "model.gguf", reference.make(), options);
    ASSERT_TRUE(a != nullptr && b != nullptr);
    const std::vector<float> x = all_logits(a, ids), y = all_logits(b, ids);
    ASSERT_EQ(x.size(), y.size());
    double largest = 0, difference = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      largest = std::max<double>(largest, std::abs(x[i]));
      const double off = std::abs(static_cast<double>(x[i]) - y[i]);
      difference = off <= difference ? difference : off;
    }
    // The same numbers in another order of summation: double sums rounded to float a few dozen times.
    EXPECT_LE(difference / largest, 1e-5);
    EXPECT_GT(largest, 0.5);
  }
}

void expect_same_bits_however_cut(Activations activations) {
  for (const NamedBackend& backend : backends_under_test(activations)) {
    for (const char* architecture : kArchitectures) {
      SCOPED_TRACE(backend.name + " " + architecture);
      const TinyFile file(architecture);
      const std::vector<int32_t> ids = random_ids(131, 300, 8);
      const std::vector<float> expected = all_logits(file.load(backend, 1, {DType::kF16, 128}), ids);
      for (const auto& [threads, chunk] : {std::pair<int, int64_t>{2, 128}, {1, 1}, {2, 7}, {3, 64}}) {
        EXPECT_TRUE(same_bits(all_logits(file.load(backend, threads, {DType::kF16, chunk}), ids), expected))
            << threads << " threads, chunks of " << chunk;
      }
    }
  }
}

TEST(Invariance, ChunkingAndThreadsDoNotChangeABit) { expect_same_bits_however_cut(Activations::kExact); }

TEST(Invariance, NorDoTheyWithRoundedActivations) { expect_same_bits_however_cut(Activations::kFast); }

TEST(Invariance, NeighboursInABatchDoNotChangeABit) {
  for (const NamedBackend& backend : backends_under_test()) {
    SCOPED_TRACE(backend.name);
    const TinyFile file("gemma3");
    auto runtime = file.load(backend);
    std::vector<std::unique_ptr<ModelSession>> together, alone;
    for (const int64_t length : {1, 40, 65}) {
      const auto ids = random_ids(length, 300, static_cast<uint64_t>(length));
      for (auto* list : {&together, &alone}) {
        list->push_back(session_of(runtime));
        expect_fed(*list->back(), ids);
      }
    }
    for (int32_t round = 0; round < 5; ++round) {
      const std::vector<int32_t> next = {round, 100 + round, 200 + round};
      const std::vector<ModelSession*> sessions = {together[0].get(), together[1].get(), together[2].get()};
      ASSERT_TRUE(ModelSession::step(sessions, next).ok());
      for (size_t i = 0; i < alone.size(); ++i) {
        expect_fed(*alone[i], {&next[i], 1});
        EXPECT_TRUE(same_bits(copy_of(together[i]->logits()), copy_of(alone[i]->logits()))) << i << " round " << round;
      }
    }
  }
}

TEST(Session, SavedStateContinuesWithTheSameBits) {
  for (const char* architecture : kArchitectures) {
    for (const DType cache : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0}) {
      SCOPED_TRACE(std::string(architecture) + " " + std::string(dtype_name(cache)));
      const TinyFile file(architecture);
      const NamedBackend backend = backends_under_test().back();
      auto runtime = file.load(backend, 2, {cache, 32});
      auto first = session_of(runtime);
      expect_fed(*first, random_ids(90, 300, 1));
      const auto saved = first->save_state(file / "state");
      ASSERT_TRUE(saved.ok()) << saved.error().message;
      EXPECT_EQ(*saved, read_all(file / "state").size());

      auto second = session_of(file.load(backend, 1, {cache, 32}));   // as if started again
      const auto loaded = second->load_state(file / "state");
      ASSERT_TRUE(loaded.ok()) << loaded.error().message;
      EXPECT_TRUE(std::ranges::equal(first->token_ids(), second->token_ids()));
      EXPECT_EQ(first->logits_hash(), second->logits_hash());
      const auto more = random_ids(40, 300, 2);
      expect_fed(*first, more);
      expect_fed(*second, more);
      EXPECT_TRUE(same_bits(copy_of(first->logits()), copy_of(second->logits())));
    }
  }
}

TEST(Session, ForkAndRewindGoOnAsIfNothingElseHadHappened) {
  const TinyFile file("qwen3");
  auto runtime = file.load(backends_under_test().back());
  const auto prompt = random_ids(70, 300, 4), left = random_ids(30, 300, 5), right = random_ids(9, 300, 6);
  auto session = session_of(runtime);
  expect_fed(*session, prompt);
  const std::vector<float> at_prompt = copy_of(session->logits());
  auto forked = session->fork();
  ASSERT_TRUE(forked.ok());
  expect_fed(*session, left);
  ASSERT_TRUE((*forked)->feed(right).ok());

  auto fresh = session_of(runtime);
  expect_fed(*fresh, prompt);
  expect_fed(*fresh, right);
  EXPECT_TRUE(same_bits(copy_of((*forked)->logits()), copy_of(fresh->logits())));

  ASSERT_TRUE(session->rewind(70).ok());
  EXPECT_EQ(session->tokens(), 70);
  EXPECT_TRUE(same_bits(copy_of(session->logits()), at_prompt));
  expect_fed(*session, right);
  EXPECT_TRUE(same_bits(copy_of(session->logits()), copy_of(fresh->logits())));
  ASSERT_TRUE(session->rewind(0).ok());
  EXPECT_TRUE(session->logits().empty());
  const auto beyond = session->rewind(5);
  ASSERT_FALSE(beyond.ok());
  EXPECT_EQ(beyond.error().error_class, ErrorClass::kUsage);
}

TEST(Session, RefusesTokensThatDoNotFitBeforeChangingAnything) {
  const TinyFile file("llama");
  auto session = session_of(file.load(backends_under_test().back()), 50);
  expect_fed(*session, random_ids(30, 300, 1));
  const uint64_t hash = session->logits_hash();
  for (const auto& ids : {random_ids(21, 300, 2), std::vector<int32_t>{1, 300}, std::vector<int32_t>{-1}}) {
    const auto fed = session->feed(ids, {}, nullptr);
    ASSERT_FALSE(fed.ok());
    EXPECT_EQ(fed.error().error_class, ErrorClass::kUsage);
    EXPECT_EQ(session->tokens(), 30);
    EXPECT_EQ(session->logits_hash(), hash);
  }
  expect_fed(*session, random_ids(20, 300, 2));
}

TEST(Session, GeneratesTheSameTokensWhateverTheThreadsAndChunks) {
  const TinyFile file("qwen2");
  std::vector<int32_t> expected;
  for (const auto& [threads, chunk] : {std::pair<int, int64_t>{1, 64}, {2, 5}}) {
    auto session = session_of(file.load(backends_under_test().back(), threads, {DType::kF16, chunk}));
    expect_fed(*session, random_ids(33, 300, 1));
    GenerateOptions options;
    options.sampling.seed = 11;
    options.max_tokens = 40;
    auto result = session->generate(options, {});
    ASSERT_TRUE(result.ok());
    EXPECT_EQ(result->finish, FinishReason::kLength);
    EXPECT_EQ(session->counters().generated_tokens, 40);
    EXPECT_GT(session->counters().generate_bytes, 0);
    if (expected.empty()) expected = result->tokens;
    EXPECT_EQ(result->tokens, expected);
  }
}

TEST(Session, GenerationStopsAtTheEndOfTheContextAndWhenInterrupted) {
  const TinyFile file("llama");
  auto session = session_of(file.load(backends_under_test().back()), 40);
  GenerateOptions options;
  EXPECT_FALSE(session->generate(options, {}).ok());   // nothing fed
  expect_fed(*session, random_ids(30, 300, 1));
  auto result = session->generate(options, {});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->finish, FinishReason::kContextFull);
  EXPECT_EQ(result->tokens.size(), 10u);
  ASSERT_TRUE(session->rewind(30).ok());
  const volatile bool stop = true;
  options.interrupted = &stop;
  result = session->generate(options, {});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->finish, FinishReason::kInterrupted);
  EXPECT_TRUE(result->tokens.empty());
}

TEST(Session, ADecodeStepAllocatesNothing) {
  for (const NamedBackend& backend : backends_under_test()) {
    if (backend.name == "reference") continue;   // the oracle is not bound by it
    SCOPED_TRACE(backend.name);
    const TinyFile file("llama");
    auto session = session_of(file.load(backend));
    expect_fed(*session, random_ids(66, 300, 1));
    const int32_t id = 17;
    for (int i = 0; i < 3; ++i) expect_fed(*session, {&id, 1});
    ModelSession* const one[] = {session.get()};
    ASSERT_TRUE(ModelSession::step(one, {&id, 1}).ok());
    const int64_t before = allocations_so_far();
    const auto step = ModelSession::step(one, {&id, 1});
    const auto feed = session->feed({&id, 1}, {}, nullptr);
    const int64_t allocations = allocations_so_far() - before;
    EXPECT_TRUE(step.ok() && feed.ok());
    EXPECT_EQ(allocations, 0);
  }
}

// State files that must be refused, with the session as it was.
class RefusedState : public testing::Test {
 protected:
  RefusedState() : session_(session_of(file_.load(backend_))) {
    expect_fed(*session_, random_ids(70, 300, 1));
    EXPECT_TRUE(session_->save_state(file_ / "state").ok());
    EXPECT_TRUE(session_->rewind(50).ok());
    hash_ = session_->logits_hash();
  }
  void expect_refused(const std::string& path, const std::string& reason) {
    const auto loaded = session_->load_state(path);
    ASSERT_FALSE(loaded.ok()) << reason;
    EXPECT_NE(loaded.error().message.find(reason), std::string::npos) << loaded.error().message;
    EXPECT_EQ(session_->tokens(), 50);
    EXPECT_EQ(session_->logits_hash(), hash_);
  }
  // The saved file with its sections changed and correct checksums.
  std::string forge(const std::function<void(StateFileHeader&, std::vector<StateSectionSource>&)>& change) {
    auto read = read_state_file(file_ / "state");
    EXPECT_TRUE(read.ok());
    std::vector<StateSectionSource> sections;
    for (const StateSection& s : read->sections) sections.push_back({s.name, s.dtype, s.rows, s.row_elements, {s.bytes}});
    StateFileHeader header = read->header;
    change(header, sections);
    EXPECT_TRUE(write_state_file(file_ / "forged", header, sections).ok());
    return file_ / "forged";
  }
  NamedBackend backend_ = backends_under_test().back();
  TinyFile file_{"llama"};
  std::unique_ptr<ModelSession> session_;
  uint64_t hash_ = 0;
};

TEST_F(RefusedState, OfAnotherModelLayoutOrSize) {
  const TinyFile other("llama", 2);
  auto stranger = session_of(other.load(backend_));
  expect_fed(*stranger, random_ids(70, 300, 1));
  ASSERT_TRUE(stranger->save_state(file_ / "other").ok());
  expect_refused(file_ / "other", "model");
  auto wider = session_of(file_.load(backend_, 2, {DType::kF32, 32}));
  expect_fed(*wider, random_ids(70, 300, 1));
  ASSERT_TRUE(wider->save_state(file_ / "wider").ok());
  expect_refused(file_ / "wider", "layout");
  auto longer = session_of(file_.load(backend_), 400);
  expect_fed(*longer, random_ids(300, 300, 1));
  ASSERT_TRUE(longer->save_state(file_ / "longer").ok());
  expect_refused(file_ / "longer", "larger context");
}

TEST_F(RefusedState, TruncatedOrChanged) {
  const std::string good = read_all(file_ / "state");
  for (const size_t length : {size_t{0}, size_t{7}, size_t{100}, good.size() / 2, good.size() - 1}) {
    std::ofstream(file_ / "cut", std::ios::binary) << good.substr(0, length);
    expect_refused(file_ / "cut", "cut");
  }
  std::string changed = good;
  changed[good.size() - 3] = static_cast<char>(changed[good.size() - 3] ^ 1);
  std::ofstream(file_ / "changed", std::ios::binary) << changed;
  expect_refused(file_ / "changed", "changed");
  expect_refused(file_ / "absent", "absent");
}

TEST_F(RefusedState, ForgedWithRightChecksums) {
  const std::vector<int32_t> wild(70, 300);
  expect_refused(forge([&](StateFileHeader&, auto& s) { s[0].parts = {std::as_bytes(std::span(wild))}; }), "token 0 is 300");
  std::vector<float> nan(300, 1.0f);
  nan[5] = NAN;
  expect_refused(forge([&](StateFileHeader&, auto& s) { s[1].parts = {std::as_bytes(std::span(nan))}; }), "element 5 is NaN");
  expect_refused(forge([](StateFileHeader& header, auto&) { header.tokens = 69; }), "tokens");
  expect_refused(forge([](StateFileHeader&, auto& s) { s.pop_back(); }), "layer.2 is missing");
  expect_refused(forge([](StateFileHeader&, auto& s) {
                   s[2].rows -= 1;
                   s[2].parts[0] = s[2].parts[0].first(static_cast<size_t>(s[2].rows));
                 }), "layer.0");
  // The length of the context raised together with the tokens, but not in the layers.
  const std::vector<int32_t> more(71, 1);
  expect_refused(forge([&](StateFileHeader& header, auto& s) {
                   header.tokens = 71;
                   s[0].rows = 71;
                   s[0].parts = {std::as_bytes(std::span(more))};
                 }), "holds 70 tokens");
}

}  // namespace
}  // namespace quipu
