// The catalogue of bad tokenizer files (F29, F30, F47 to F54): each is refused with a message that names the place, or
// loads and encodes; nothing crashes, hangs or allocates without bound.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "text/golden_files.h"
#include "text/normalizer.h"
#include "text/regex.h"
#include "text/tokenizer_json.h"

namespace quipu {
namespace {

using testing::HasSubstr;

std::string repeated(std::string_view text, size_t count) {
  std::string out;
  for (size_t i = 0; i < count; ++i) out += text;
  return out;
}

// A tokenizer.json around the given parts.
struct Sketch {
  std::string vocab = R"({"a":0,"b":1,"ab":2,"<unk>":3})";
  std::string merges = R"(["a b"])";
  std::string model_more = R"(,"unk_token":"<unk>")";
  std::string added = "[]";
  std::string normalizer = "null", pre_tokenizer = "null", post_processor = "null", decoder = "null";
  std::string json() const {
    return R"({"added_tokens":)" + added + R"(,"normalizer":)" + normalizer + R"(,"pre_tokenizer":)" + pre_tokenizer +
           R"(,"post_processor":)" + post_processor + R"(,"decoder":)" + decoder + R"(,"model":{"type":"BPE","vocab":)" + vocab +
           R"(,"merges":)" + merges + model_more + "}}";
  }
};

struct Refused {
  std::string name, json, message;
};

std::vector<Refused> refused_files() {
  const auto added = [](const std::string& fields) { return Sketch{.added = "[{" + fields + "}]"}.json(); };
  const auto split = [](const std::string& pattern) {
    return Sketch{.pre_tokenizer = R"({"type":"Split","pattern":{"Regex":")" + pattern + R"("},"behavior":"Isolated","invert":false})"}.json();
  };
  const auto sequence = [](const std::string& key, const std::string& part, size_t count) {
    return R"({"type":"Sequence",")" + key + "\":[" + repeated(part + ",", count - 1) + part + "]}";
  };
  return {
      {"F47 empty", "", "is not valid JSON"},
      {"F47 truncated", Sketch{}.json().substr(0, 60), "is not valid JSON"},
      {"F47 no model", "{}", "model is missing"},
      {"F47 array", "[]", "is an array, expected an object"},
      {"F47 nested", repeated("[", 100000), "is not valid JSON"},
      {"F47 nested inside", R"({"model":)" + repeated("{\"a\":", 1000) + "1" + repeated("}", 1001), "is not valid JSON"},
      {"F47 not UTF-8", "{\"model\": \"\xff\"}", "is not valid JSON"},
      {"F47 lone surrogate", Sketch{.vocab = R"({"\ud800":0})"}.json(), "is not valid JSON"},
      {"F48 negative id", Sketch{.vocab = R"({"a":-1})"}.json(), "id of \"a\" is -1, expected 0 to"},
      {"F48 id 2^31", Sketch{.vocab = R"({"a":2147483648})"}.json(), "is 2147483648, expected 0 to"},
      {"F48 id 2^64", Sketch{.vocab = R"({"a":18446744073709551615})"}.json(), "not a whole number below 2^63"},
      {"F48 fraction", Sketch{.vocab = R"({"a":1.5})"}.json(), "not a whole number below 2^63"},
      {"F48 string id", Sketch{.vocab = R"({"a":"1"})"}.json(), "is a string"},
      {"F48 duplicate id", Sketch{.vocab = R"({"a":0,"b":0})"}.json(), "id 0 is given to \"a\" and to \"b\""},
      {"F48 gap", Sketch{.vocab = R"({"a":0,"b":1000000000})"}.json(), "is 1000000000, expected 0 to"},
      {"F48 no vocabulary", Sketch{.vocab = "{}", .merges = "[]", .model_more = ""}.json(), "vocab is empty"},
      {"F48 vocabulary is null", Sketch{.vocab = "null"}.json(), "vocab is null, expected an object"},
      {"F49 unknown token", Sketch{.merges = R"(["a c"])"}.json(), "merge 0 (a c) names a token that is not in the vocabulary: \"c\""},
      {"F49 unknown result", Sketch{.merges = R"(["a b","b a"])"}.json(), "merge 1 (b a) names a token that is not in the vocabulary: \"ba\""},
      {"F49 one part", Sketch{.merges = R"(["ab"])"}.json(), "merges[0]: expected"},
      {"F49 three parts", Sketch{.merges = R"([["a","b","c"]])"}.json(), "merges[0]: expected"},
      {"F49 empty part", Sketch{.merges = R"([["a",""]])"}.json(), "merges[0]: expected"},
      {"F49 number", Sketch{.merges = "[1]"}.json(), "merges[0]: expected"},
      {"F49 no merges", Sketch{.merges = "null"}.json(), "merges is null, expected an array"},
      {"F50 empty", added(R"("id":4,"content":"")"), "content has 0 bytes, expected 1 to 1024"},
      {"F50 1 MB", added(R"("id":4,"content":")" + std::string(1 << 20, 'x') + "\""), "content has 1048576 bytes"},
      {"F50 id far away", added(R"("id":1000000,"content":"x")"), "id of \"x\" is 1000000, expected 0 to"},
      {"F50 negative id", added(R"("id":-1,"content":"x")"), "id is -1"},
      {"F50 other token's id", added(R"("id":0,"content":"x")"), "id 0 is given to \"a\" and to \"x\""},
      {"F50 not an object", Sketch{.added = "[3]"}.json(), "added_tokens[0] is a number, expected an object"},
      {"F51 invalid", split("(a"), "regex is invalid"},
      {"F51 catastrophic", split("(a+)+$"), "backtracks exponentially"},
      {"F51 catastrophic class", split("([a-z]+)*\\\\d"), "backtracks exponentially"},
      {"F51 variable look-behind", split("(?<=a+)b"), "regex is invalid"},
      {"F51 1 MB", split(std::string(1 << 20, 'a')), "regex of 1048576 bytes, limit 65536"},
      {"F51 deep", split(repeated("(", 1000) + repeated(")", 1000)), "regex is invalid"},
      {"F51 huge repeat", split("((a{60000}){60000}){60000}"), "regex is invalid"},
      {"F51 recursion", split("(?R)"), "is not supported"},
      {"F51 verb", split("(*LIMIT_MATCH=4000000000)a"), "a verb (*...) is not supported"},
      {"F51 back reference", split("(a)\\\\1"), "\\1 is not supported"},
      {"F51 intersection", split("[a-z&&[^b]]"), "is not supported"},
      {"F51 empty literal", Sketch{.pre_tokenizer = R"({"type":"Split","pattern":{"String":""},"behavior":"Isolated"})"}.json(), "String is empty"},
      {"F51 behavior", Sketch{.pre_tokenizer = R"({"type":"Split","pattern":{"String":"a"},"behavior":"Odd"})"}.json(), "behavior is \"Odd\""},
      {"F53 normalizers", Sketch{.normalizer = sequence("normalizers", R"({"type":"NFC"})", 10000)}.json(), "normalizer has more than 64 steps"},
      {"F53 pre-tokenizers", Sketch{.pre_tokenizer = sequence("pretokenizers", R"({"type":"Digits"})", 10000)}.json(), "pre_tokenizer has more than 64 steps"},
      {"F53 normalizer", Sketch{.normalizer = R"({"type":"Precompiled"})"}.json(), "normalizer.type is \"Precompiled\", supported are"},
      {"F53 pre-tokenizer", Sketch{.pre_tokenizer = R"({"type":"Bert\u001b"})"}.json(), "pre_tokenizer.type is \"Bert\\x1b\", supported are"},
      {"F53 decoder", Sketch{.decoder = R"({"type":"CTC"})"}.json(), "decoder.type is \"CTC\", supported are"},
      {"F53 post-processor", Sketch{.post_processor = R"({"type":"BertProcessing"})"}.json(), "post_processor.type is \"BertProcessing\""},
      {"F53 model", R"({"model":{"type":"WordPiece","vocab":{"a":0}}})", "model.type is \"WordPiece\", supported are BPE and Unigram"},
      {"F53 affix", Sketch{.model_more = R"(,"end_of_word_suffix":"</w>")"}.json(), "end_of_word_suffix is \"</w>\""},
      {"F53 template id", Sketch{.post_processor = R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"s","type_id":0}},{"Sequence":{"id":"A"}}],)"
                                                  R"("special_tokens":{"s":{"ids":[99]}}})"}.json(), "an id is not in 0 to 3"},
      {"unknown token unknown", Sketch{.model_more = R"(,"unk_token":"<x>")"}.json(), "unk_token \"<x>\" is not in the vocabulary"},
      {"unigram score", R"({"model":{"type":"Unigram","vocab":[["a",1e999]]}})", ""},
      {"unigram entry", R"({"model":{"type":"Unigram","vocab":[["a"]]}})", "vocab[0]: expected [token, score]"},
      {"unigram unk_id", R"({"model":{"type":"Unigram","unk_id":7,"vocab":[["a",0]]}})", "unk_id is 7, expected 0 to 0"},
  };
}

TEST(HostileTokenizerJson, IsRefusedWithTheReason) {
  for (const Refused& refused : refused_files()) {
    const auto tokenizer = parse_tokenizer_json(refused.json, {.name = "t.json"});
    ASSERT_FALSE(tokenizer.ok()) << refused.name;
    EXPECT_EQ(tokenizer.error().error_class, ErrorClass::kBadInput) << refused.name;
    EXPECT_THAT(tokenizer.error().message, HasSubstr(refused.message)) << refused.name;
    EXPECT_THAT(tokenizer.error().message, HasSubstr("t.json")) << refused.name;
    EXPECT_EQ(tokenizer.error().message.find('\n'), std::string::npos) << refused.name;
    EXPECT_LT(tokenizer.error().message.size(), 1000u) << refused.name;
  }
}

TEST(HostileTokenizerJson, OddButSoundFilesLoad) {
  const auto encode = [](const std::string& json, std::string_view text) {
    const auto tokenizer = parse_tokenizer_json(json);
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.error().message;
    return (*tokenizer)->encode(text, {.parse_special = true}).value();
  };
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(encode(Sketch{}.json(), "aabz"), (Ids{0, 2, 3}));
  // F52: no byte tokens, then unknown; no unknown token either, then nothing.
  EXPECT_EQ(encode(Sketch{.model_more = R"(,"byte_fallback":true,"unk_token":"<unk>")"}.json(), "a\xc3\xa9"), (Ids{0, 3}));
  EXPECT_EQ(encode(Sketch{.model_more = R"(,"byte_fallback":true)"}.json(), "a\xc3\xa9" "b"), (Ids{2}));
  // F49: the same merge twice, and merges that undo no other's work.
  EXPECT_EQ(encode(Sketch{.merges = R"(["a b","a b"])"}.json(), "abab"), (Ids{2, 2}));
  // F50: added tokens that overlap, and that equal a vocabulary entry.
  const std::string overlapping = R"([{"id":4,"content":"xy"},{"id":5,"content":"yz"},{"id":6,"content":"x"},{"id":0,"content":"a"}])";
  EXPECT_EQ(encode(Sketch{.added = overlapping}.json(), "xyzaxx"), (Ids{4, 3, 0, 6, 6}));
  // F51: look-behind of fixed length is fine.
  const std::string look_behind = R"json({"type":"Split","pattern":{"Regex":"(?<=a)(?=b)"},"behavior":"Isolated"})json";
  EXPECT_EQ(encode(Sketch{.pre_tokenizer = look_behind}.json(), "ab"), (Ids{0, 1}));
}

TEST(HostileTokenizerJson, ReplaceBombIsStopped) {
  std::string steps;
  for (int i = 0; i < 40; ++i) steps += R"({"type":"Replace","pattern":{"String":"a"},"content":"aa"},)";
  steps.pop_back();
  const auto tokenizer = parse_tokenizer_json(Sketch{.normalizer = R"({"type":"Sequence","normalizers":[)" + steps + "]}"}.json());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  const auto ids = (*tokenizer)->encode("aaaa");
  ASSERT_FALSE(ids.ok());
  EXPECT_THAT(ids.error().message, HasSubstr("the normalizer turns 4 bytes into"));
}

TEST(HostileTokenizerJson, UnigramWithoutUnknownTokenNamesTheCharacter) {
  const auto tokenizer = parse_tokenizer_json(R"({"model":{"type":"Unigram","vocab":[["a",-1.5]]}})");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  EXPECT_EQ((*tokenizer)->encode("aa").value(), (std::vector<int32_t>{0, 0}));
  EXPECT_THAT((*tokenizer)->encode("ab").error().message, HasSubstr("no token for b and no unknown token"));
}

TEST(HostileTokenizerJson, TruncatedAnywhereIsRefused) {
  const std::string json = Sketch{}.json();
  for (size_t length = 0; length < json.size(); ++length) {
    EXPECT_FALSE(parse_tokenizer_json(json.substr(0, length)).ok()) << length;
  }
}

TEST(HostileTokenizerJson, AnyFlippedBitLoadsOrIsRefused) {
  const std::string json = Sketch{.added = R"([{"id":4,"content":"<s>","special":true}])", .normalizer = R"({"type":"NFKC"})",
                                  .pre_tokenizer = R"({"type":"Metaspace","replacement":"_","prepend_scheme":"first"})"}.json();
  for (size_t bit = 0; bit < json.size() * 8; ++bit) {
    std::string flipped = json;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    const auto tokenizer = parse_tokenizer_json(flipped);
    if (tokenizer.ok()) (void)(*tokenizer)->encode("ab <s> b\xffz", {.parse_special = true});
  }
}

// F54: a line of a million characters without a space, the cheapest and the dearest there are.
TEST(HostileText, LongWordsAreNotQuadratic) {
  for (const char* name : {"byte_level_gpt2", "spm_bpe", "unigram"}) {
    const auto tokenizer = parse_tokenizer_json(golden::read_file(golden::testdata(std::string(name) + ".tokenizer.json"))).value();
    for (const std::string& text : {std::string(1 << 20, 'a'), std::string(1 << 20, ' '), repeated("aé", 300000)}) {
      EXPECT_TRUE(tokenizer->encode(text).ok());
    }
  }
  // All scores equal: every merge ties with every other.
  auto owned = golden::spm_vocabulary();
  for (float& score : owned->vocabulary.scores) score = 0;
  EXPECT_TRUE(tokenizer_from_gguf(owned->vocabulary).value()->encode(std::string(1 << 20, 'e')).ok());
}

TEST(HostileGguf, IsRefusedWithTheKeyAndTheValue) {
  const auto refused = [](auto change, std::string_view message) {
    auto owned = golden::spm_vocabulary();
    owned->vocabulary.file = "m.gguf";
    change(owned->vocabulary);
    const auto tokenizer = tokenizer_from_gguf(owned->vocabulary);
    ASSERT_FALSE(tokenizer.ok()) << message;
    EXPECT_THAT(tokenizer.error().message, HasSubstr("m.gguf: "));
    EXPECT_THAT(tokenizer.error().message, HasSubstr(message));
  };
  using V = GgufVocabulary;
  const auto as_gpt2 = [](V& v) {
    v.model = "gpt2";
    v.pre = "gpt-2";
  };
  refused([](V& v) { v.model = "bert"; }, "tokenizer.ggml.model is \"bert\", supported are gpt2");
  refused([](V& v) { v.tokens.clear(); }, "tokenizer.ggml.tokens is empty");
  refused([](V& v) { v.scores.pop_back(); }, "tokenizer.ggml.scores has ");
  refused([](V& v) { v.types.pop_back(); }, "tokenizer.ggml.token_type has ");
  refused([](V& v) { v.types[3] = 7; }, "tokenizer.ggml.token_type of token 3 is 7, expected 0 to 6");
  refused([](V& v) { v.types[3] = -1; }, "of token 3 is -1");
  refused([](V& v) { v.scores[9] = std::numeric_limits<float>::quiet_NaN(); }, "tokenizer.ggml.scores of token 9 is not finite");
  refused([](V& v) { v.tokens[7] = "\xff"; }, "tokenizer.ggml.tokens entry 7 is not UTF-8");
  refused([](V& v) { v.bos = -1; }, "tokenizer.ggml.bos_token_id is -1, expected 0 to ");
  refused([](V& v) { v.eos = static_cast<int64_t>(v.tokens.size()); }, "tokenizer.ggml.eos_token_id is ");
  refused([](V& v) { v.padding = 4294967295; }, "tokenizer.ggml.padding_token_id is 4294967295");
  refused([](V& v) { v.end_ids = {1 << 30}; }, "tokenizer.ggml.eot_token_id is ");
  refused([](V& v) { v.add_bos = true; v.bos.reset(); }, "tokenizer.ggml.add_bos_token is true, but bos_token_id is missing");
  refused([&](V& v) { as_gpt2(v); v.pre = "nonesuch"; }, "tokenizer.ggml.pre is \"nonesuch\", supported are");
  refused([&](V& v) { as_gpt2(v); v.pre = ""; }, "tokenizer.ggml.pre is missing");
  refused([&](V& v) { as_gpt2(v); v.merges = {"ab"}; }, "tokenizer.ggml.merges entry 0 is \"ab\"");
  refused([&](V& v) { as_gpt2(v); v.merges = {"q \xe2\x98\x83"}; }, "merge 0 (q ");
}

TEST(HostileGguf, EveryNamedPreTokenizerCompiles) {
  for (std::string_view name : gguf_pre_tokenizer_names()) {
    GgufVocabulary v;
    v.model = "gpt2";
    v.pre = name;
    v.tokens = {"a", "b", "ab"};
    v.merges = {"a b"};
    const auto tokenizer = tokenizer_from_gguf(v);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
    EXPECT_EQ((*tokenizer)->encode("ab").value(), std::vector<int32_t>{2}) << name;
  }
}

}  // namespace
}  // namespace quipu
