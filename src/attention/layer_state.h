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
  std::vector<std::byte*> pages;   // capacity reserved for the whole context; kRing: ring_pages entries used cyclically
  int64_t rows = 0;                // rows ever appended (kFixed: fixed_rows)

  int64_t page_bytes() const { return spec.bytes_per_row() * kPageRows; }
  int64_t ring_pages() const;      // 0 unless kRing
};

class LayerState {
 public:
  // Reserves bookkeeping for up to `context` tokens; takes pages for kFixed regions only.
  static Result<LayerState> create(const StateLayout& layout, int64_t context, PagePool& pool);
  LayerState(LayerState&& other) noexcept;
  LayerState& operator=(LayerState&& other) noexcept;
  ~LayerState();

  const StateLayout& layout() const { return layout_; }
  RegionState& region(size_t index) { return regions_[index]; }
  const RegionState& region(size_t index) const { return regions_[index]; }
  size_t regions() const { return regions_.size(); }
  int64_t tokens() const { return tokens_; }   // tokens this layer has taken in

  // Makes pages for `tokens` more tokens present and private. Call before the forward pass of a step.
  Result<void> prepare_append(int64_t tokens);
  // Counts the tokens a step has written; rooms advance region rows themselves while they write.
  void advance(int64_t tokens) { tokens_ += tokens; }

  // Shares all pages with a copy (copy on write later).
  Result<LayerState> fork() const;
  // Cuts back to `tokens` tokens. Allowed as layout().rewind says; kUsage otherwise. kRing: only if nothing needed was
  // overwritten.
  Result<void> rewind(int64_t tokens);
  int64_t bytes() const;   // bytes of pages held, shared ones counted in full

  // Serialised form: counters and the used bytes of every page, in order.
  void save(std::vector<std::byte>& out) const;
  Result<void> load(std::span<const std::byte> bytes);   // kBadInput on any mismatch, leaving the state empty

 private:
  LayerState() = default;
  StateLayout layout_;
  std::vector<RegionState> regions_;
  int64_t tokens_ = 0;
  int64_t context_ = 0;
  PagePool* pool_ = nullptr;
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

  Result<void> prepare_append(int64_t tokens);   // kUsage when the context would be passed
  void advance(int64_t tokens) { tokens_ += tokens; }   // after all layers of a step
  Result<SequenceState> fork() const;
  Result<void> rewind(int64_t tokens);
  int64_t bytes() const;
  std::string signature() const;                 // of all layers' layouts

 private:
  SequenceState() = default;
  std::vector<LayerState> layers_;
  int64_t tokens_ = 0;
  int64_t context_ = 0;
};

}  // namespace quipu
