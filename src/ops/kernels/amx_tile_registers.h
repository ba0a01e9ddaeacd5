// The instructions on AMX tile registers that kernels use. Included inside the target region and namespace of one instruction
// set: no include guard, no namespace.

// Not the compiler's intrinsics: GCC 12's do not say that LDTILECFG reads 64 bytes and TILELOADD memory, so the stores
// before them are dropped or moved, and the first tile instruction is SIGILL (ggml-org/llama.cpp#26954).
template <int kTile>
inline void tile_zero() { __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile)); }
template <int kTile>
inline void tile_load(const void* base, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(base), "r"(stride), "i"(kTile) : "memory");
}
// What is wanted once, from a farther cache: it does not push out what the nearest one holds for other tiles.
template <int kTile>
inline void tile_load_once(const void* base, int64_t stride) {
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(base), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void tile_store(void* base, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(base), "r"(stride), "i"(kTile) : "memory");
}
// Sums += A B, signed bytes in fours.
template <int kSums, int kA, int kB>
inline void tile_dot_int8() { __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB)); }
// Sums += A B, bf16 in pairs.
template <int kSums, int kA, int kB>
inline void tile_dot_bf16() { __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB)); }
