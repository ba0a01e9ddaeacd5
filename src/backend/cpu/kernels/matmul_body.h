// Matrix products over panels of 16 rows. Included after simd_<isa>.h, math_body.h and panel_body.h.
//
// The float operations of one output element, and their order, are the same in every kernel here: blocks in order, per
// block (and per group of 16 where a format has those) sum = fma(float(integer dot), weight scale * activation scale, sum),
// then sum = fma(weight minimum, scaled sum of activations, sum). So a row's result does not depend on how many rows are
// computed with it.

// ---- few rows -----------------------------------------------------------------------------------------------------

// R rows against P panels side by side: P streams of memory and P R independent chains of arithmetic.
template <DType D, int P, int R>
QUIPU_KERNEL void gemv_panels(float* y, int64_t ld, const std::byte* panel, int64_t panel_bytes, int64_t cols, const QuantisedTile* x) {
  using G = Geometry<D>;
  F32 sum[R][P];
  repeat<R>([&](auto r) { repeat<P>([&](auto p) { sum[r][p] = f_zero(); }); });
  const int64_t supers = cols / (32 * G::kBlocksPerSuper);
  const std::byte* at = panel;
  int64_t block = 0;
  for (int64_t super = 0; super < supers; ++super) {
    const std::byte* header = at;
    at += G::kHeaderBytes;
    for (int b = 0; b < G::kBlocksPerSuper; ++b, ++block, at += G::kBlockBytes) {
      repeat<P>([&](auto p) {
        const std::byte* base = at + p * panel_bytes;
        U8 w[8];
        load_square<D>(base, w);
        F32 scale[2], minimum[2];
        load_scales<D>(header + p * panel_bytes, base + G::kCodeBytes, scale, minimum);
        repeat<R>([&](auto r) {
          const int8_t* codes = x[r].codes + block * 32;
          const float x_scale = x[r].scales[block];
          repeat<G::kGroups>([&](auto g) {
            const int64_t group = block * G::kGroups + g;
            constexpr int kSteps = 8 / G::kGroups;
            I32 even = i_load1(x[r].start + group);
            I32 odd = i_zero();
            repeat<kSteps / 2>([&](auto i) {
              constexpr int kStep = g * kSteps + 2 * i;
              even = i_dot(even, w[kStep], u_repeat4(codes + 4 * kStep));
              odd = i_dot(odd, w[kStep + 1], u_repeat4(codes + 4 * kStep + 4));
            });
            sum[r][p] = f_fma(f_from_i(i_add(even, odd)), f_mul(scale[g], f_set1(x_scale)), sum[r][p]);
            if constexpr (G::kMinimum) sum[r][p] = f_fma(minimum[g], f_set1(x[r].scaled_sums[group]), sum[r][p]);
          });
        });
      });
    }
  }
  repeat<R>([&](auto r) { repeat<P>([&](auto p) { f_store(y + r * ld + 16 * p, sum[r][p]); }); });
}

template <DType D, int R>
void gemv(float* y, int64_t ld, const std::byte* panel, int64_t panels, int64_t panel_bytes, int64_t cols, const QuantisedTile* x) {
  int64_t p = 0;
  for (; p + 4 <= panels; p += 4) gemv_panels<D, 4, R>(y + 16 * p, ld, panel + p * panel_bytes, panel_bytes, cols, x);
  for (; p < panels; ++p) gemv_panels<D, 1, R>(y + 16 * p, ld, panel + p * panel_bytes, panel_bytes, cols, x);
}

void quantised_gemv(float* y, int64_t ld, const std::byte* panel, int64_t panels, const PanelFormat& format, int64_t cols,
                    const QuantisedTile* x, int rows) {
  const int64_t panel_bytes = format.panel_bytes(cols);
  for_format(format.dtype, [&]<DType D>() {
    if (rows == 2) return gemv<D, 2>(y, ld, panel, panels, panel_bytes, cols, x);
    gemv<D, 1>(y, ld, panel, panels, panel_bytes, cols, x);
  });
}

void widen_panel(uint8_t* codes, float* scales, float* minimums, const std::byte* panel, const PanelFormat& format,
                 int64_t cols) {
  for_format(format.dtype, [&]<DType D>() { widen<D>(codes, scales, minimums, panel, cols, [](U8 w) { return w; }); });
}

// ---- many rows ----------------------------------------------------------------------------------------------------

// T rows against P panels. The float sums live in `accumulators` (L1), the integer ones in registers.
template <int T, int P, int kGroups, bool kMinimum>
QUIPU_KERNEL void quantised_tile_of(const OutputTile& out, const WidePanels& w, const QuantisedTile& x, float* accumulators) {
  constexpr int kSteps = 8 / kGroups;
  const int64_t groups = w.cols / 32 * kGroups;
  const int64_t panel_codes = w.cols * 16;
  const uint8_t* codes = w.codes;
  const int8_t* x_codes = x.codes;
  repeat<P * T>([&](auto i) { f_store(accumulators + 16 * i, f_zero()); });
  for (int64_t group = 0; group < groups; ++group) {
    I32 dot[P][T];
    repeat<T>([&](auto t) {
      const I32 start = i_load1(x.start + group * T + t);
      repeat<P>([&](auto p) { dot[p][t] = start; });
    });
    repeat<kSteps>([&](auto i) {
      U8 code[P];
      repeat<P>([&](auto p) { code[p] = u_load(codes + p * panel_codes + 64 * i); });
      repeat<T>([&](auto t) {
        const U8 x4 = u_repeat4(x_codes + 4 * (i * T + t));
        repeat<P>([&](auto p) { dot[p][t] = i_dot(dot[p][t], code[p], x4); });
      });
    });
    codes += 64 * kSteps;
    x_codes += 4 * T * kSteps;
    repeat<P>([&](auto p) {
      const F32 scale = f_load(w.scales + (p * groups + group) * 16);
      F32 minimum = f_zero();
      if constexpr (kMinimum) minimum = f_load(w.minimums + (p * groups + group) * 16);
      repeat<T>([&](auto t) {
        float* place = accumulators + 16 * (p * T + t);
        F32 sum = f_fma(f_from_i(dot[p][t]), f_mul(scale, f_set1(x.scales[group / kGroups * T + t])), f_load(place));
        if constexpr (kMinimum) sum = f_fma(minimum, f_set1(x.scaled_sums[group * T + t]), sum);
        f_store(place, sum);
      });
    });
    compiler_barrier();
  }
  repeat<P>([&](auto p) {
    repeat<T>([&](auto t) { finish_tile_row(out, t, p, p == P - 1, f_load(accumulators + 16 * (p * T + t))); });
  });
}

// Calls action.template operator()<T>() for the tile sizes there are: kRegisterTileRows, where registers allow.
template <class Action>
void for_tile(int rows, const Action& action) {
  if constexpr (kTileRows >= 12) {
    if (rows == 12) return action.template operator()<12>();
    if (rows == 8) return action.template operator()<8>();
  }
  switch (rows) {
    case 4: return action.template operator()<4>();
    case 2: return action.template operator()<2>();
    default: return action.template operator()<1>();
  }
}

// Part of an output tile that begins `panel` panels on.
inline OutputTile tile_of_panel(const OutputTile& out, int panel, int panels) {
  return {out.y + 16 * panel, out.ld, panel == panels - 1 ? out.lanes_last : 16, out.bias == nullptr ? nullptr : out.bias + 16 * panel};
}

template <int T, int P>
void quantised_tile_of_format(const OutputTile& out, const WidePanels& w, const QuantisedTile& x, float* accumulators) {
  if (w.group == 16) {
    if (w.minimums != nullptr) return quantised_tile_of<T, P, 2, true>(out, w, x, accumulators);
    return quantised_tile_of<T, P, 2, false>(out, w, x, accumulators);
  }
  if (w.minimums != nullptr) return quantised_tile_of<T, P, 1, true>(out, w, x, accumulators);
  return quantised_tile_of<T, P, 1, false>(out, w, x, accumulators);
}

void quantised_tile(const OutputTile& out, const WidePanels& w, const QuantisedTile& x, float* accumulators) {
  for_tile(x.rows, [&]<int T>() {
    if constexpr (kTilePanels == 2) {
      if (w.panels == 2) return quantised_tile_of_format<T, 2>(out, w, x, accumulators);
    }
    const int64_t scales = w.cols / w.group * 16;
    for (int p = 0; p < w.panels; ++p) {
      const WidePanels one{1, w.codes + p * w.cols * 16, w.scales + p * scales,
                           w.minimums == nullptr ? nullptr : w.minimums + p * scales, w.cols, w.group};
      quantised_tile_of_format<T, 1>(tile_of_panel(out, p, w.panels), one, x, accumulators);
    }
  });
}

void quantise_row(int8_t* codes, float* scales, int32_t* sums16, const float* x, int64_t cols) {
  const F32 limit = f_set1(127.0f);
  const F32 minus = f_set1(-127.0f);
  F32 poison = f_zero();   // stays 0 for finite numbers, becomes NaN otherwise
  for (int64_t block = 0; block < cols / 32; ++block) {
    const F32 a = f_load(x + 32 * block);
    const F32 b = f_load(x + 32 * block + 16);
    poison = f_add(poison, f_add(f_sub(a, a), f_sub(b, b)));
    const float largest = f_reduce_max(f_max(f_abs(a), f_abs(b)));
    const F32 inverse = f_set1(largest > 0.0f ? 127.0f / largest : 0.0f);
    const I32 code_a = i_from_f(f_max(f_min(f_mul(a, inverse), limit), minus));
    const I32 code_b = i_from_f(f_max(f_min(f_mul(b, inverse), limit), minus));
    i_store_i8(codes + 32 * block, code_a);
    i_store_i8(codes + 32 * block + 16, code_b);
    scales[block] = largest / 127.0f;
    sums16[2 * block] = i_reduce_add(code_a);
    sums16[2 * block + 1] = i_reduce_add(code_b);
  }
  // The first scale carries a NaN into every result of the row.
  scales[0] += f_reduce_add(poison);
}

// ---- float weights ------------------------------------------------------------------------------------------------

template <DType D, int T, int P>
QUIPU_KERNEL_INLINE inline void float_tile_sums(F32 (&sum)[P][T], const std::byte* panel, int64_t cols, const float* x) {
  constexpr int kRowBytes = D == DType::kF32 ? 64 : 32;
  repeat<P>([&](auto p) { repeat<T>([&](auto t) { sum[p][t] = f_zero(); }); });
  const int64_t panel_bytes = cols * kRowBytes;
  for (int64_t k = 0; k < cols; ++k) {
    F32 w[P];
    repeat<P>([&](auto p) { w[p] = f_load_as<D>(panel + p * panel_bytes + k * kRowBytes); });
    repeat<T>([&](auto t) {
      const F32 value = f_set1(x[k * T + t]);
      repeat<P>([&](auto p) { sum[p][t] = f_fma(w[p], value, sum[p][t]); });
    });
  }
}

template <DType D, int P>
QUIPU_KERNEL void float_gemv_panels(float* y, const std::byte* panel, int64_t cols, const float* x) {
  F32 sum[P][1];
  float_tile_sums<D, 1, P>(sum, panel, cols, x);
  repeat<P>([&](auto p) { f_store(y + 16 * p, sum[p][0]); });
}

void float_gemv(float* y, const std::byte* panel, int64_t panels, DType dtype, int64_t cols, const float* x) {
  for_float(dtype, [&]<DType D>() {
    const int64_t panel_bytes = cols * (D == DType::kF32 ? 64 : 32);
    int64_t p = 0;
    for (; p + 8 <= panels; p += 8) float_gemv_panels<D, 8>(y + 16 * p, panel + p * panel_bytes, cols, x);
    for (; p + 4 <= panels; p += 4) float_gemv_panels<D, 4>(y + 16 * p, panel + p * panel_bytes, cols, x);
    for (; p < panels; ++p) float_gemv_panels<D, 1>(y + 16 * p, panel + p * panel_bytes, cols, x);
  });
}

template <DType D, int T, int P>
QUIPU_KERNEL void float_tile_of(const OutputTile& out, const std::byte* panel, int64_t cols, const float* x) {
  F32 sum[P][T];
  float_tile_sums<D, T, P>(sum, panel, cols, x);
  repeat<P>([&](auto p) {
    repeat<T>([&](auto t) { finish_tile_row(out, t, p, p == P - 1, sum[p][t]); });
  });
}

void float_tile(const OutputTile& out, const std::byte* panel, int panels, DType dtype, int64_t cols, const float* x,
                int rows) {
  for_float(dtype, [&]<DType D>() {
    for_tile(rows, [&]<int T>() {
      if constexpr (kTilePanels == 2) {
        if (panels == 2) return float_tile_of<D, T, 2>(out, panel, cols, x);
      }
      const int64_t panel_bytes = cols * (D == DType::kF32 ? 64 : 32);
      for (int p = 0; p < panels; ++p) float_tile_of<D, T, 1>(tile_of_panel(out, p, panels), panel + p * panel_bytes, cols, x);
    });
  });
}
