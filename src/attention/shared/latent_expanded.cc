#include "attention/shared/latent_expanded.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "ops/kernels/attention_kernels.h"
#include "ops/kv_cache.h"

namespace quipu {
namespace {

constexpr int64_t kStretchPages = 2;       // expanded at once
constexpr int64_t kStretchRows = kStretchPages * kPageRows;
constexpr int64_t kBlockRows = 64;         // query rows of a head that meet a page together
// Query rows of a task of tiles: the more, the fewer times keys and values are made.
constexpr int64_t kTileTaskRows = 1024;

int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

class ExpandedAttention {
 public:
  ExpandedAttention(Backend& backend, MatrixView<float> out, MatrixView<const float> query,
                    std::span<const LatentContext> contexts, const ExpandedShape& shape, float* scratch)
      : backend_(backend), kernels_(attention_kernels(shape.latent.isa)), out_(out), query_(query), contexts_(contexts),
        s_(shape) {
    const auto take = [&scratch](int64_t floats) {
      float* part = scratch;
      scratch += whole_lines(floats);
      return part;
    };
    const int64_t rows = rows_at_once(s_), columns = s_.latent.heads * s_.head_rows();
    latents_ = take(rows * s_.latent.width());
    expanded_ = {take(rows * columns), rows, columns};
    maximum_ = take(out.rows * s_.latent.heads);
    total_ = take(out.rows * s_.latent.heads);
    workers_ = scratch;
  }
  static int64_t scratch_floats(const ExpandedShape& s, int64_t rows, int threads) {
    return whole_lines(rows_at_once(s) * s.latent.width()) + whole_lines(rows_at_once(s) * s.latent.heads * s.head_rows()) +
           2 * whole_lines(rows * s.latent.heads) + threads * worker_floats(s);
  }

  void run(const PackedMatrix& up) {
    for (int64_t row = 0; row < out_.rows; ++row) {
      most_ = std::max(most_, contexts_[static_cast<size_t>(row)].rows);
      std::fill_n(out_.row(row), out_.cols, 0.0f);
    }
    std::fill_n(maximum_, out_.rows * s_.latent.heads, -std::numeric_limits<float>::infinity());
    std::fill_n(total_, out_.rows * s_.latent.heads, 0.0f);
    if (s_.tiles) attend_tiles(up.tile_pairs());
    for (int64_t first = 0; first < most_ && !s_.tiles; first += kStretchRows) {
      expand_pages(up, first);
      attend_stretch(first);
    }
    if (contexts_[0].own != nullptr) attend_own(up);
    divide();
  }

 private:
  static int64_t rows_at_once(const ExpandedShape& s) { return s.tiles ? kPageRows : kStretchRows; }
  static int64_t worker_floats(const ExpandedShape& s) {
    return s.tiles ? std::max(page_floats(s), TileWorker(s, nullptr).floats) : page_floats(s);
  }
  static int64_t page_floats(const ExpandedShape& s) {
    return whole_lines(kBlockRows * s.query_dim()) + kStretchRows * s.query_dim() + kBlockRows * kPageRows + 3 * kBlockRows;
  }
  struct Worker {
    float* q;          // [kBlockRows][query_dim]
    float* keys;       // [kStretchPages][query_dim][64]
    float* scores;     // [kBlockRows][64]
    float* rescale;
    int32_t *first, *last;
  };
  Worker worker_of(int worker) const {
    float* q = workers_ + worker * worker_floats(s_);
    float* keys = q + whole_lines(kBlockRows * s_.query_dim());
    float* scores = keys + kStretchRows * s_.query_dim();
    float* rescale = scores + kBlockRows * kPageRows;
    int32_t* first = reinterpret_cast<int32_t*>(rescale + kBlockRows);
    return {q, keys, scores, rescale, first, first + kBlockRows};
  }
  int64_t rows_seen(int64_t row) const { return contexts_[static_cast<size_t>(row)].rows; }

  // Page by page, unwritten rows as zeros: products of one shape need no new memory in the back end.
  void expand_pages(const PackedMatrix& up, int64_t first) {
    const int64_t count = std::min(kStretchRows, most_ - first), width = s_.latent.width();
    const int64_t rows = (count + kPageRows - 1) / kPageRows * kPageRows;
    for (int64_t row = 0; row < count; row += kPageRows) {
      const std::byte* page = contexts_[0].pages[static_cast<size_t>((first + row) / kPageRows)];
      kernels_.widen_run(latents_ + row * width, page, s_.latent.dtype, std::min(kPageRows, count - row) * width);
    }
    std::fill(latents_ + count * width, latents_ + rows * width, 0.0f);
    for (int64_t row = 0; row < rows; row += kPageRows) {
      backend_.matmul(expanded_.rows_from(row, kPageRows), up, {latents_ + row * width, kPageRows, s_.latent.rank, width});
    }
  }

  void attend_stretch(int64_t first) {
    const int64_t blocks = (out_.rows + kBlockRows - 1) / kBlockRows;
    // Keys are turned once for a task's blocks, so a task has as many as leave every thread some tasks.
    const int64_t wanted = (4 * backend_.threads() + s_.latent.heads - 1) / s_.latent.heads;
    const int64_t groups = std::min(blocks, wanted);
    const int64_t group = (blocks + groups - 1) / groups;
    backend_.pool().parallel_for_worker(s_.latent.heads * groups, [&](int64_t task, int number) {
      const int64_t head = task / groups, begin = task % groups * group;
      if (begin >= blocks) return;
      const Worker worker = worker_of(number);
      turn_keys(worker, head, std::min(kStretchRows, most_ - first));
      for (int64_t block = begin; block < std::min(blocks, begin + group); ++block) attend_block(worker, head, block, first);
    });
  }

  void turn_keys(const Worker& worker, int64_t head, int64_t count) const {
    for (int64_t row = 0; row < count; row += kPageRows) {
      float* keys = worker.keys + row * s_.query_dim();
      const int64_t rows = std::min(kPageRows, count - row);
      kernels_.turn_rows(keys, {expanded_.row(row) + head * s_.head_rows(), expanded_.stride, s_.nope_dim, rows});
      kernels_.turn_rows(keys + kPageRows * s_.nope_dim, {latents_ + row * s_.latent.width() + s_.latent.rank,
                                                          s_.latent.width(), s_.latent.rope_dim, rows});
    }
  }

  void attend_block(const Worker& worker, int64_t head, int64_t block, int64_t first) const {
    const int64_t begin = block * kBlockRows, rows = std::min(kBlockRows, out_.rows - begin), dim = s_.query_dim();
    const int64_t state = head * out_.rows + begin;
    for (int64_t i = 0; i < rows; ++i) std::copy_n(query_.row(begin + i) + head * dim, dim, worker.q + i * dim);
    std::fill_n(worker.first, rows, 0);
    for (int64_t page = 0; page < kStretchPages; ++page) {
      int64_t count = 0;
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t seen = std::clamp<int64_t>(rows_seen(begin + i) - first - page * kPageRows, 0, kPageRows);
        worker.last[i] = static_cast<int32_t>(seen);
        count = std::max(count, seen);
      }
      if (count == 0) return;
      const std::byte* keys = reinterpret_cast<const std::byte*>(worker.keys + page * kPageRows * dim);
      kernels_.page_scores(worker.scores, worker.q, rows, {keys, DType::kF32, dim});
      kernels_.softmax_page(worker.scores, maximum_ + state, total_ + state, worker.rescale, worker.first, worker.last, rows,
                            s_.latent.scale, 0.0f);
      const float* values = expanded_.row(page * kPageRows) + head * s_.head_rows() + s_.key_rows();
      kernels_.row_values({out_.row(begin) + head * s_.value_dim, out_.stride, rows}, worker.scores, worker.rescale,
                          {values, expanded_.stride, s_.value_dim, count}, {});
    }
  }

  struct TileWorker {
    PairedSegment pairs;
    uint16_t* queries;         // by blocks of kSegmentRows rows: [key_dim / 32][rows][32]
    std::byte *expand, *attend;
    float *sums, *maximum, *total;   // of a block over a segment
    // Of the task's rows, running: side by side. In `out` they are a power of two apart, and so in the same few sets of a cache.
    float* whole;
    int32_t *first, *last;
    int64_t floats = 0, value_stride = 0;
    TileWorker(const ExpandedShape& s, float* memory) {
      const auto take = [&](int64_t bytes) {
        float* part = memory == nullptr ? nullptr : memory + floats;
        floats += whole_lines((bytes + 3) / 4);
        return part;
      };
      const int64_t dim = expanded_key_dim(s.nope_dim, s.latent.rope_dim);
      value_stride = (s.value_dim + 15) / 16 * 16;
      pairs.keys_memory = reinterpret_cast<std::byte*>(take(PairedSegment::key_bytes(dim)));
      pairs.values = reinterpret_cast<std::byte*>(take(PairedSegment::value_bytes(s.value_dim)));
      queries = reinterpret_cast<uint16_t*>(take(kTileTaskRows * dim * 2));
      expand = reinterpret_cast<std::byte*>(take(expand_work_bytes(s.latent.width())));
      attend = reinterpret_cast<std::byte*>(take(kSegmentScratchBytes));
      sums = take(kSegmentRows * value_stride * 4);
      maximum = take(kSegmentRows * 4);
      total = take(kSegmentRows * 4);
      whole = take(kTileTaskRows * value_stride * 4);
      first = reinterpret_cast<int32_t*>(take(kSegmentRows * 4));
      last = reinterpret_cast<int32_t*>(take(kSegmentRows * 4));
    }
  };

  // A task is some rows with one head: all rows, unless that leaves threads without work.
  void attend_tiles(const std::byte* up) {
    const int64_t heads = s_.latent.heads, blocks = (out_.rows + kSegmentRows - 1) / kSegmentRows;
    const int64_t wanted = std::min(blocks, (2 * backend_.threads() + heads - 1) / heads);
    const int64_t group = std::min((blocks + wanted - 1) / wanted, kTileTaskRows / kSegmentRows) * kSegmentRows;
    const int64_t groups = (out_.rows + group - 1) / group;
    const int64_t head_bytes = s_.head_rows() / 16 * paired_blocks(s_.latent.rank) * kPairedBlockBytes;
    backend_.pool().parallel_for_worker(heads * groups, [&](int64_t task, int number) {
      TileWorker worker(s_, workers_ + number * worker_floats(s_));
      const int64_t head = task / groups, begin = task % groups * group, end = std::min(out_.rows, begin + group);
      round_queries(worker, head, begin, end);
      std::fill_n(worker.whole, (end - begin) * worker.value_stride, 0.0f);
      int64_t most = 0;
      for (int64_t row = begin; row < end; ++row) most = std::max(most, rows_seen(row));
      for (int64_t first = 0; first < most; first += kTileSegmentRows) {
        TileSegment segment{.rows = std::min(kTileSegmentRows, most - first),
                            .dtype = s_.latent.dtype,
                            .width = s_.latent.width(),
                            .rank = s_.latent.rank};
        for (int64_t row = 0; row < segment.rows; row += kPageRows) {
          segment.pages[row / kPageRows] = contexts_[0].pages[static_cast<size_t>((first + row) / kPageRows)];
        }
        expand_tiles(worker.pairs, segment, {up + head * head_bytes, s_.nope_dim, s_.value_dim}, worker.expand);
        for (int64_t row = begin; row < end; row += kSegmentRows) {
          attend_segment(worker, head, {row, std::min(kSegmentRows, end - row)}, row - begin, first);
        }
        kernels_.release_tiles();   // expanding configures them otherwise
      }
      for (int64_t row = begin; row < end; ++row) {
        std::copy_n(worker.whole + (row - begin) * worker.value_stride, s_.value_dim, out_.row(row) + head * s_.value_dim);
      }
    });
  }

  void round_queries(const TileWorker& worker, int64_t head, int64_t begin, int64_t end) const {
    const int64_t nope = s_.nope_dim, dim = worker_dim();
    for (int64_t row = begin; row < end; ++row) {
      const int64_t block = (row - begin) / kSegmentRows * kSegmentRows, rows = std::min(kSegmentRows, end - begin - block);
      uint16_t* to = worker.queries + block * dim + (row - begin - block) * kBlockCols;
      const float* from = query_.row(row) + head * s_.query_dim();
      kernels_.round_row(to, rows * kBlockCols, from, nope);
      kernels_.round_row(to + paired_blocks(nope) * rows * kBlockCols, rows * kBlockCols, from + nope, s_.latent.rope_dim);
    }
  }
  int64_t worker_dim() const { return expanded_key_dim(s_.nope_dim, s_.latent.rope_dim); }

  struct RowRun {
    int64_t begin, rows;
  };
  // The block's rows, number `offset` on of the task's, and the segment whose first row is `first`.
  void attend_segment(TileWorker& worker, int64_t head, const RowRun& block, int64_t offset, int64_t first) const {
    PairedSegment seen = worker.pairs;
    seen.keys = 0;
    for (int64_t i = 0; i < block.rows; ++i) {
      const int64_t last = std::clamp<int64_t>(rows_seen(block.begin + i) - first, 0, worker.pairs.keys);
      worker.first[i] = 0;
      worker.last[i] = static_cast<int32_t>(last);
      seen.keys = std::max(seen.keys, last);
    }
    if (seen.keys == 0) return;
    kernels_.attend_segment({worker.sums, worker.value_stride, worker.maximum, worker.total},
                            {.rows = block.rows,
                             .halves = worker.queries + offset * worker_dim(),
                             .first = worker.first,
                             .last = worker.last,
                             .scale = s_.latent.scale},
                            seen, worker.attend);
    const int64_t state = head * out_.rows + block.begin;
    kernels_.merge_partial(worker.whole + offset * worker.value_stride, maximum_ + state, total_ + state, worker.sums, worker.maximum,
                           worker.total, block.rows, worker.value_stride);
  }

  // Every row and its own key (MTLA: the open chunk as it stood at that token).
  void attend_own(const PackedMatrix& up) {
    const int64_t width = s_.latent.width(), dim = s_.query_dim();
    for (int64_t begin = 0; begin < out_.rows; begin += kPageRows) {
      const int64_t count = std::min(kPageRows, out_.rows - begin);
      for (int64_t i = 0; i < count; ++i) {
        std::copy_n(contexts_[static_cast<size_t>(begin + i)].own, width, latents_ + i * width);
      }
      backend_.matmul(expanded_.rows_from(0, count), up, {latents_, count, s_.latent.rank, width});
      backend_.pool().parallel_for_worker(count, [&](int64_t i, int number) {
        const Worker worker = worker_of(number);
        const int32_t none = 0, one = 1;
        for (int64_t head = 0; head < s_.latent.heads; ++head) {
          const float* of_head = expanded_.row(i) + head * s_.head_rows();
          const int64_t state = head * out_.rows + begin + i;
          std::copy_n(of_head, s_.nope_dim, worker.keys);
          std::copy_n(latents_ + i * width + s_.latent.rank, s_.latent.rope_dim, worker.keys + s_.nope_dim);
          kernels_.row_scores(worker.scores, {query_.row(begin + i) + head * dim, dim, dim, 1}, {worker.keys, dim, dim, 1}, {});
          kernels_.softmax_page(worker.scores, maximum_ + state, total_ + state, worker.rescale, &none, &one, 1,
                                s_.latent.scale, 0.0f);
          kernels_.row_values({out_.row(begin + i) + head * s_.value_dim, out_.stride, 1}, worker.scores, worker.rescale,
                              {of_head + s_.key_rows(), s_.value_dim, s_.value_dim, 1}, {});
        }
      });
    }
  }

  void divide() {
    backend_.pool().parallel_for(out_.rows, [&](int64_t row) {
      for (int64_t head = 0; head < s_.latent.heads; ++head) {
        float* sum = out_.row(row) + head * s_.value_dim;
        const float share = 1.0f / total_[head * out_.rows + row];
        for (int64_t c = 0; c < s_.value_dim; ++c) sum[c] *= share;
      }
    });
  }

  Backend& backend_;
  const AttentionKernels& kernels_;
  MatrixView<float> out_;
  MatrixView<const float> query_;
  std::span<const LatentContext> contexts_;
  const ExpandedShape& s_;
  int64_t most_ = 0;
  float* latents_ = nullptr;                      // [rows_at_once][width]
  MatrixView<float> expanded_;                    // [rows_at_once][heads * head_rows]
  float *maximum_ = nullptr, *total_ = nullptr;   // [heads][rows]
  float* workers_ = nullptr;
};

}  // namespace

int64_t expanded_scratch_floats(const ExpandedShape& shape, int64_t rows, int threads) {
  return ExpandedAttention::scratch_floats(shape, rows, threads);
}

void attend_expanded(Backend& backend, MatrixView<float> out, MatrixView<const float> query,
                     std::span<const LatentContext> contexts, const PackedMatrix& up, const ExpandedShape& shape,
                     float* scratch) {
  const int64_t heads = shape.latent.heads;
  CHECK(out.rows == query.rows && static_cast<int64_t>(contexts.size()) == out.rows && out.cols == heads * shape.value_dim &&
        query.cols == heads * shape.query_dim() && up.rows() == heads * shape.head_rows() && up.cols() == shape.latent.rank);
  if (out.rows == 0) return;
  ExpandedAttention(backend, out, query, contexts, shape, scratch).run(up);
}

}  // namespace quipu
