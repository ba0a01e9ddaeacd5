#include "attention/hyperparameters.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace quipu {
namespace {

using testing::HasSubstr;

HyperParameters sample() {
  HyperParameters p("model.gguf");
  p.set("heads", int64_t{9});
  p.set("theta", 1e4);
  p.set("whole_theta", int64_t{10000});
  p.set("nan", std::nan(""));
  p.set("interleaved", true);
  p.set("scaling", std::string("ya\nrn"));
  p.set("list", std::vector<double>{1, 2, INFINITY});
  return p;
}

TEST(HyperParameters, ValuesComeBackAsTheyWereSet) {
  const HyperParameters p = sample();
  EXPECT_EQ(*p.integer("heads", 1, 9), 9);
  EXPECT_EQ(*p.number("theta", 1, 1e9), 1e4);
  EXPECT_EQ(*p.number("whole_theta", 1, 1e9), 1e4);
  EXPECT_EQ(*p.boolean("interleaved"), true);
  EXPECT_EQ(*p.text("scaling"), "ya\nrn");
}

TEST(HyperParameters, AMissingKeyIsNamedAndNeverGuessed) {
  const HyperParameters p = sample();
  const auto result = p.integer("kv_heads", 1, 9);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().error_class, ErrorClass::kBadInput);
  EXPECT_EQ(result.error().message, "model.gguf: attention setting kv_heads is missing");
  EXPECT_FALSE(p.number("x", 0, 1).ok());
  EXPECT_FALSE(p.text("x").ok());
  EXPECT_FALSE(p.boolean("x").ok());
  EXPECT_FALSE(p.numbers("x", 3).ok());
}

TEST(HyperParameters, AbsenceHasAMeaningOnlyWhereOneIsGiven) {
  const HyperParameters p = sample();
  EXPECT_EQ(*p.integer_or("x", 0, 9, -7), -7);
  EXPECT_EQ(*p.number_or("x", 0, 9, 0.5), 0.5);
  EXPECT_EQ(*p.boolean_or("x", true), true);
  EXPECT_EQ(*p.text_or("x", "none"), "none");
  EXPECT_FALSE(p.integer_or("heads", 10, 20, 12).ok()) << "a wrong value is not an absent one";
}

TEST(HyperParameters, WrongTypesAndRangesSayWhatWasExpected) {
  const HyperParameters p = sample();
  EXPECT_EQ(p.integer("heads", 10, 20).error().message,
            "model.gguf: attention setting heads is 9, expected a whole number in [10, 20]");
  EXPECT_THAT(p.integer("theta", 1, 20).error().message, HasSubstr("theta is 10000, expected a whole number"));
  EXPECT_THAT(p.number("nan", -1e300, 1e300).error().message, HasSubstr("nan is nan, expected a number in"));
  EXPECT_THAT(p.text("heads").error().message, HasSubstr("heads is 9, expected a text"));
  EXPECT_THAT(p.boolean("heads").error().message, HasSubstr("expected true or false"));
  EXPECT_THAT(p.numbers("list", 4).error().message, HasSubstr("list is 3 numbers, expected 4 numbers"));
  EXPECT_THAT(p.numbers("list", 3).error().message, HasSubstr("list[2] is inf, expected a finite number"));
  EXPECT_THAT(p.integer("scaling", 0, 1).error().message, HasSubstr("ya\\x0arn")) << "text from a file stays on one line";
}

}  // namespace
}  // namespace quipu
