#include "attention/shared/small_gemm.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/cpu_features.h"

// Bodies are inlined into one function per instruction set, and are the only code compiled for it.
#define QUIPU_BODY inline __attribute__((always_inline))
#if defined(__clang__)
#define QUIPU_UNROLL _Pragma("clang loop unroll(full)")
#else
#define QUIPU_UNROLL _Pragma("GCC unroll 4")
#endif
#if defined(__x86_64__)
#define QUIPU_FOR_AVX2 __attribute__((target("avx2")))
#define QUIPU_FOR_AVX512 __attribute__((target("avx512f")))
#endif

namespace quipu {
namespace {

template <class Real>
struct LanesOf;
template <>
struct LanesOf<float> {
  using Type = float __attribute__((vector_size(64)));
};
template <>
struct LanesOf<double> {
  using Type = double __attribute__((vector_size(64)));
};

constexpr int64_t kRows = 4;          // of c in registers at once
constexpr int64_t kDepth = 256;       // of k packed at once
template <class Real>
constexpr int64_t kColumns = 2 * 64 / static_cast<int64_t>(sizeof(Real));   // two registers of 512 bits

// One tile: c [count rows, kColumns] += a b, b [k, kColumns] with rows b_ld apart.
template <class Real>
struct Tile {
  Real* c;
  const Real* a;
  const Real* b;
  int64_t c_ld, a_row, a_col, b_ld, k;
};

template <class Real, int64_t kCount>
QUIPU_BODY void tile_rows(const Tile<Real>& t) {
  using Lanes = typename LanesOf<Real>::Type;
  constexpr int64_t kHalf = kColumns<Real> / 2;
  Lanes low[kCount], high[kCount];
  QUIPU_UNROLL
  for (int64_t r = 0; r < kCount; ++r) {
    std::memcpy(&low[r], t.c + r * t.c_ld, sizeof(Lanes));
    std::memcpy(&high[r], t.c + r * t.c_ld + kHalf, sizeof(Lanes));
  }
  for (int64_t p = 0; p < t.k; ++p) {
    Lanes left, right;
    std::memcpy(&left, t.b + p * t.b_ld, sizeof(Lanes));
    std::memcpy(&right, t.b + p * t.b_ld + kHalf, sizeof(Lanes));
    QUIPU_UNROLL
    for (int64_t r = 0; r < kCount; ++r) {
      const Real factor = t.a[r * t.a_row + p * t.a_col];
      low[r] += factor * left;
      high[r] += factor * right;
    }
  }
  QUIPU_UNROLL
  for (int64_t r = 0; r < kCount; ++r) {
    std::memcpy(t.c + r * t.c_ld, &low[r], sizeof(Lanes));
    std::memcpy(t.c + r * t.c_ld + kHalf, &high[r], sizeof(Lanes));
  }
}

template <class Real>
QUIPU_BODY void tile_any(const Tile<Real>& t, int64_t count) {
  switch (count) {
    case 1: return tile_rows<Real, 1>(t);
    case 2: return tile_rows<Real, 2>(t);
    case 3: return tile_rows<Real, 3>(t);
    default: return tile_rows<Real, 4>(t);
  }
}

// The columns [column, column + width) of c, k from `from` on, `depth` of it.
template <class Real>
QUIPU_BODY void strip(const BatchedGemm<Real>& g, int64_t column, int64_t width, int64_t from, int64_t depth) {
  constexpr int64_t kWide = kColumns<Real>;
  alignas(64) Real packed[kDepth * kWide];
  alignas(64) Real edge[kRows * kWide];
  const bool whole = width == kWide;
  const bool pack = g.kind == GemmKind::kNT || !whole;
  if (pack) {
    std::memset(packed, 0, static_cast<size_t>(depth * kWide) * sizeof(Real));
    for (int64_t p = 0; p < depth; ++p) {
      for (int64_t j = 0; j < width; ++j) {
        packed[p * kWide + j] = g.kind == GemmKind::kNT ? g.b[(column + j) * g.b_ld + from + p] : g.b[(from + p) * g.b_ld + column + j];
      }
    }
  }
  const bool transposed = g.kind == GemmKind::kTN;
  Tile<Real> t{.c = nullptr, .a = nullptr, .b = pack ? packed : g.b + from * g.b_ld + column, .c_ld = whole ? g.c_ld : kWide,
               .a_row = transposed ? 1 : g.a_ld, .a_col = transposed ? g.a_ld : 1, .b_ld = pack ? kWide : g.b_ld, .k = depth};
  for (int64_t row = 0; row < g.m; row += kRows) {
    const int64_t count = std::min(kRows, g.m - row);
    Real* const c = g.c + row * g.c_ld + column;
    t.a = g.a + row * t.a_row + from * t.a_col;
    t.c = whole ? c : edge;
    if (!whole) {
      for (int64_t r = 0; r < count; ++r) std::memcpy(edge + r * kWide, c + r * g.c_ld, static_cast<size_t>(width) * sizeof(Real));
    }
    tile_any(t, count);
    if (!whole) {
      for (int64_t r = 0; r < count; ++r) std::memcpy(c + r * g.c_ld, edge + r * kWide, static_cast<size_t>(width) * sizeof(Real));
    }
  }
}

template <class Real>
QUIPU_BODY void product(const BatchedGemm<Real>& g) {
  if (g.beta == Real{0}) {
    for (int64_t r = 0; r < g.m; ++r) std::memset(g.c + r * g.c_ld, 0, static_cast<size_t>(g.n) * sizeof(Real));
  }
  for (int64_t column = 0; column < g.n; column += kColumns<Real>) {
    const int64_t width = std::min(kColumns<Real>, g.n - column);
    for (int64_t from = 0; from < g.k; from += kDepth) strip(g, column, width, from, std::min(kDepth, g.k - from));
  }
}

template <class Real>
void product_portable(const BatchedGemm<Real>& g) {
  product(g);
}
#if defined(__x86_64__)
template <class Real>
QUIPU_FOR_AVX2 void product_avx2(const BatchedGemm<Real>& g) {
  product(g);
}
template <class Real>
QUIPU_FOR_AVX512 void product_avx512(const BatchedGemm<Real>& g) {
  product(g);
}
#endif

}  // namespace

template <class Real>
void small_gemm(const BatchedGemm<Real>& g) {
  CHECK(g.batch == 1 && g.alpha == Real{1} && (g.beta == Real{0} || g.beta == Real{1}))
      << "[small_gemm] batch " << g.batch << ", alpha " << g.alpha << ", beta " << g.beta;
#if defined(__x86_64__)
  static const Isa isa = best_isa();
  if (isa >= Isa::kAvx512) return product_avx512(g);
  if (isa >= Isa::kAvx2) return product_avx2(g);
#endif
  product_portable(g);
}

template void small_gemm<float>(const BatchedGemm<float>&);
template void small_gemm<double>(const BatchedGemm<double>&);

}  // namespace quipu
