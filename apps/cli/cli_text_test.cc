#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "arguments.h"
#include "base/near_word.h"
#include "human_text.h"

namespace quipu::cli {
namespace {

using Words = std::vector<std::string>;

TEST(HumanText, BytesChangeUnitBeforeRoundingWould) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1024), "1.0 KiB");
  EXPECT_EQ(human_bytes(23040), "22.5 KiB");
  EXPECT_EQ(human_bytes(1024.0 * 1024 - 1), "1.0 MiB");  // not "1024.0 KiB"
  EXPECT_EQ(human_bytes(98362432), "93.8 MiB");
}

TEST(HumanText, CountsAndDurations) {
  EXPECT_EQ(human_count(134515008), "134.5 M");
  EXPECT_EQ(human_count(999999), "1.0 M");
  EXPECT_EQ(human_operations(1.4e9), "1.4 GFLOP");
  EXPECT_EQ(grouped_count(1048576), "1,048,576");
  EXPECT_EQ(grouped_count(999), "999");
  EXPECT_EQ(grouped_count(-1234), "-1,234");
  EXPECT_EQ(human_tokens(32768), "32k");
  EXPECT_EQ(human_tokens(1 << 20), "1M");
  EXPECT_EQ(human_tokens(1500), "1,500");
  EXPECT_EQ(human_seconds(0.44), "0.4 s");
  EXPECT_EQ(human_seconds(59.7), "1 min 00 s");
  EXPECT_EQ(human_seconds(7620), "2 h 07 min");
  EXPECT_EQ(human_seconds(-1), "?");
}

TEST(HumanText, TablesAlignByLettersNotBytes) {
  EXPECT_EQ(aligned_table({{"né", "n"}, {"abc", "10"}}, {false, true}), "né    n\n---  --\nabc  10\n");
}

TEST(HumanText, WrapsAtWordsAndKeepsLongOnesWhole) {
  EXPECT_EQ(wrapped("aa bb cc", 5), "aa bb\ncc");
  EXPECT_EQ(wrapped("aa bb cc", 5, 2), "aa\n  bb\n  cc");
  EXPECT_EQ(wrapped("aa\nbb\n\ncc", 20), "aa bb\n\ncc");
  EXPECT_EQ(wrapped("a considerable word", 4), "a\nconsiderable\nword");
  EXPECT_EQ(wrapped("", 4), "");
}

TEST(NearWord, CountsSwapsAsOneEdit) {
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(edit_distance("tokneize", "tokenize"), 1u);
  EXPECT_EQ(edit_distance("", "abc"), 3u);
}

TEST(NearWord, SuggestsTheNearFlagAndNothingFarOff) {
  const Words flags = {"--temperature", "--top-k", "--top-p", "--threads", "-t"};
  EXPECT_EQ(nearest_word("--temprature", flags), "--temperature");
  EXPECT_EQ(nearest_word("--tok-k", flags), "--top-k");
  EXPECT_EQ(nearest_word("--thread", flags), "--threads");
  EXPECT_EQ(nearest_word("--xylophone", flags), "");
  EXPECT_EQ(nearest_word(std::string(100000, 'a'), flags), "");
}

// An app with the kinds of flag the program has.
struct Sample {
  CLI::App app{"sample", "quipu run"};
  std::string model, prompt;
  int64_t tokens = -1;
  double temperature = 0.8;
  std::vector<std::string> stop;
  bool raw = false;
  Sample() {
    app.set_help_flag("");
    app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    app.add_option("-m,--model,MODEL", model, "");
    app.add_option("-p,--prompt", prompt, "");
    app.add_option("-n,--tokens", tokens, "")->check(whole_number(-1));
    app.add_option("--temperature,--temp", temperature, "")->check(real_number(0, 100));
    app.add_option("--stop", stop, "")->expected(1)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    app.add_flag("--raw", raw, "");
  }
};

TEST(Arguments, ReadsFlagsBeforeAndAfterTheModel) {
  Sample sample;
  const auto read = parse_words(
      sample.app, {"-n", "5", "model.gguf", "--stop", "a", "--temp=0.5", "--raw", "--stop", "b", "-p", "- x"});
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(sample.model, "model.gguf");
  EXPECT_EQ(sample.tokens, 5);
  EXPECT_EQ(sample.temperature, 0.5);
  EXPECT_EQ(sample.stop, (Words{"a", "b"}));
  EXPECT_EQ(sample.prompt, "- x");
  EXPECT_TRUE(sample.raw);
}

TEST(Arguments, TakesTextAsItIs) {
  for (const std::string text : {"", "--raw", "a,b", "[1, 2]", "\"quoted\"", "x=y", "-1", "\n"}) {
    Sample sample;
    sample.prompt = "untouched";
    const auto read = parse_words(sample.app, {"m", "-p", text});
    ASSERT_TRUE(read.ok()) << text << ": " << read.error().message;
    EXPECT_EQ(sample.prompt, text);
  }
}

TEST(Arguments, LaterFlagsWin) {
  Sample sample;
  ASSERT_TRUE(parse_words(sample.app, {"m", "-n", "5", "-n", "-1"}).ok());
  EXPECT_EQ(sample.tokens, -1);
}

TEST(Arguments, NamesTheNearFlagForAMistypedOne) {
  Sample sample;
  const auto long_flag = parse_words(sample.app, {"m", "--temprature", "0.5"});
  ASSERT_FALSE(long_flag.ok());
  EXPECT_EQ(long_flag.error().error_class, ErrorClass::kUsage);
  EXPECT_EQ(long_flag.error().message, "unknown flag --temprature; did you mean --temperature?");
  const auto value_inside = parse_words(sample.app, {"m", "--tokenz=3"});
  ASSERT_FALSE(value_inside.ok());
  EXPECT_EQ(value_inside.error().message, "unknown flag --tokenz; did you mean --tokens?");
  // Values that look like flags are not judged.
  EXPECT_TRUE(check_flags_known(sample.app, {"-p", "--temprature"}).ok());
  // One dash too few.
  const auto one_dash = parse_words(sample.app, {"m", "-temp", "0.5"});
  ASSERT_FALSE(one_dash.ok());
  EXPECT_NE(one_dash.error().message.find("did you mean --temp?"), std::string::npos) << one_dash.error().message;
}

TEST(Arguments, SaysWhatIsWrongWithANumber) {
  const auto message = [](const Words& words) {
    Sample sample;
    const auto read = parse_words(sample.app, words);
    return read.ok() ? std::string() : read.error().message;
  };
  EXPECT_NE(message({"m", "-n", "many"}).find("'many' is not a whole number"), std::string::npos);
  EXPECT_NE(message({"m", "-n", "5x"}).find("'5x' is not a whole number"), std::string::npos);
  EXPECT_NE(message({"m", "-n", "-2"}).find("-2 is less than -1"), std::string::npos);
  EXPECT_NE(message({"m", "-n", "99999999999999999999"}).find("99999999999999999999"), std::string::npos);
  EXPECT_NE(message({"m", "--temp", "nan"}).find("nan is not within 0 to 100"), std::string::npos);
  EXPECT_NE(message({"m", "--temp", "-0.5"}).find("-0.5 is not within 0 to 100"), std::string::npos);
  EXPECT_NE(message({"m", "--temp"}).find("--temp"), std::string::npos);
  EXPECT_NE(message({"m", "second"}).find("'second' is one word too many"), std::string::npos);
}

TEST(Arguments, OtherEnginesFlagsGetTheirLongFormOrAReason) {
  EXPECT_EQ(with_long_spellings({"-ctk", "q8_0", "-ub", "64", "--", "-ctk"}),
            (Words{"--cache-type", "q8_0", "--batch", "64", "--", "-ctk"}));
  Sample sample;
  const auto foreign = parse_words(sample.app, with_long_spellings({"m", "-ngl", "99"}));
  ASSERT_FALSE(foreign.ok());
  EXPECT_NE(foreign.error().message.find("no GPU back end"), std::string::npos);
}

TEST(Arguments, CountsKnowKAndM) {
  EXPECT_EQ(*parse_count("4k", "--depth"), 4096);
  EXPECT_EQ(*parse_count("1M", "--depth"), 1048576);
  for (const char* bad : {"", "k", "4kk", "-1", "4.5k", "9223372036854775807", "0x10"}) {
    EXPECT_FALSE(parse_count(bad, "--depth").ok()) << bad;
  }
  EXPECT_EQ(*parse_counts("0,512,2k", "--depth", 0, 4096), (std::vector<int64_t>{0, 512, 2048}));
  const auto beyond = parse_counts("0,8k", "--depth", 0, 4096);
  ASSERT_FALSE(beyond.ok());
  EXPECT_EQ(beyond.error().message, "--depth: 8192 is not within 0 to 4096");
  EXPECT_FALSE(parse_counts("1,,2", "--depth", 0, 4096).ok());
}

}  // namespace
}  // namespace quipu::cli
