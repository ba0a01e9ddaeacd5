#include "attention/state_layout.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace quipu {
namespace {

int64_t pages_of(int64_t rows) { return (rows + kPageRows - 1) / kPageRows; }

const char* growth_name(Growth growth) {
  switch (growth) {
    case Growth::kPerToken: return "per_token";
    case Growth::kPerStride: return "per_stride";
    case Growth::kRing: return "ring";
    case Growth::kFixed: return "fixed";
  }
  return "?";
}

}  // namespace

int64_t RegionSpec::page_rows() const { return growth == Growth::kFixed ? fixed_rows : kPageRows; }

int64_t RegionSpec::ring_pages() const {
  // Rows [a, a + n) touch at most 1 + ceil((n - 1) / kPageRows) pages, whatever a is.
  return growth == Growth::kRing ? 1 + pages_of(ring_rows - 1) : 0;
}

int64_t RegionSpec::rows_after(int64_t tokens) const {
  switch (growth) {
    case Growth::kPerToken:
    case Growth::kRing: return tokens;
    case Growth::kPerStride: return (tokens + stride - 1) / stride;
    case Growth::kFixed: return fixed_rows;
  }
  return 0;
}

int64_t StateLayout::tokens_expected(int64_t tokens) const {
  if (!routed) return tokens;
  return std::min(tokens, static_cast<int64_t>(std::ceil(routed->expected * static_cast<double>(tokens))));
}

int64_t StateLayout::tokens_reserved(int64_t context) const {
  if (!routed) return context;
  const double share = std::ceil(routed->most * static_cast<double>(context));
  if (share >= static_cast<double>(context)) return context;
  return std::min(context, pages_of(static_cast<int64_t>(share)) * kPageRows);
}

RegionSpec position_region() { return {.name = "position", .dtype = DType::kI32, .row_elements = 1}; }

std::string StateLayout::signature() const {
  // Names are the rooms' own and hold no ';' or ' '.
  std::string text;
  for (const RegionSpec& region : regions) {
    text += region.name + " " + std::string(dtype_name(region.dtype)) + " " + std::to_string(region.row_elements) + " " +
            growth_name(region.growth);
    switch (region.growth) {
      case Growth::kPerToken: break;
      case Growth::kPerStride: text += " " + std::to_string(region.stride); break;
      case Growth::kRing: text += " " + std::to_string(region.ring_rows); break;
      case Growth::kFixed: text += " " + std::to_string(region.fixed_rows); break;
    }
    text += ";";
  }
  return text;
}

int64_t state_bytes(const StateLayout& layout, int64_t tokens) {
  int64_t bytes = 0;
  tokens = layout.tokens_expected(tokens);
  for (const RegionSpec& region : layout.regions) {
    int64_t rows = region.rows_after(tokens);
    if (region.growth == Growth::kRing) rows = std::min(rows, region.ring_rows);
    bytes += rows * region.bytes_per_row();
  }
  return bytes;
}

int64_t state_bytes_allocated(const StateLayout& layout, int64_t tokens) {
  int64_t bytes = 0;
  tokens = layout.tokens_reserved(tokens);
  for (const RegionSpec& region : layout.regions) {
    int64_t pages = region.growth == Growth::kFixed ? 1 : pages_of(region.rows_after(tokens));
    if (region.growth == Growth::kRing) pages = std::min(pages, region.ring_pages());
    bytes += pages * region.page_bytes();
  }
  return bytes;
}

}  // namespace quipu
