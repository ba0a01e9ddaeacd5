// What a layer remembers of the context, declared as data. Allocation, paging, prefix reuse, save and restore, copy on
// fork, the memory meter and the cost tables all derive from this; none of them knows a variant of attention by name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/kv_cache.h"
#include "tensor/dtype.h"

namespace quipu {

// How a region's rows come into being while tokens arrive.
enum class Growth {
  kPerToken,    // one row per token (or per routed token): rows in pages, kept for ever
  kPerStride,   // one row per `stride` tokens, the last one still changing
  kRing,        // one row per token, of which only the last `ring_rows` are kept
  kFixed,       // `fixed_rows` rows from the start, all of them changing
};

struct RegionSpec {
  std::string name;          // "key", "value", "latent", "memory"
  DType dtype = DType::kF32;
  int64_t row_elements = 0;  // elements of one row, all heads
  Growth growth = Growth::kPerToken;
  int64_t stride = 1;        // kPerStride
  int64_t ring_rows = 0;     // kRing: rows that must stay readable, the current chunk included
  int64_t ring_history = 0;  // kRing: rows before a new row that it reads; what a rewind must find intact
  int64_t fixed_rows = 0;    // kFixed

  int64_t bytes_per_row() const { return row_bytes(dtype, row_elements); }
  // Rows of one page: kPageRows, but a kFixed region is one page of fixed_rows rows, contiguous.
  int64_t page_rows() const;
  int64_t page_bytes() const { return bytes_per_row() * page_rows(); }
  // kRing: pages that hold ring_rows rows wherever they begin in a page; 0 for the others.
  int64_t ring_pages() const;
  // Rows there are after `tokens` tokens: of a ring, all ever appended.
  int64_t rows_after(int64_t tokens) const;
};

// How far a remembered context may be cut back without computing it again.
enum class Rewind { kAnyToken, kStrideBoundary, kNever };

struct StateLayout {
  std::vector<RegionSpec> regions;
  Rewind rewind = Rewind::kAnyToken;
  int64_t stride = 1;        // kStrideBoundary

  // A text that is equal exactly when two layouts hold the same bytes: goes into the hash of a saved state.
  std::string signature() const;
};

// Bytes that `tokens` tokens take, to the row: what the formulas of the papers count. A ring counts ring_rows at most.
int64_t state_bytes(const StateLayout& layout, int64_t tokens);
// Bytes that are allocated for them, in whole pages of RegionSpec::page_rows() rows.
int64_t state_bytes_allocated(const StateLayout& layout, int64_t tokens);

}  // namespace quipu
