// What a layer remembers of the context, declared as data. Allocation, paging, prefix reuse, save and restore, copy on
// fork, the memory meter and the cost tables all derive from this; none of them knows a variant of attention by name.
#pragma once

#include <cstdint>
#include <optional>
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

// A layer that a router sends only some of the sequence's tokens (blocks/mixture_of_depths.h).
struct RoutedShare {
  double expected = 1.0;     // of a sequence's tokens, in (0, 1]
  double most = 1.0;         // of a context's tokens: what is reserved, >= expected
};

struct StateLayout {
  std::vector<RegionSpec> regions;
  Rewind rewind = Rewind::kAnyToken;
  int64_t stride = 1;        // kStrideBoundary
  // With it rows, strides and rings count the tokens the layer takes in, and the last region is position_region().
  std::optional<RoutedShare> routed = std::nullopt;

  // Of `tokens` tokens of the sequence, those the layer is expected to take in: all of them without a router.
  int64_t tokens_expected(int64_t tokens) const;
  // Of a context of that many tokens, those the layer has room for: whole pages, never more than the context.
  int64_t tokens_reserved(int64_t context) const;

  // A text that is equal exactly when two layouts hold the same bytes: goes into the hash of a saved state.
  std::string signature() const;
};

// Where a routed layer keeps the position of each token it took in, i32: what tells it how far to cut itself back when the
// sequence is cut back.
RegionSpec position_region();

// Bytes that `tokens` tokens of a sequence take, to the row: what the formulas of the papers count. A ring counts ring_rows
// at most, a routed layer the tokens it expects.
int64_t state_bytes(const StateLayout& layout, int64_t tokens);
// Bytes that a context of `tokens` tokens takes when it is full, in whole pages of RegionSpec::page_rows() rows: of a routed
// layer as much as it has room for.
int64_t state_bytes_allocated(const StateLayout& layout, int64_t tokens);

}  // namespace quipu
