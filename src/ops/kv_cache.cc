#include "ops/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/kernels/halves.h"
#include "tensor/float16.h"

namespace quipu {
namespace {

constexpr int64_t kBlock = 32;   // components that share a q8_0 scale
constexpr int64_t kStretch = 64; // components rounded together

float get_plain(const std::byte* in, DType dtype, int64_t index) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, in + index * 4, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, in + index * 2, 2);
  return dtype == DType::kF16 ? f16_to_f32(half) : bf16_to_f32(half);
}

struct Position {
  int64_t value;   // index of the int8 or plain element
  int64_t scale;   // index of the f16 scale
};

Position key_position(DType dtype, int64_t row, int64_t component) {
  if (dtype != DType::kQ8_0) return {component * kPageRows + row, 0};
  return {(component / 4 * kPageRows + row) * 4 + component % 4, component / kBlock * kPageRows + row};
}

Position value_position(int64_t dim, int64_t row, int64_t component) {
  return {row * dim + component, row * (dim / kBlock) + component / kBlock};
}

template <class PositionOf>
void load_row(float* out, DType dtype, const std::byte* page, int64_t dim, const PositionOf& position_of) {
  for (int64_t c = 0; c < dim; ++c) {
    const Position p = position_of(c);
    if (dtype != DType::kQ8_0) {
      out[c] = get_plain(page, dtype, p.value);
    } else {
      const int8_t code = static_cast<int8_t>(page[p.value]);
      out[c] = static_cast<float>(code) * get_plain(page + dim * kPageRows, DType::kF16, p.scale);
    }
  }
}

template <class PositionOf>
void save_row(std::byte* page, DType dtype, int64_t dim, const float* values, const PositionOf& position_of) {
  if (dtype == DType::kF32) {
    for (int64_t c = 0; c < dim; ++c) std::memcpy(page + position_of(c).value * 4, values + c, 4);
    return;
  }
  if (dtype != DType::kQ8_0) {
    uint16_t halves[kStretch];
    for (int64_t begin = 0; begin < dim; begin += kStretch) {
      const int64_t count = std::min(kStretch, dim - begin);
      round_to_halves(halves, dtype, values + begin, count);
      for (int64_t c = 0; c < count; ++c) std::memcpy(page + position_of(begin + c).value * 2, halves + c, 2);
    }
    return;
  }
  CHECK(dim % kBlock == 0) << dim;
  for (int64_t begin = 0; begin < dim; begin += kBlock) {
    float largest = 0.0f;
    for (int64_t c = begin; c < begin + kBlock; ++c) largest = std::max(largest, std::fabs(values[c]));
    const float scale = largest / 127.0f;
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    const uint16_t half = f32_to_f16(scale);
    std::memcpy(page + dim * kPageRows + position_of(begin).scale * 2, &half, 2);
    for (int64_t c = begin; c < begin + kBlock; ++c) {
      const float code = std::nearbyint(values[c] * inverse);
      page[position_of(c).value] = static_cast<std::byte>(static_cast<int8_t>(std::clamp(code, -127.0f, 127.0f)));
    }
  }
}

}  // namespace

void load_key_row(float* out, DType dtype, const std::byte* head_page, int64_t dim, int64_t row) {
  load_row(out, dtype, head_page, dim, [&](int64_t c) { return key_position(dtype, row, c); });
}

void load_value_row(float* out, DType dtype, const std::byte* head_page, int64_t dim, int64_t row) {
  load_row(out, dtype, head_page, dim, [&](int64_t c) { return value_position(dim, row, c); });
}

void save_key_row(std::byte* head_page, DType dtype, int64_t dim, int64_t row, const float* values) {
  save_row(head_page, dtype, dim, values, [&](int64_t c) { return key_position(dtype, row, c); });
}

void save_value_row(std::byte* head_page, DType dtype, int64_t dim, int64_t row, const float* values) {
  save_row(head_page, dtype, dim, values, [&](int64_t c) { return value_position(dim, row, c); });
}

}  // namespace quipu
