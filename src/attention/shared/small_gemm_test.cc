// Products of small matrices equal the plain loop bit for bit.
#include "attention/shared/small_gemm.h"

#include <gtest/gtest.h>

#include <vector>

#include "ops/gradient_check_for_test.h"

namespace quipu {
namespace {

template <class Real>
void expect_products(int64_t m, int64_t n, int64_t k) {
  for (const GemmKind kind : {GemmKind::kNN, GemmKind::kNT, GemmKind::kTN}) {
    const auto values = [](int64_t count, uint64_t seed) {
      const std::vector<double> drawn = random_doubles(count, seed);
      return std::vector<Real>(drawn.begin(), drawn.end());
    };
    const int64_t a_rows = kind == GemmKind::kTN ? k : m, a_cols = kind == GemmKind::kTN ? m : k;
    const int64_t b_rows = kind == GemmKind::kNT ? n : k, b_cols = kind == GemmKind::kNT ? k : n;
    const std::vector<Real> a = values(a_rows * (a_cols + 3), 1), b = values(b_rows * (b_cols + 1), 2);
    std::vector<Real> c = values(m * (n + 2), 3), expected = c;
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        Real sum = c[static_cast<size_t>(i * (n + 2) + j)];
        for (int64_t p = 0; p < k; ++p) {
          sum += a[static_cast<size_t>(kind == GemmKind::kTN ? p * (a_cols + 3) + i : i * (a_cols + 3) + p)] *
                 b[static_cast<size_t>(kind == GemmKind::kNT ? j * (b_cols + 1) + p : p * (b_cols + 1) + j)];
        }
        expected[static_cast<size_t>(i * (n + 2) + j)] = sum;
      }
    }
    small_gemm<Real>({.kind = kind, .m = m, .n = n, .k = k, .c = c.data(), .a = a.data(), .b = b.data(), .c_ld = n + 2,
                      .a_ld = a_cols + 3, .b_ld = b_cols + 1, .beta = 1});
    EXPECT_EQ(c, expected) << m << " " << n << " " << k;   // the same order of sums, no fused steps
  }
}

TEST(SmallGemm, IsThePlainLoopBitForBit) {
  for (const int64_t m : {1, 3, 4, 9}) {
    for (const int64_t n : {1, 15, 16, 32, 37, 64}) {
      for (const int64_t k : {0, 1, 7, 256, 300}) {
        expect_products<float>(m, n, k);
        expect_products<double>(m, n, k);
      }
    }
  }
}

}  // namespace
}  // namespace quipu
