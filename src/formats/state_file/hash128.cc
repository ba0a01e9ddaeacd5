#include "formats/state_file/hash128.h"

#include <xxhash.h>

#include "base/check.h"

namespace quipu {
namespace {

Hash128 from(XXH128_hash_t hash) { return {hash.low64, hash.high64}; }

}  // namespace

struct Hasher128::State {
  State() : xxh(XXH3_createState()) { CHECK(xxh != nullptr) << "no memory for a hash"; }
  ~State() { XXH3_freeState(xxh); }
  XXH3_state_t* xxh;
};

std::string Hash128::text() const {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (const uint64_t half : {high, low}) {
    for (int shift = 60; shift >= 0; shift -= 4) out += kHex[(half >> shift) & 15];
  }
  return out;
}

Hash128 hash128(std::span<const std::byte> bytes) { return from(XXH3_128bits(bytes.data(), bytes.size())); }

Hasher128::Hasher128() : state_(std::make_unique<State>()) { XXH3_128bits_reset(state_->xxh); }
Hasher128::~Hasher128() = default;

void Hasher128::add(std::span<const std::byte> bytes) {
  if (!bytes.empty()) XXH3_128bits_update(state_->xxh, bytes.data(), bytes.size());
}

Hash128 Hasher128::result() const { return from(XXH3_128bits_digest(state_->xxh)); }

}  // namespace quipu
