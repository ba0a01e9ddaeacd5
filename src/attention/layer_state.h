// LayerState: one layer's memory of one sequence, as its StateLayout declares it. SequenceState: all layers of a model.
//
// Rows live in pages of kPageRows rows; pages are counted references into a PagePool, shared between forks and copied
// when written. A step first calls prepare_append(), which may take pages from the pool; the forward pass itself then
// allocates nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attention/state_layout.h"
#include "base/result.h"
#include "ops/kv_cache.h"
#include "tensor/buffer.h"

namespace quipu {

class ByteReader;

// Hands out zeroed, 64-byte aligned pages by size and takes them back. Counts references. Not thread-safe: one engine
// thread owns it. Page memory comes in slabs, so that a long context is few mappings; freed pages are reused.
class PagePool {
 public:
  PagePool();
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // A new page with one reference. limit_bytes() bounds the sum of live pages (kFailed when it would be passed).
  Result<std::byte*> take(int64_t bytes);
  void share(std::byte* page);            // one more reference
  void release(std::byte* page);          // one less; the last one frees it
  bool shared(const std::byte* page) const;   // more than one reference

  int64_t live_bytes() const { return live_bytes_; }
  int64_t limit_bytes() const { return limit_bytes_; }
  void set_limit_bytes(int64_t limit) { limit_bytes_ = limit; }

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
  int64_t live_bytes_ = 0;
  int64_t limit_bytes_ = INT64_MAX;
};

// One region of one layer.
struct RegionState {
  RegionSpec spec;
  // Capacity reserved for the whole context. kRing: ring_pages() entries used cyclically, nullptr until first needed.
  // kFixed: one page of all rows, contiguous.
  std::vector<std::byte*> pages;
  int64_t rows = 0;                // rows ever appended (kFixed: fixed_rows)
  int64_t first_row = 0;           // kRing: oldest row not overwritten; 0 otherwise

  int64_t page_bytes() const { return spec.page_bytes(); }
  int64_t ring_pages() const { return spec.ring_pages(); }
};

// Rooms write rows of a region only in a step that prepare_append() prepared, and keep region rows equal to
// spec.rows_after(tokens()) when the step ends. A layer that a router sends only some tokens to counts those alone.
// Page bytes beyond the rows written hold anything (old rows, zeros): kernels must not let them touch a result.
class LayerState {
 public:
  // Reserves bookkeeping for up to `context` tokens; takes pages for kFixed regions only (zeroed).
  static Result<LayerState> create(const StateLayout& layout, int64_t context, PagePool& pool);
  LayerState(LayerState&& other) noexcept;
  LayerState& operator=(LayerState&& other) noexcept;
  ~LayerState();

  const StateLayout& layout() const { return layout_; }
  RegionState& region(size_t index) { return regions_[index]; }
  const RegionState& region(size_t index) const { return regions_[index]; }
  size_t regions() const { return regions_.size(); }
  int64_t tokens() const { return tokens_; }   // tokens this layer has taken in
  int64_t context() const { return context_; } // most it can take in
  bool routed() const { return layout_.routed.has_value(); }
  // Position in the sequence of the token-th token it took in. Without a router that is `token` itself.
  int64_t position_of(int64_t token) const;
  // Of the tokens it has taken in, those before `position` in the sequence. Without a router that is `position` itself.
  int64_t tokens_before(int64_t position) const;
  // Notes, in a step that was prepared, the position of the next token that goes into this routed layer.
  void note_position(int64_t position);

  // Makes pages for `tokens` more tokens present and private, and those of rows that change: the open row of
  // kPerStride, all of kFixed. Call before the forward pass of a step. On error (kUsage: more than the context or than a
  // ring holds; kFailed: no memory) rows and counters are as before, and it may be called again.
  Result<void> prepare_append(int64_t tokens);
  // Counts the tokens a step has written; rooms advance region rows themselves while they write.
  void advance(int64_t tokens) { tokens_ += tokens; }
  // Gives back the pages beyond the last row, which a step was prepared for and did not need (routing).
  void release_unused();

  // Shares all pages with a copy (copy on write later).
  Result<LayerState> fork() const;
  // Cuts back to `tokens` tokens, 0 <= tokens <= tokens(). Always allowed to 0 (a new beginning: fixed regions are zero
  // again) and to tokens(); between them as layout().rewind says, kUsage otherwise. kRing: only if the ring_history rows
  // before `tokens` were not overwritten. kFixed regions are left as they are: a layout that allows the rewind promises
  // that their contents do not matter there.
  Result<void> rewind(int64_t tokens);
  bool can_rewind(int64_t tokens) const;
  int64_t bytes() const;   // bytes of pages held, shared ones counted in full

  // Serialised form, appended to `out`: counters and the pages that hold rows, in order. The reader must know the layout.
  void save(std::vector<std::byte>& out) const;
  // Replaces the state by one that save() wrote for the same layout. kBadInput on any mismatch, kFailed without memory,
  // leaving the state empty. Takes no more page memory than there are bytes.
  Result<void> load(std::span<const std::byte> bytes);

 private:
  LayerState() = default;
  Result<void> prepare_region(RegionState& region, int64_t tokens);
  Result<void> make_private(std::byte*& page, int64_t bytes);
  Result<void> clear();            // no tokens, no rows
  void release_pages();
  Result<void> load_region(RegionState& region, ByteReader& reader);
  StateLayout layout_;
  std::vector<RegionState> regions_;
  int64_t tokens_ = 0;
  int64_t context_ = 0;
  PagePool* pool_ = nullptr;
};

// How many of a sequence's tokens a routed layer took in, for people.
struct RoutedTokens {
  int64_t layer = 0;
  int64_t seen = 0;         // tokens of the sequence
  int64_t taken = 0;        // of them, those that went through the layer
  int64_t reserved = 0;     // most it has room for
  // Once the room is used up every later token passes the layer by, whatever its router says: how many have.
  int64_t passed_full = 0;
};

// All layers of one sequence.
class SequenceState {
 public:
  static Result<SequenceState> create(std::span<const StateLayout> layouts, int64_t context, PagePool& pool);

  LayerState& layer(size_t index) { return layers_[index]; }
  const LayerState& layer(size_t index) const { return layers_[index]; }
  size_t layers() const { return layers_.size(); }
  int64_t tokens() const { return tokens_; }
  int64_t context() const { return context_; }

  // kUsage when the context would be passed. A routed layer is prepared for all of them, or as many as it has room for.
  Result<void> prepare_append(int64_t tokens);
  // After all layers of a step; also, on an empty sequence, after layer(i).load() of every layer.
  void advance(int64_t tokens);
  Result<SequenceState> fork() const;
  // Cuts every layer back, or none: kUsage when one of them cannot.
  Result<void> rewind(int64_t tokens);
  int64_t bytes() const;
  std::string signature() const;                 // of all layers' layouts
  std::vector<RoutedTokens> routed_tokens() const;   // of the routed layers, in order

 private:
  SequenceState() = default;
  std::vector<LayerState> layers_;
  int64_t tokens_ = 0;
  int64_t context_ = 0;
};

}  // namespace quipu
