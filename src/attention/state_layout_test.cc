#include "attention/state_layout.h"

#include <gtest/gtest.h>

#include <set>

namespace quipu {
namespace {

// The table of the compression papers: elements per token and layer, two bytes each.
TEST(StateLayout, BytesFollowTheFormulasOfThePapers) {
  const auto bytes = [](int64_t elements, Growth growth, int64_t stride, int64_t tokens) {
    const RegionSpec region{.name = "r", .dtype = DType::kBF16, .row_elements = elements, .growth = growth, .stride = stride};
    return state_bytes({.regions = {region}}, tokens);
  };
  EXPECT_EQ(bytes(2 * 8 * 64, Growth::kPerToken, 1, 1000), 1000 * 1024 * 2) << "MHA, 8 heads of 64";
  EXPECT_EQ(bytes(2 * 2 * 64, Growth::kPerToken, 1, 1000), 1000 * 256 * 2) << "GQA, 2 groups";
  EXPECT_EQ(bytes(256 + 32, Growth::kPerToken, 1, 1000), 1000 * 288 * 2) << "MLA";
  EXPECT_EQ(bytes(256 + 32, Growth::kPerStride, 3, 1000), 334 * 288 * 2) << "MTLA, ceil(T / s)";
  EXPECT_EQ(bytes(256 + 32, Growth::kPerStride, 3, 999), 333 * 288 * 2);
  EXPECT_EQ(bytes(256 + 32, Growth::kPerStride, 3, 0), 0);
}

TEST(StateLayout, RingsAndFixedRegionsStopGrowing) {
  const RegionSpec ring{.name = "key", .dtype = DType::kF16, .row_elements = 8, .growth = Growth::kRing, .ring_rows = 66};
  const RegionSpec fixed{.name = "memory", .dtype = DType::kF32, .row_elements = 10, .growth = Growth::kFixed, .fixed_rows = 3};
  EXPECT_EQ(state_bytes({.regions = {ring, fixed}}, 0), 120);
  EXPECT_EQ(state_bytes({.regions = {ring, fixed}}, 5), 120 + 5 * 16);
  EXPECT_EQ(state_bytes({.regions = {ring, fixed}}, 1000000), 120 + 66 * 16);
  EXPECT_EQ(ring.ring_pages(), 3) << "66 rows may begin at the last row of a page";
  EXPECT_EQ(state_bytes_allocated({.regions = {ring, fixed}}, 65), 120 + 2 * 64 * 16);
  EXPECT_EQ(state_bytes_allocated({.regions = {ring, fixed}}, 1000000), 120 + 3 * 64 * 16);
}

TEST(StateLayout, ARingHoldsItsRowsWhereverTheyBegin) {
  for (int64_t rows = 1; rows <= 200; ++rows) {
    const RegionSpec ring{.name = "r", .growth = Growth::kRing, .ring_rows = rows};
    int64_t most = 0;
    for (int64_t begin = 0; begin < kPageRows; ++begin) {
      most = std::max(most, (begin + rows - 1) / kPageRows - begin / kPageRows + 1);
    }
    ASSERT_EQ(ring.ring_pages(), most) << rows;
  }
}

TEST(StateLayout, SignaturesTellLayoutsApart) {
  const RegionSpec base{.name = "key", .dtype = DType::kF16, .row_elements = 64};
  std::vector<RegionSpec> variants(9, base);
  variants[1].name = "value";
  variants[2].dtype = DType::kBF16;
  variants[3].row_elements = 65;
  variants[4].growth = Growth::kRing;
  variants[4].ring_rows = 70;
  variants[5].growth = Growth::kRing;
  variants[5].ring_rows = 71;
  variants[6].growth = Growth::kPerStride;
  variants[6].stride = 2;
  variants[7].growth = Growth::kPerStride;
  variants[7].stride = 3;
  variants[8].growth = Growth::kFixed;
  variants[8].fixed_rows = 2;
  std::set<std::string> signatures;
  for (const RegionSpec& variant : variants) signatures.insert(StateLayout{.regions = {variant}}.signature());
  signatures.insert(StateLayout{.regions = {base, base}}.signature());
  EXPECT_EQ(signatures.size(), variants.size() + 1);
  EXPECT_EQ(StateLayout{.regions = {base}}.signature(), "key f16 64 per_token;");
}

TEST(StateLayout, ARoutedLayerCountsAShareOfTheTokens) {
  StateLayout layout{.regions = {{.name = "key", .dtype = DType::kF16, .row_elements = 64}, position_region()}};
  EXPECT_EQ(layout.tokens_expected(1000), 1000);
  EXPECT_EQ(layout.tokens_reserved(1000), 1000);
  layout.routed = RoutedShare{.expected = 0.125, .most = 0.15625};
  const int64_t row = 64 * 2 + 4;
  EXPECT_EQ(state_bytes(layout, 1024), 128 * row);
  EXPECT_EQ(state_bytes(layout, 1), row) << "never none of a token";
  EXPECT_EQ(layout.tokens_reserved(1024), 192) << "160 in whole pages";
  EXPECT_EQ(layout.tokens_reserved(50), 50) << "never more than the context";
  EXPECT_EQ(state_bytes_allocated(layout, 1024), 192 * row);
  layout.routed = RoutedShare{.expected = 0.9, .most = 1.8};
  EXPECT_EQ(layout.tokens_reserved(1000), 1000);
}

}  // namespace
}  // namespace quipu
