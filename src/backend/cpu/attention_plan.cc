#include "backend/cpu/attention_plan.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "backend/cpu/scratch.h"

namespace quipu::cpu {
namespace {

// Rows from which widening a page to float once is cheaper than widening it for every register tile.
constexpr int64_t kWidenRows = 9;

constexpr int64_t kMostSplitFloats = int64_t{16} << 20;   // partial results of a decode step that are kept at once

int32_t clamp_to_page(int64_t key) { return static_cast<int32_t>(std::clamp<int64_t>(key, 0, kPageRows)); }

}  // namespace

void AttentionPlan::run(MatrixView<float> out, MatrixView<const float> q, std::span<const AttendSlice> slices,
                        const AttendOptions& options) {
  if (slices.empty()) return;
  const KvCacheView& cache = slices[0].cache;
  options_ = options;
  dtype_ = cache.dtype;
  kv_heads_ = cache.kv_heads;
  group_ = options.heads / cache.kv_heads;
  key_dim_ = cache.key_dim;
  value_dim_ = cache.value_dim;
  value_stride_ = (value_dim_ + 15) / 16 * 16;
  tiles_ = attention_.has_tiles() && dtype_ != DType::kF32;
  block_rows_ = tiles_ ? kTileBlockRows : kBlockRows;
  for (const AttendSlice& slice : slices) {
    CHECK(slice.cache.dtype == dtype_ && slice.cache.kv_heads == kv_heads_ && slice.cache.key_dim == key_dim_ &&
          slice.cache.value_dim == value_dim_)
        << "[attend] the caches of one batch differ in shape";
  }
  make_blocks(slices);
  prepare_workers();
  const bool few_rows_each = std::all_of(slices.begin(), slices.end(), [](const AttendSlice& s) { return s.rows <= 4; });
  const int64_t floats = few_rows_each ? place_partials() : 0;
  if (few_rows_each && floats <= kMostSplitFloats) {
    grow(partials_, floats * 4);
    run_split_segments(out, q);
  } else {
    run_whole_blocks(out, q);
  }
}

void AttentionPlan::make_blocks(std::span<const AttendSlice> slices) {
  blocks_.clear();
  for (const AttendSlice& slice : slices) {
    const int64_t all_rows = slice.rows * group_;
    for (int64_t first = 0; first < all_rows; first += block_rows_) {
      const int64_t rows = std::min(block_rows_, all_rows - first);
      const int64_t oldest = slice.first_key + first / group_;                 // key index of the block's first token
      const int64_t newest = slice.first_key + (first + rows - 1) / group_;
      const int64_t begin = options_.window > 0 ? std::max<int64_t>(0, oldest + 1 - options_.window) : 0;
      for (int64_t head = 0; head < kv_heads_; ++head) {
        blocks_.push_back({.slice = &slice,
                           .kv_head = head,
                           .first_row = first,
                           .rows = rows,
                           .page_begin = begin / kPageRows,
                           .page_end = newest / kPageRows + 1});
      }
    }
  }
  // The longest first, so that threads finish together; heads of one sequence side by side, as their pages lie. Not stable_sort,
  // which allocates.
  std::sort(blocks_.begin(), blocks_.end(), [](const Block& a, const Block& b) {
    const int64_t longer = (a.page_end - a.page_begin) - (b.page_end - b.page_begin);
    if (longer != 0) return longer > 0;
    return std::tuple(a.slice, a.first_row, a.kv_head) < std::tuple(b.slice, b.first_row, b.kv_head);
  });
}

void AttentionPlan::prepare_workers() {
  workers_.resize(static_cast<size_t>(pool_.threads()));
  const int64_t rows = block_rows_;
  const int64_t half_floats = rows * paired_blocks(key_dim_) * kBlockCols / 2;
  const int64_t shared = 2 * rows * (value_stride_ + 2) + 2 * rows + 20 * 16;
  const int64_t tile_bytes = PairedSegment::key_bytes(key_dim_) + PairedSegment::value_bytes(value_dim_) +
                             few_rows_scratch_bytes(std::max(key_dim_, value_dim_));
  const int64_t floats = shared + (tiles_ ? half_floats + tile_bytes / 4
                                          : rows * (key_dim_ + key_dim_ / 4 + key_dim_ / 32 + key_dim_ / 16) + rows * 65 +
                                                key_dim_ * 64 + 64 * value_stride_);
  for (Worker& worker : workers_) {
    grow(worker.memory, floats * 4);
    float* next = worker.memory.as<float>();
    const auto take = [&next](int64_t count) {
      float* part = next;
      next += (count + 15) / 16 * 16;
      return part;
    };
    if (tiles_) {
      worker.q_halves = reinterpret_cast<uint16_t*>(take(half_floats));
      worker.pairs.keys_memory = reinterpret_cast<std::byte*>(take(PairedSegment::key_bytes(key_dim_) / 4));
      worker.pairs.values = reinterpret_cast<std::byte*>(take(PairedSegment::value_bytes(value_dim_) / 4));
      worker.tile_scratch = reinterpret_cast<std::byte*>(take(few_rows_scratch_bytes(std::max(key_dim_, value_dim_)) / 4));
    } else {
      worker.q = take(rows * key_dim_);
      worker.q_codes = reinterpret_cast<int8_t*>(take(rows * key_dim_ / 4));
      worker.q_scales = take(rows * key_dim_ / 32);
      worker.q_sums = reinterpret_cast<int32_t*>(take(rows * key_dim_ / 16));
      worker.scores = take(rows * 64);
      worker.keys = take(key_dim_ * 64);
      worker.values = take(64 * value_stride_);
      worker.rescale = take(rows);
    }
    worker.first = reinterpret_cast<int32_t*>(take(rows));
    worker.last = reinterpret_cast<int32_t*>(take(rows));
    for (Partial* partial : {&worker.part, &worker.whole}) {
      partial->out = take(rows * value_stride_);
      partial->maximum = take(rows);
      partial->total = take(rows);
    }
  }
}

void AttentionPlan::load_queries(Worker& worker, const Block& block, MatrixView<const float> q) const {
  for (int64_t r = 0; r < block.rows; ++r) {
    const int64_t flat = block.first_row + r;
    const float* source = q.row(block.slice->row_begin + flat / group_) + (block.kv_head * group_ + flat % group_) * key_dim_;
    if (tiles_) {
      const int64_t first = r / kSegmentRows * kSegmentRows;
      const int64_t rows = std::min(kSegmentRows, block.rows - first);
      uint16_t* out = worker.q_halves + first * paired_blocks(key_dim_) * kBlockCols + (r - first) * kBlockCols;
      attention_.round_row(out, rows * kBlockCols, source, key_dim_);
      continue;
    }
    std::copy_n(source, key_dim_, worker.q + r * key_dim_);
    if (dtype_ == DType::kQ8_0) {
      kernels_.quantise_row(worker.q_codes + r * key_dim_, worker.q_scales + r * (key_dim_ / 32),
                            worker.q_sums + r * (key_dim_ / 16), source, key_dim_);
    }
  }
}

void AttentionPlan::clear(const Partial& partial, int64_t rows) const {
  std::fill_n(partial.out, rows * value_stride_, 0.0f);
  std::fill_n(partial.maximum, rows, -std::numeric_limits<float>::infinity());
  std::fill_n(partial.total, rows, 0.0f);
}

void AttentionPlan::run_page(Worker& worker, const Block& block, int64_t page, const Partial& partial) const {
  const AttendSlice& slice = *block.slice;
  HeadPage keys{.bytes = slice.cache.key_page(page) + block.kv_head * kv_head_page_bytes(dtype_, key_dim_),
                .dtype = dtype_,
                .dim = key_dim_};
  HeadPage values{.bytes = slice.cache.value_page(page) + block.kv_head * kv_head_page_bytes(dtype_, value_dim_),
                  .dtype = dtype_,
                  .dim = value_dim_};
  int64_t keys_seen = 0;
  for (int64_t r = 0; r < block.rows; ++r) {
    const int64_t own_key = slice.first_key + (block.first_row + r) / group_;
    worker.last[r] = clamp_to_page(own_key + 1 - page * kPageRows);
    worker.first[r] = options_.window > 0 ? clamp_to_page(own_key + 1 - options_.window - page * kPageRows) : 0;
    keys_seen = std::max<int64_t>(keys_seen, worker.last[r]);
  }
  const bool widen = block.rows >= kWidenRows && dtype_ != DType::kF32;
  if (dtype_ == DType::kQ8_0) {
    attention_.page_scores_q8(worker.scores, worker.q_codes, worker.q_scales, worker.q_sums, block.rows, keys);
  } else {
    if (widen) {
      attention_.widen_key_page(worker.keys, keys);
      keys = {.bytes = reinterpret_cast<const std::byte*>(worker.keys), .dtype = DType::kF32, .dim = key_dim_};
    }
    attention_.page_scores(worker.scores, worker.q, block.rows, keys);
  }
  attention_.softmax_page(worker.scores, partial.maximum, partial.total, worker.rescale, worker.first, worker.last, block.rows,
                        options_.scale, options_.logit_softcap);
  if (value_stride_ != value_dim_) {
    for (int64_t row = 0; row < kPageRows; ++row) {
      load_value_row(worker.values + row * value_stride_, dtype_, values.bytes, value_dim_, row);
    }
  } else if (widen) {
    attention_.widen_value_page(worker.values, values);
  }
  if (widen || value_stride_ != value_dim_) {
    values = {.bytes = reinterpret_cast<const std::byte*>(worker.values), .dtype = DType::kF32, .dim = value_stride_};
  }
  attention_.page_values(partial.out, worker.scores, worker.rescale, block.rows, values, keys_seen);
}

void AttentionPlan::run_segment_tiles(Worker& worker, const Block& block, int64_t segment, const Partial& partial,
                                      const std::byte* ahead) const {
  const AttendSlice& slice = *block.slice;
  const int64_t begin = std::max(block.page_begin, segment * kSegmentPages);
  const int64_t end = std::min(block.page_end, (segment + 1) * kSegmentPages);
  const int64_t newest = slice.first_key + (block.first_row + block.rows - 1) / group_;
  const std::byte *key_pages[kSegmentPages], *value_pages[kSegmentPages];
  for (int64_t page = begin; page < end; ++page) {
    key_pages[page - begin] = slice.cache.key_page(page) + block.kv_head * kv_head_page_bytes(dtype_, key_dim_);
    value_pages[page - begin] = slice.cache.value_page(page) + block.kv_head * kv_head_page_bytes(dtype_, value_dim_);
  }
  const KeySegment keys{.dtype = dtype_,
                        .key_dim = key_dim_,
                        .value_dim = value_dim_,
                        .key_pages = key_pages,
                        .value_pages = value_pages,
                        .keys = std::min((end - begin) * kPageRows, newest + 1 - begin * kPageRows),
                        .ahead = ahead == nullptr ? key_pages[0] : ahead};
  for (int64_t r = 0; r < block.rows; ++r) {
    const int64_t past_own = slice.first_key + (block.first_row + r) / group_ + 1 - begin * kPageRows;
    worker.last[r] = static_cast<int32_t>(std::clamp<int64_t>(past_own, 0, keys.keys));
    worker.first[r] = options_.window > 0 ? static_cast<int32_t>(std::clamp<int64_t>(past_own - options_.window, 0, keys.keys)) : 0;
  }
  if (block.rows <= kFewRows) {
    attention_.attend_few({.out = partial.out, .stride = value_stride_, .maximum = partial.maximum, .total = partial.total},
                        {.rows = block.rows,
                         .halves = worker.q_halves,
                         .first = worker.first,
                         .last = worker.last,
                         .scale = options_.scale,
                         .softcap = options_.logit_softcap},
                        keys, worker.tile_scratch);
    return attention_.release_tiles();
  }
  PairedSegment& pairs = worker.pairs;
  pairs.key_dim = key_dim_;
  pairs.value_dim = value_dim_;
  pairs.keys = keys.keys;
  attention_.pair_segment(pairs, keys);
  for (int64_t first = 0; first < block.rows; first += kSegmentRows) {
    const int64_t rows = std::min(kSegmentRows, block.rows - first);
    PairedSegment seen = pairs;
    seen.keys = worker.last[first + rows - 1];   // rows are in the order of their tokens
    if (seen.keys == 0) {
      std::fill_n(partial.maximum + first, rows, -std::numeric_limits<float>::infinity());
      continue;
    }
    attention_.attend_segment({.out = partial.out + first * value_stride_,
                             .stride = value_stride_,
                             .maximum = partial.maximum + first,
                             .total = partial.total + first},
                            {.rows = rows,
                             .halves = worker.q_halves + first * paired_blocks(key_dim_) * kBlockCols,
                             .first = worker.first + first,
                             .last = worker.last + first,
                             .scale = options_.scale,
                             .softcap = options_.logit_softcap},
                            seen, worker.tile_scratch);
  }
  attention_.release_tiles();
}

void AttentionPlan::run_segment(Worker& worker, const Block& block, int64_t segment, const Partial& partial,
                                const std::byte* ahead) const {
  if (tiles_) return run_segment_tiles(worker, block, segment, partial, ahead);
  clear(partial, block.rows);
  const int64_t begin = std::max(block.page_begin, segment * kSegmentPages);
  const int64_t end = std::min(block.page_end, (segment + 1) * kSegmentPages);
  for (int64_t page = begin; page < end; ++page) run_page(worker, block, page, partial);
}

void AttentionPlan::finish(const Block& block, const Partial& whole, MatrixView<float> out) const {
  for (int64_t r = 0; r < block.rows; ++r) {
    const int64_t flat = block.first_row + r;
    float* target = out.row(block.slice->row_begin + flat / group_) + (block.kv_head * group_ + flat % group_) * value_dim_;
    const float inverse = 1.0f / whole.total[r];
    for (int64_t d = 0; d < value_dim_; ++d) target[d] = whole.out[r * value_stride_ + d] * inverse;
  }
}

// What a block reads first of a segment.
const std::byte* AttentionPlan::first_keys(const Block& block, int64_t segment) const {
  const int64_t page = std::max(block.page_begin, segment * kSegmentPages);
  return block.slice->cache.key_page(page) + block.kv_head * kv_head_page_bytes(dtype_, key_dim_);
}

void AttentionPlan::run_whole_blocks(MatrixView<float> out, MatrixView<const float> q) {
  pool_.parallel_for_worker(static_cast<int64_t>(blocks_.size()), [&](int64_t index, int number) {
    Worker& worker = workers_[static_cast<size_t>(number)];
    const Block& block = blocks_[static_cast<size_t>(index)];
    load_queries(worker, block, q);
    clear(worker.whole, block.rows);
    for (int64_t segment = block.page_begin / kSegmentPages; segment * kSegmentPages < block.page_end; ++segment) {
      const bool last = (segment + 1) * kSegmentPages >= block.page_end;
      const int64_t next = index + 1;   // a guess, as below
      const std::byte* ahead = !last                                        ? first_keys(block, segment + 1)
                               : next < static_cast<int64_t>(blocks_.size()) ? first_keys(blocks_[static_cast<size_t>(next)], 0)
                                                                             : nullptr;
      run_segment(worker, block, segment, worker.part, ahead);
      attention_.merge_partial(worker.whole.out, worker.whole.maximum, worker.whole.total, worker.part.out,
                             worker.part.maximum, worker.part.total, block.rows, value_stride_);
    }
    finish(block, worker.whole, out);
  });
}

AttentionPlan::Partial AttentionPlan::split_partial(const Block& block, int64_t segment) const {
  const int64_t size = block.rows * (value_stride_ + 32);   // maximum and total padded to whole vectors
  float* base = partials_.as<float>() + block.partial + (segment - block.page_begin / kSegmentPages) * size;
  return {.out = base, .maximum = base + block.rows * value_stride_, .total = base + block.rows * (value_stride_ + 16)};
}

// Where every block's partial results lie when segments are split; floats of them all.
int64_t AttentionPlan::place_partials() {
  int64_t floats = 0;
  for (Block& block : blocks_) {
    block.partial = floats;
    floats += block.segments() * block.rows * (value_stride_ + 32);
  }
  return floats;
}

// A task is a segment of one sequence with all heads, or some of them where there are too few tasks: heads lie side by side in
// a page, and a thread that reads them one after the other gets 13 GB/s, one that reads a head through all pages 9.
void AttentionPlan::run_split_segments(MatrixView<float> out, MatrixView<const float> q) {
  const int64_t count = static_cast<int64_t>(blocks_.size());
  split_begin_.clear();
  int64_t segments = 0;
  for (int64_t first = 0; first < count; first += kv_heads_) {
    split_begin_.push_back(segments);
    segments += blocks_[static_cast<size_t>(first)].segments();
  }
  const int64_t parts = std::clamp<int64_t>((4 * pool_.threads() + segments - 1) / segments, 1, kv_heads_);
  // The blocks of segment `number` of all sequences: the first of its kv_heads_, and the segment of its context.
  const auto place = [&](int64_t number) {
    const auto after = std::upper_bound(split_begin_.begin(), split_begin_.end(), number);
    const int64_t first = (after - split_begin_.begin() - 1) * kv_heads_;
    return std::pair(first, number - *(after - 1) + blocks_[static_cast<size_t>(first)].page_begin / kSegmentPages);
  };
  pool_.parallel_for_worker(segments * parts, [&](int64_t task, int number) {
    const auto [first, segment] = place(task / parts);
    const int64_t part = task % parts, end = (part + 1) * kv_heads_ / parts;
    Worker& worker = workers_[static_cast<size_t>(number)];
    for (int64_t head = part * kv_heads_ / parts; head < end; ++head) {
      const Block& block = blocks_[static_cast<size_t>(first + head)];
      load_queries(worker, block, q);
      // What this thread mostly reads next: a guess that costs nothing when it is wrong.
      const std::byte* ahead = nullptr;
      if (head + 1 < end) {
        ahead = first_keys(blocks_[static_cast<size_t>(first + head + 1)], segment);
      } else if (const int64_t next = task + 1; next < segments * parts) {
        const auto [later, later_segment] = place(next / parts);
        ahead = first_keys(blocks_[static_cast<size_t>(later + next % parts * kv_heads_ / parts)], later_segment);
      }
      run_segment(worker, block, segment, split_partial(block, segment), ahead);
    }
  });
  pool_.parallel_for_worker(count, [&](int64_t index, int number) {
    const Block& block = blocks_[static_cast<size_t>(index)];
    const Partial& whole = workers_[static_cast<size_t>(number)].whole;
    clear(whole, block.rows);
    for (int64_t step = 0; step < block.segments(); ++step) {
      const Partial part = split_partial(block, block.page_begin / kSegmentPages + step);
      attention_.merge_partial(whole.out, whole.maximum, whole.total, part.out, part.maximum, part.total, block.rows,
                             value_stride_);
    }
    finish(block, whole, out);
  });
}

}  // namespace quipu::cpu
