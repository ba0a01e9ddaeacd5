// RandomStream: a counter-based generator. Draw i of stream (seed, stream) is a pure function of the three numbers, so
// results do not depend on threads or on what else was drawn.        [splitmix64 finaliser, Steele et al. 2014]
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace quipu {

inline uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

class RandomStream {
 public:
  RandomStream(uint64_t seed, uint64_t stream) : key_(mix64(seed ^ mix64(stream))) {}

  uint64_t bits() { return mix64(key_ + 0x9e3779b97f4a7c15u * counter_++); }
  // Uniform in [0, 1), 53 bits.
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1.0p-53; }
  // Uniform in 0 .. limit-1; limit >= 1. The bias is below 2^-32 for limits below 2^32.
  uint64_t below(uint64_t limit) { return static_cast<uint64_t>((static_cast<unsigned __int128>(bits()) * limit) >> 64); }
  // Normal with mean 0 and variance 1 (Box-Muller, one value per two draws: simple and position-independent).
  double normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return radius * std::cos(2.0 * std::numbers::pi * uniform());
  }
  uint64_t position() const { return counter_; }
  void seek(uint64_t position) { counter_ = position; }

 private:
  uint64_t key_;
  uint64_t counter_ = 0;
};

}  // namespace quipu
