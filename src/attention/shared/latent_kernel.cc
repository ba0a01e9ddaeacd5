#include "attention/shared/latent_kernel.h"

#include <algorithm>
#include <limits>

#include "attention/shared/latent_tiles.h"
#include "base/check.h"
#include "ops/kernels/attention_kernels.h"
#include "ops/kv_cache.h"
#include "tensor/quant_blocks.h"

namespace quipu {
namespace {

constexpr int64_t kSegmentPages = 4;
constexpr int64_t kSegmentRows = kSegmentPages * kPageRows;
// A task of tiles: its segments of 256 rows are folded one after the other by the thread that makes them, as a partial result of
// 16 heads takes a tenth of its segment's bytes to and from memory.
constexpr int64_t kTileTaskRows = 4 * kTileSegmentRows;
constexpr int64_t kBlockQueries = 64;       // query rows (token, head) that meet a page together
constexpr int64_t kSlotsPerThread = 8;      // partial results of kBlockQueries queries that are kept at once
constexpr int64_t kFoldQueries = 4;         // queries a folding task takes

int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }   // no cache line of two threads
int64_t groups_of(int64_t queries) { return (queries + kTileQueries - 1) / kTileQueries; }

// Rows of one sequence with all heads, or some heads of one row: queries that lie side by side.
struct Block {
  int64_t first_row = 0, rows = 0;
  int64_t first_head = 0, heads = 0;
  int64_t segments = 0;
  int64_t first_task = 0;    // of all blocks' segments, in order
  int64_t first_group = 0;   // of all blocks' queries as tiles read them
  int64_t queries() const { return rows * heads; }
};

// Running-softmax results of a block's queries over some rows.
struct Partial {
  float* out = nullptr;      // [queries][rank]
  float* maximum = nullptr;  // [queries]
  float* total = nullptr;
};

class AbsorbedAttention {
 public:
  AbsorbedAttention(ThreadPool& pool, MatrixView<float> out, MatrixView<const float> query,
                    std::span<const LatentContext> contexts, const LatentShape& shape, float* scratch)
      : pool_(pool), kernels_(attention_kernels(shape.isa)), out_(out), query_(query), contexts_(contexts), s_(shape) {
    blocks_ = reinterpret_cast<Block*>(scratch);
    scratch += whole_lines(most_blocks(s_, out.rows) * static_cast<int64_t>(sizeof(Block) / sizeof(float)));
    maximum_ = scratch;
    scratch += whole_lines(out.rows * s_.heads);
    total_ = scratch;
    scratch += whole_lines(out.rows * s_.heads);
    slots_ = scratch;
    scratch += slot_floats(s_, pool.threads());
    packed_ = reinterpret_cast<uint16_t*>(scratch);
    scratch += packed_floats(s_, out.rows);
    workers_ = scratch;
  }
  static int64_t scratch_floats(const LatentShape& s, int64_t rows, int threads) {
    static_assert(sizeof(Block) % sizeof(float) == 0);
    return whole_lines(most_blocks(s, rows) * static_cast<int64_t>(sizeof(Block) / sizeof(float))) +
           2 * whole_lines(rows * s.heads) + slot_floats(s, threads) + packed_floats(s, rows) + threads * worker_floats(s);
  }

  void run() {
    make_blocks();
    if (tiles_) pack_queries();
    const int64_t capacity = slot_floats(s_, pool_.threads());
    // As many partial results as there is room for, then their folding: the order of each block's segments is kept.
    for (int64_t begin = 0; begin < tasks_;) {
      int64_t end = begin, used = 0;
      while (end < tasks_ && used + partial_floats(blocks_[block_of(end)].queries()) <= capacity) {
        used += partial_floats(blocks_[block_of(end)].queries());
        ++end;
      }
      run_segments(begin, end);
      fold(begin, end);
      begin = end;
    }
  }

 private:
  static int64_t block_heads(const LatentShape& s) { return std::min(s.heads, kBlockQueries); }
  static int64_t most_blocks(const LatentShape& s, int64_t rows) {
    return rows * ((s.heads + block_heads(s) - 1) / block_heads(s));
  }
  int64_t partial_floats(int64_t queries) const { return whole_lines(queries * (s_.rank + 2)); }
  static int64_t slot_floats(const LatentShape& s, int threads) {
    return kSlotsPerThread * threads * whole_lines(kBlockQueries * (s.rank + 2));
  }
  static int64_t later_floats(const LatentShape& s) { return whole_lines(kBlockQueries * (s.rank + 2)); }
  static int64_t worker_floats(const LatentShape& s) {
    const int64_t one_page = whole_lines(kPageRows * s.width()) + kBlockQueries * kPageRows + 3 * kBlockQueries;
    const int64_t work = tile_work_bytes(kBlockQueries, s.width()) / static_cast<int64_t>(sizeof(float));
    return std::max(one_page, kBlockQueries + later_floats(s) + work);
  }
  // At most one group of a block is not full.
  static int64_t packed_floats(const LatentShape& s, int64_t rows) {
    return (rows * s.heads / kTileQueries + most_blocks(s, rows)) * tile_query_halves(s.width()) / 2;
  }

  void make_blocks() {
    const int64_t group = block_heads(s_);
    const int64_t most_rows = std::max<int64_t>(1, kBlockQueries / group);
    for (int64_t row = 0; row < out_.rows;) {
      int64_t end = row + 1;   // rows of the same sequence share its pages
      while (group == s_.heads && end < out_.rows && end - row < most_rows && pages(end) == pages(row)) ++end;
      int64_t most = 0;
      for (int64_t i = row; i < end; ++i) most = std::max(most, contexts_[static_cast<size_t>(i)].rows);
      for (int64_t head = 0; head < s_.heads; head += group) {
        Block& block = blocks_[count_++];
        block = {.first_row = row,
                 .rows = end - row,
                 .first_head = head,
                 .heads = std::min(group, s_.heads - head),
                 .segments = std::max<int64_t>(1, (most + task_rows_ - 1) / task_rows_),
                 .first_task = tasks_,
                 .first_group = groups_};
        tasks_ += block.segments;
        groups_ += groups_of(block.queries());
      }
      row = end;
    }
  }
  RowBlock queries_of(const Block& block) const {
    const int64_t width = s_.width();
    return {query_.row(block.first_row) + block.first_head * width, width, width, block.queries()};
  }
  void pack_queries() const {
    pool_.parallel_for(count_, [&](int64_t index) {
      const Block& block = blocks_[index];
      const RowBlock q = queries_of(block);
      for (int64_t first = 0; first < q.rows; first += kTileQueries) {
        pack_tile_queries(packed_of(block) + first / kTileQueries * tile_query_halves(q.dim),
                          {q.data + first * q.stride, q.stride, q.dim, std::min(kTileQueries, q.rows - first)});
      }
    });
  }
  uint16_t* packed_of(const Block& block) const { return packed_ + block.first_group * tile_query_halves(s_.width()); }
  std::byte* const* pages(int64_t row) const { return contexts_[static_cast<size_t>(row)].pages.data(); }
  int64_t block_of(int64_t task) const {
    const Block* after = std::upper_bound(blocks_, blocks_ + count_, task,
                                          [](int64_t wanted, const Block& block) { return wanted < block.first_task; });
    return after - blocks_ - 1;
  }

  // Partial results of tasks [begin, end) lie one after the other.
  Partial partial_of(int64_t begin, int64_t task) const {
    int64_t offset = 0;
    int64_t index = block_of(begin);
    for (int64_t at = begin; at < task;) {
      const Block& block = blocks_[index++];
      const int64_t tasks = std::min(block.first_task + block.segments, task) - at;
      offset += tasks * partial_floats(block.queries());
      at += tasks;
    }
    const int64_t queries = blocks_[block_of(task)].queries();
    float* base = slots_ + offset;
    return {base, base + queries * s_.rank, base + queries * (s_.rank + 1)};
  }
  Partial whole_of(const Block& block) const {
    const int64_t query = block.first_row * s_.heads + block.first_head;
    return {out_.data + query * s_.rank, maximum_ + query, total_ + query};
  }
  void clear(const Partial& partial, int64_t queries) const {
    std::fill_n(partial.out, queries * s_.rank, 0.0f);
    std::fill_n(partial.maximum, queries, -std::numeric_limits<float>::infinity());
    std::fill_n(partial.total, queries, 0.0f);
  }

  void run_segments(int64_t begin, int64_t end) {
    pool_.parallel_for_worker(end - begin, [&](int64_t index, int worker) {
      const int64_t task = begin + index;
      const Block& block = blocks_[block_of(task)];
      if (tiles_) {
        run_tiles(task, partial_of(begin, task), worker, end);
        release_latent_tiles();
      } else {
        run_segment(block, task - block.first_task, partial_of(begin, task), worker);
      }
    });
  }

  void run_segment(const Block& block, int64_t segment, const Partial& partial, int worker) const {
    const int64_t width = s_.width();
    float* wide = workers_ + worker * worker_floats(s_);
    float* scores = wide + whole_lines(kPageRows * width);
    float* rescale = scores + kBlockQueries * kPageRows;
    int32_t* first_key = reinterpret_cast<int32_t*>(rescale + kBlockQueries);
    int32_t* last_key = first_key + kBlockQueries;
    const int64_t queries = block.queries();
    const RowBlock q = queries_of(block);
    clear(partial, queries);
    std::fill_n(first_key, queries, 0);
    for (int64_t first = segment * kSegmentRows; first < (segment + 1) * kSegmentRows; first += kPageRows) {
      int64_t count = 0;
      for (int64_t i = 0; i < queries; ++i) {
        const int64_t rows = contexts_[static_cast<size_t>(block.first_row + i / block.heads)].rows;
        last_key[i] = static_cast<int32_t>(std::clamp<int64_t>(rows - first, 0, kPageRows));
        count = std::max<int64_t>(count, last_key[i]);
      }
      if (count == 0) return;
      const auto& pages = contexts_[static_cast<size_t>(block.first_row)].pages;
      const auto page = static_cast<size_t>(first / kPageRows);
      // The next page is asked for while this one is computed with: half of it during each of the two products.
      const int64_t half = row_bytes(s_.dtype, width) * kPageRows / 2;
      const std::byte* next = page + 1 < pages.size() ? pages[page + 1] : nullptr;
      const Ahead early = next == nullptr ? Ahead{} : Ahead{next, half}, late = next == nullptr ? Ahead{} : Ahead{next + half, half};
      const float* rows = wide;
      if (s_.dtype == DType::kF32) {
        rows = reinterpret_cast<const float*>(pages[page]);
        kernels_.row_scores(scores, q, {rows, width, width, count}, early);
      } else {
        kernels_.widen_row_scores(scores, wide, q, {pages[page], s_.dtype, width, count}, early);
      }
      kernels_.softmax_page(scores, partial.maximum, partial.total, rescale, first_key, last_key, queries, s_.scale, 0.0f);
      kernels_.row_values({partial.out, s_.rank, queries}, scores, rescale, {rows, width, s_.rank, count}, late);
    }
  }

  // Of the kTileSegmentRows rows from `first`, how many query i of a block sees, and the most that one sees.
  int64_t rows_seen(const Block& block, int64_t first, int64_t query) const {
    const int64_t rows = contexts_[static_cast<size_t>(block.first_row + query / block.heads)].rows;
    return std::clamp<int64_t>(rows - first, 0, kTileSegmentRows);
  }
  int64_t most_seen(const Block& block, int64_t first) const {
    int64_t most = 0;
    for (int64_t i = 0; i < block.rows; ++i) most = std::max(most, rows_seen(block, first, i * block.heads));
    return most;
  }
  // Returns how many rows of these pages a query sees.
  int64_t put_pages(const std::byte** out, const Block& block, int64_t first) const {
    const auto& pages = contexts_[static_cast<size_t>(block.first_row)].pages;
    const int64_t rows = most_seen(block, first);
    for (int64_t i = 0; i * kPageRows < rows; ++i) out[i] = pages[static_cast<size_t>(first / kPageRows + i)];
    return rows;
  }

  // What is read next is asked for on the way: of the next task too, which a thread mostly takes itself.
  void run_tiles(int64_t task, const Partial& partial, int worker, int64_t end) const {
    const Block& block = blocks_[block_of(task)];
    const int64_t begin = (task - block.first_task) * kTileTaskRows, queries = block.queries();
    float* work = workers_ + worker * worker_floats(s_);
    int32_t* visible = reinterpret_cast<int32_t*>(work);
    float* more = work + kBlockQueries;
    const Partial later{more, more + queries * s_.rank, more + queries * (s_.rank + 1)};
    std::byte* scratch = reinterpret_cast<std::byte*>(more + later_floats(s_));
    for (int64_t first = begin; first < begin + kTileTaskRows; first += kTileSegmentRows) {
      TileSegment segment{.dtype = s_.dtype, .width = s_.width(), .rank = s_.rank};
      segment.rows = put_pages(segment.pages, block, first);
      if (segment.rows == 0) {
        if (first == begin) clear(partial, queries);
        return;
      }
      if (first + kTileSegmentRows < begin + kTileTaskRows) {
        segment.next_rows = put_pages(segment.next, block, first + kTileSegmentRows);
      }
      if (segment.next_rows == 0 && task + 1 < end) {
        const Block& next = blocks_[block_of(task + 1)];
        segment.next_rows = put_pages(segment.next, next, (task + 1 - next.first_task) * kTileTaskRows);
      }
      for (int64_t i = 0; i < queries; ++i) visible[i] = static_cast<int32_t>(rows_seen(block, first, i));
      const Partial& to = first == begin ? partial : later;
      attend_tiles({to.out, to.maximum, to.total}, {packed_of(block), queries, visible, s_.scale}, segment, scratch);
      if (first == begin) continue;
      kernels_.merge_partial(partial.out, partial.maximum, partial.total, later.out, later.maximum, later.total, queries, s_.rank);
    }
  }

  void fold(int64_t begin, int64_t end) {
    const int64_t first_block = block_of(begin);
    const int64_t folded = block_of(end - 1) - first_block + 1;
    constexpr int64_t kPieces = kBlockQueries / kFoldQueries;
    pool_.parallel_for(folded * kPieces, [&](int64_t index) {
      const Block& block = blocks_[first_block + index / kPieces];
      const int64_t first = index % kPieces * kFoldQueries;
      const int64_t queries = std::min(kFoldQueries, block.queries() - first);
      if (queries <= 0) return;
      const auto from = [&](const Partial& p) { return Partial{p.out + first * s_.rank, p.maximum + first, p.total + first}; };
      const Partial whole = from(whole_of(block));
      if (block.first_task >= begin) clear(whole, queries);
      const int64_t last = std::min(end, block.first_task + block.segments);
      for (int64_t task = std::max(begin, block.first_task); task < last; ++task) {
        const Partial part = from(partial_of(begin, task));
        kernels_.merge_partial(whole.out, whole.maximum, whole.total, part.out, part.maximum, part.total, queries, s_.rank);
      }
      if (last == block.first_task + block.segments) finish(block, whole, first, queries);
    });
  }

  // The row's own key, if it has one, and the division.
  void finish(const Block& block, const Partial& whole, int64_t first, int64_t queries) const {
    for (int64_t i = 0; i < queries; ++i) {
      const int64_t row = block.first_row + (first + i) / block.heads;
      const int64_t head = block.first_head + (first + i) % block.heads;
      const float* own = contexts_[static_cast<size_t>(row)].own;
      float* sum = whole.out + i * s_.rank;
      if (own != nullptr) {
        alignas(64) float scores[kPageRows];
        float rescale = 1.0f;
        const int32_t none = 0, one = 1;
        const int64_t width = s_.width();
        kernels_.row_scores(scores, {query_.row(row) + head * width, width, width, 1}, {own, width, width, 1}, {});
        kernels_.softmax_page(scores, whole.maximum + i, whole.total + i, &rescale, &none, &one, 1, s_.scale, 0.0f);
        kernels_.row_values({sum, s_.rank, 1}, scores, &rescale, {own, width, s_.rank, 1}, {});
      }
      const float share = 1.0f / whole.total[i];
      for (int64_t c = 0; c < s_.rank; ++c) sum[c] *= share;
    }
  }

  ThreadPool& pool_;
  const AttentionKernels& kernels_;
  MatrixView<float> out_;
  MatrixView<const float> query_;
  std::span<const LatentContext> contexts_;
  const LatentShape& s_;
  Block* blocks_ = nullptr;
  int64_t count_ = 0, tasks_ = 0, groups_ = 0;
  float *maximum_ = nullptr, *total_ = nullptr;   // of the running results, which are out_ itself
  float *slots_ = nullptr, *workers_ = nullptr;
  const bool tiles_ = multiplies_latents_by_tiles(s_.isa, s_.dtype);
  const int64_t task_rows_ = tiles_ ? kTileTaskRows : kSegmentRows;
  uint16_t* packed_ = nullptr;                    // of every block, group after group
};

}  // namespace

void store_latent_row(std::byte* page, DType dtype, int64_t width, int64_t row, const float* values) {
  quantise_row(page + row * row_bytes(dtype, width), dtype, values, width);
}

int64_t absorbed_scratch_floats(const LatentShape& shape, int64_t rows, int threads) {
  return AbsorbedAttention::scratch_floats(shape, rows, threads);
}

void attend_absorbed(ThreadPool& pool, MatrixView<float> out, MatrixView<const float> query,
                     std::span<const LatentContext> contexts, const LatentShape& shape, float* scratch) {
  CHECK(out.rows == query.rows && static_cast<int64_t>(contexts.size()) == out.rows &&
        out.cols == shape.heads * shape.rank && query.cols == shape.heads * shape.width());
  CHECK(out.stride == out.cols && query.stride == query.cols) << "rows with gaps";
  if (out.rows == 0) return;
  AbsorbedAttention(pool, out, query, contexts, shape, scratch).run();
}

}  // namespace quipu
