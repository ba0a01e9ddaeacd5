// ByteTrie: finds every stored string that starts at a place in a text, in one walk.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace quipu {

class ByteTrie {
 public:
  static constexpr int32_t kRoot = 0;
  static constexpr int32_t kNone = -1;

  ByteTrie() : values_(1, kNone), edges_(64) {}

  // value >= 0; of equal strings the last insertion wins. Empty strings are ignored.
  void insert(std::string_view text, int32_t value) {
    int32_t node = kRoot;
    for (unsigned char byte : text) node = child_or_new(node, byte);
    if (!text.empty()) values_[node] = value;
  }

  // The node after `byte`, or kNone.
  int32_t step(int32_t node, unsigned char byte) const {
    const uint64_t key = key_of(node, byte);
    for (size_t slot = mix(key) & (edges_.size() - 1); edges_[slot].key != 0; slot = (slot + 1) & (edges_.size() - 1)) {
      if (edges_[slot].key == key) return edges_[slot].node;
    }
    return kNone;
  }
  int32_t value(int32_t node) const { return values_[node]; }   // kNone inside a string
  bool empty() const { return values_.size() == 1; }

 private:
  struct Edge {
    uint64_t key = 0;   // 0: free; keys are at least 256
    int32_t node = kNone;
  };
  static uint64_t key_of(int32_t node, unsigned char byte) { return (static_cast<uint64_t>(node) + 1) << 8 | byte; }
  static uint64_t mix(uint64_t key) { return (key * 0x9e3779b97f4a7c15u) >> 20; }

  int32_t child_or_new(int32_t node, unsigned char byte) {
    const int32_t found = step(node, byte);
    if (found != kNone) return found;
    if (values_.size() * 2 > edges_.size()) grow();
    const auto made = static_cast<int32_t>(values_.size());
    values_.push_back(kNone);
    place({key_of(node, byte), made});
    return made;
  }
  void place(Edge edge) {
    size_t slot = mix(edge.key) & (edges_.size() - 1);
    while (edges_[slot].key != 0) slot = (slot + 1) & (edges_.size() - 1);
    edges_[slot] = edge;
  }
  void grow() {
    std::vector<Edge> old(edges_.size() * 2);
    old.swap(edges_);
    for (const Edge& edge : old) {
      if (edge.key != 0) place(edge);
    }
  }

  std::vector<int32_t> values_;   // [nodes]
  std::vector<Edge> edges_;       // open addressing, at most half full
};

}  // namespace quipu
