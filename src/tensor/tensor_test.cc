#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tensor/buffer.h"
#include "tensor/dtype.h"
#include "tensor/float16.h"

namespace quipu {
namespace {

TEST(Float16, EveryHalfSurvivesTheRoundTrip) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const float f = f16_to_f32(static_cast<uint16_t>(h));
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(f))));
      continue;
    }
    ASSERT_EQ(f32_to_f16(f), h) << f;
    // Half-way points go to the even neighbour; just above them up.
    if ((h & 0x7fff) < 0x7bff) {
      const float next = f16_to_f32(static_cast<uint16_t>(h + 1));
      const float middle = 0.5f * (f + next);
      ASSERT_EQ(f32_to_f16(middle), (h & 1) ? h + 1 : h);
      ASSERT_EQ(f32_to_f16(std::nextafter(middle, next)), h + 1);
    }
  }
}

TEST(Float16, Bf16RoundsToNearestEven) {
  EXPECT_EQ(f32_to_bf16(1.0f), 0x3f80);
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::nanf("")))));
}

TEST(DType, NamesAndSizesAgree) {
  for (int i = 0; i < kDTypeCount; ++i) {
    const DType dtype = static_cast<DType>(i);
    EXPECT_EQ(dtype_from_name(dtype_name(dtype)), dtype);
  }
  EXPECT_EQ(dtype_from_name("Q4_K"), DType::kQ4_K);
  EXPECT_EQ(row_bytes(DType::kQ8_0, 64), 68);
  EXPECT_FALSE(checked_row_bytes(DType::kQ8_0, 33).has_value());
  EXPECT_FALSE(checked_row_bytes(DType::kF32, ~uint64_t{0} / 2).has_value());
}

TEST(Buffer, LargeOnesAreAlignedAndZeroed) {
  auto buffer = Buffer::allocate((size_t{4} << 20) + 5);
  ASSERT_TRUE(buffer.ok());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % (size_t{2} << 20), 0u);
  EXPECT_EQ(std::to_integer<int>(buffer->data()[buffer->size() - 1]), 0);
}

TEST(Arena, GivesBackAtTheEndOfAScope) {
  Arena arena;
  ASSERT_TRUE(arena.reserve(1024).ok());
  float* first = arena.take<float>(16);
  {
    ArenaMark mark(arena);
    arena.take<float>(100);
  }
  EXPECT_EQ(arena.take<float>(16), first + 16);
}

}  // namespace
}  // namespace quipu
