#include "attention/shared/latent_kernel.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "base/check.h"
#include "ops/kv_cache.h"
#include "tensor/quant_blocks.h"

namespace quipu {
namespace {

constexpr int64_t kLanes = 16;         // independent sums: compilers make vectors of them, in one order everywhere
constexpr int64_t kQueryBlock = 4;     // query rows that share a decoded page

float dot(const float* a, const float* b, int64_t n) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
  }
  for (int64_t lane = 0; i + lane < n; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

void multiply(float* sum, float factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] *= factor;
}

// sum += w[0] a + w[1] b + w[2] c + w[3] d, in that order.
void add_four(float* sum, const float* w, const float* const* rows, int64_t n) {
  const float *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t at = i + lane;
      sum[at] = (((sum[at] + w[0] * a[at]) + w[1] * b[at]) + w[2] * c[at]) + w[3] * d[at];
    }
  }
  for (; i < n; ++i) sum[i] = (((sum[i] + w[0] * a[i]) + w[1] * b[i]) + w[2] * c[i]) + w[3] * d[i];
}

void add_one(float* sum, float weight, const float* row, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += weight * row[i];
}

// One thread's scratch.
struct Workspace {
  float* page;            // [64 * width]
  SoftmaxState* states;   // [kQueryBlock * heads]
};

Workspace workspace_of(const LatentShape& shape, float* scratch, int worker) {
  float* mine = scratch + worker * absorbed_scratch_floats(shape);
  return {mine, reinterpret_cast<SoftmaxState*>(mine + kPageRows * shape.width())};
}

// A task: rows [begin, end) of one sequence, heads [first_head, last_head).
struct Task {
  int64_t begin, end, first_head, last_head;
};

void run_task(const Task& task, MatrixView<float> out, MatrixView<const float> query,
              std::span<const LatentContext> contexts, const LatentShape& s, const Workspace& work) {
  const int64_t width = s.width();
  const auto block_of = [&](const float* rows) {
    return LatentBlock{.key = rows, .key_stride = width, .key_dim = width, .value = rows, .value_stride = width,
                       .value_dim = s.rank};
  };
  const auto state_of = [&](int64_t row, int64_t head) -> SoftmaxState& {
    return work.states[(row - task.begin) * s.heads + head];
  };
  const auto attend = [&](int64_t row, const float* rows, int64_t count) {
    for (int64_t head = task.first_head; head < task.last_head; ++head) {
      attend_latent_block(state_of(row, head), out.row(row) + head * s.rank, query.row(row) + head * width, nullptr,
                          s.scale, block_of(rows), count);
    }
  };
  int64_t most = 0;
  for (int64_t row = task.begin; row < task.end; ++row) {
    most = std::max(most, contexts[static_cast<size_t>(row)].rows);
    std::fill(out.row(row) + task.first_head * s.rank, out.row(row) + task.last_head * s.rank, 0.0f);
    for (int64_t head = task.first_head; head < task.last_head; ++head) std::construct_at(&state_of(row, head));
  }
  const std::span<std::byte* const> pages = contexts[static_cast<size_t>(task.begin)].pages;
  for (int64_t first = 0; first < most; first += kPageRows) {
    const float* rows = latent_rows(pages[static_cast<size_t>(first / kPageRows)], s.dtype, width,
                                    std::min(kPageRows, most - first), work.page);
    for (int64_t row = task.begin; row < task.end; ++row) {
      const int64_t seen = std::min(kPageRows, contexts[static_cast<size_t>(row)].rows - first);
      if (seen > 0) attend(row, rows, seen);
    }
  }
  for (int64_t row = task.begin; row < task.end; ++row) {
    const float* own = contexts[static_cast<size_t>(row)].own;
    if (own != nullptr) attend(row, own, 1);
    for (int64_t head = task.first_head; head < task.last_head; ++head) {
      multiply(out.row(row) + head * s.rank, 1.0f / state_of(row, head).sum, s.rank);
    }
  }
}

}  // namespace

void store_latent_row(std::byte* page, DType dtype, int64_t width, int64_t row, const float* values) {
  quantise_row(page + row * row_bytes(dtype, width), dtype, values, width);
}

const float* latent_rows(const std::byte* page, DType dtype, int64_t width, int64_t count, float* buffer) {
  if (dtype == DType::kF32) return reinterpret_cast<const float*>(page);
  const int64_t bytes = row_bytes(dtype, width);
  for (int64_t row = 0; row < count; ++row) dequantise_row(buffer + row * width, dtype, page + row * bytes, width);
  return buffer;
}

void attend_latent_block(SoftmaxState& state, float* sum, const float* query, const float* rotary_query, float scale,
                         const LatentBlock& block, int64_t rows) {
  float weight[kPageRows];
  float largest = state.largest;
  for (int64_t j = 0; j < rows; ++j) {
    float score = dot(query, block.key + j * block.key_stride, block.key_dim);
    if (block.rotary_dim > 0) score += dot(rotary_query, block.rotary + j * block.rotary_stride, block.rotary_dim);
    weight[j] = score * scale;
    largest = std::max(largest, weight[j]);
  }
  if (largest > state.largest) {
    const float shrink = std::exp(state.largest - largest);
    state.sum *= shrink;
    multiply(sum, shrink, block.value_dim);
    state.largest = largest;
  }
  for (int64_t j = 0; j < rows; ++j) {
    weight[j] = std::exp(weight[j] - largest);
    state.sum += weight[j];
  }
  int64_t j = 0;
  for (; j + 4 <= rows; j += 4) {
    const float* const four[] = {block.value + j * block.value_stride, block.value + (j + 1) * block.value_stride,
                                 block.value + (j + 2) * block.value_stride, block.value + (j + 3) * block.value_stride};
    add_four(sum, weight + j, four, block.value_dim);
  }
  for (; j < rows; ++j) add_one(sum, weight[j], block.value + j * block.value_stride, block.value_dim);
}

int64_t absorbed_scratch_floats(const LatentShape& shape) {
  static_assert(sizeof(SoftmaxState) == 2 * sizeof(float));
  return (kPageRows * shape.width() + 2 * kQueryBlock * shape.heads + 15) / 16 * 16;   // no cache line of two threads
}

void attend_absorbed(ThreadPool& pool, MatrixView<float> out, MatrixView<const float> query,
                     std::span<const LatentContext> contexts, const LatentShape& shape, float* scratch) {
  CHECK(out.rows == query.rows && static_cast<int64_t>(contexts.size()) == out.rows &&
        out.cols == shape.heads * shape.rank && query.cols == shape.heads * shape.width());
  const int64_t blocks = (out.rows + kQueryBlock - 1) / kQueryBlock;
  if (blocks == 0) return;
  // Heads are independent: how they are grouped changes who computes what, not the result.
  const int64_t wanted = pool.threads() == 1 ? 1 : (4 * pool.threads() + blocks - 1) / blocks;
  const int64_t group = (shape.heads + std::min(wanted, shape.heads) - 1) / std::min(wanted, shape.heads);
  const int64_t groups = (shape.heads + group - 1) / group;
  pool.parallel_for_worker(blocks * groups, [&](int64_t index, int worker) {
    const Workspace work = workspace_of(shape, scratch, worker);
    const int64_t first_head = index % groups * group;
    const int64_t end = std::min(out.rows, (index / groups + 1) * kQueryBlock);
    for (int64_t begin = index / groups * kQueryBlock; begin < end;) {
      int64_t stop = begin + 1;   // rows of the same sequence share its pages
      while (stop < end && contexts[static_cast<size_t>(stop)].pages.data() == contexts[static_cast<size_t>(begin)].pages.data()) {
        ++stop;
      }
      run_task({begin, stop, first_head, std::min(shape.heads, first_head + group)}, out, query, contexts, shape, work);
      begin = stop;
    }
  });
}

}  // namespace quipu
