#include "attention/shared/rope_frequencies.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace quipu {
namespace {

using testing::HasSubstr;

TEST(RopeFrequencies, PlainAndLinear) {
  const auto plain = rope_inverse_frequencies(1e4, 8, {});
  const std::vector<double> expected = {1, 0.1, 0.01, 0.001};
  for (size_t j = 0; j < 4; ++j) EXPECT_NEAR(plain[j], expected[j], 1e-15);
  const auto linear = rope_inverse_frequencies(1e4, 8, {.kind = RopeScalingKind::kLinear, .factor = 8});
  for (size_t j = 0; j < 4; ++j) EXPECT_NEAR(linear[j], expected[j] / 8, 1e-16);
}

// DeepSeek-V2/V3 settings; numbers of the published formula worked out beside the code (specification 1.6).
TEST(RopeFrequencies, YarnGoldenNumbers) {
  const RopeScaling yarn{.kind = RopeScalingKind::kYarn, .factor = 40, .original_context = 4096};
  const auto f = rope_inverse_frequencies(1e4, 64, yarn);
  struct Golden {
    size_t pair;
    double value, last_digit;
  };
  const std::vector<Golden> golden = {{10, 0.056234133, 1e-9},     {11, 0.039006927, 1e-9},    {15, 0.0083345, 1e-7},
                                      {16, 0.0055, 1e-9},          {20, 0.00079056942, 1e-11}, {22, 0.00017782794, 1e-11},
                                      {23, 3.3338036e-5, 1e-12},   {31, 3.3338036e-6, 1e-13}};
  for (const Golden& g : golden) EXPECT_NEAR(f[g.pair], g.value, g.last_digit) << g.pair;
  EXPECT_EQ(f[0], 1.0) << "fast pairs are kept";
  EXPECT_NEAR(yarn_magnitude(40, 0.707), 1.2608038, 1e-7);
  EXPECT_NEAR(yarn_magnitude(40, 1.0), 1.3688879, 1e-7);
  EXPECT_EQ(yarn_magnitude(1, 1.0), 1.0);
}

// Written from the release notes in wavelengths, where the code works in turns. Llama 3.1 8B and 3.2 1B settings.
TEST(RopeFrequencies, Llama3EqualsItsDefinitionInWavelengths) {
  for (const double factor : {8.0, 32.0}) {
    const RopeScaling s{.kind = RopeScalingKind::kLlama3, .factor = factor, .original_context = 8192,
                        .low_frequency_factor = 1, .high_frequency_factor = 4};
    const auto f = rope_inverse_frequencies(500000, 128, s);
    int kept = 0, slowed = 0;
    for (size_t j = 0; j < 64; ++j) {
      const double plain = std::pow(500000.0, -static_cast<double>(j) / 64);
      const double wavelength = 2 * std::numbers::pi / plain;
      double expected = plain;
      if (wavelength > 8192.0 / 1) {
        expected = plain / factor;
        ++slowed;
      } else if (wavelength >= 8192.0 / 4) {
        const double smooth = (8192 / wavelength - 1) / (4 - 1);
        expected = (1 - smooth) * plain / factor + smooth * plain;
      } else {
        ++kept;
      }
      EXPECT_NEAR(f[j], expected, expected * 1e-12) << j;
    }
    EXPECT_EQ(kept, 29);     // 64 ln(2048 / 2 pi) / ln(500000) = 28.2
    EXPECT_EQ(slowed, 29);   // 64 ln(8192 / 2 pi) / ln(500000) = 34.98: pairs 35 to 63
  }
}

HyperParameters with(std::vector<std::pair<std::string, HyperParameters::Value>> values) {
  HyperParameters p("c.json");
  for (auto& [name, value] : values) p.set(name, value);
  return p;
}

TEST(RopeSettings, DefaultsAndExplicitLists) {
  const auto plain = rope_settings(with({{"rope_theta", 1e4}}), 8);
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(plain->rotary_dim, 8);
  EXPECT_FALSE(plain->interleaved);
  EXPECT_EQ(plain->magnitude, 1.0f);
  EXPECT_EQ(plain->inverse_frequency, (std::vector<float>{1, 0.1f, 0.01f, 0.001f}));

  const auto list = rope_settings(with({{"inverse_frequencies", std::vector<double>{0.5, 0.25}}, {"rope_dim", int64_t{4}},
                                        {"rope_interleaved", true}, {"rope_magnitude", 1.5}}), 10);
  ASSERT_TRUE(list.ok()) << list.error().message;
  EXPECT_EQ(list->inverse_frequency, (std::vector<float>{0.5f, 0.25f}));
  EXPECT_TRUE(list->interleaved);
  EXPECT_EQ(list->magnitude, 1.5f);

  const auto none = rope_settings(with({{"rope_dim", int64_t{0}}}), 10);
  ASSERT_TRUE(none.ok());
  EXPECT_EQ(none->rotary_dim, 0);
}

TEST(RopeSettings, YarnMagnitudeComesFromWhatTheFileGives) {
  const auto magnitude = [](std::vector<std::pair<std::string, HyperParameters::Value>> more) {
    std::vector<std::pair<std::string, HyperParameters::Value>> values = {
        {"rope_theta", 1e4}, {"rope_scaling", std::string("yarn")}, {"rope_scaling_factor", 40.0},
        {"rope_original_context", int64_t{4096}}};
    values.insert(values.end(), more.begin(), more.end());
    const auto settings = rope_settings(with(values), 64);
    CHECK(settings.ok()) << settings.error().message;
    return settings->magnitude;
  };
  EXPECT_NEAR(magnitude({}), 1.3688879, 1e-6);
  EXPECT_EQ(magnitude({{"rope_attention_factor", 1.0}}), 1.0f);
  EXPECT_EQ(magnitude({{"rope_mscale", 0.707}, {"rope_mscale_all_dim", 0.707}}), 1.0f);
  EXPECT_NEAR(magnitude({{"rope_mscale", 1.0}, {"rope_mscale_all_dim", 0.707}}), 1.3688879 / 1.2608038, 1e-6);
}

TEST(RopeSettings, WrongSettingsAreNamed) {
  const auto message = [](std::vector<std::pair<std::string, HyperParameters::Value>> values) {
    const auto settings = rope_settings(with(std::move(values)), 8);
    return settings.ok() ? std::string("accepted") : settings.error().message;
  };
  const auto text = [](const char* value) { return std::string(value); };
  EXPECT_EQ(message({}), "c.json: attention setting rope_theta is missing");
  EXPECT_THAT(message({{"rope_theta", 1.0}}), HasSubstr("rope_theta is 1, expected a number in"));
  EXPECT_THAT(message({{"rope_theta", 1e4}, {"rope_dim", int64_t{3}}}), HasSubstr("rope_dim is 3, expected an even number"));
  EXPECT_THAT(message({{"rope_theta", 1e4}, {"rope_dim", int64_t{10}}}), HasSubstr("rope_dim is 10, expected a whole number in [0, 8]"));
  EXPECT_THAT(message({{"rope_theta", 1e4}, {"rope_scaling", text("longrope")}}),
              HasSubstr("\"longrope\", expected none, linear, llama3 or yarn"));
  EXPECT_THAT(message({{"rope_theta", 1e4}, {"rope_scaling", text("linear")}}), HasSubstr("rope_scaling_factor is missing"));
  EXPECT_THAT(message({{"rope_theta", 1e4}, {"rope_scaling", text("linear")}, {"rope_scaling_factor", 0.0}}),
              HasSubstr("rope_scaling_factor is 0"));
  EXPECT_THAT(message({{"rope_theta", 1e4}, {"rope_scaling", text("yarn")}, {"rope_scaling_factor", 4.0}}),
              HasSubstr("rope_original_context is missing"));
  EXPECT_THAT(message({{"rope_theta", 1e4}, {"rope_scaling", text("llama3")}, {"rope_scaling_factor", 4.0},
                       {"rope_original_context", 8192.0}, {"rope_low_frequency_factor", 4.0}, {"rope_high_frequency_factor", 4.0}}),
              HasSubstr("rope_high_frequency_factor must be above"));
  EXPECT_THAT(message({{"rope_theta", 1e4}, {"inverse_frequencies", std::vector<double>(4)}}), HasSubstr("exclude each other"));
  EXPECT_THAT(message({{"inverse_frequencies", std::vector<double>(3)}}), HasSubstr("is 3 numbers, expected 4 numbers"));
}

}  // namespace
}  // namespace quipu
