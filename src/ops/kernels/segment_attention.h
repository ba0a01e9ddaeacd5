// Attention over a segment of cached keys in bf16 tiles: what its kernels take and give. The kernels are in AttentionKernels
// (attention_kernels.h), null where an instruction set has no tiles.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace quipu {

// bf16 numbers in pairs: a block of 32 components of 16 rows is [16 pairs][16 rows][2], 1 KiB: one tile register.
inline constexpr int64_t kBlockCols = 32;
inline constexpr int64_t kPairedBlockBytes = kBlockCols * 16 * 2;
inline int64_t paired_blocks(int64_t cols) { return (cols + kBlockCols - 1) / kBlockCols; }

inline constexpr int64_t kSegmentBlocks = 8;                        // most blocks of 32 keys in a segment
inline constexpr int64_t kSegmentRows = 32;                         // most query rows of one attend_segment
inline constexpr int64_t kFewRows = 16;                             // most of one attend_few
inline constexpr int64_t kScoreStride = kSegmentBlocks * 32 + 16;   // rows of scores: no power of two, which would share cache sets
inline constexpr int64_t kSegmentScratchBytes = kSegmentRows * (kScoreStride * 4 + kSegmentBlocks * 64);

// Pairs of one page of keys or values.
inline int64_t few_rows_scratch_bytes(int64_t dim) { return kSegmentScratchBytes + (dim + 31) / 32 * 4 * kPairedBlockBytes; }

// Pages of one key head (ops/kv_cache.h), f16, bf16 or q8_0.
struct KeySegment {
  DType dtype = DType::kF16;
  int64_t key_dim = 0, value_dim = 0;
  const std::byte* const* key_pages = nullptr;    // the head's part of each
  const std::byte* const* value_pages = nullptr;
  int64_t keys = 0;                    // later rows may hold anything, NaN included, and do not count
  const std::byte* ahead = nullptr;    // what will be read after this, or anything: a hint
};

// The same in bf16 pairs, as tiles of 1 KiB that are the second factor of a product. The rows between `keys` and the next
// multiple of 32 are zero in the values.
struct PairedSegment {
  std::byte* keys_memory = nullptr;    // [key / 16][key_dim / 32] tiles [16 pairs of components][16 keys][2]
  std::byte* values = nullptr;         // [value_dim / 16][kSegmentBlocks] tiles [16 pairs of keys][16 components][2]
  int64_t key_dim = 0, value_dim = 0;
  int64_t keys = 0;
  std::byte* keys_at(int64_t sixteen) const { return keys_memory + sixteen * paired_blocks(key_dim) * kPairedBlockBytes; }
  static int64_t key_bytes(int64_t dim) { return 2 * kSegmentBlocks * paired_blocks(dim) * kPairedBlockBytes; }
  static int64_t value_bytes(int64_t dim) { return (dim + 15) / 16 * kSegmentBlocks * kPairedBlockBytes; }
};

struct SegmentQueries {
  int64_t rows = 0;                    // 1 .. kSegmentRows
  const uint16_t* halves = nullptr;    // [key_dim / 32][rows][32] bf16, zeros beyond key_dim
  const int32_t* first = nullptr;      // [rows] visible keys of the segment: first <= key < last
  const int32_t* last = nullptr;
  float scale = 1.0f, softcap = 0.0f;
};

// Softmax over the segment alone: out[r] = sum of exp(score - maximum[r]) value, total[r] the sum of the factors; maximum
// is minus infinity where nothing is visible.
struct SegmentSums {
  float* out = nullptr;                // [rows], stride floats apart, value_dim rounded up to 16 of them written
  int64_t stride = 0;
  float* maximum = nullptr;
  float* total = nullptr;
};

}  // namespace quipu
