#include "backend/cpu/pair_attention_blocks.h"

#include <algorithm>

namespace quipu::cpu {
namespace {

constexpr int64_t kBlock = kPairKeys;
static_assert(kBlock == 2 * kPairQueries && kPairQueries == kPairRows && kPairRows == kGemmPanel);

size_t index_of(int64_t i) { return static_cast<size_t>(i); }

// Which keys of the block that begins at `first_key` each query of `panels` panels sees; queries beyond the end see none.
void visible_lanes(int32_t* first, int32_t* last, std::span<const KeyRange> visible, int64_t first_key, int64_t panels) {
  for (size_t i = 0; i < index_of(panels * kPairQueries); ++i) {
    const bool there = i < visible.size();
    first[i] = there ? static_cast<int32_t>(std::clamp<int64_t>(visible[i].begin - first_key, 0, kBlock)) : 0;
    last[i] = there ? static_cast<int32_t>(std::clamp<int64_t>(visible[i].end - first_key, 0, kBlock)) : 0;
  }
}

// c [32 * row_panels, 32 * col_panels] (+)= left right, both packed to whole panels of `depth`, a multiple of 32.
struct Product {
  float* c;
  int64_t c_ld;
  const uint16_t *left, *right;
  int64_t row_panels, col_panels, depth;
  bool add;
};
void multiply(const TrainingKernels& kernels, const Product& p) {
  PairTile tile{.c_ld = p.c_ld, .rows = static_cast<int>(kPairRows), .cols = static_cast<int>(kGemmPanel), .blocks = p.depth / 32, .from_ld = p.c_ld};
  for (int64_t row = 0; row < p.row_panels; ++row) {
    tile.a = p.left + row * kPairRows * p.depth;
    for (int64_t col = 0; col < p.col_panels; ++col) {
      tile.b = p.right + col * kGemmPanel * p.depth;
      tile.c = p.c + row * kPairRows * p.c_ld + col * kGemmPanel;
      tile.from = p.add ? tile.c : nullptr;
      kernels.pair_tile(tile);
    }
  }
}

}  // namespace

void attend(const TrainingKernels& kernels, const PanelAttention& p) {
  alignas(64) float rescale[kPairQueries];
  alignas(64) int32_t first[kPairQueries], last[kPairQueries];
  const int64_t first_block = p.visible.front().begin / kBlock, last_block = (p.visible.back().end + kBlock - 1) / kBlock;
  for (int64_t block = first_block; block < last_block; ++block) {
    visible_lanes(first, last, p.visible, block * kBlock, 1);
    multiply(kernels, {p.scores, kPairQueries, p.keys + block * p.key_step, p.queries, 2, 1, p.key_dim, false});
    const bool moved = kernels.score_columns({.scores = p.scores, .first = first, .last = last, .maximum = p.maximum, .total = p.total,
                                              .rescale = rescale, .probabilities = p.probabilities, .scale = p.scale, .softcap = p.softcap});
    if (moved) kernels.scale_columns(p.sums, rescale, p.value_dim);
    multiply(kernels, {p.sums, kPairQueries, p.values + block * p.value_step, p.probabilities, p.value_dim / kPairRows, 1, kBlock, true});
  }
}

void attend_backward(const TrainingKernels& kernels, const KeysBackward& b) {
  alignas(64) int32_t first_lane[kQueryBlocks * kBlock], last_lane[kQueryBlocks * kBlock];
  const int64_t queries = static_cast<int64_t>(b.visible.size()), key_panels = panels_of(b.keys);
  bool add = b.add;
  for (int64_t first = b.first_query; first < queries; first += kQueryBlocks * kBlock) {
    const int64_t rows = std::min(kQueryBlocks * kBlock, queries - first), count = (rows + kBlock - 1) / kBlock;
    const auto visible = b.visible.subspan(index_of(first), index_of(rows));
    if (visible.front().begin >= b.key + b.keys) break;   // this window and all later ones lie behind
    visible_lanes(first_lane, last_lane, visible, b.key, 2 * count);
    const int64_t query_panels = panels_of(rows), half = 2 * count * 512;
    for (int64_t panel = 0; panel < 2 * count; ++panel) {
      const int64_t query = first + panel * kPairQueries;
      if (panel < query_panels) {   // else scores are anything, and nobody sees them
        multiply(kernels, {b.scores, kPairQueries, b.key_rows, b.q_columns + query * b.key_dim, key_panels, 1, b.key_dim, false});
        multiply(kernels, {b.dscores, kPairQueries, b.value_rows, b.dout_columns + query * b.value_dim, key_panels, 1, b.value_dim, false});
      }
      kernels.score_columns_backward({.scores = b.scores, .dscores = b.dscores, .first = first_lane + panel * kPairQueries,
                                      .last = last_lane + panel * kPairQueries, .log_sum_exp = b.log_sum_exp + query, .delta = b.delta + query,
                                      .probabilities = b.probabilities + panel * 512, .gradients = b.dscore_rows + panel * 512, .half_step = half,
                                      .gradient_columns = b.dscore_columns + panel * (kBlock * kPairQueries),
                                      .scale = b.scale, .softcap = b.softcap});
    }
    // Sums over the queries, block by block of the right factor.
    const auto add_queries = [&](float* to, const uint16_t* left, const uint16_t* right, int64_t dim) {
      PairTile tile{.c_ld = dim, .rows = static_cast<int>(kPairRows), .cols = static_cast<int>(kGemmPanel), .blocks = 2, .stretches = count,
                    .a_stretch = 2 * 512, .b_stretch = kBlock * dim, .a_half = half, .from_ld = dim};
      for (int64_t row = 0; row < key_panels; ++row) {
        for (int64_t col = 0; col < dim; col += kGemmPanel) {
          tile.a = left + row * 2 * half;
          tile.b = right + first * dim + col * kBlock;
          tile.c = to + row * kPairRows * dim + col;
          tile.from = add ? tile.c : nullptr;
          kernels.pair_tile(tile);
        }
      }
    };
    add_queries(b.dvalues, b.probabilities, b.dout_rows, b.value_dim);
    add_queries(b.dkeys, b.dscore_rows, b.q_rows, b.key_dim);
    for (int64_t panel = 0; panel < query_panels; ++panel) {
      multiply(kernels, {b.dq + (first + panel * kPairQueries) * b.key_dim, kPairQueries, b.key_columns,
                         b.dscore_columns + panel * (kBlock * kPairQueries), b.key_dim / kPairRows, 1, kBlock, true});
    }
    add = true;
  }
  if (!add) {
    std::fill_n(b.dkeys, kBlock * b.key_dim, 0.0f);
    std::fill_n(b.dvalues, kBlock * b.value_dim, 0.0f);
  }
}

}  // namespace quipu::cpu
