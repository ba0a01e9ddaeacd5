#include "attention/layer_state.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "base/byte_reader.h"

namespace quipu {
namespace {

int64_t pages_of(int64_t rows) { return (rows + kPageRows - 1) / kPageRows; }

void check_spec(const RegionSpec& spec) {
  const bool sized = spec.growth == Growth::kPerToken || (spec.growth == Growth::kPerStride && spec.stride > 0) ||
                     (spec.growth == Growth::kFixed && spec.fixed_rows > 0) ||
                     (spec.growth == Growth::kRing && spec.ring_rows > 0 && spec.ring_history >= 0 &&
                      spec.ring_history < spec.ring_rows);
  CHECK(sized && spec.row_elements > 0) << "region " << spec.name << " of rows of " << spec.row_elements << ", stride "
                                        << spec.stride << ", ring " << spec.ring_history << " in " << spec.ring_rows
                                        << ", fixed " << spec.fixed_rows;
}

// First and one past the last absolute page whose rows are kept.
struct PageRange {
  int64_t begin = 0;
  int64_t end = 0;
};

PageRange kept_pages(const RegionState& region) {
  if (region.spec.growth == Growth::kFixed) return {0, static_cast<int64_t>(region.pages.size())};
  return {region.first_row / kPageRows, pages_of(region.rows)};
}

size_t page_index(const RegionState& region, int64_t page) {
  return static_cast<size_t>(region.ring_pages() > 0 ? page % region.ring_pages() : page);
}

int64_t position_at(const RegionState& positions, int64_t row) {
  int32_t value = 0;
  const std::byte* page = positions.pages[static_cast<size_t>(row / kPageRows)];
  std::memcpy(&value, page + row % kPageRows * positions.spec.bytes_per_row(), sizeof(value));
  return value;
}

template <class T>
void put(std::vector<std::byte>& out, T value) {
  const auto* bytes = reinterpret_cast<const std::byte*>(&value);
  out.insert(out.end(), bytes, bytes + sizeof(T));
}

}  // namespace

Result<LayerState> LayerState::create(const StateLayout& layout, int64_t context, PagePool& pool) {
  CHECK(context > 0) << context;
  CHECK(layout.rewind != Rewind::kStrideBoundary || layout.stride > 0) << layout.stride;
  CHECK(!layout.routed || (!layout.regions.empty() && layout.regions.back().name == position_region().name))
      << "the last region of a routed layer keeps positions";
  LayerState state;
  state.layout_ = layout;
  state.context_ = context;
  state.pool_ = &pool;
  state.regions_.reserve(layout.regions.size());
  for (const RegionSpec& spec : layout.regions) {
    check_spec(spec);
    RegionState& region = state.regions_.emplace_back();
    region.spec = spec;
    switch (spec.growth) {
      case Growth::kPerToken:
      case Growth::kPerStride: region.pages.reserve(static_cast<size_t>(pages_of(spec.rows_after(context)))); break;
      case Growth::kRing: region.pages.assign(static_cast<size_t>(spec.ring_pages()), nullptr); break;
      case Growth::kFixed: region.pages.reserve(1); break;
    }
  }
  RETURN_IF_ERROR(state.clear());
  return state;
}

LayerState::LayerState(LayerState&& other) noexcept
    : layout_(std::move(other.layout_)),
      regions_(std::move(other.regions_)),
      tokens_(other.tokens_),
      context_(other.context_),
      pool_(other.pool_) {
  other.regions_.clear();
}

LayerState& LayerState::operator=(LayerState&& other) noexcept {
  if (this == &other) return *this;
  release_pages();
  layout_ = std::move(other.layout_);
  regions_ = std::move(other.regions_);
  other.regions_.clear();
  tokens_ = other.tokens_;
  context_ = other.context_;
  pool_ = other.pool_;
  return *this;
}

LayerState::~LayerState() { release_pages(); }

void LayerState::release_pages() {
  for (RegionState& region : regions_) {
    for (std::byte*& page : region.pages) {
      if (page != nullptr) pool_->release(page);
      page = nullptr;
    }
    if (region.spec.growth != Growth::kRing) region.pages.clear();
    region.rows = 0;
    region.first_row = 0;
  }
  tokens_ = 0;
}

Result<void> LayerState::clear() {
  release_pages();
  for (RegionState& region : regions_) {
    if (region.spec.growth != Growth::kFixed) continue;
    ASSIGN_OR_RETURN(std::byte* page, pool_->take(region.page_bytes()));
    region.pages.push_back(page);
    region.rows = region.spec.fixed_rows;
  }
  return {};
}

Result<void> LayerState::make_private(std::byte*& page, int64_t bytes) {
  if (!pool_->shared(page)) return {};
  ASSIGN_OR_RETURN(std::byte* copy, pool_->take(bytes));
  std::memcpy(copy, page, static_cast<size_t>(bytes));
  pool_->release(page);
  page = copy;
  return {};
}

Result<void> LayerState::prepare_append(int64_t tokens) {
  CHECK(tokens >= 0) << tokens;
  if (tokens > context_ - tokens_) {
    return usage_error("the context holds " + std::to_string(context_) + " tokens, " + std::to_string(tokens_) +
                       " are in it and " + std::to_string(tokens) + " more were asked for");
  }
  if (tokens == 0) return {};
  for (RegionState& region : regions_) RETURN_IF_ERROR(prepare_region(region, tokens));
  return {};
}

Result<void> LayerState::prepare_region(RegionState& region, int64_t tokens) {
  const RegionSpec& spec = region.spec;
  if (spec.growth == Growth::kFixed) {
    // A cleared state whose page could not be taken (limit) gets it now.
    if (region.pages.empty()) {
      ASSIGN_OR_RETURN(std::byte* page, pool_->take(region.page_bytes()));
      region.pages.push_back(page);
      region.rows = spec.fixed_rows;
    }
    return make_private(region.pages[0], region.page_bytes());
  }
  CHECK(region.rows == spec.rows_after(tokens_))
      << "region " << spec.name << " has " << region.rows << " rows after " << tokens_ << " tokens";
  if (spec.growth == Growth::kRing && tokens > spec.ring_rows - spec.ring_history) {
    return usage_error("a step of " + std::to_string(tokens) + " tokens is longer than the " +
                       std::to_string(spec.ring_rows - spec.ring_history) + " that the window of region " + spec.name +
                       " has room for");
  }
  // kPerStride: an unfinished stride goes on writing its row.
  const int64_t first_row = spec.growth == Growth::kPerStride ? tokens_ / spec.stride : region.rows;
  const int64_t end_page = pages_of(spec.rows_after(tokens_ + tokens));
  for (int64_t page = first_row / kPageRows; page < end_page; ++page) {
    const size_t index = page_index(region, page);
    if (index == region.pages.size()) region.pages.push_back(nullptr);   // never beyond the reserved capacity
    std::byte*& slot = region.pages[index];
    if (slot != nullptr) {
      RETURN_IF_ERROR(make_private(slot, region.page_bytes()));
      continue;
    }
    auto taken = pool_->take(region.page_bytes());
    if (!taken.ok()) {
      if (region.ring_pages() == 0) region.pages.pop_back();
      return std::move(taken).error();
    }
    slot = *taken;
  }
  if (region.ring_pages() > 0) {
    region.first_row = std::max(region.first_row, (end_page - region.ring_pages()) * kPageRows);
  }
  return {};
}

int64_t LayerState::position_of(int64_t token) const {
  if (!routed()) return token;
  CHECK(token >= 0 && token < tokens_) << token << " of " << tokens_;
  return position_at(regions_.back(), token);
}

int64_t LayerState::tokens_before(int64_t position) const {
  if (!routed()) return position;
  int64_t low = 0, high = tokens_;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (position_of(middle) < position) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

void LayerState::note_position(int64_t position) {
  CHECK(routed() && position >= 0 && position <= INT32_MAX) << position;
  RegionState& positions = regions_.back();
  const int32_t value = static_cast<int32_t>(position);
  std::byte* page = positions.pages[static_cast<size_t>(positions.rows / kPageRows)];
  std::memcpy(page + positions.rows % kPageRows * positions.spec.bytes_per_row(), &value, sizeof(value));
  ++positions.rows;
}

void LayerState::release_unused() {
  for (RegionState& region : regions_) {
    if (region.spec.growth != Growth::kPerToken && region.spec.growth != Growth::kPerStride) continue;
    const size_t keep = static_cast<size_t>(pages_of(region.rows));
    while (region.pages.size() > keep) {
      pool_->release(region.pages.back());
      region.pages.pop_back();
    }
  }
}

Result<LayerState> LayerState::fork() const {
  LayerState copy;
  copy.layout_ = layout_;
  copy.context_ = context_;
  copy.pool_ = pool_;
  copy.tokens_ = tokens_;
  copy.regions_.resize(regions_.size());
  for (size_t i = 0; i < regions_.size(); ++i) {
    RegionState& region = copy.regions_[i];
    region.spec = regions_[i].spec;
    region.rows = regions_[i].rows;
    region.first_row = regions_[i].first_row;
    region.pages.reserve(regions_[i].pages.capacity());
    region.pages.assign(regions_[i].pages.begin(), regions_[i].pages.end());
    for (std::byte* page : region.pages) {
      if (page != nullptr) pool_->share(page);
    }
  }
  return copy;
}

bool LayerState::can_rewind(int64_t tokens) const {
  if (tokens < 0 || tokens > tokens_) return false;
  if (tokens == 0 || tokens == tokens_) return true;
  if (layout_.rewind == Rewind::kNever) return false;
  if (layout_.rewind == Rewind::kStrideBoundary && tokens % layout_.stride != 0) return false;
  for (const RegionState& region : regions_) {
    // A row of several tokens cannot lose some of them.
    if (region.spec.growth == Growth::kPerStride && tokens % region.spec.stride != 0) return false;
    if (region.spec.growth == Growth::kRing && region.first_row > std::max<int64_t>(0, tokens - region.spec.ring_history)) {
      return false;
    }
  }
  return true;
}

Result<void> LayerState::rewind(int64_t tokens) {
  if (!can_rewind(tokens)) {
    return usage_error("the context of " + std::to_string(tokens_) + " tokens cannot be cut back to " +
                       std::to_string(tokens) + ": its attention state does not keep what it was then");
  }
  if (tokens == tokens_) return {};
  if (tokens == 0) return clear();
  for (RegionState& region : regions_) {
    if (region.spec.growth == Growth::kFixed) continue;
    region.rows = region.spec.rows_after(tokens);
    if (region.ring_pages() > 0) continue;   // its pages are used again by the next rows
    const size_t keep = static_cast<size_t>(pages_of(region.rows));
    for (size_t page = keep; page < region.pages.size(); ++page) pool_->release(region.pages[page]);
    region.pages.resize(std::min(keep, region.pages.size()));
  }
  tokens_ = tokens;
  return {};
}

int64_t LayerState::bytes() const {
  int64_t bytes = 0;
  for (const RegionState& region : regions_) {
    const auto held = std::count_if(region.pages.begin(), region.pages.end(), [](auto* page) { return page != nullptr; });
    bytes += held * region.page_bytes();
  }
  return bytes;
}

void LayerState::save(std::vector<std::byte>& out) const {
  put(out, tokens_);
  for (const RegionState& region : regions_) {
    put(out, region.spec.rows_after(tokens_));
    put(out, region.first_row);
    const PageRange range = kept_pages(region);
    // A fixed region that could not get its page yet is all zeros.
    if (region.spec.growth == Growth::kFixed && region.pages.empty()) {
      out.resize(out.size() + static_cast<size_t>(region.page_bytes()));
    }
    for (int64_t page = range.begin; page < range.end; ++page) {
      const std::byte* bytes = region.pages[page_index(region, page)];
      out.insert(out.end(), bytes, bytes + region.page_bytes());
    }
  }
}

Result<void> LayerState::load(std::span<const std::byte> bytes) {
  release_pages();
  ByteReader reader("attention state", bytes);
  const auto read = [&]() -> Result<void> {
    ASSIGN_OR_RETURN(const int64_t tokens, reader.number<int64_t>("tokens"));
    if (tokens < 0 || tokens > context_) {
      return reader.error_here("tokens", std::to_string(tokens) + ", expected 0 to " + std::to_string(context_));
    }
    tokens_ = tokens;
    for (RegionState& region : regions_) RETURN_IF_ERROR(load_region(region, reader));
    if (reader.remaining() != 0) {
      return reader.error_here("end", std::to_string(reader.remaining()) + " bytes more than the layout has");
    }
    for (int64_t row = 0, last = -1; routed() && row < tokens_; ++row) {
      const int64_t position = position_at(regions_.back(), row);
      if (position <= last) {
        return reader.error_here("position " + std::to_string(row), std::to_string(position) + ", expected more than " +
                                                                        std::to_string(last));
      }
      last = position;
    }
    return {};
  };
  Result<void> result = read();
  if (!result.ok()) {
    // prepare_append() takes the pages of fixed regions when there is no memory for them here.
    if (Result<void> cleared = clear(); !cleared.ok()) tokens_ = 0;
  }
  return result;
}

Result<void> LayerState::load_region(RegionState& region, ByteReader& reader) {
  const std::string field = "region " + region.spec.name;
  ASSIGN_OR_RETURN(const int64_t rows, reader.number<int64_t>(field + " rows"));
  ASSIGN_OR_RETURN(const int64_t first_row, reader.number<int64_t>(field + " first row"));
  const int64_t expected = region.spec.rows_after(tokens_);
  if (rows != expected) {
    return reader.error_here(field + " rows", std::to_string(rows) + ", expected " + std::to_string(expected) + " for " +
                                                  std::to_string(tokens_) + " tokens");
  }
  // A ring keeps whole pages, at most ring_pages of them, and at least the rows the next token reads.
  const int64_t ring = region.ring_pages();
  const int64_t oldest = ring > 0 ? std::max<int64_t>(0, (pages_of(rows) - ring) * kPageRows) : 0;
  const int64_t newest = ring > 0 ? std::max<int64_t>(0, rows - region.spec.ring_history) : 0;
  if (first_row < oldest || first_row > newest || first_row % kPageRows != 0) {
    return reader.error_here(field + " first row", std::to_string(first_row) + ", expected a page in " +
                                                       std::to_string(oldest) + " to " + std::to_string(newest));
  }
  region.rows = rows;
  region.first_row = first_row;
  const PageRange range = region.spec.growth == Growth::kFixed ? PageRange{0, 1} : kept_pages(region);
  for (int64_t page = range.begin; page < range.end; ++page) {
    ASSIGN_OR_RETURN(const auto bytes, reader.take(field, static_cast<uint64_t>(region.page_bytes())));
    ASSIGN_OR_RETURN(std::byte* memory, pool_->take(region.page_bytes()));
    std::memcpy(memory, bytes.data(), bytes.size());
    if (ring > 0) {
      region.pages[page_index(region, page)] = memory;
    } else {
      region.pages.push_back(memory);
    }
  }
  return {};
}

Result<SequenceState> SequenceState::create(std::span<const StateLayout> layouts, int64_t context, PagePool& pool) {
  SequenceState state;
  state.context_ = context;
  state.layers_.reserve(layouts.size());
  for (const StateLayout& layout : layouts) {
    ASSIGN_OR_RETURN(LayerState layer, LayerState::create(layout, layout.tokens_reserved(context), pool));
    state.layers_.push_back(std::move(layer));
  }
  return state;
}

Result<void> SequenceState::prepare_append(int64_t tokens) {
  CHECK(tokens >= 0) << tokens;
  if (tokens > context_ - tokens_) {
    return usage_error("the context holds " + std::to_string(context_) + " tokens, " + std::to_string(tokens_) +
                       " are in it and " + std::to_string(tokens) + " more were asked for");
  }
  for (LayerState& layer : layers_) {
    const int64_t most = layer.routed() ? std::min(tokens, layer.context() - layer.tokens()) : tokens;
    RETURN_IF_ERROR(layer.prepare_append(most));
  }
  return {};
}

void SequenceState::advance(int64_t tokens) {
  tokens_ += tokens;
  for (LayerState& layer : layers_) {
    if (layer.routed()) layer.release_unused();
  }
}

Result<SequenceState> SequenceState::fork() const {
  SequenceState copy;
  copy.tokens_ = tokens_;
  copy.context_ = context_;
  copy.layers_.reserve(layers_.size());
  for (const LayerState& layer : layers_) {
    ASSIGN_OR_RETURN(LayerState forked, layer.fork());
    copy.layers_.push_back(std::move(forked));
  }
  return copy;
}

Result<void> SequenceState::rewind(int64_t tokens) {
  if (tokens < 0 || tokens > tokens_) {
    return usage_error("the context of " + std::to_string(tokens_) + " tokens cannot be cut back to " +
                       std::to_string(tokens));
  }
  if (tokens == tokens_) return {};
  for (const LayerState& layer : layers_) {
    const bool counts_all = layer.routed() || tokens == 0 || layer.tokens() == tokens_;
    if (!counts_all || !layer.can_rewind(layer.tokens_before(tokens))) {
      return usage_error("the context of " + std::to_string(tokens_) + " tokens cannot be cut back to " +
                         std::to_string(tokens) + ": the attention state of a layer does not keep what it was then");
    }
  }
  for (LayerState& layer : layers_) RETURN_IF_ERROR(layer.rewind(layer.tokens_before(tokens)));
  tokens_ = tokens;
  return {};
}

int64_t SequenceState::bytes() const {
  int64_t bytes = 0;
  for (const LayerState& layer : layers_) bytes += layer.bytes();
  return bytes;
}

std::string SequenceState::signature() const {
  std::string text;
  for (const LayerState& layer : layers_) text += layer.layout().signature() + "\n";
  return text;
}

std::vector<RoutedTokens> SequenceState::routed_tokens() const {
  std::vector<RoutedTokens> all;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LayerState& layer = layers_[i];
    if (!layer.routed()) continue;
    RoutedTokens& counts = all.emplace_back();
    counts = {.layer = static_cast<int64_t>(i), .seen = tokens_, .taken = layer.tokens(), .reserved = layer.context()};
    if (counts.taken == counts.reserved) counts.passed_full = tokens_ - layer.position_of(counts.taken - 1) - 1;
  }
  return all;
}

}  // namespace quipu
