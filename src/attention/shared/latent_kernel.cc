#include "attention/shared/latent_kernel.h"

#include <algorithm>
#include <memory>

#include "base/check.h"
#include "ops/kv_cache.h"
#include "tensor/quant_blocks.h"

namespace quipu {
namespace {

constexpr int64_t kQueryBlock = 4;     // query rows that share a decoded page

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
  const LatentKernels& kernels = latent_kernels(s.isa);
  const auto block_of = [&](const float* rows) {
    return LatentBlock{.key = rows, .key_stride = width, .key_dim = width, .value = rows, .value_stride = width,
                       .value_dim = s.rank};
  };
  const auto state_of = [&](int64_t row, int64_t head) -> SoftmaxState& {
    return work.states[(row - task.begin) * s.heads + head];
  };
  const auto attend = [&](int64_t row, const float* rows, int64_t count) {
    for (int64_t head = task.first_head; head < task.last_head; ++head) {
      kernels.attend_block(state_of(row, head), out.row(row) + head * s.rank, query.row(row) + head * width, nullptr,
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
    const float* rows = latent_rows(pages[static_cast<size_t>(first / kPageRows)], s, std::min(kPageRows, most - first),
                                    work.page);
    for (int64_t row = task.begin; row < task.end; ++row) {
      const int64_t seen = std::min(kPageRows, contexts[static_cast<size_t>(row)].rows - first);
      if (seen > 0) attend(row, rows, seen);
    }
  }
  for (int64_t row = task.begin; row < task.end; ++row) {
    const float* own = contexts[static_cast<size_t>(row)].own;
    if (own != nullptr) attend(row, own, 1);
    for (int64_t head = task.first_head; head < task.last_head; ++head) {
      const float share = 1.0f / state_of(row, head).sum;
      for (int64_t c = 0; c < s.rank; ++c) out.row(row)[head * s.rank + c] *= share;
    }
  }
}

}  // namespace

void store_latent_row(std::byte* page, DType dtype, int64_t width, int64_t row, const float* values) {
  quantise_row(page + row * row_bytes(dtype, width), dtype, values, width);
}

const float* latent_rows(const std::byte* page, const LatentShape& shape, int64_t count, float* buffer) {
  const int64_t width = shape.width();
  const LatentKernels& kernels = latent_kernels(shape.isa);
  switch (shape.dtype) {
    case DType::kF32: return reinterpret_cast<const float*>(page);
    case DType::kF16: kernels.decode_f16(buffer, page, count * width); return buffer;
    case DType::kBF16: kernels.decode_bf16(buffer, page, count * width); return buffer;
    default: dequantise_row(buffer, shape.dtype, page, count * width); return buffer;   // rows are whole blocks
  }
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
