// Row-wise operations. Included after simd_<isa>.h and math_body.h. Tails are done with partial vectors, so a row's
// result does not depend on where it lies.

inline F32 load_lanes(const float* p, int64_t left) { return left >= 16 ? f_load(p) : f_load_part(p, static_cast<int>(left)); }
inline void store_lanes(float* p, F32 x, int64_t left) {
  if (left >= 16) {
    f_store(p, x);
  } else {
    f_store_part(p, x, static_cast<int>(left));
  }
}

void rms_norm_row(float* out, const float* x, const float* weight, int64_t n, float epsilon) {
  F32 squares = f_zero();
  for (int64_t i = 0; i < n; i += 16) {
    const F32 v = load_lanes(x + i, n - i);
    squares = f_fma(v, v, squares);
  }
  const float mean = f_reduce_add(squares) / static_cast<float>(n);
  const F32 inverse = f_set1(1.0f / __builtin_sqrtf(mean + epsilon));
  for (int64_t i = 0; i < n; i += 16) {
    const F32 v = f_mul(load_lanes(x + i, n - i), inverse);
    store_lanes(out + i, f_mul(v, load_lanes(weight + i, n - i)), n - i);
  }
}

void add_row(float* x, const float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) store_lanes(x + i, f_add(load_lanes(x + i, n - i), load_lanes(y + i, n - i)), n - i);
}

void silu_gate_row(float* out, const float* gate, const float* up, int64_t n) {
  const F32 one = f_set1(1.0f);
  for (int64_t i = 0; i < n; i += 16) {
    const F32 g = load_lanes(gate + i, n - i);
    const F32 activated = f_div(g, f_add(one, f_exp(f_sub(f_zero(), g))));
    store_lanes(out + i, f_mul(activated, load_lanes(up + i, n - i)), n - i);
  }
}

// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))                                         [Hendrycks & Gimpel 2016]
void gelu_gate_row(float* out, const float* gate, const float* up, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const F32 g = load_lanes(gate + i, n - i);
    const F32 cubic = f_mul(f_mul(g, g), g);
    const F32 inner = f_mul(f_set1(0.7978845608f), f_fma(cubic, f_set1(0.044715f), g));
    const F32 activated = f_mul(f_mul(f_set1(0.5f), g), f_add(f_set1(1.0f), f_tanh(inner)));
    store_lanes(out + i, f_mul(activated, load_lanes(up + i, n - i)), n - i);
  }
}

// Rotates pair i: elements head[i * step] and head[i * step + offset]; cos_sin: [pairs] cosines, then [pairs] sines.
void rope_row(float* head, const float* cos_sin, int64_t pairs, int64_t step, int64_t offset) {
  const float* sine = cos_sin + pairs;
  int64_t i = 0;
  if (step == 1) {
    for (; i + 16 <= pairs; i += 16) {
      const F32 a = f_load(head + i);
      const F32 b = f_load(head + i + offset);
      const F32 c = f_load(cos_sin + i);
      const F32 s = f_load(sine + i);
      f_store(head + i, f_sub(f_mul(a, c), f_mul(b, s)));
      f_store(head + i + offset, f_add(f_mul(a, s), f_mul(b, c)));
    }
  }
  for (; i < pairs; ++i) {
    const float a = head[i * step];
    const float b = head[i * step + offset];
    head[i * step] = a * cos_sin[i] - b * sine[i];
    head[i * step + offset] = a * sine[i] + b * cos_sin[i];
  }
}
