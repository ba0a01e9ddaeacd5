#include "backend/cpu/training_gemm.h"

#include <algorithm>

#include "backend/cpu/scratch.h"

namespace quipu::cpu {
namespace {

// Rows of the left factor one task multiplies: a packed block of 96 x 256 floats stays in a second-level cache, and even a
// product of 512 rows makes enough tasks to share out. A multiple of every set's tile rows.
constexpr int64_t kBlockRows = 96;
// Columns packed at once: bounds the memory for wide outputs (vocabularies).
constexpr int64_t kGroupPanels = 256;

constexpr int64_t kLeftFloats = kBlockRows * kGemmDepth + 16;

}  // namespace

int64_t TrainingGemm::scratch_bytes(int64_t) const {
  const int64_t left = pool_.threads() * kLeftFloats;
  return (left + kGroupPanels * kGemmPanel * kGemmDepth) * static_cast<int64_t>(sizeof(float));
}

void TrainingGemm::plan(const GemmProblem& problem) {
  panels_.clear();
  for (const GemmColumns& columns : problem.columns) {
    for (int64_t first = 0; first < columns.cols; first += kGemmPanel) panels_.push_back({&columns, first});
  }
  blocks_.clear();
  for (const GemmRows& rows : problem.rows) {
    for (int64_t first = 0; first < rows.rows; first += kBlockRows) {
      blocks_.push_back({&rows, first, std::min(kBlockRows, rows.rows - first)});
    }
  }
}

void TrainingGemm::run(const GemmProblem& problem) {
  plan(problem);
  left_floats_ = kLeftFloats;
  grow(left_, pool_.threads() * left_floats_ * static_cast<int64_t>(sizeof(float)));
  const int64_t total = static_cast<int64_t>(panels_.size());
  grow(right_, std::min(total, kGroupPanels) * kGemmPanel * kGemmDepth * static_cast<int64_t>(sizeof(float)));
  for (int64_t group = 0; group < total; group += kGroupPanels) {
    const std::span<const Panel> panels =
        std::span(panels_).subspan(static_cast<size_t>(group), static_cast<size_t>(std::min(kGroupPanels, total - group)));
    for (int64_t k = 0; k < problem.depth; k += depth_step()) {
      pool_.parallel_for(static_cast<int64_t>(panels.size()),
                         [&](int64_t index) { pack_panel(problem, panels[static_cast<size_t>(index)], index, k); });
      pool_.parallel_for_worker(static_cast<int64_t>(blocks_.size()), [&](int64_t index, int worker) {
        const Block& block = blocks_[static_cast<size_t>(index)];
        pairs_ ? run_block_of_pairs(problem, panels, block, k, worker) : run_block(problem, panels, block, k, worker);
      });
    }
  }
}

void TrainingGemm::pack_panel(const GemmProblem& problem, const Panel& panel, int64_t index, int64_t first_k) {
  const GemmColumns& from = *panel.from;
  float* out = right_.as<float>() + index * kGemmPanel * kGemmDepth;
  const int64_t depth = std::min(depth_step(), problem.depth - first_k), cols = std::min(kGemmPanel, from.cols - panel.first);
  const float* b = problem.b_transposed ? from.b + panel.first * from.b_ld + first_k : from.b + first_k * from.b_ld + panel.first;
  if (pairs_) {
    kernels_.pack_right_pairs(reinterpret_cast<uint16_t*>(out), {.from = b, .ld = from.b_ld, .lines = cols, .depth = depth,
                                                                 .blocks = (depth + 31) / 32, .across = !problem.b_transposed});
  } else if (problem.b_transposed) {
    kernels_.pack_panel_transposed(out, b, from.b_ld, cols, depth);
  } else {
    kernels_.pack_panel(out, b, from.b_ld, cols, depth);
  }
}

void TrainingGemm::run_block_of_pairs(const GemmProblem& problem, std::span<const Panel> panels, const Block& block, int64_t first_k,
                                      int worker) {
  const int64_t depth = std::min(kPairDepth, problem.depth - first_k);
  const GemmRows& from = *block.from;
  constexpr int64_t kSquare = kPairRows * kPairDepth;
  uint16_t* left = reinterpret_cast<uint16_t*>(left_of(worker));
  for (int64_t row = 0; row < block.rows; row += kPairRows) {
    const float* a = problem.a_by_columns ? from.a + first_k * from.a_ld + block.first + row
                                          : from.a + (block.first + row) * from.a_ld + first_k;
    kernels_.pack_left_pairs(left + row / kPairRows * kSquare, {.from = a, .ld = from.a_ld, .lines = std::min(kPairRows, block.rows - row),
                                                                .depth = depth, .blocks = (depth + 31) / 32, .across = problem.a_by_columns});
  }
  PairTile tile{.blocks = (depth + 31) / 32, .add = problem.add || first_k > 0};
  kernels_.begin_pairs();
  for (size_t p = 0; p < panels.size(); ++p) {
    const GemmColumns& to = *panels[p].from;
    tile.b = reinterpret_cast<const uint16_t*>(right_.as<float>() + static_cast<int64_t>(p) * kGemmPanel * kGemmDepth);
    tile.cols = static_cast<int>(std::min(kGemmPanel, to.cols - panels[p].first));
    tile.c_ld = to.c != nullptr ? to.c_ld : from.c_ld;
    tile.bias = to.bias == nullptr || tile.add ? nullptr : to.bias + panels[p].first;
    float* c = (to.c != nullptr ? to.c : from.c) + panels[p].first;
    for (int64_t row = 0; row < block.rows; row += kPairRows) {
      tile.rows = static_cast<int>(std::min(kPairRows, block.rows - row));
      tile.a = left + row / kPairRows * kSquare;
      tile.c = c + (block.first + row) * tile.c_ld;
      kernels_.pair_tile(tile);
    }
  }
  kernels_.end_pairs();
}

void TrainingGemm::run_block(const GemmProblem& problem, std::span<const Panel> panels, const Block& block, int64_t first_k, int worker) {
  const int64_t depth = std::min(kGemmDepth, problem.depth - first_k);
  const int64_t tile_rows = kernels_.tile_rows;
  const GemmRows& from = *block.from;
  float* left = left_of(worker);
  const int64_t tile_floats = tile_rows * kGemmDepth;
  if (problem.a_by_columns) {
    for (int64_t row = 0; row < block.rows; row += tile_rows) {
      kernels_.pack_columns(left + row / tile_rows * tile_floats, from.a + first_k * from.a_ld + block.first + row, from.a_ld,
                            std::min(tile_rows, block.rows - row), depth);
    }
  } else {
    kernels_.pack_rows(left, kGemmDepth, from.a + block.first * from.a_ld + first_k, from.a_ld, block.rows, depth);
  }
  const bool add = problem.add || first_k > 0;
  GemmTile tile{.form = problem.a_by_columns ? LeftForm::kColumns : LeftForm::kRows256, .a_step = tile_rows, .depth = depth, .add = add};
  for (size_t p = 0; p < panels.size(); ++p) {
    const GemmColumns& to = *panels[p].from;
    tile.b = right_.as<float>() + static_cast<int64_t>(p) * kGemmPanel * kGemmDepth;
    tile.cols = static_cast<int>(std::min(kGemmPanel, to.cols - panels[p].first));
    tile.c_ld = to.c != nullptr ? to.c_ld : from.c_ld;
    float* c = (to.c != nullptr ? to.c : from.c) + panels[p].first;
    tile.bias = to.bias == nullptr ? nullptr : to.bias + panels[p].first;
    for (int64_t row = 0; row < block.rows; row += tile_rows) {
      tile.rows = static_cast<int>(std::min(tile_rows, block.rows - row));
      tile.a = left + row / tile_rows * tile_floats;
      tile.c = c + (block.first + row) * tile.c_ld;
      kernels_.gemm_tile(tile);
    }
  }
}

void TrainingGemm::run_batch(const BatchedGemm<float>& gemm) {
  left_floats_ = kLeftFloats;
  grow(left_, pool_.threads() * left_floats_ * static_cast<int64_t>(sizeof(float)));
  const int64_t right_floats = (gemm.n + kGemmPanel - 1) / kGemmPanel * kGemmPanel * kGemmDepth;
  grow(member_right_, pool_.threads() * right_floats * static_cast<int64_t>(sizeof(float)));
  pool_.parallel_for_worker(gemm.batch, [&](int64_t member, int worker) { run_member(gemm, member, worker); });
}

void TrainingGemm::run_member(const BatchedGemm<float>& gemm, int64_t member, int worker) {
  const float* a = gemm.a + member * gemm.a_step;
  const float* b = gemm.b + member * gemm.b_step;
  float* c = gemm.c + member * gemm.c_step;
  if (gemm.beta != 1.0f) {
    for (int64_t row = 0; row < gemm.m; ++row) {
      for (int64_t col = 0; col < gemm.n; ++col) {
        float& value = c[row * gemm.c_ld + col];
        value = gemm.beta == 0.0f ? 0.0f : gemm.beta * value;
      }
    }
  }
  const int64_t tile_rows = kernels_.tile_rows;
  const int64_t panels = (gemm.n + kGemmPanel - 1) / kGemmPanel;
  float* left = left_of(worker);
  float* right = member_right_.as<float>() + worker * panels * kGemmPanel * kGemmDepth;
  const bool by_columns = gemm.kind == GemmKind::kTN;
  GemmTile tile{.c_ld = gemm.c_ld, .form = by_columns ? LeftForm::kColumns : LeftForm::kRows256, .a_step = tile_rows,
                .scale = gemm.alpha, .add = true};
  for (int64_t k = 0; k < gemm.k; k += kGemmDepth) {
    tile.depth = std::min(kGemmDepth, gemm.k - k);
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t cols = std::min(kGemmPanel, gemm.n - p * kGemmPanel);
      float* out = right + p * kGemmPanel * kGemmDepth;
      if (gemm.kind == GemmKind::kNT) {
        kernels_.pack_panel_transposed(out, b + p * kGemmPanel * gemm.b_ld + k, gemm.b_ld, cols, tile.depth);
      } else {
        kernels_.pack_panel(out, b + k * gemm.b_ld + p * kGemmPanel, gemm.b_ld, cols, tile.depth);
      }
    }
    for (int64_t row = 0; row < gemm.m; row += tile_rows) {
      tile.rows = static_cast<int>(std::min(tile_rows, gemm.m - row));
      tile.a = left;
      if (by_columns) {
        kernels_.pack_columns(left, a + k * gemm.a_ld + row, gemm.a_ld, tile.rows, tile.depth);
      } else {
        kernels_.pack_rows(left, kGemmDepth, a + row * gemm.a_ld + k, gemm.a_ld, tile.rows, tile.depth);
      }
      for (int64_t p = 0; p < panels; ++p) {
        tile.b = right + p * kGemmPanel * kGemmDepth;
        tile.cols = static_cast<int>(std::min(kGemmPanel, gemm.n - p * kGemmPanel));
        tile.c = c + row * gemm.c_ld + p * kGemmPanel;
        kernels_.gemm_tile(tile);
      }
    }
  }
}

}  // namespace quipu::cpu
