// Token files, corpora and tasks: what a model is trained on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "text/tokenizer_json.h"
#include "train/corpus.h"
#include "train/passkey_task.h"
#include "train/task.h"
#include "train/token_file.h"

namespace quipu {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

class Data : public testing::Test {
 protected:
  Data()
      : folder_(fs::temp_directory_path() / ("quipu-data-" + std::to_string(getpid()) + "-" +
                                             testing::UnitTest::GetInstance()->current_test_info()->name())) {
    fs::create_directories(folder_);
  }
  ~Data() override { fs::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string write(const std::string& name, const std::string& text) const {
    fs::create_directories(fs::path(path(name)).parent_path());
    std::ofstream(path(name), std::ios::binary) << text;
    return path(name);
  }
  std::string tokens(const std::string& name, const std::vector<std::vector<int32_t>>& documents,
                     int64_t vocabulary) const {
    auto writer = TokenFileWriter::create(path(name), {vocabulary, 0});
    EXPECT_TRUE(writer.ok());
    for (const auto& document : documents) {
      EXPECT_TRUE(writer->append(document).ok());
      writer->end_document();
    }
    EXPECT_TRUE(writer->commit().ok());
    return path(name);
  }
  std::string bytes_of(const std::string& name) const {
    std::ifstream in(path(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  fs::path folder_;
};

std::shared_ptr<const Tokenizer> byte_tokenizer() {
  auto tokenizer = parse_tokenizer_json(word_tokenizer_json({}));
  EXPECT_TRUE(tokenizer.ok());
  return *tokenizer;
}

TEST_F(Data, TokenFilesComeBackInBothWidths) {
  for (const int64_t vocabulary : {300, 70000}) {
    auto file = TokenFile::open(tokens("a", {{1, 2, 3}, {}, {static_cast<int32_t>(vocabulary - 1)}}, vocabulary));
    ASSERT_TRUE(file.ok()) << file.error().message;
    EXPECT_EQ(file->documents(), 2);
    EXPECT_EQ(file->tokens(), 4);
    EXPECT_EQ(file->document_begin(1), 3);
    EXPECT_EQ(file->token(3), vocabulary - 1);
    EXPECT_EQ(file->facts().vocabulary, vocabulary);
  }
}

TEST_F(Data, ATokenFileIsWhatTheManualSays) {
  tokens("a", {{1, 2, 3}, {4}}, 300);
  std::string expected("QUIPUTOK\1\0\0\0\2\0\0\0\1\0\2\0\3\0\4\0", 24);
  const uint64_t numbers[] = {3, 4, 4, 2, 300, 0};
  expected.append(reinterpret_cast<const char*>(numbers), sizeof numbers);
  EXPECT_EQ(bytes_of("a"), expected + "QUIPUTOK");
}

TEST_F(Data, DamagedTokenFilesAreRefusedByField) {
  tokens("a", {{1, 2, 3}, {4}}, 300);
  const std::string good = bytes_of("a");
  const auto error = [&](const std::string& bytes) {
    auto file = TokenFile::open(write("bad", bytes));
    return file.ok() ? "no error" : file.error().message;
  };
  const auto changed = [&](size_t at, char value) {
    std::string bytes = good;
    bytes[at] = value;
    return bytes;
  };
  EXPECT_THAT(error(changed(0, 'X')), HasSubstr("does not begin with QUIPUTOK"));
  EXPECT_THAT(error(changed(8, 9)), HasSubstr("version 9, expected 1"));
  EXPECT_THAT(error(changed(12, 3)), HasSubstr("bytes of a token are 3"));
  EXPECT_THAT(error(changed(17, 2)), HasSubstr("token 0 is 513, outside the vocabulary of 300"));
  EXPECT_THAT(error(changed(24, 0)), HasSubstr("document 0 ends at token 0"));
  EXPECT_THAT(error(changed(32, 3)), HasSubstr("document 1 ends at token 3"));
  EXPECT_THAT(error(changed(40, 5)), HasSubstr("cannot hold"));
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_NE(error(good.substr(0, size)), "no error") << size;
  }
}

TEST_F(Data, ACorpusPacksDocumentsWithoutPredictingAcrossThem) {
  Corpus corpus = std::move(open_corpus({tokens("a", {{10, 11, 12}, {20, 21}, {30, 31, 32, 33}}, 100)}, {})).value();
  auto source = CorpusSource::create(std::move(corpus), 4, 7, "a");
  ASSERT_TRUE(source.ok());
  EXPECT_EQ((*source)->samples_per_epoch(), 2);
  std::multiset<int32_t> seen;
  for (int64_t i = 0; i < 2; ++i) {
    const TrainSample sample = (*source)->sample(i, 0);
    ASSERT_EQ(sample.rows(), 4);
    int64_t rows = 0;
    for (const int64_t length : sample.lengths) {
      for (int64_t row = rows; row < rows + length; ++row) {
        const int32_t token = sample.tokens[static_cast<size_t>(row)];
        const bool last = token == 12 || token == 21 || token == 33;
        EXPECT_EQ(sample.targets[static_cast<size_t>(row)], last ? -1 : token + 1);
        if (row > rows) {
          EXPECT_EQ(sample.tokens[static_cast<size_t>(row) - 1] + 1, token) << "one document, in order";
        }
        seen.insert(token);
      }
      rows += length;
    }
    EXPECT_EQ(rows, 4);
  }
  EXPECT_EQ(std::set<int32_t>(seen.begin(), seen.end()).size(), seen.size()) << "no token twice in an epoch";
}

TEST_F(Data, EpochsHaveTheirOwnOrderAndSamplesAreFunctionsOfTheirNumber) {
  std::vector<std::vector<int32_t>> documents(50);
  for (int32_t d = 0; d < 50; ++d) documents[static_cast<size_t>(d)].assign(8, d);
  const std::string file = tokens("a", documents, 100);
  const auto make = [&](int64_t seed) {
    return std::move(CorpusSource::create(std::move(open_corpus({file}, {})).value(), 8, seed, "a")).value();
  };
  const auto order = [](const SampleSource& source, int64_t epoch) {
    std::vector<int32_t> out;
    for (int64_t i = 0; i < 50; ++i) out.push_back(source.sample(50 * epoch + i, 0).tokens[0]);
    return out;
  };
  const auto one = make(1), same = make(1), other = make(2);
  EXPECT_NE(order(*one, 0), order(*one, 1));
  EXPECT_NE(order(*one, 0), order(*other, 0));
  EXPECT_EQ(same->sample(73, 0).tokens, one->sample(73, 0).tokens) << "without the ones before it";
  EXPECT_EQ(order(*same, 0), order(*one, 0));
}

TEST_F(Data, ACorpusShorterThanASequenceSaysSo) {
  auto source = CorpusSource::create(std::move(open_corpus({tokens("a", {{1, 2, 3}}, 100)}, {})).value(), 4, 7,
                                     "run.toml: data.train");
  EXPECT_THAT(
      source.error().message,
      HasSubstr("run.toml: data.train: the corpus has 3 tokens, fewer than one sequence (train.sequence is 4)"));
}

TEST_F(Data, HeldOutDocumentsAreNotTrainedOn) {
  std::vector<std::vector<int32_t>> documents(100);
  for (int32_t d = 0; d < 100; ++d) documents[static_cast<size_t>(d)] = {d, d};
  Corpus corpus = std::move(open_corpus({tokens("a", documents, 100)}, {})).value();
  const Corpus held = std::move(split_held_out(corpus, 0.1, 3)).value();
  EXPECT_EQ(held.documents.size(), 10u);
  EXPECT_EQ(corpus.documents.size(), 90u);
  std::set<int64_t> begins;
  for (const Document& document : held.documents) begins.insert(document.begin);
  for (const Document& document : corpus.documents) EXPECT_FALSE(begins.contains(document.begin));
  Corpus one{corpus.files, {corpus.documents[0]}};
  EXPECT_THAT(split_held_out(one, 0.1, 3).error().message, HasSubstr("two documents or more"));
}

TEST_F(Data, TextsAreTokenisedOnceAndAnewWhenTheyChange) {
  write("texts/b.txt", "second");
  write("texts/deep/a.md", "first one||first two");
  write("texts/ignored.bin", "nothing");
  const auto tokenizer = byte_tokenizer();
  int calls = 0;
  TokeniseOptions options{.tokenizer = tokenizer.get(),
                          .end_token = 256,
                          .document_separator = "||",
                          .extensions = {".txt", ".md"},
                          .cache = path("cache"),
                          .on_progress = {}};
  options.on_progress = [&](uint64_t, uint64_t) { return ++calls > 0; };
  auto corpus = open_corpus({path("texts")}, options);
  ASSERT_TRUE(corpus.ok()) << corpus.error().message;
  std::vector<std::string> texts;
  for (const Document& document : corpus->documents) {
    std::string text;
    for (int64_t i = document.begin; i + 1 < document.end; ++i) text += static_cast<char>(corpus->files[0].token(i));
    EXPECT_EQ(corpus->files[0].token(document.end - 1), 256);
    texts.push_back(text);
  }
  EXPECT_THAT(texts, ElementsAre("second", "first one", "first two"));
  const int once = calls;
  EXPECT_GT(once, 0);
  ASSERT_TRUE(open_corpus({path("texts")}, options).ok());
  EXPECT_EQ(calls, once) << "from the cache";
  write("texts/b.txt", "a longer second");
  ASSERT_TRUE(open_corpus({path("texts")}, options).ok());
  EXPECT_GT(calls, once);
  options.on_progress = [](uint64_t, uint64_t) { return false; };
  options.cache = path("other");
  EXPECT_THAT(open_corpus({path("texts")}, options).error().message, HasSubstr("interrupted"));
  EXPECT_TRUE(fs::is_empty(path("other"))) << "no half-written cache";
}

TEST_F(Data, WhatIsNotThereIsNamed) {
  const auto tokenizer = byte_tokenizer();
  TokeniseOptions options{.tokenizer = tokenizer.get(),
                          .end_token = -1,
                          .document_separator = "",
                          .extensions = {".txt"},
                          .cache = path("cache"),
                          .on_progress = {}};
  EXPECT_THAT(open_corpus({path("nothing.txt")}, options).error().message, HasSubstr("nothing.txt"));
  fs::create_directories(path("empty"));
  EXPECT_THAT(open_corpus({path("empty")}, options).error().message, HasSubstr("the folder has no files named .txt"));
  options.tokenizer = nullptr;
  EXPECT_THAT(open_corpus({write("a.txt", "text")}, options).error().message, HasSubstr("data.tokenizer is missing"));
}

TaskSettings settings(std::map<std::string, TaskSettings::Value> values) { return {std::move(values)}; }

TEST(Tasks, WrongSettingsAreNamedWithTheirLine) {
  const TaskOptions options{.sequence = 64, .seed = 1, .held_out = false, .segment = 0, .file = "a.toml"};
  EXPECT_THAT(make_task("kopy", {}, options).error().message,
              HasSubstr("there is no task kopy; there are copy, passkey"));
  EXPECT_THAT(make_task("copy", settings({{"leters", {int64_t{3}, 9}}}), options).error().message,
              AllOf(HasSubstr("a.toml:9: data.copy.leters is unknown"), HasSubstr("letters")));
  EXPECT_THAT(make_task("copy", settings({{"letters", {int64_t{0}, 9}}}), options).error().message,
              HasSubstr("data.copy.letters expected a whole number from 1"));
  EXPECT_THAT(make_task("copy", settings({{"letters", {int64_t{40}, 9}}}), options).error().message,
              HasSubstr("needs sequences of 81 tokens"));
  EXPECT_THAT(make_task("passkey", {}, options).error().message, HasSubstr("shorter than a passkey question"));
  TaskOptions longer = options;
  longer.sequence = 512;
  EXPECT_THAT(make_task("passkey", settings({{"vocabulary", {std::string("letters"), 2}}}), longer).error().message,
              HasSubstr("\"words\", \"bytes\""));
  EXPECT_THAT(make_task("passkey", settings({{"repeat_max", {int64_t{10}, 2}}}), longer).error().message,
              HasSubstr("segment by segment"));
}

TEST(Tasks, CopyAsksForWhatItShowed) {
  auto task = make_task("copy", settings({{"letters", {int64_t{3}, 1}}}), {.sequence = 15, .seed = 1});
  ASSERT_TRUE(task.ok());
  const TrainSample sample = (*task)->sample(5, 0);
  ASSERT_EQ(sample.lengths, (std::vector<int64_t>{7, 7}));
  EXPECT_THAT(sample.answer_rows, ElementsAre(3, 4, 5, 10, 11, 12));
  EXPECT_THAT(sample.answer_ends, ElementsAre(3, 6));
  for (size_t row = 3; row < 6; ++row) EXPECT_EQ(sample.targets[row], sample.tokens[row - 3]);
  EXPECT_EQ(sample.tokens[3], '=');
  EXPECT_EQ(sample.targets[6], '\n');
}

class Passkey : public testing::TestWithParam<PasskeyKind> {};

TEST_P(Passkey, TheTextEncodesToTheSamplesOwnTokens) {
  const auto text = PasskeyText::create(GetParam());
  ASSERT_TRUE(text.ok());
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const int64_t length = text->shortest() + 150 + static_cast<int64_t>(seed);
    const PasskeyQuestion q = text->question(length, static_cast<double>(seed) / 20, seed);
    ASSERT_EQ(static_cast<int64_t>(q.tokens.size()), length + 1);
    const std::string written = text->tokenizer().decode(q.tokens);
    EXPECT_EQ(*text->tokenizer().encode(written, {.add_special = false}), q.tokens);
    EXPECT_THAT(written,
                HasSubstr(" The pass key is " + q.digits + ". Remember it. " + q.digits + " is the pass key."));
    EXPECT_TRUE(written.ends_with(" What is the pass key? The pass key is " + q.digits)) << written;
    const std::string answer =
        text->tokenizer().decode(std::span(q.tokens).subspan(static_cast<size_t>(q.answer_begin)));
    EXPECT_EQ(answer, q.digits);
  }
}

TEST_P(Passkey, TheNeedleLiesWhereItWasAskedFor) {
  const auto text = PasskeyText::create(GetParam());
  const int64_t length = 4000, filler = length - text->shortest();
  // The longest sentence: of prose, 12 words and a full stop.
  const double reach = (GetParam().bytes ? 12.0 * 10 : 13.0) / static_cast<double>(filler);
  double opening = 0;
  std::set<int64_t> phases;
  for (uint64_t i = 0; i <= 100; ++i) {
    const double depth = static_cast<double>(i) / 100;
    const PasskeyQuestion q = text->question(length, depth, i);
    if (i == 0) opening = static_cast<double>(q.needle_begin);
    EXPECT_NEAR((static_cast<double>(q.needle_begin) - opening) / static_cast<double>(filler), depth, reach);
    phases.insert(q.needle_begin % 64);
  }
  EXPECT_GT(phases.size(), 10u) << "segment boundaries fall everywhere in the filler";
}

TEST_P(Passkey, AHaystackReadInPiecesIsTheSame) {
  const auto text = PasskeyText::create(GetParam());
  PasskeyHaystack whole = text->haystack(7), pieces = text->haystack(7);
  std::vector<int32_t> all, parts;
  whole.take(all, 2000);
  for (int64_t piece = 0; pieces.taken() < 2000; ++piece) {
    pieces.take(parts, std::min(piece % 37, 2000 - pieces.taken()));
    const PasskeyHaystack copy = pieces;   // a fork reads on from the same place
    pieces = copy;
  }
  EXPECT_EQ(parts, all);
  const std::string written = text->tokenizer().decode(all);
  for (const char* word : {"pass", "key", "Remember"}) EXPECT_EQ(written.find(word), std::string::npos);
}

TEST_P(Passkey, SentencesOfAHaystackEndWhereItSays) {
  const auto text = PasskeyText::create(GetParam());
  PasskeyHaystack hay = text->haystack(11);
  for (int64_t i = 0; i < 50; ++i) {
    std::vector<int32_t> tokens;
    hay.take(tokens, 1 + i % 5);
    hay.take_sentence(tokens, 1000);
    EXPECT_EQ(text->tokenizer().decode(tokens).back(), '.');
    const int64_t before = hay.taken();
    hay.take_sentence(tokens, 1000);
    EXPECT_EQ(hay.taken(), before) << "between two sentences there is nothing to finish";
  }
}

TEST(Passkey, ProseDoesNotRepeatItself) {
  const auto text = PasskeyText::create({.prose = true});
  std::vector<int32_t> tokens;
  text->haystack(1).take(tokens, 20000);
  std::map<std::string, int> sentences;
  std::istringstream written(text->tokenizer().decode(tokens));
  int64_t count = 0;
  for (std::string sentence; std::getline(written, sentence, '.'); ++count) ++sentences[sentence];
  EXPECT_GT(count, 1000);
  EXPECT_GT(static_cast<double>(sentences.size()), 0.99 * static_cast<double>(count));
}

INSTANTIATE_TEST_SUITE_P(Kinds, Passkey,
                         testing::Values(PasskeyKind{}, PasskeyKind{.bytes = true}, PasskeyKind{.prose = true},
                                         PasskeyKind{.identifier = true, .digits = 16},
                                         PasskeyKind{.bytes = true, .prose = true, .identifier = true, .digits = 9}));

TEST(Tasks, PasskeyWeighsTheAnswerAndRepeatsPureFillerOnly) {
  auto task = make_task(
      "passkey", settings({{"repeat_max", {int64_t{1000}, 1}}, {"repeat_plain", {0.0, 1}}, {"repeat_start", {0.5, 1}}}),
      {.sequence = 1024, .seed = 1, .held_out = false, .segment = 32});
  ASSERT_TRUE(task.ok()) << task.error().message;
  const auto text = PasskeyText::create({});
  double largest = 0;
  for (int64_t i = 0; i < 20; ++i) {
    const TrainSample sample = (*task)->sample(i, 1.0);
    ASSERT_EQ(sample.rows(), 1024);
    ASSERT_EQ(sample.answer_rows.size(), 5u);
    EXPECT_EQ(sample.answer_rows.back(), 1023);
    double answer = 0, others = 0;
    for (int64_t row = 0; row < 1024; ++row)
      (row >= sample.answer_rows[0] ? answer : others) += sample.weights[static_cast<size_t>(row)];
    EXPECT_NEAR(answer, 1, 1e-5);
    EXPECT_NEAR(others, 0.1, 1e-5);
    const std::string written = text->tokenizer().decode(sample.tokens);
    for (int64_t begin = 0; begin < 1024; begin += 32) {
      const float m = sample.write_repeats[static_cast<size_t>(begin)];
      for (int64_t row = begin; row < begin + 32; ++row) EXPECT_EQ(sample.write_repeats[static_cast<size_t>(row)], m);
      if (m == 1) continue;
      largest = std::max<double>(largest, m);
      const std::string segment =
          text->tokenizer().decode(std::span(sample.tokens).subspan(static_cast<size_t>(begin), 32));
      for (const char* word : {"pass", "key", "Remember", "important", "quiz", "What"})
        EXPECT_EQ(segment.find(word), std::string::npos) << segment;
    }
    for (const float m : (*task)->sample(i, 0.4).write_repeats) EXPECT_EQ(m, 1.0f) << "not yet";
  }
  EXPECT_GT(largest, 100);
}

TEST(Tasks, PasskeyWeighsTheCopiedNumberAndPredictsAShareOfTheRest) {
  auto task = make_task("passkey", settings({{"lm_share", {0.25, 1}}, {"copy_weight", {0.5, 1}}, {"lm_weight", {0.0, 1}}}),
                        {.sequence = 512, .seed = 1});
  ASSERT_TRUE(task.ok()) << task.error().message;
  const TrainSample sample = (*task)->sample(3, 1.0);
  double copied = 0;
  int64_t predicted = 0;
  for (int64_t row = 0; row < sample.answer_rows[0]; ++row) {
    const size_t i = static_cast<size_t>(row);
    copied += sample.weights[i];
    predicted += sample.targets[i] >= 0;
    const bool digit = sample.targets[i] >= '0' && sample.targets[i] <= '9';
    EXPECT_EQ(sample.weights[i] > 0, digit) << row;
  }
  EXPECT_NEAR(copied, 0.5, 1e-6);
  EXPECT_EQ(predicted, 5) << "what weighs nothing is not predicted";
  auto more = make_task("passkey", settings({{"lm_share", {0.25, 1}}}), {.sequence = 4096, .seed = 1});
  const TrainSample shared = (*more)->sample(3, 1.0);
  const auto count = std::ranges::count_if(shared.targets, [](int32_t target) { return target >= 0; });
  EXPECT_NEAR(static_cast<double>(count) / 4096, 0.25, 4 * std::sqrt(0.25 * 0.75 / 4096));
}

TEST(Tasks, PasskeyRepeatsRiseToTheirMaximum) {
  auto task = make_task("passkey", settings({{"repeat_max", {int64_t{10000}, 1}}, {"repeat_plain", {0.0, 1}}, {"repeat_start", {0.2, 1}},
                                             {"repeat_full", {0.6, 1}}}),
                        {.sequence = 512, .seed = 1, .held_out = false, .segment = 32});
  ASSERT_TRUE(task.ok()) << task.error().message;
  const auto largest = [&](double progress) {
    float most = 0;
    for (int64_t i = 0; i < 200; ++i) {
      for (const float m : (*task)->sample(i, progress).write_repeats) most = std::max(most, m);
    }
    return most;
  };
  EXPECT_LE(largest(0.4), 101) << "half way: the square root";
  EXPECT_GT(largest(0.4), 50);
  EXPECT_GT(largest(0.6), 5000);
  EXPECT_LE(largest(1.0), 10001);
}

TEST(Tasks, PasskeyGrowsItsQuestionsOverTheRunAndHoldsOutOthers) {
  const TaskSettings grow = settings({{"start_length", {int64_t{128}, 1}}, {"curriculum", {0.5, 1}}});
  auto task = make_task("passkey", grow, {.sequence = 1024, .seed = 1});
  ASSERT_TRUE(task.ok()) << task.error().message;
  EXPECT_EQ((*task)->sample(0, 0.0).lengths, std::vector<int64_t>(8, 128));
  std::map<int64_t, int> lengths;
  for (int64_t i = 0; i < 100; ++i) {
    for (const int64_t length : (*task)->sample(i, 0.6).lengths) ++lengths[length];
    EXPECT_LE((*task)->sample(i, 0.6).rows(), 1024);
  }
  EXPECT_GT(lengths[1024], 50);
  EXPECT_GT(lengths.size(), 2u) << "some shorter ones stay";
  auto held = make_task("passkey", grow, {.sequence = 1024, .seed = 1, .held_out = true});
  EXPECT_EQ((*held)->sample(0, 0.0).lengths, std::vector<int64_t>{1024});
  EXPECT_NE((*held)->sample(0, 1.0).tokens, (*task)->sample(0, 1.0).tokens);
}

}  // namespace
}  // namespace quipu
