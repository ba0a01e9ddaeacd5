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

// Products of pairs. Rows of a task: its packed left factor (256 KiB) and, of a product 512 columns wide, its results (512 KiB)
// stay in a second-level cache while all of the depth goes by; fewer rows where there would be too few tasks, but each wants
// every panel of the right factor once. Sums do not depend on it.
constexpr int64_t kPairBlockRows = 256;
constexpr int64_t kPairTasks = 4;
constexpr int64_t kPairPanelElements = kGemmPanel * kPairDepth;
// The right factor is packed whole, unless it is larger than this.
constexpr int64_t kPairRightBytes = int64_t{16} << 20;
constexpr int64_t kPairPackPanels = 8;   // packed by one task: lines across lie side by side

}  // namespace

int64_t TrainingGemm::scratch_bytes(int64_t weight_elements) const {
  if (pairs_) {
    const int64_t left = pool_.threads() * kPairBlockRows * kPairDepth, right = std::min(kPairRightBytes / 2, weight_elements + kPairPanelElements);
    return (left + right) * static_cast<int64_t>(sizeof(uint16_t));
  }
  const int64_t left = pool_.threads() * kLeftFloats;
  return (left + kGroupPanels * kGemmPanel * kGemmDepth) * static_cast<int64_t>(sizeof(float));
}

void TrainingGemm::plan(const GemmProblem& problem, int64_t block_rows, int64_t depth_step) {
  panels_.clear();
  for (const GemmColumns& columns : problem.columns) {
    for (int64_t first = 0; first < columns.cols; first += kGemmPanel) panels_.push_back({&columns, first});
  }
  blocks_.clear();
  for (const GemmRows& rows : problem.rows) {
    for (int64_t first = 0; first < rows.rows; first += block_rows) {
      blocks_.push_back({&rows, first, std::min(block_rows, rows.rows - first)});
    }
  }
  steps_.clear();
  const auto add_steps = [&](const GemmTerm* term, int64_t depth) {
    for (int64_t k = 0; k < depth; k += depth_step) steps_.push_back({term, k, std::min(depth_step, depth - k)});
  };
  if (problem.terms.empty()) add_steps(nullptr, problem.depth);
  for (const GemmTerm& term : problem.terms) add_steps(&term, term.depth);
}

void TrainingGemm::run(const GemmProblem& problem) { pairs_ ? run_pairs(problem) : run_floats(problem); }

void TrainingGemm::run_floats(const GemmProblem& problem) {
  plan(problem, kBlockRows, kGemmDepth);
  left_floats_ = kLeftFloats;
  grow(left_, pool_.threads() * left_floats_ * static_cast<int64_t>(sizeof(float)));
  const int64_t total = static_cast<int64_t>(panels_.size());
  grow(right_, std::min(total, kGroupPanels) * kGemmPanel * kGemmDepth * static_cast<int64_t>(sizeof(float)));
  for (int64_t group = 0; group < total; group += kGroupPanels) {
    const std::span<const Panel> panels =
        std::span(panels_).subspan(static_cast<size_t>(group), static_cast<size_t>(std::min(kGroupPanels, total - group)));
    for (const Step& step : steps_) {
      pool_.parallel_for(static_cast<int64_t>(panels.size()),
                         [&](int64_t index) { pack_panel(problem, panels[static_cast<size_t>(index)], index, step); });
      pool_.parallel_for_worker(static_cast<int64_t>(blocks_.size()), [&](int64_t index, int worker) {
        run_block(problem, panels, blocks_[static_cast<size_t>(index)], step, worker);
      });
    }
  }
}

void TrainingGemm::pack_panel(const GemmProblem& problem, const Panel& panel, int64_t index, const Step& step) {
  const GemmColumns& from = *panel.from;
  float* out = right_.as<float>() + index * kGemmPanel * kGemmDepth;
  const int64_t cols = std::min(kGemmPanel, from.cols - panel.first), ld = step.term != nullptr ? step.term->b_ld : from.b_ld;
  const float* b = step.term != nullptr ? step.term->b : from.b;
  if (problem.b_transposed) {
    kernels_.pack_panel_transposed(out, b + panel.first * ld + step.first, ld, cols, step.depth);
  } else {
    kernels_.pack_panel(out, b + step.first * ld + panel.first, ld, cols, step.depth);
  }
}

void TrainingGemm::run_block(const GemmProblem& problem, std::span<const Panel> panels, const Block& block, const Step& step, int worker) {
  const int64_t tile_rows = kernels_.tile_rows;
  const GemmRows& from = *block.from;
  const float* a = step.term != nullptr ? step.term->a : from.a;
  const int64_t a_ld = step.term != nullptr ? step.term->a_ld : from.a_ld;
  float* left = left_of(worker);
  const int64_t tile_floats = tile_rows * kGemmDepth;
  if (problem.a_by_columns) {
    for (int64_t row = 0; row < block.rows; row += tile_rows) {
      kernels_.pack_columns(left + row / tile_rows * tile_floats, a + step.first * a_ld + block.first + row, a_ld,
                            std::min(tile_rows, block.rows - row), step.depth);
    }
  } else {
    kernels_.pack_rows(left, kGemmDepth, a + block.first * a_ld + step.first, a_ld, block.rows, step.depth);
  }
  const bool add = problem.add || &step != steps_.data();
  GemmTile tile{.form = problem.a_by_columns ? LeftForm::kColumns : LeftForm::kRows256, .a_step = tile_rows, .depth = step.depth, .add = add};
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

// ---- pairs ----------------------------------------------------------------------------------------------------------

void TrainingGemm::run_pairs(const GemmProblem& problem) {
  int64_t rows = 0;
  for (const GemmRows& r : problem.rows) rows += r.rows;
  const int64_t share = (rows / std::max<int64_t>(kPairTasks, pool_.threads()) + kPairRows - 1) / kPairRows * kPairRows;
  plan(problem, std::clamp(share, kPairRows, kPairBlockRows), kPairDepth);
  left_floats_ = kPairBlockRows * kPairDepth / 2;
  grow(left_, pool_.threads() * left_floats_ * static_cast<int64_t>(sizeof(float)));
  const int64_t total = static_cast<int64_t>(panels_.size()), steps = static_cast<int64_t>(steps_.size());
  const int64_t panel_bytes = steps * kPairPanelElements * static_cast<int64_t>(sizeof(uint16_t));
  const int64_t group_panels = std::min(total, std::max(kPairPackPanels, kPairRightBytes / panel_bytes / kPairPackPanels * kPairPackPanels));
  grow(right_, group_panels * panel_bytes);
  for (int64_t group = 0; group < total; group += group_panels) {
    const std::span<const Panel> panels =
        std::span(panels_).subspan(static_cast<size_t>(group), static_cast<size_t>(std::min(group_panels, total - group)));
    const int64_t packs = (static_cast<int64_t>(panels.size()) + kPairPackPanels - 1) / kPairPackPanels;
    pool_.parallel_for(packs * steps, [&](int64_t index) {
      pack_panels_of_pairs(problem, panels, index / steps * kPairPackPanels, static_cast<size_t>(index % steps));
    });
    pool_.parallel_for_worker(static_cast<int64_t>(blocks_.size()), [&](int64_t index, int worker) {
      run_block_of_pairs(problem, panels, blocks_[static_cast<size_t>(index)], worker);
    });
  }
}

// right_: by step, by panel of the group.
void TrainingGemm::pack_panels_of_pairs(const GemmProblem& problem, std::span<const Panel> panels, int64_t first_panel, size_t index) {
  const Step& step = steps_[index];
  const int64_t end = std::min(first_panel + kPairPackPanels, static_cast<int64_t>(panels.size()));
  uint16_t* out = right_.as<uint16_t>() + (static_cast<int64_t>(index) * static_cast<int64_t>(panels.size()) + first_panel) * kPairPanelElements;
  for (int64_t p = first_panel; p < end;) {
    // Panels of the same columns together.
    const GemmColumns& from = *panels[static_cast<size_t>(p)].from;
    const int64_t first = panels[static_cast<size_t>(p)].first;
    const int64_t lines = std::min(from.cols - first, (end - p) * kGemmPanel), ld = step.term != nullptr ? step.term->b_ld : from.b_ld;
    const float* b = step.term != nullptr ? step.term->b : from.b;
    b += problem.b_transposed ? first * ld + step.first : step.first * ld + first;
    kernels_.pack_right_pairs(out, {.from = b, .ld = ld, .lines = lines, .depth = step.depth, .blocks = (step.depth + 31) / 32,
                                    .panel_step = kPairPanelElements, .across = !problem.b_transposed});
    const int64_t done = (lines + kGemmPanel - 1) / kGemmPanel;
    p += done;
    out += done * kPairPanelElements;
  }
}

void TrainingGemm::run_block_of_pairs(const GemmProblem& problem, std::span<const Panel> panels, const Block& block, int worker) {
  // More lines than this asked for in one block of 32 components would get in the way of its loads.
  constexpr int64_t kSoonBytes = 8 * 64;
  const GemmRows& from = *block.from;
  uint16_t* left = reinterpret_cast<uint16_t*>(left_of(worker));
  const uint16_t* right = right_.as<uint16_t>();
  const int64_t tiles = (block.rows + kPairRows - 1) / kPairRows;
  const auto c_of = [&](size_t panel, int64_t row, int64_t& ld) {
    const GemmColumns& to = *panels[panel].from;
    ld = to.c != nullptr ? to.c_ld : from.c_ld;
    return (to.c != nullptr ? to.c : from.c) + panels[panel].first + (block.first + row) * ld;
  };
  kernels_.begin_pairs();
  for (size_t s = 0; s < steps_.size(); ++s) {
    const Step& step = steps_[s];
    const float* a = step.term != nullptr ? step.term->a : from.a;
    const int64_t ld = step.term != nullptr ? step.term->a_ld : from.a_ld, blocks = (step.depth + 31) / 32;
    a += problem.a_by_columns ? step.first * ld + block.first : block.first * ld + step.first;
    kernels_.pack_left_pairs(left, {.from = a, .ld = ld, .lines = block.rows, .depth = step.depth, .blocks = blocks,
                                    .panel_step = kPairRows * kPairDepth, .across = problem.a_by_columns});
    PairTile tile{.blocks = blocks};
    const int64_t soon_bytes = std::min(kSoonBytes * blocks, (blocks * 2048 + tiles - 1) / tiles);
    for (size_t p = 0; p < panels.size(); ++p, right += kPairPanelElements) {
      const GemmColumns& to = *panels[p].from;
      const bool last = p + 1 == panels.size();
      tile.b = right;
      tile.cols = static_cast<int>(std::min(kGemmPanel, to.cols - panels[p].first));
      tile.bias = to.bias == nullptr || s > 0 ? nullptr : to.bias + panels[p].first;
      tile.soon_bytes = last && s + 1 == steps_.size() ? 0 : soon_bytes;
      for (int64_t t = 0; t < tiles; ++t) {
        tile.rows = static_cast<int>(std::min(kPairRows, block.rows - t * kPairRows));
        tile.a = left + t * kPairRows * kPairDepth;
        tile.c = c_of(p, t * kPairRows, tile.c_ld);
        tile.from = problem.add || s > 0 ? tile.c : nullptr;
        tile.from_ld = tile.c_ld;
        // The next panel's factor, a share with every tile; the next tile's results.
        tile.soon = reinterpret_cast<const char*>(right + kPairPanelElements) + t * soon_bytes;
        int64_t next_ld = 0;
        tile.next_c = t + 1 < tiles ? tile.c + kPairRows * tile.c_ld : last ? nullptr : c_of(p + 1, 0, next_ld);
        kernels_.pair_tile(tile);
      }
    }
  }
  kernels_.end_pairs();
}

// ---- batches --------------------------------------------------------------------------------------------------------

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
