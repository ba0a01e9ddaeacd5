// CheckedSize: unsigned 64-bit arithmetic that remembers overflow. Every size that comes from outside is computed with
// it; raw *, + and padding of such values is how other readers of the same formats were broken again and again.
#pragma once

#include <cstdint>
#include <optional>

namespace quipu {

class CheckedSize {
 public:
  constexpr CheckedSize(uint64_t value = 0) : value_(value) {}   // NOLINT(google-explicit-constructor)

  constexpr bool ok() const { return ok_; }
  // The value, or nothing once any step overflowed.
  constexpr std::optional<uint64_t> value() const { return ok_ ? std::optional<uint64_t>(value_) : std::nullopt; }
  // True when the value is known and at most `limit`.
  constexpr bool fits(uint64_t limit) const { return ok_ && value_ <= limit; }

  friend constexpr CheckedSize operator+(CheckedSize a, CheckedSize b) {
    CheckedSize r;
    r.ok_ = !__builtin_add_overflow(a.value_, b.value_, &r.value_) && a.ok_ && b.ok_;
    return r;
  }
  friend constexpr CheckedSize operator*(CheckedSize a, CheckedSize b) {
    CheckedSize r;
    r.ok_ = !__builtin_mul_overflow(a.value_, b.value_, &r.value_) && a.ok_ && b.ok_;
    return r;
  }
  // Rounds up to a multiple of `alignment` (a power of two, not 0).
  constexpr CheckedSize padded_to(uint64_t alignment) const {
    CheckedSize r = *this + CheckedSize(alignment - 1);
    r.value_ &= ~(alignment - 1);
    return r;
  }

 private:
  uint64_t value_ = 0;
  bool ok_ = true;
};

}  // namespace quipu
