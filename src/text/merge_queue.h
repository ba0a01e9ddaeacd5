// MergeQueue: which place of a long word merges next: lowest rank first, then leftmost.
//
// A binary heap over millions of places misses the cache at every step. Ranks are small integers, so places lie in one
// bucket per rank and a tree of bit words finds the lowest filled one. Places arrive in a bucket mostly in order; a
// bucket that got one out of order becomes a heap, so hostile ranks (all equal) still cost O(log n) a place.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <functional>
#include <vector>

namespace quipu {

class MergeQueue {
 public:
  static constexpr uint32_t kNoRank = 0xffffffffu;

  // Empties the queue and fills it with every place 0 .. places-1 whose rank_of(place) is not kNoRank.
  template <class RankOf>
  void start(uint32_t places, const RankOf& rank_of) {
    heap_.clear();
    bucketed_ = places > kHeapPlaces;
    if (!bucketed_) {
      for (uint32_t place = 0; place < places; ++place) {
        if (rank_of(place) != kNoRank) heap_.push_back(key_of(rank_of(place), place));
      }
      std::make_heap(heap_.begin(), heap_.end(), std::greater<>());
      return;
    }
    buckets_.clear();
    for (auto& level : levels_) level.clear();
    for (uint32_t place = 0; place < places; ++place) {
      if (rank_of(place) != kNoRank) push(rank_of(place), place);
    }
  }

  void push(uint32_t rank, uint32_t place) {
    if (!bucketed_) {
      heap_.push_back(key_of(rank, place));
      std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
      return;
    }
    if (rank >= buckets_.size()) buckets_.resize(rank + 1);
    Bucket& bucket = buckets_[rank];
    if (bucket.empty()) mark(rank);
    if (!bucket.heaped && bucket.head < bucket.places.size() && place < bucket.places.back()) bucket.become_heap();
    bucket.places.push_back(place);
    if (bucket.heaped) std::push_heap(bucket.places.begin(), bucket.places.end(), std::greater<>());
  }

  // Takes the next place; false when there is none.
  bool pop(uint32_t& rank, uint32_t& place) {
    if (!bucketed_) {
      if (heap_.empty()) return false;
      std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
      rank = static_cast<uint32_t>(heap_.back() >> 32);
      place = static_cast<uint32_t>(heap_.back());
      heap_.pop_back();
      return true;
    }
    if (!lowest(rank)) return false;
    Bucket& bucket = buckets_[rank];
    place = bucket.take();
    upcoming_ = !bucket.heaped && bucket.head + kAhead < bucket.places.size() ? bucket.places[bucket.head + kAhead] : place;
    if (bucket.empty()) {
      bucket = Bucket();   // gives the memory back: a used rank seldom returns
      unmark(rank);
    }
    return true;
  }

  // A place that pop() is likely to give soon: worth a prefetch.
  uint32_t upcoming() const { return upcoming_; }

 private:
  static constexpr size_t kAhead = 12;
  static constexpr size_t kHeapPlaces = 1 << 16;   // up to here the heap stays in the cache
  static uint64_t key_of(uint32_t rank, uint32_t place) { return static_cast<uint64_t>(rank) << 32 | place; }

  struct Bucket {
    std::vector<uint32_t> places;   // ascending from `head`, or a heap
    size_t head = 0;
    bool heaped = false;

    bool empty() const { return head == places.size(); }
    void become_heap() {
      places.erase(places.begin(), places.begin() + static_cast<ptrdiff_t>(head));
      head = 0;
      heaped = true;
      std::make_heap(places.begin(), places.end(), std::greater<>());
    }
    uint32_t take() {
      if (!heaped) return places[head++];
      std::pop_heap(places.begin(), places.end(), std::greater<>());
      const uint32_t place = places.back();
      places.pop_back();
      return place;
    }
  };

  // levels_[0] has a bit per rank, each higher level a bit per word of the one below.
  void mark(uint32_t rank) {
    size_t index = rank;
    for (auto& level : levels_) {
      if (index / 64 >= level.size()) level.resize(index / 64 + 1);
      level[index / 64] |= uint64_t{1} << (index % 64);
      index /= 64;
    }
  }
  void unmark(uint32_t rank) {
    size_t index = rank;
    for (auto& level : levels_) {
      level[index / 64] &= ~(uint64_t{1} << (index % 64));
      if (level[index / 64] != 0) return;
      index /= 64;
    }
  }
  bool lowest(uint32_t& rank) const {
    const auto& top = levels_[kLevels - 1];
    size_t index = 0;
    while (index < top.size() && top[index] == 0) ++index;
    if (index == top.size()) return false;
    for (int level = kLevels - 1; level >= 0; --level) {
      index = index * 64 + static_cast<size_t>(std::countr_zero(levels_[level][index]));
    }
    rank = static_cast<uint32_t>(index);
    return true;
  }

  static constexpr int kLevels = 4;   // 64^4 ranks before the top level is scanned
  bool bucketed_ = false;
  uint32_t upcoming_ = 0;
  std::vector<uint64_t> heap_;
  std::vector<Bucket> buckets_;   // [ranks]
  std::vector<uint64_t> levels_[kLevels];
};

}  // namespace quipu
