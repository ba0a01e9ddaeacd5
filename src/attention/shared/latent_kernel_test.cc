#include "attention/shared/latent_kernel.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "tensor/float16.h"

namespace quipu {
namespace {

TEST(LatentKernels, EveryHalfIsWidenedExactlyOnEveryLevel) {
  std::vector<uint16_t> halves(65536 + 3);   // and a part of a vector
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  std::vector<float> got(halves.size());
  const auto n = static_cast<int64_t>(halves.size());
  const auto* bytes = reinterpret_cast<const std::byte*>(halves.data());
  for (const Isa isa : available_isas()) {
    latent_kernels(isa).decode_f16(got.data(), bytes, n);
    for (size_t i = 0; i < halves.size(); ++i) {
      const float wanted = f16_to_f32(halves[i]);
      ASSERT_TRUE(std::isnan(wanted) ? std::isnan(got[i]) : std::memcmp(&wanted, &got[i], 4) == 0) << isa_name(isa) << " " << i;
    }
    latent_kernels(isa).decode_bf16(got.data(), bytes, n);
    for (size_t i = 0; i < halves.size(); ++i) {
      const float wanted = bf16_to_f32(halves[i]);
      ASSERT_EQ(std::memcmp(&wanted, &got[i], 4), 0) << isa_name(isa) << " " << i;
    }
  }
}

// Scores from -200 to 200: the sums overflow without the running maximum.
TEST(LatentKernels, ABlockAddsToTheRunningSoftmax) {
  constexpr int64_t kRows = 150, kKey = 37, kValue = 21;
  std::vector<float> keys(kRows * kKey), query(kKey, 1.0f);
  for (size_t i = 0; i < keys.size(); ++i) keys[i] = static_cast<float>((i * 7919) % 401) / 37.0f - 5.4f;
  for (int64_t j = 0; j < kRows; ++j) keys[static_cast<size_t>(j * kKey)] += static_cast<float>(j * 13 % 390 - 195);
  for (const Isa isa : available_isas()) {
    SoftmaxState state;
    std::vector<float> sum(kValue, 0.0f);
    for (int64_t first = 0; first < kRows; first += 64) {
      const float* block = keys.data() + first * kKey;
      latent_kernels(isa).attend_block(state, sum.data(), query.data(), nullptr, 0.5f,
                                       {.key = block, .key_stride = kKey, .key_dim = kKey, .value = block,
                                        .value_stride = kKey, .value_dim = kValue},
                                       std::min<int64_t>(64, kRows - first));
    }
    std::vector<double> scores(kRows), wanted(kValue);
    double largest = -1e9, total = 0;
    for (int64_t j = 0; j < kRows; ++j) {
      for (int64_t c = 0; c < kKey; ++c) scores[static_cast<size_t>(j)] += 0.5 * double{keys[static_cast<size_t>(j * kKey + c)]};
      largest = std::max(largest, scores[static_cast<size_t>(j)]);
    }
    for (int64_t j = 0; j < kRows; ++j) {
      const double p = std::exp(scores[static_cast<size_t>(j)] - largest);
      total += p;
      for (int64_t c = 0; c < kValue; ++c) wanted[static_cast<size_t>(c)] += p * double{keys[static_cast<size_t>(j * kKey + c)]};
    }
    for (size_t c = 0; c < wanted.size(); ++c) {
      EXPECT_NEAR(double{sum[c] / state.sum}, wanted[c] / total, 1e-3) << isa_name(isa) << " " << c;
    }
  }
}

}  // namespace
}  // namespace quipu
