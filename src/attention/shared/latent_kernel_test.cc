#include "attention/shared/latent_kernel.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "attention/shared/latent_tiles.h"
#include "backend/cpu/amx_emulator_for_test.h"
#include "base/random.h"
#include "ops/kv_cache.h"
#include "tensor/buffer.h"
#include "tensor/float16.h"
#include "tensor/quant_blocks.h"

namespace quipu {
namespace {

// Some sequences' latent rows in pages, and queries that read them.
struct Case {
  LatentShape shape;
  std::vector<std::vector<std::byte>> memory;          // of each sequence
  std::vector<std::vector<std::byte*>> pages;
  std::vector<LatentContext> contexts;
  std::vector<float> query, own;

  Case(const LatentShape& shape_in, const std::vector<std::vector<int64_t>>& rows_of_queries, bool with_own)
      : shape(shape_in) {
    RandomStream random(11, 5);
    const int64_t width = shape.width(), stride = row_bytes(shape.dtype, width);
    size_t queries = 0;
    for (const auto& rows : rows_of_queries) queries += rows.size();
    query.resize(queries * static_cast<size_t>(shape.heads * width));
    own.resize(queries * static_cast<size_t>(width));
    for (float& value : query) value = static_cast<float>(random.normal());
    for (float& value : own) value = static_cast<float>(random.normal());
    memory.resize(rows_of_queries.size());
    pages.resize(rows_of_queries.size());
    std::vector<float> row(static_cast<size_t>(width));
    for (size_t i = 0; i < rows_of_queries.size(); ++i) {
      int64_t most = 0;
      for (const int64_t rows : rows_of_queries[i]) most = std::max(most, rows);
      const int64_t count = (most + kPageRows - 1) / kPageRows;
      memory[i].assign(static_cast<size_t>(count * kPageRows * stride), std::byte{0xff});   // NaN where nothing was written
      for (int64_t p = 0; p < count; ++p) pages[i].push_back(memory[i].data() + p * kPageRows * stride);
      for (int64_t r = 0; r < most; ++r) {
        for (float& value : row) value = static_cast<float>(random.normal());
        store_latent_row(pages[i][static_cast<size_t>(r / kPageRows)], shape.dtype, width, r % kPageRows, row.data());
      }
      for (const int64_t rows : rows_of_queries[i]) {
        contexts.push_back({.pages = pages[i], .rows = rows});
        if (with_own) contexts.back().own = own.data() + static_cast<int64_t>(contexts.size() - 1) * width;
      }
    }
  }
  int64_t rows() const { return static_cast<int64_t>(contexts.size()); }

  std::vector<float> run(int threads, Isa isa, int64_t first = 0, int64_t count = -1) const {
    if (count < 0) count = rows();
    LatentShape s = shape;
    s.isa = isa;
    ThreadPool pool(threads);
    const auto scratch = Buffer::allocate(static_cast<size_t>(4 * absorbed_scratch_floats(s, count, threads)));
    std::vector<float> out(static_cast<size_t>(count * s.heads * s.rank));
    attend_absorbed(pool, {out.data(), count, s.heads * s.rank},
                    {query.data() + first * s.heads * s.width(), count, s.heads * s.width()},
                    std::span(contexts).subspan(static_cast<size_t>(first), static_cast<size_t>(count)), s, scratch->as<float>());
    return out;
  }

  // In double, of the cached rows as `isa` takes them: exactly, or rounded to bf16 for tiles.
  std::vector<double> wanted(Isa isa) const {
    std::vector<double> out;
    std::vector<float> row(static_cast<size_t>(shape.width()));
    const int64_t stride = row_bytes(shape.dtype, shape.width());
    for (int64_t i = 0; i < rows(); ++i) {
      const LatentContext& context = contexts[static_cast<size_t>(i)];
      std::vector<std::vector<float>> keys;
      for (int64_t r = 0; r < context.rows; ++r) {
        dequantise_row(row.data(), shape.dtype, context.pages[static_cast<size_t>(r / kPageRows)] + r % kPageRows * stride, shape.width());
        if (multiplies_latents_by_tiles(isa, shape.dtype)) {
          for (float& value : row) value = bf16_to_f32(f32_to_bf16(value));
        }
        keys.push_back(row);
      }
      if (context.own != nullptr) keys.emplace_back(context.own, context.own + shape.width());
      for (int64_t head = 0; head < shape.heads; ++head) {
        const float* q = query.data() + (i * shape.heads + head) * shape.width();
        std::vector<double> sum(static_cast<size_t>(shape.rank));
        double total = 0;
        for (const auto& key : keys) {
          double score = 0;
          for (size_t d = 0; d < key.size(); ++d) score += double{q[d]} * key[d];
          const double p = std::exp(score * double{shape.scale});   // scores stay below 100
          total += p;
          for (size_t c = 0; c < sum.size(); ++c) sum[c] += p * key[c];
        }
        for (const double value : sum) out.push_back(value / total);
      }
    }
    return out;
  }
};

// Probabilities are off by 2^-24 times a score of at most 30 or so, sums of a few thousand terms by less than 1e-5. Tiles lose
// at most 2^-17 of every q k that a score sums, of random signs: 0.3 sqrt(64) 2^-17 = 2e-5 is one standard deviation of a score's
// error, and that of a probability's; a sum of values is off by a weighted mean of those, and 2^-17 of itself by its own split.
double tolerance(Isa isa, DType dtype) { return multiplies_latents_by_tiles(isa, dtype) ? 1.2e-4 : 3e-5; }

TEST(LatentKernel, EqualsTheSoftmaxOverAllRowsInDouble) {
  const std::vector<std::vector<int64_t>> lengths = {{1}, {63, 64, 65}, {3000}, {255, 256, 257, 258, 259}, {700}};
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0}) {
    for (const bool own : {false, true}) {
      const Case test({.dtype = dtype, .heads = 5, .rank = 48, .rope_dim = 16, .scale = 0.3f}, lengths, own);
      for (const Isa isa : isas_under_test()) {
        const std::vector<double> wanted = test.wanted(isa);
        const std::vector<float> got = test.run(2, isa);
        ASSERT_EQ(got.size(), wanted.size());
        for (size_t i = 0; i < got.size(); ++i) {
          ASSERT_NEAR(double{got[i]}, wanted[i], tolerance(isa, dtype)) << isa_name(isa) << " " << dtype_name(dtype) << " " << i;
        }
      }
    }
  }
}

TEST(LatentKernel, MoreHeadsThanABlockAndOddSizesAreNoOtherThing) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    const Case test({.dtype = dtype, .heads = 67, .rank = 19, .rope_dim = 6, .scale = 0.4f}, {{300, 301}, {9}}, true);
    for (const Isa isa : isas_under_test()) {
      const std::vector<double> wanted = test.wanted(isa);
      const std::vector<float> got = test.run(3, isa);
      for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(double{got[i]}, wanted[i], tolerance(isa, dtype)) << isa_name(isa) << " " << i;
    }
  }
}

// A context longer than all partial results that are kept at once; every number of heads around the register tiles.
TEST(LatentKernel, BitsDependNeitherOnThreadsNorOnNeighbours) {
  for (const int64_t heads : {1, 2, 3, 4, 6, 7, 8, 9, 40}) {
    const std::vector<std::vector<int64_t>> lengths = {{10, 11, 12}, {heads == 40 ? 9000 : 700}, {256}, {511, 512, 513}};
    const Case test({.dtype = heads % 2 == 0 ? DType::kF16 : DType::kBF16, .heads = heads, .rank = 53, .rope_dim = 8, .scale = 0.3f},
                    lengths, true);
    for (const Isa isa : isas_under_test()) {
      const std::vector<float> together = test.run(1, isa);
      for (const int threads : {2, 3, 5}) {
        const std::vector<float> again = test.run(threads, isa);
        ASSERT_EQ(std::memcmp(together.data(), again.data(), together.size() * 4), 0) << isa_name(isa) << " threads " << threads;
      }
      const size_t row = static_cast<size_t>(test.shape.heads * test.shape.rank);
      for (int64_t i = 0; i < test.rows(); ++i) {
        const std::vector<float> alone = test.run(2, isa, i, 1);
        ASSERT_EQ(std::memcmp(together.data() + static_cast<size_t>(i) * row, alone.data(), row * 4), 0)
            << isa_name(isa) << " heads " << heads << " row " << i;
      }
    }
  }
}

// Rows that lie as tiles read them are read where they lie; shorter pages, and other widths, are copied.
TEST(LatentKernel, RowsInPlaceGiveWhatCopiedRowsGive) {
  const LatentShape shape{.dtype = DType::kBF16, .heads = 16, .rank = 64, .rope_dim = 32, .scale = 0.2f};
  const Case test(shape, {{640, 641}, {256}, {64}, {130}}, false);
  for (const Isa isa : isas_under_test()) {
    const std::vector<double> wanted = test.wanted(isa);
    const std::vector<float> got = test.run(2, isa);
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(double{got[i]}, wanted[i], tolerance(isa, shape.dtype)) << isa_name(isa) << " " << i;
  }
}

}  // namespace
}  // namespace quipu
