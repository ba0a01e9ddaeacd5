// Attention over paged caches: cuts a ragged batch into tasks and runs the page kernels.
//
// Keys are taken in segments of kSegmentPages pages. A segment's partial result starts from nothing and is then folded
// into the running one, segment by segment, whether one task walks all of them (prompts) or each has its own (decoding
// a long context on several threads). So results depend neither on the split nor on how a prompt was cut.
#pragma once

#include <span>
#include <vector>

#include "backend/cpu/kernels/kernels.h"
#include "ops/backend.h"
#include "ops/kernels/attention_kernels.h"

namespace quipu::cpu {

class AttentionPlan {
 public:
  AttentionPlan(const KernelTable& kernels, const AttentionKernels& attention, ThreadPool& pool)
      : kernels_(kernels), attention_(attention), pool_(pool) {}
  // See Backend::attend.
  void run(MatrixView<float> out, MatrixView<const float> q, std::span<const AttendSlice> slices,
           const AttendOptions& options);

 private:
  static constexpr int64_t kSegmentPages = 4;
  static constexpr int64_t kBlockRows = 64;   // query rows (token, head of the group) a task works on
  // The same where a kernel takes whole segments: its keys are turned into pairs once for all of a task's rows.
  static constexpr int64_t kTileBlockRows = 256;

  // Up to block_rows_ query rows of one sequence that share a key head.
  struct Block {
    const AttendSlice* slice = nullptr;
    int64_t kv_head = 0;
    int64_t first_row = 0;        // flattened: token * group + head of the group
    int64_t rows = 0;
    int64_t page_begin = 0, page_end = 0;   // pages any of its rows sees
    int64_t partial = 0;          // index of its first partial result when segments are split
    int64_t segments() const { return (page_end + kSegmentPages - 1) / kSegmentPages - page_begin / kSegmentPages; }
  };
  // Running-softmax results of one block over some keys.
  struct Partial {
    float* out = nullptr;         // [rows][value_stride]
    float* maximum = nullptr;     // [rows]
    float* total = nullptr;
  };
  struct Worker {
    Buffer memory;
    float* q = nullptr;           // [block_rows_][key_dim]
    int8_t* q_codes = nullptr;
    float* q_scales = nullptr;
    int32_t* q_sums = nullptr;
    float* scores = nullptr;      // [block_rows_][64]
    float* keys = nullptr;        // [key_dim][64]
    float* values = nullptr;      // [64][value_stride]
    float* rescale = nullptr;
    int32_t* first = nullptr;
    int32_t* last = nullptr;
    // Of the kernels for whole segments.
    uint16_t* q_halves = nullptr;   // by sub-block of kSegmentRows rows: [key_dim / 32][rows][32]
    PairedSegment pairs;
    std::byte* tile_scratch = nullptr;
    Partial part, whole;
  };

  void make_blocks(std::span<const AttendSlice> slices);
  void prepare_workers();
  void load_queries(Worker& worker, const Block& block, MatrixView<const float> q) const;
  void clear(const Partial& partial, int64_t rows) const;
  // ahead: memory that will be read next, or null.
  void run_segment(Worker& worker, const Block& block, int64_t segment, const Partial& partial, const std::byte* ahead) const;
  void run_segment_tiles(Worker& worker, const Block& block, int64_t segment, const Partial& partial, const std::byte* ahead) const;
  void run_page(Worker& worker, const Block& block, int64_t page, const Partial& partial) const;
  int64_t place_partials();
  const std::byte* first_keys(const Block& block, int64_t segment) const;
  void finish(const Block& block, const Partial& whole, MatrixView<float> out) const;
  void run_whole_blocks(MatrixView<float> out, MatrixView<const float> q);
  void run_split_segments(MatrixView<float> out, MatrixView<const float> q);
  Partial split_partial(const Block& block, int64_t segment) const;

  const KernelTable& kernels_;
  const AttentionKernels& attention_;
  ThreadPool& pool_;
  AttendOptions options_;
  DType dtype_ = DType::kF16;
  bool tiles_ = false;            // whole segments at a time, by attention_.attend_segment
  int64_t block_rows_ = kBlockRows;
  int64_t kv_heads_ = 0, group_ = 1, key_dim_ = 0, value_dim_ = 0, value_stride_ = 0;
  std::vector<Block> blocks_;
  std::vector<Worker> workers_;
  Buffer partials_;
  std::vector<int64_t> split_begin_;   // of every kv_heads_ blocks, the number of their first segment among all
};

}  // namespace quipu::cpu
