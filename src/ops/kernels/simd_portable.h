// 16-lane vectors as plain arrays: the meaning of the others, for any machine. See simd_avx512.h for the contract.
// Multiply-add rounds twice here: a library fma without hardware is far too slow.

constexpr int kTileRows = 4;       // most rows of activations a register tile holds
constexpr int kTilePanels = 1;      // against so many panels

struct F32 { float v[16]; };
struct I32 { int32_t v[16]; };
struct U8 { uint8_t v[64]; };

template <class Function>
inline F32 f_map(const Function& function) {
  F32 r;
  for (int i = 0; i < 16; ++i) r.v[i] = function(i);
  return r;
}
template <class Function>
inline U8 u_map(const Function& function) {
  U8 r;
  for (int i = 0; i < 64; ++i) r.v[i] = static_cast<uint8_t>(function(i));
  return r;
}

inline F32 f_set1(float x) { return f_map([&](int) { return x; }); }
inline F32 f_zero() { return f_set1(0.0f); }
inline F32 f_load(const float* p) { return f_map([&](int i) { return p[i]; }); }
inline void f_store(float* p, const F32& x) { __builtin_memcpy(p, x.v, sizeof(x.v)); }
inline F32 f_add(const F32& a, const F32& b) { return f_map([&](int i) { return a.v[i] + b.v[i]; }); }
inline F32 f_sub(const F32& a, const F32& b) { return f_map([&](int i) { return a.v[i] - b.v[i]; }); }
inline F32 f_mul(const F32& a, const F32& b) { return f_map([&](int i) { return a.v[i] * b.v[i]; }); }
inline F32 f_div(const F32& a, const F32& b) { return f_map([&](int i) { return a.v[i] / b.v[i]; }); }
inline F32 f_fma(const F32& a, const F32& b, const F32& c) { return f_map([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
inline F32 f_max(const F32& a, const F32& b) { return f_map([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline F32 f_min(const F32& a, const F32& b) { return f_map([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
inline F32 f_abs(const F32& a) { return f_map([&](int i) { return __builtin_fabsf(a.v[i]); }); }
inline F32 f_sqrt(const F32& a) { return f_map([&](int i) { return __builtin_sqrtf(a.v[i]); }); }
inline F32 f_round(const F32& a) { return f_map([&](int i) { return __builtin_nearbyintf(a.v[i]); }); }
inline F32 f_from_i(const I32& a) { return f_map([&](int i) { return static_cast<float>(a.v[i]); }); }
inline I32 i_from_f(const F32& a) {
  I32 r;
  for (int i = 0; i < 16; ++i) r.v[i] = static_cast<int32_t>(__builtin_nearbyintf(a.v[i]));
  return r;
}
inline float f_reduce_add(const F32& a) {
  float sum = 0.0f;
  for (const float x : a.v) sum += x;
  return sum;
}
inline float f_reduce_max(const F32& a) {
  float largest = a.v[0];
  for (const float x : a.v) largest = x > largest ? x : largest;
  return largest;
}
inline void f_store_sums4(float* p, const F32& a, const F32& b, const F32& c, const F32& d) {
  p[0] = f_reduce_add(a);
  p[1] = f_reduce_add(b);
  p[2] = f_reduce_add(c);
  p[3] = f_reduce_add(d);
}
inline float bits_to_float(uint32_t bits) {
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}
inline F32 f_exp2_whole(const F32& n) {
  return f_map([&](int i) { return bits_to_float(static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23); });
}
inline F32 f_select_range(int low, int high, const F32& a, const F32& b) {
  return f_map([&](int i) { return i >= low && i < high ? a.v[i] : b.v[i]; });
}
inline F32 f_select_greater(const F32& x, const F32& y, const F32& a, const F32& b) {
  return f_map([&](int i) { return x.v[i] > y.v[i] ? a.v[i] : b.v[i]; });
}
inline F32 f_load_part(const float* p, int lanes) { return f_map([&](int i) { return i < lanes ? p[i] : 0.0f; }); }
inline void f_store_part(float* p, const F32& x, int lanes) {
  for (int i = 0; i < lanes; ++i) p[i] = x.v[i];
}
inline uint16_t half_at(const void* p, int i) {
  uint16_t h;
  __builtin_memcpy(&h, static_cast<const char*>(p) + 2 * i, 2);
  return h;
}
inline F32 f_load_f16(const void* p) { return f_map([&](int i) { return f16_to_f32(half_at(p, i)); }); }
inline F32 f_load_bf16(const void* p) { return f_map([&](int i) { return bf16_to_f32(half_at(p, i)); }); }
inline F32 f_load_u8(const void* p) { return f_map([&](int i) { return static_cast<float>(static_cast<const uint8_t*>(p)[i]); }); }
inline F32 f_load_i8(const void* p) { return f_map([&](int i) { return static_cast<float>(static_cast<const int8_t*>(p)[i]); }); }
template <int c>
inline F32 f_component_i8(const U8& x) {
  return f_map([&](int i) { return static_cast<float>(static_cast<int8_t>(x.v[4 * i + c])); });
}

inline I32 i_set1(int32_t x) {
  I32 r;
  for (int32_t& lane : r.v) lane = x;
  return r;
}
inline I32 i_zero() { return i_set1(0); }
inline I32 i_add(const I32& a, const I32& b) {
  I32 r;
  for (int i = 0; i < 16; ++i) r.v[i] = a.v[i] + b.v[i];
  return r;
}
inline I32 i_load1(const int32_t* p) { return i_set1(*p); }
inline void i_store_i8(int8_t* p, const I32& x) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(x.v[i]);
}
inline int32_t i_reduce_add(const I32& x) {
  int32_t sum = 0;
  for (const int32_t lane : x.v) sum += lane;
  return sum;
}

inline U8 u_load(const void* p) {
  U8 r;
  __builtin_memcpy(r.v, p, 64);
  return r;
}
inline void u_store(void* p, const U8& x) { __builtin_memcpy(p, x.v, 64); }
inline U8 u_repeat4(const void* p) { return u_map([&](int i) { return static_cast<const uint8_t*>(p)[i % 4]; }); }
inline U8 u_low_nibbles(const U8& x) { return u_map([&](int i) { return x.v[i] & 15; }); }
inline U8 u_high_nibbles(const U8& x) { return u_map([&](int i) { return x.v[i] >> 4; }); }
template <int j>
inline U8 u_pair(const U8& x) { return u_map([&](int i) { return x.v[i] >> (2 * j) & 3; }); }
template <int bits>
inline U8 u_shift_up(const U8& x) { return u_map([&](int i) { return x.v[i] << bits; }); }
inline U8 u_or(const U8& a, const U8& b) { return u_map([&](int i) { return a.v[i] | b.v[i]; }); }
inline U8 u_flip_top(const U8& x) { return u_map([&](int i) { return x.v[i] ^ 0x80; }); }
inline U8 u_from_bits(const void* p, int value) {
  return u_map([&](int i) { return (static_cast<const uint8_t*>(p)[i / 8] >> (i % 8) & 1) ? value : 0; });
}
inline U8 u_lookup16(const U8& codes, const uint8_t* table) { return u_map([&](int i) { return table[codes.v[i] & 15]; }); }
inline I32 i_dot(const I32& sum, const U8& w, const U8& x) {
  I32 r;
  for (int i = 0; i < 16; ++i) {
    int32_t dot = sum.v[i];
    for (int c = 0; c < 4; ++c) dot += static_cast<int32_t>(w.v[4 * i + c]) * static_cast<int8_t>(x.v[4 * i + c]);
    r.v[i] = dot;
  }
  return r;
}

inline void prefetch(const void*) {}
inline void prefetch_far(const void*) {}
