// Unrolling, loads by dtype and elementary functions on 16 lanes. Included after simd_<isa>.h.

// Calls body(0), ..., body(N - 1) with constant arguments. A loop over a register tile must be written this way: GCC
// decides which arrays live in registers before it unrolls loops, and stores the tile to the stack otherwise. Callers are
// marked QUIPU_KERNEL, so that the bodies are inlined whatever their size.
template <class Body, int... kIndex>
QUIPU_KERNEL_INLINE inline void repeat_indices(const Body& body, std::integer_sequence<int, kIndex...>) {
  (body(std::integral_constant<int, kIndex>()), ...);
}
template <int N, class Body>
QUIPU_KERNEL_INLINE inline void repeat(const Body& body) {
  repeat_indices(body, std::make_integer_sequence<int, N>());
}

// Keeps the compiler from holding memory contents in registers across this point: sums that are meant to live in the
// cache would otherwise be "promoted" and spilled.
[[gnu::always_inline]] inline void compiler_barrier() { __asm__ volatile("" ::: "memory"); }

// exp(x) for x <= 88; below -87 it is 0. Relative error under 2e-7: 2^n times a degree-6 Taylor polynomial of the
// remainder |r| <= ln2 / 2, whose first omitted term is r^7 / 5040 < 2e-7.
inline F32 f_exp(F32 x) {
  const F32 lowest = f_set1(-87.0f);
  const F32 clamped = f_max(f_min(x, f_set1(88.0f)), lowest);
  const F32 n = f_round(f_mul(clamped, f_set1(1.44269504f)));
  F32 r = f_fma(n, f_set1(-0.693359375f), clamped);        // ln2 in two parts: n * the first is exact
  r = f_fma(n, f_set1(2.12194440e-4f), r);
  F32 p = f_set1(1.0f / 720.0f);
  p = f_fma(p, r, f_set1(1.0f / 120.0f));
  p = f_fma(p, r, f_set1(1.0f / 24.0f));
  p = f_fma(p, r, f_set1(1.0f / 6.0f));
  p = f_fma(p, r, f_set1(0.5f));
  p = f_fma(p, r, f_set1(1.0f));
  p = f_fma(p, r, f_set1(1.0f));
  return f_select_greater(lowest, x, f_zero(), f_mul(p, f_exp2_whole(n)));
}

// tanh(x) = 1 - 2 / (exp(2x) + 1), saturated where float cannot tell it from +-1.
inline F32 f_tanh(F32 x) {
  const F32 limited = f_max(f_min(x, f_set1(10.0f)), f_set1(-10.0f));
  const F32 e = f_exp(f_add(limited, limited));
  return f_sub(f_set1(1.0f), f_div(f_set1(2.0f), f_add(e, f_set1(1.0f))));
}

// 16 numbers of a float dtype.
template <DType D>
inline F32 f_load_as(const std::byte* p) {
  if constexpr (D == DType::kF32) return f_load(reinterpret_cast<const float*>(p));
  if constexpr (D == DType::kF16) return f_load_f16(p);
  if constexpr (D == DType::kBF16) return f_load_bf16(p);
}

// The first `lanes` of them; nothing beyond is read.
template <DType D>
inline F32 f_load_first(const std::byte* p, int lanes) {
  constexpr int kSize = D == DType::kF32 ? 4 : 2;
  alignas(64) std::byte rest[64] = {};
  __builtin_memcpy(rest, p, static_cast<size_t>(kSize * lanes));
  return f_load_as<D>(rest);
}

// Calls action.template operator()<D>() for a float dtype.
template <class Action>
void for_float(DType dtype, const Action& action) {
  switch (dtype) {
    case DType::kF32: return action.template operator()<DType::kF32>();
    case DType::kF16: return action.template operator()<DType::kF16>();
    default: return action.template operator()<DType::kBF16>();
  }
}
