// Properties and streaming; ids against references are in tokenizer_golden_test.cc, bad files in tokenizer_hostile_test.cc.
#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "base/random.h"
#include "base/utf8.h"
#include "text/byte_alphabet.h"
#include "text/golden_files.h"
#include "text/merge_queue.h"
#include "text/regex.h"
#include "text/tokenizer_json.h"

namespace quipu {
namespace {

std::shared_ptr<const Tokenizer> fixture(const std::string& name) {
  return parse_tokenizer_json(golden::read_file(golden::testdata(name + ".tokenizer.json")), {.name = name}).value();
}

TEST(ByteAlphabet, IsItsOwnInverse) {
  for (int byte = 0; byte < 256; ++byte) {
    std::string written;
    utf8_append(written, byte_alphabet()[byte]);
    EXPECT_EQ(bytes_from_alphabet(written), std::string(1, static_cast<char>(byte)));
  }
  EXPECT_EQ(byte_alphabet()[' '], U'Ġ');
  EXPECT_EQ(byte_alphabet()['\n'], U'Ċ');
  EXPECT_FALSE(bytes_from_alphabet("a b").has_value());
}

TEST(Streaming, GivesWholeCharactersAndTheSameTextForEveryBatteryText) {
  for (const char* name : {"byte_level_gpt2", "llama3_style", "spm_bpe", "unigram"}) {
    const auto tokenizer = fixture(name);
    for (const std::string& text : golden::battery()) {
      if (text.size() > 4000) continue;
      const auto ids = tokenizer->encode(text, {.add_special = false, .parse_special = true}).value();
      StreamingDetokenizer stream(*tokenizer, {.skip_special = false});
      std::string joined;
      for (int32_t id : ids) {
        const std::string part = stream.push(id);
        EXPECT_TRUE(utf8_is_valid(part));
        joined += part;
      }
      joined += stream.finish();
      EXPECT_EQ(joined, tokenizer->decode(ids, false));
    }
  }
}

TEST(Streaming, HoldsAnUnfinishedCharacterBack) {
  const auto tokenizer = fixture("spm_bpe");
  const auto byte = [&](int value) { return tokenizer->find(std::string(1, static_cast<char>(value))).value(); };
  StreamingDetokenizer stream(*tokenizer);
  EXPECT_EQ(stream.push(byte(0xf0)), "");
  EXPECT_EQ(stream.push(byte(0x9f)), "");
  EXPECT_EQ(stream.push(byte(0x98)), "");
  EXPECT_EQ(stream.push(byte(0x80)), "😀");
  EXPECT_EQ(stream.push(byte(0xf0)), "");
  EXPECT_EQ(stream.push(byte(0x9f)), "");
  EXPECT_EQ(stream.push(byte(0xe4)), "\ufffd");   // the first character was cut off; this one may still come
  EXPECT_EQ(stream.push(byte(0xff)), "\ufffd\ufffd");
  EXPECT_EQ(stream.push(byte(0xc3)), "");
  EXPECT_EQ(stream.finish(), "\ufffd");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Streaming, DropsTheFirstSpaceOfASentencePieceTextOnly) {
  const auto tokenizer = fixture("spm_bpe");
  const auto ids = tokenizer->encode("time and time").value();
  EXPECT_EQ(tokenizer->decode(ids), "time and time");
  StreamingDetokenizer continuing(*tokenizer, {.starts_text = false});
  std::string text;
  for (int32_t id : ids) text += continuing.push(id);
  EXPECT_EQ(text, " time and time");
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("  two").value()), "  two");
}

TEST(Tokenizer, ReadsSpecialTokensInTextOnlyWhenAsked) {
  const auto tokenizer = fixture("byte_level_gpt2");
  const int32_t end = tokenizer->find("<|im_end|>").value();
  EXPECT_TRUE(tokenizer->is_special(end));
  EXPECT_TRUE(tokenizer->ends_generation(end));
  EXPECT_EQ(tokenizer->encode("<|im_end|>", {.parse_special = true}).value(), std::vector<int32_t>{end});
  const auto plain = tokenizer->encode("<|im_end|>").value();
  EXPECT_GT(plain.size(), 1u);
  EXPECT_EQ(std::count(plain.begin(), plain.end(), end), 0);
  EXPECT_EQ(tokenizer->decode(plain), "<|im_end|>");
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{end}), "");
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{end}, false), "<|im_end|>");
}

TEST(Tokenizer, IgnoresIdsOutOfRange) {
  const auto tokenizer = fixture("byte_level_gpt2");
  EXPECT_EQ(tokenizer->token_bytes(-1), "");
  EXPECT_EQ(tokenizer->token_bytes(1 << 30), "");
  EXPECT_FALSE(tokenizer->is_special(-1));
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{-5, 1 << 30}), "");
}

TEST(Tokenizer, GivesTheSameIdsFromManyThreads) {
  const auto tokenizer = fixture("byte_level_gpt2");
  std::string text;
  for (const std::string& t : golden::battery()) {
    if (t.size() < 4000) text += t;
  }
  const auto expected = fixture("byte_level_gpt2")->encode(text).value();
  std::vector<std::thread> threads;
  std::vector<int> same(8);
  for (int i = 0; i < 8; ++i) threads.emplace_back([&, i] { same[i] = tokenizer->encode(text).value() == expected; });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(std::count(same.begin(), same.end(), 1), 8);
}

TEST(Tokenizer, FingerprintChangesWithAnyByteThatDecidesIds) {
  std::string bytes = golden::read_file(golden::testdata("byte_level_gpt2.tokenizer.json"));
  const uint64_t before = parse_tokenizer_json(bytes).value()->fingerprint();
  EXPECT_EQ(parse_tokenizer_json(bytes).value()->fingerprint(), before);
  bytes.replace(bytes.find("<|im_end|>"), 10, "<|im_eng|>");
  EXPECT_NE(parse_tokenizer_json(bytes).value()->fingerprint(), before);
  auto owned = golden::spm_vocabulary();
  const uint64_t spm = tokenizer_from_gguf(owned->vocabulary).value()->fingerprint();
  owned->vocabulary.scores[500] += 1;
  EXPECT_NE(tokenizer_from_gguf(owned->vocabulary).value()->fingerprint(), spm);
}

// The queue against a sorted list, over its heap and its buckets, with ranks that repeat and places that come back.
TEST(MergeQueue, GivesLowestRankThenLeftmostAtEverySize) {
  for (uint32_t places : {1u, 100u, 70000u}) {
    for (uint64_t ranks : {1u, 7u, 100000u}) {
      RandomStream random(places, ranks);
      std::vector<uint32_t> rank(places);
      for (auto& r : rank) r = random.below(4) == 0 ? MergeQueue::kNoRank : static_cast<uint32_t>(random.below(ranks));
      MergeQueue queue;
      queue.start(places, [&](uint32_t place) { return rank[place]; });
      std::multiset<std::pair<uint32_t, uint32_t>> expected;
      for (uint32_t place = 0; place < places; ++place) {
        if (rank[place] != MergeQueue::kNoRank) expected.insert({rank[place], place});
      }
      uint32_t r = 0, p = 0;
      while (queue.pop(r, p)) {
        ASSERT_FALSE(expected.empty());
        ASSERT_EQ(std::pair(r, p), *expected.begin());
        expected.erase(expected.begin());
        if (random.below(3) == 0) {
          const auto again = std::pair(static_cast<uint32_t>(random.below(ranks)), static_cast<uint32_t>(random.below(places)));
          queue.push(again.first, again.second);
          expected.insert(again);
        }
      }
      EXPECT_TRUE(expected.empty());
    }
  }
}

// A long word takes the bucket queue; its ids must not depend on that.
TEST(Bpe, LongWordsMergeAsShortOnesWould) {
  const auto tokenizer = fixture("byte_level_gpt2");
  std::string word;
  RandomStream random(5, 5);
  while (word.size() < 100000) word += static_cast<char>('a' + random.below(26));
  const auto whole = tokenizer->encode(word).value();
  EXPECT_EQ(tokenizer->decode(whole), word);
  // Greedy by rank is local: away from the edges, a window gives the ids of the whole.
  const auto window = tokenizer->encode(std::string_view(word).substr(0, 1000)).value();
  EXPECT_TRUE(std::equal(window.begin(), window.end() - 30, whole.begin()));
}

TEST(Regex, ReadsOnigurumaAsItIsMeant) {
  const auto rewritten = [](std::string_view pattern) { return regex_from_oniguruma(pattern, "here").value(); };
  EXPECT_EQ(rewritten(R"(\s+|[^\s\w])"), R"(\p{White_Space}+|[^\p{White_Space}\p{Alphabetic}\p{M}\p{Nd}\p{Pc}])");
  EXPECT_EQ(rewritten(R"([^(a|[.,])]+)"), R"([^(a|.,)]+)");
  EXPECT_EQ(rewritten(R"(\p{Han}\p{^Latin}\p{L}\u0041)"), R"(\p{sc:Han}\p{^sc:Latin}\p{L}\x{0041})");
  EXPECT_EQ(rewritten("[]a]"), "[\\]a]");
}

}  // namespace
}  // namespace quipu
