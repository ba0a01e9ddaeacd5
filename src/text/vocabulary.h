// Vocabulary: ids 0 .. size-1 to byte strings and back. Owns its bytes in one block.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace quipu {

class Vocabulary {
 public:
  Vocabulary() = default;

  // tokens[i] is the text of id i. Only ids with in_index[i] (all, when in_index is empty) are found by find();
  // of equal texts the highest id is found, empty ones never.
  static Vocabulary build(const std::vector<std::string_view>& tokens, const std::vector<bool>& in_index = {});

  int64_t size() const { return static_cast<int64_t>(ends_.size()); }
  std::string_view token(int32_t id) const {
    const size_t begin = id == 0 ? 0 : ends_[id - 1];
    return std::string_view(bytes_).substr(begin, ends_[id] - begin);
  }
  int32_t find(std::string_view text) const;   // -1 when absent
  size_t longest() const { return longest_; }  // bytes of the longest indexed token

 private:
  struct Slot {
    uint32_t hash = 0;
    int32_t id = -1;
  };
  std::string bytes_;
  std::vector<size_t> ends_;
  std::vector<Slot> slots_;   // open addressing, a power of two, at most half full
  size_t longest_ = 0;
};

}  // namespace quipu
