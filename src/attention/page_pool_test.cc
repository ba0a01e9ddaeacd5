#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "attention/layer_state.h"

namespace quipu {
namespace {

bool all_zero(const std::byte* page, int64_t bytes) {
  return std::all_of(page, page + bytes, [](std::byte b) { return b == std::byte{0}; });
}

TEST(PagePool, PagesAreAlignedZeroedAndApart) {
  PagePool pool;
  std::vector<std::byte*> pages;
  for (int i = 0; i < 300; ++i) {
    for (const int64_t bytes : {int64_t{1}, int64_t{64}, int64_t{4352}}) {
      auto page = pool.take(bytes);
      ASSERT_TRUE(page.ok());
      EXPECT_EQ(reinterpret_cast<uintptr_t>(*page) % 64, 0u);
      ASSERT_TRUE(all_zero(*page, bytes));
      std::memset(*page, 0xff, static_cast<size_t>(bytes));   // a neighbour that overlaps is not zero any more
      pages.push_back(*page);
    }
  }
  EXPECT_EQ(pool.live_bytes(), 300 * (1 + 64 + 4352));
  EXPECT_EQ(std::set<std::byte*>(pages.begin(), pages.end()).size(), pages.size());
  for (std::byte* page : pages) pool.release(page);
  EXPECT_EQ(pool.live_bytes(), 0);
}

TEST(PagePool, AFreedPageIsUsedAgainAndZeroedAgain) {
  PagePool pool;
  std::byte* first = *pool.take(256);
  std::memset(first, 0xaa, 256);
  pool.release(first);
  std::byte* second = *pool.take(256);
  EXPECT_EQ(first, second);
  EXPECT_TRUE(all_zero(second, 256));
  pool.release(second);
}

TEST(PagePool, TheLastReferenceFrees) {
  PagePool pool;
  std::byte* page = *pool.take(128);
  EXPECT_FALSE(pool.shared(page));
  pool.share(page);
  EXPECT_TRUE(pool.shared(page));
  pool.release(page);
  EXPECT_FALSE(pool.shared(page));
  EXPECT_EQ(pool.live_bytes(), 128);
  pool.release(page);
  EXPECT_EQ(pool.live_bytes(), 0);
}

TEST(PagePool, TheLimitIsKept) {
  PagePool pool;
  pool.set_limit_bytes(1000);
  std::byte* page = *pool.take(600);
  auto refused = pool.take(401);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().error_class, ErrorClass::kFailed);
  EXPECT_EQ(refused.error().message, "context memory is full: 600 bytes in use, 401 more wanted, limit 1000");
  std::byte* other = *pool.take(400);
  pool.release(page);
  pool.release(other);
}

TEST(PagePoolDeathTest, ReleasingTwiceIsCaught) {
  PagePool pool;
  std::byte* page = *pool.take(64);
  pool.release(page);
  EXPECT_DEATH(pool.release(page), "not a live page");
}

}  // namespace
}  // namespace quipu
