// Training kernels that work on rows and blocks. Included after training_gemm_body.h, inside the namespace and target region of
// one set.

// ---- rows ---------------------------------------------------------------------------------------------------------

float dot(const float* a, const float* b, int64_t n) {
  F32 sum = f_zero();
  for (int64_t i = 0; i < n; i += 16) sum = f_fma(load_lanes(a + i, n - i), load_lanes(b + i, n - i), sum);
  return f_reduce_add(sum);
}

void add_row(float* x, const float* y, int64_t n, float scale) {
  const F32 s = f_set1(scale);
  for (int64_t i = 0; i < n; i += 16) store_lanes(x + i, f_fma(load_lanes(y + i, n - i), s, load_lanes(x + i, n - i)), n - i);
}

float rms_norm_row(float* out, const float* x, const float* weight, int64_t n, float epsilon) {
  const float inverse = 1.0f / __builtin_sqrtf(dot(x, x, n) / static_cast<float>(n) + epsilon);
  const F32 scale = f_set1(inverse);
  for (int64_t i = 0; i < n; i += 16) {
    store_lanes(out + i, f_mul(f_mul(load_lanes(x + i, n - i), scale), load_lanes(weight + i, n - i)), n - i);
  }
  return inverse;
}

void layer_norm_row(float* out, float* moments, const float* x, const float* weight, const float* bias, int64_t n, float epsilon) {
  F32 sum = f_zero(), squares = f_zero();
  for (int64_t i = 0; i < n; i += 16) sum = f_add(sum, load_lanes(x + i, n - i));
  const float mean = f_reduce_add(sum) / static_cast<float>(n);
  const F32 centre = f_set1(mean);
  for (int64_t i = 0; i < n; i += 16) {
    F32 d = f_sub(load_lanes(x + i, n - i), centre);
    if (n - i < 16) d = f_select_range(0, static_cast<int>(n - i), d, f_zero());
    squares = f_fma(d, d, squares);
  }
  const float inverse = 1.0f / __builtin_sqrtf(f_reduce_add(squares) / static_cast<float>(n) + epsilon);
  const F32 scale = f_set1(inverse);
  for (int64_t i = 0; i < n; i += 16) {
    const F32 xhat = f_mul(f_sub(load_lanes(x + i, n - i), centre), scale);
    store_lanes(out + i, f_fma(xhat, load_lanes(weight + i, n - i), load_lanes(bias + i, n - i)), n - i);
  }
  moments[0] = mean;
  moments[1] = inverse;
}

void norm_backward_row(const NormRow& r) {
  const F32 scale = f_set1(r.scale), mean = f_set1(r.mean);
  F32 g_sum = f_zero(), gx_sum = f_zero();
  for (int64_t i = 0; i < r.n; i += 16) {
    const int64_t left = r.n - i;
    const F32 g = f_mul(load_lanes(r.dy + i, left), load_lanes(r.weight + i, left));   // 0 beyond the end
    g_sum = f_add(g_sum, g);
    gx_sum = f_fma(g, f_mul(f_sub(load_lanes(r.x + i, left), mean), scale), gx_sum);
  }
  const float n = static_cast<float>(r.n);
  const F32 a = r.centred ? f_set1(f_reduce_add(g_sum) / n) : f_zero();
  const F32 b = f_set1(f_reduce_add(gx_sum) / n);
  for (int64_t i = 0; i < r.n; i += 16) {
    const int64_t left = r.n - i;
    const F32 dy = load_lanes(r.dy + i, left);
    const F32 xhat = f_mul(f_sub(load_lanes(r.x + i, left), mean), scale);
    if (r.dweight != nullptr) store_lanes(r.dweight + i, f_fma(dy, xhat, load_lanes(r.dweight + i, left)), left);
    if (r.dbias != nullptr) store_lanes(r.dbias + i, f_add(dy, load_lanes(r.dbias + i, left)), left);
    const F32 g = f_sub(f_mul(dy, load_lanes(r.weight + i, left)), a);
    F32 dx = f_mul(scale, f_sub(g, f_mul(xhat, b)));
    if (r.add) dx = f_add(dx, load_lanes(r.dx + i, left));
    store_lanes(r.dx + i, dx, left);
  }
}

struct Activated {
  F32 value, slope;
};
inline Activated activate(F32 g, bool gelu) {
  const F32 one = f_set1(1.0f);
  if (!gelu) {
    const F32 s = f_div(one, f_add(one, f_exp(f_sub(f_zero(), g))));
    const F32 value = f_mul(g, s);
    return {value, f_fma(value, f_sub(one, s), s)};
  }
  // 0.5 x (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3)
  const F32 square = f_mul(g, g), half = f_set1(0.5f), root = f_set1(0.7978845608f);
  const F32 t = f_tanh(f_mul(f_mul(root, g), f_fma(square, f_set1(0.044715f), one)));
  const F32 outer = f_mul(half, f_add(one, t));
  const F32 inner_slope = f_mul(root, f_fma(square, f_set1(3.0f * 0.044715f), one));
  const F32 slope = f_fma(f_mul(f_mul(half, g), f_sub(one, f_mul(t, t))), inner_slope, outer);
  return {f_mul(g, outer), slope};
}

void gate_row(float* out, const float* gate, const float* up, int64_t n, bool gelu) {
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t left = n - i;
    store_lanes(out + i, f_mul(activate(load_lanes(gate + i, left), gelu).value, load_lanes(up + i, left)), left);
  }
}

void gate_backward_row(float* dgate, float* dup, const float* dout, const float* gate, const float* up, int64_t n, bool gelu) {
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t left = n - i;
    const F32 d = load_lanes(dout + i, left), u = load_lanes(up + i, left);
    const Activated a = activate(load_lanes(gate + i, left), gelu);
    store_lanes(dgate + i, f_mul(f_mul(d, u), a.slope), left);
    store_lanes(dup + i, f_mul(d, a.value), left);
  }
}

// Pair i: elements head[i * step] and head[i * step + offset]; cos_sin: [pairs] cosines, then [pairs] sines.
void rotate_row(float* head, const float* cos_sin, int64_t pairs, int64_t step, int64_t offset) {
  const float* sine = cos_sin + pairs;
  int64_t i = 0;
  if (step == 1) {
    for (; i + 16 <= pairs; i += 16) {
      const F32 a = f_load(head + i), b = f_load(head + i + offset), c = f_load(cos_sin + i), s = f_load(sine + i);
      f_store(head + i, f_sub(f_mul(a, c), f_mul(b, s)));
      f_store(head + i + offset, f_add(f_mul(a, s), f_mul(b, c)));
    }
  }
  for (; i < pairs; ++i) {
    const float a = head[i * step], b = head[i * step + offset];
    head[i * step] = a * cos_sin[i] - b * sine[i];
    head[i * step + offset] = a * sine[i] + b * cos_sin[i];
  }
}

// ---- attention ----------------------------------------------------------------------------------------------------

inline int clamp16(int32_t x) { return x < 0 ? 0 : x > 16 ? 16 : x; }
inline F32 capped(F32 s, float softcap) {
  return softcap > 0.0f ? f_mul(f_set1(softcap), f_tanh(f_mul(s, f_set1(1.0f / softcap)))) : s;
}

// x where the key is visible, else `hidden`. kWhole: every key of the block is.
template <bool kWhole>
inline F32 where_visible(int32_t first, int32_t last, int chunk, F32 x, F32 hidden) {
  if constexpr (kWhole) return x;
  return f_select_range(clamp16(first - 16 * chunk), clamp16(last - 16 * chunk), x, hidden);
}

template <bool kWhole>
QUIPU_KERNEL void softmax_row(const SoftmaxBlock& b, int64_t row) {
  const F32 lowest = f_set1(-__builtin_inff()), zero = f_zero();
  const int32_t first = b.first[row], last = b.last[row];
  float* s = b.scores + row * 64;
  F32 score[4];
  repeat<4>([&](auto c) {
    score[c] = where_visible<kWhole>(first, last, c, capped(f_mul(f_load(s + 16 * c), f_set1(b.scale)), b.softcap), lowest);
  });
  const float old = b.maximum[row];
  const float block_maximum = f_reduce_max(f_max(f_max(score[0], score[1]), f_max(score[2], score[3])));
  const float maximum = block_maximum > old ? block_maximum : old;
  F32 p[4];
  repeat<4>([&](auto c) {
    // A NaN score must reach the total; exp() alone would hide it.
    const F32 poison = where_visible<kWhole>(first, last, c, score[c], zero);
    p[c] = f_fma(poison, zero, f_exp(f_sub(score[c], f_set1(maximum))));
    f_store(s + 16 * c, p[c]);
  });
  const float sum = f_reduce_add(f_add(f_add(p[0], p[1]), f_add(p[2], p[3])));
  if (maximum != old) {
    alignas(64) float rescale[16];
    f_store(rescale, f_exp(f_set1(old - maximum)));   // 0 for the first block
    b.maximum[row] = maximum;
    b.total[row] *= rescale[0];
    const F32 factor = f_set1(rescale[0]);
    float* out = b.out + row * b.out_ld;
    for (int64_t i = 0; i < b.value_dim; i += 16) store_lanes(out + i, f_mul(load_lanes(out + i, b.value_dim - i), factor), b.value_dim - i);
  }
  b.total[row] += sum;
}

void softmax_block(const SoftmaxBlock& b) {
  for (int64_t row = 0; row < b.rows; ++row) {
    if (b.first[row] >= b.last[row]) {
      repeat<4>([&](auto c) { f_store(b.scores + row * 64 + 16 * c, f_zero()); });
    } else if (b.first[row] <= 0 && b.last[row] >= 64) {
      softmax_row<true>(b, row);
    } else {
      softmax_row<false>(b, row);
    }
  }
}

template <bool kWhole>
QUIPU_KERNEL void softmax_row_backward(const SoftmaxBlockBackward& b, int64_t row) {
  const F32 zero = f_zero(), scale = f_set1(b.scale), lse = f_set1(b.log_sum_exp[row]), delta = f_set1(b.delta[row]);
  const int32_t first = b.first[row], last = b.last[row];
  repeat<4>([&](auto c) {
    float* s = b.scores + row * 64 + 16 * c;
    float* d = b.dscores + row * 64 + 16 * c;
    const F32 score = capped(f_mul(f_load(s), scale), b.softcap);
    const F32 p = where_visible<kWhole>(first, last, c, f_fma(score, zero, f_exp(f_sub(score, lse))), zero);
    F32 ds = f_mul(f_mul(p, scale), f_sub(f_load(d), delta));
    if (b.softcap > 0.0f) {
      const F32 ratio = f_mul(score, f_set1(1.0f / b.softcap));
      ds = f_mul(ds, f_sub(f_set1(1.0f), f_mul(ratio, ratio)));
    }
    f_store(s, p);
    f_store(d, where_visible<kWhole>(first, last, c, ds, zero));
  });
}

void softmax_block_backward(const SoftmaxBlockBackward& b) {
  for (int64_t row = 0; row < b.rows; ++row) {
    if (b.first[row] <= 0 && b.last[row] >= 64) {
      softmax_row_backward<true>(b, row);
    } else {
      softmax_row_backward<false>(b, row);
    }
  }
}

// ---- loss and optimiser -------------------------------------------------------------------------------------------

inline F32 final_logit(const LossRow& r, int64_t i) {
  return capped(f_mul(load_lanes(r.logits + i, r.n - i), f_set1(r.logit_scale)), r.softcap);
}

void loss_row(LossRow& r) {
  const F32 lowest = f_set1(-__builtin_inff()), zero = f_zero();
  F32 largest = lowest;
  for (int64_t i = 0; i < r.n; i += 16) {
    const int64_t left = r.n - i;
    const F32 z = final_logit(r, i);
    largest = f_max(left >= 16 ? z : f_select_range(0, static_cast<int>(left), z, lowest), largest);
  }
  const float maximum = f_reduce_max(largest);
  F32 sum = zero;
  for (int64_t i = 0; i < r.n; i += 16) {
    const int64_t left = r.n - i;
    const F32 z = final_logit(r, i);
    const F32 e = f_fma(z, zero, f_exp(f_sub(z, f_set1(maximum))));   // z * 0: NaN stays NaN
    sum = f_add(sum, left >= 16 ? e : f_select_range(0, static_cast<int>(left), e, zero));
  }
  r.log_sum_exp = maximum + __builtin_logf(f_reduce_add(sum));
  r.best = 0;
  for (int64_t i = 0; i < r.n; i += 16) {
    alignas(64) float lanes[16];
    const F32 z = final_logit(r, i);
    const int64_t left = r.n - i < 16 ? r.n - i : 16;
    if (f_reduce_max(left == 16 ? z : f_select_range(0, static_cast<int>(left), z, lowest)) < maximum) continue;
    f_store(lanes, z);
    int64_t lane = 0;
    while (lane + 1 < left && !(lanes[lane] == maximum)) ++lane;
    r.best = static_cast<int32_t>(i + lane);
    break;
  }
  if (r.target >= 0) {
    alignas(64) float lanes[16];
    f_store(lanes, final_logit(r, r.target / 16 * 16));
    r.target_value = lanes[r.target % 16];
  }
  if (!r.backward) return;
  const F32 lse = f_set1(r.log_sum_exp);
  const F32 factor = f_set1(r.weight * r.logit_scale * (1.0f + 2.0f * r.z_loss * r.log_sum_exp));
  float target_slope = 1.0f;
  if (r.softcap > 0.0f) target_slope -= (r.target_value / r.softcap) * (r.target_value / r.softcap);
  for (int64_t i = 0; i < r.n; i += 16) {
    const F32 z = final_logit(r, i);
    F32 d = f_mul(factor, f_exp(f_sub(z, lse)));
    if (r.softcap > 0.0f) {
      const F32 ratio = f_mul(z, f_set1(1.0f / r.softcap));
      d = f_mul(d, f_sub(f_set1(1.0f), f_mul(ratio, ratio)));
    }
    store_lanes(r.logits + i, d, r.n - i);
  }
  if (r.target >= 0) r.logits[r.target] -= r.weight * r.logit_scale * target_slope;
}

void adam_row(const AdamRow& r) {
  const F32 beta1 = f_set1(r.beta1), rest1 = f_set1(1.0f - r.beta1), beta2 = f_set1(r.beta2), rest2 = f_set1(1.0f - r.beta2);
  const F32 scale = f_set1(r.gradient_scale), step = f_set1(r.step), root = f_set1(r.inverse_root), epsilon = f_set1(r.epsilon);
  for (int64_t i = 0; i < r.n; i += 16) {
    const int64_t left = r.n - i;
    const F32 g = f_mul(load_lanes(r.g + i, left), scale);
    const F32 m = f_fma(beta1, load_lanes(r.m + i, left), f_mul(rest1, g));
    const F32 v = f_fma(beta2, load_lanes(r.v + i, left), f_mul(rest2, f_mul(g, g)));
    store_lanes(r.m + i, m, left);
    store_lanes(r.v + i, v, left);
    const F32 direction = f_div(m, f_fma(f_sqrt(v), root, epsilon));
    store_lanes(r.w + i, f_sub(f_mul(load_lanes(r.w + i, left), f_set1(r.shrink)), f_mul(step, direction)), left);
  }
}

constexpr TrainingKernels make_training_table(const char* name) {
  return {.name = name,
          .tile_rows = kTileRows,
          .gemm_tile = gemm_tile,
          .pack_rows = pack_rows,
          .pack_columns = pack_columns,
          .pack_panel = pack_panel,
          .pack_panel_transposed = pack_panel_transposed,
          .dot = dot,
          .add_row = add_row,
          .rms_norm_row = rms_norm_row,
          .layer_norm_row = layer_norm_row,
          .norm_backward_row = norm_backward_row,
          .gate_row = gate_row,
          .gate_backward_row = gate_backward_row,
          .rotate_row = rotate_row,
          .softmax_block = softmax_block,
          .softmax_block_backward = softmax_block_backward,
          .loss_row = loss_row,
          .adam_row = adam_row,
          .pair_tile = nullptr,
          .pack_left_pairs = nullptr,
          .pack_right_pairs = nullptr,
          .begin_pairs = nullptr,
          .end_pairs = nullptr,
          .gate_tile = nullptr,
          .gate_tile_backward = nullptr,
          .give_tile = nullptr,
          .add_row_products = nullptr,
          .score_columns = nullptr,
          .score_columns_backward = nullptr,
          .loss_columns = nullptr,
          .loss_columns_backward = nullptr,
          .scale_columns = nullptr,
          .store_transposed = nullptr};
}
