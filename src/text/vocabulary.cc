#include "text/vocabulary.h"

#include <algorithm>
#include <bit>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace quipu {

namespace {
uint64_t hash_of(std::string_view text) { return XXH3_64bits(text.data(), text.size()); }
}  // namespace

Vocabulary Vocabulary::build(const std::vector<std::string_view>& tokens, const std::vector<bool>& in_index) {
  Vocabulary v;
  size_t bytes = 0;
  for (std::string_view token : tokens) bytes += token.size();
  v.bytes_.reserve(bytes);
  v.ends_.reserve(tokens.size());
  for (std::string_view token : tokens) {
    v.bytes_ += token;
    v.ends_.push_back(v.bytes_.size());
  }
  v.slots_.resize(std::bit_ceil(tokens.size() * 2 + 2));
  const size_t mask = v.slots_.size() - 1;
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].empty() || (!in_index.empty() && !in_index[id])) continue;
    v.longest_ = std::max(v.longest_, tokens[id].size());
    const uint64_t hash = hash_of(tokens[id]);
    size_t slot = hash & mask;
    while (v.slots_[slot].id >= 0 && !(v.slots_[slot].hash == static_cast<uint32_t>(hash >> 32) &&
                                       v.token(v.slots_[slot].id) == tokens[id])) {
      slot = (slot + 1) & mask;
    }
    v.slots_[slot] = {static_cast<uint32_t>(hash >> 32), static_cast<int32_t>(id)};
  }
  return v;
}

int32_t Vocabulary::find(std::string_view text) const {
  if (text.empty() || text.size() > longest_) return -1;
  const uint64_t hash = hash_of(text);
  const size_t mask = slots_.size() - 1;
  for (size_t slot = hash & mask; slots_[slot].id >= 0; slot = (slot + 1) & mask) {
    if (slots_[slot].hash == static_cast<uint32_t>(hash >> 32) && token(slots_[slot].id) == text) return slots_[slot].id;
  }
  return -1;
}

}  // namespace quipu
