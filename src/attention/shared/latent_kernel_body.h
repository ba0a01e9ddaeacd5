// The arithmetic of latent_kernel.h for one instruction set: included once for each by latent_kernel_isa.cc, inside a
// namespace and with kLanes (floats of a register) defined. No header's templates are instantiated here.

typedef float Lanes __attribute__((vector_size(sizeof(float) * kLanes)));

inline void load(Lanes& v, const float* from) { __builtin_memcpy(&v, from, sizeof(v)); }
inline void store(float* to, const Lanes& v) { __builtin_memcpy(to, &v, sizeof(v)); }

inline float sum_of(const Lanes& v) {
  float parts[kLanes];
  store(parts, v);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
  }
  return parts[0];
}

// out[k] += a . row k of b, for kRows rows.
template <int kRows>
inline void dot_rows(float* out, const float* a, const float* b, int64_t stride, int64_t n) {
  Lanes sums[kRows] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Lanes x, y;
    load(x, a + i);
#pragma GCC unroll 8
    for (int k = 0; k < kRows; ++k) {
      load(y, b + k * stride + i);
      sums[k] += x * y;
    }
  }
  for (int k = 0; k < kRows; ++k) {
    float sum = sum_of(sums[k]);
    for (int64_t rest = i; rest < n; ++rest) sum += a[rest] * b[k * stride + rest];
    out[k] += sum;
  }
}

inline void dots(float* out, const float* a, const float* b, int64_t stride, int64_t n, int64_t rows) {
  int64_t row = 0;
  for (; row + 8 <= rows; row += 8) dot_rows<8>(out + row, a, b + row * stride, stride, n);
  for (; row < rows; ++row) dot_rows<1>(out + row, a, b + row * stride, stride, n);
}

inline void multiply(float* sum, float factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] *= factor;
}

// sum += weight[k] * row k of values, for kRows rows in their order.
template <int kRows>
inline void add_rows(float* sum, const float* weight, const float* values, int64_t stride, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Lanes total, y;
    load(total, sum + i);
#pragma GCC unroll 8
    for (int k = 0; k < kRows; ++k) {
      load(y, values + k * stride + i);
      total += weight[k] * y;
    }
    store(sum + i, total);
  }
  for (; i < n; ++i) {
    for (int k = 0; k < kRows; ++k) sum[i] += weight[k] * values[k * stride + i];
  }
}

void attend_block(SoftmaxState& state, float* sum, const float* query, const float* rotary_query, float scale,
                  const LatentBlock& block, int64_t rows) {
  float weight[kPageRows] = {};
  dots(weight, query, block.key, block.key_stride, block.key_dim, rows);
  if (block.rotary_dim > 0) dots(weight, rotary_query, block.rotary, block.rotary_stride, block.rotary_dim, rows);
  float largest = state.largest;
  for (int64_t j = 0; j < rows; ++j) {
    weight[j] *= scale;
    largest = weight[j] > largest ? weight[j] : largest;
  }
  if (largest > state.largest) {
    const float shrink = expf(state.largest - largest);
    state.sum *= shrink;
    multiply(sum, shrink, block.value_dim);
    state.largest = largest;
  }
  for (int64_t j = 0; j < rows; ++j) {
    weight[j] = expf(weight[j] - largest);
    state.sum += weight[j];
  }
  int64_t j = 0;
  for (; j + 8 <= rows; j += 8) add_rows<8>(sum, weight + j, block.value + j * block.value_stride, block.value_stride, block.value_dim);
  for (; j < rows; ++j) add_rows<1>(sum, weight + j, block.value + j * block.value_stride, block.value_stride, block.value_dim);
}

typedef uint32_t Bits __attribute__((vector_size(sizeof(float) * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(sizeof(uint16_t) * kLanes)));

// binary16 by its exponent: a float of the same bits is 2^-112 of the number, subnormal or not; infinities and NaN keep
// the largest exponent.
inline void widen_f16(float* out, const std::byte* in) {
  Halves h;
  __builtin_memcpy(&h, in, sizeof(h));
  const Bits wide = __builtin_convertvector(h, Bits);
  const Bits magnitude = (wide & 0x7fffu) << 13;
  Lanes value;
  __builtin_memcpy(&value, &magnitude, sizeof(value));
  value *= 0x1p112f;
  Bits bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  const Bits special = (Bits)((wide & 0x7c00u) == 0x7c00u);   // all ones where true
  bits = (special & (magnitude | 0x7f800000u)) | (~special & bits);
  bits |= (wide & 0x8000u) << 16;
  __builtin_memcpy(out, &bits, sizeof(bits));
}

void decode_f16(float* out, const std::byte* in, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) widen_f16(out + i, in + 2 * i);
  for (; i < n; ++i) {
    uint16_t h;
    __builtin_memcpy(&h, in + 2 * i, sizeof(h));
    out[i] = f16_to_f32(h);
  }
}

void decode_bf16(float* out, const std::byte* in, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Halves h;
    __builtin_memcpy(&h, in + 2 * i, sizeof(h));
    const Bits bits = __builtin_convertvector(h, Bits) << 16;
    __builtin_memcpy(out + i, &bits, sizeof(bits));
  }
  for (; i < n; ++i) {
    uint16_t h;
    __builtin_memcpy(&h, in + 2 * i, sizeof(h));
    out[i] = bf16_to_f32(h);
  }
}

constexpr LatentKernels kKernels = {attend_block, decode_f16, decode_bf16};
