// Reading panels and writing tiles of results. Included after simd_<isa>.h and math_body.h.

// ---- reading panels -----------------------------------------------------------------------------------------------

// Widens the codes of one block to eight vectors of unsigned bytes: the square of panel_format.h.
template <DType D>
inline void load_square(const std::byte* p, U8 (&w)[8]) {
  if constexpr (D == DType::kQ8_0) {
    repeat<8>([&](auto i) { w[i] = u_load(p + 64 * i); });
  } else if constexpr (D == DType::kQ2_K || D == DType::kQ3_K) {
    repeat<2>([&](auto v) {
      const U8 packed = u_load(p + 64 * v);
      repeat<4>([&](auto j) { w[4 * v + j] = u_pair<j>(packed); });
    });
    if constexpr (D == DType::kQ3_K) repeat<8>([&](auto i) { w[i] = u_or(w[i], u_from_bits(p + 128 + 8 * i, 4)); });
  } else {
    repeat<4>([&](auto i) {
      const U8 packed = u_load(p + 64 * i);
      w[i] = u_low_nibbles(packed);
      w[i + 4] = u_high_nibbles(packed);
    });
    if constexpr (D == DType::kQ5_0 || D == DType::kQ5_1 || D == DType::kQ5_K) {
      repeat<8>([&](auto i) { w[i] = u_or(w[i], u_from_bits(p + 256 + 8 * i, 16)); });
    } else if constexpr (D == DType::kQ6_K) {
      repeat<2>([&](auto v) {
        const U8 packed = u_load(p + 256 + 64 * v);
        repeat<4>([&](auto j) { w[4 * v + j] = u_or(w[4 * v + j], u_shift_up<4>(u_pair<j>(packed))); });
      });
    } else if constexpr (D == DType::kIQ4_NL) {
      repeat<8>([&](auto i) { w[i] = u_lookup16(w[i], kIq4CodeBook.values); });
    }
  }
}

// What a format's geometry is at compile time; equal to panel_format(D), which a test checks.
template <DType D>
struct Geometry {
  static constexpr bool kSuper = D == DType::kQ2_K || D == DType::kQ3_K || D == DType::kQ4_K || D == DType::kQ5_K || D == DType::kQ6_K;
  static constexpr bool kHalfMin = D == DType::kQ4_1 || D == DType::kQ5_1;
  static constexpr bool kSuper32Min = D == DType::kQ4_K || D == DType::kQ5_K;
  static constexpr bool kSuper16 = D == DType::kQ3_K || D == DType::kQ6_K;
  static constexpr bool kSuper16Min = D == DType::kQ2_K;
  static constexpr bool kMinimum = kHalfMin || kSuper32Min || kSuper16Min;
  static constexpr int kGroups = kSuper16 || kSuper16Min ? 2 : 1;   // scale groups in a block of 32
  static constexpr int kCodeBytes = D == DType::kQ8_0   ? 512
                                    : D == DType::kQ2_K ? 128
                                    : D == DType::kQ3_K ? 192
                                    : D == DType::kQ6_K ? 384
                                    : D == DType::kQ5_0 || D == DType::kQ5_1 || D == DType::kQ5_K ? 320
                                                                                                  : 256;
  static constexpr int kScaleBytes = kHalfMin ? 64 : 32;
  static constexpr int kBlockBytes = kCodeBytes + kScaleBytes;
  static constexpr int kHeaderBytes = kSuper ? (kSuper16 ? 32 : 64) : 0;
  static constexpr int kBlocksPerSuper = kSuper ? 8 : 1;
};

// Scales (and minimums) of a block's groups for 16 rows. header: the super-block's, for the K formats.
template <DType D>
inline void load_scales(const std::byte* header, const std::byte* fields, F32 (&scale)[2], F32 (&minimum)[2]) {
  using G = Geometry<D>;
  if constexpr (!G::kSuper) {
    scale[0] = f_load_f16(fields);
    if constexpr (G::kHalfMin) minimum[0] = f_load_f16(fields + 32);
  } else if constexpr (G::kSuper32Min) {
    scale[0] = f_mul(f_load_f16(header), f_load_u8(fields));
    minimum[0] = f_sub(f_zero(), f_mul(f_load_f16(header + 32), f_load_u8(fields + 16)));
  } else if constexpr (G::kSuper16) {
    const F32 d = f_load_f16(header);
    repeat<2>([&](auto g) { scale[g] = f_mul(d, f_load_i8(fields + 16 * g)); });
  } else {
    const F32 d = f_load_f16(header);
    const F32 dmin = f_load_f16(header + 32);
    repeat<2>([&](auto g) {
      alignas(16) uint8_t low[16], high[16];
      for (int i = 0; i < 16; ++i) {
        low[i] = static_cast<uint8_t>(fields[16 * g + i]) & 15;
        high[i] = static_cast<uint8_t>(fields[16 * g + i]) >> 4;
      }
      scale[g] = f_mul(d, f_load_u8(low));
      minimum[g] = f_sub(f_zero(), f_mul(dmin, f_load_u8(high)));
    });
  }
}

// Codes of a panel one byte each, each vector passed through `adjust`, with the scales and minimums in float.
template <DType D, class Adjust>
QUIPU_KERNEL void widen(uint8_t* codes, float* scales, float* minimums, const std::byte* panel, int64_t cols,
                            const Adjust& adjust) {
  using G = Geometry<D>;
  const int64_t supers = cols / (32 * G::kBlocksPerSuper);
  const std::byte* at = panel;
  int64_t group = 0;
  for (int64_t super = 0; super < supers; ++super) {
    const std::byte* header = at;
    at += G::kHeaderBytes;
    for (int b = 0; b < G::kBlocksPerSuper; ++b, at += G::kBlockBytes, codes += 512) {
      U8 w[8];
      load_square<D>(at, w);
      repeat<8>([&](auto i) { u_store(codes + 64 * i, adjust(w[i])); });
      F32 scale[2], minimum[2];
      load_scales<D>(header, at + G::kCodeBytes, scale, minimum);
      repeat<G::kGroups>([&](auto g) {
        f_store(scales + 16 * group, scale[g]);
        if constexpr (G::kMinimum) f_store(minimums + 16 * group, minimum[g]);
        ++group;
      });
    }
  }
}

// Calls action.template operator()<D>() for a quantised dtype.
template <class Action>
void for_format(DType dtype, const Action& action) {
  switch (dtype) {
    case DType::kQ4_0: return action.template operator()<DType::kQ4_0>();
    case DType::kQ4_1: return action.template operator()<DType::kQ4_1>();
    case DType::kQ5_0: return action.template operator()<DType::kQ5_0>();
    case DType::kQ5_1: return action.template operator()<DType::kQ5_1>();
    case DType::kQ8_0: return action.template operator()<DType::kQ8_0>();
    case DType::kQ2_K: return action.template operator()<DType::kQ2_K>();
    case DType::kQ3_K: return action.template operator()<DType::kQ3_K>();
    case DType::kQ4_K: return action.template operator()<DType::kQ4_K>();
    case DType::kQ5_K: return action.template operator()<DType::kQ5_K>();
    case DType::kQ6_K: return action.template operator()<DType::kQ6_K>();
    case DType::kIQ4_NL: return action.template operator()<DType::kIQ4_NL>();
    default: return;
  }
}

// ---- writing results -----------------------------------------------------------------------------------------------

inline void finish_tile_row(const OutputTile& out, int row, int panel, bool last, F32 sum) {
  float* y = out.y + row * out.ld + 16 * panel;
  if (last && out.lanes_last < 16) {
    if (out.bias != nullptr) sum = f_add(sum, f_load_part(out.bias + 16 * panel, out.lanes_last));
    f_store_part(y, sum, out.lanes_last);
  } else {
    if (out.bias != nullptr) sum = f_add(sum, f_load(out.bias + 16 * panel));
    f_store(y, sum);
  }
}
