// The bytes of one block of every quantised format, and how small codes are packed into them.
//
// All layouts are little endian, as GGML files carry them. Every packed field in every format is a plane: elements are
// dealt out over `stride` bytes, and when each byte has received one code the next round goes `bits` higher in the same
// bytes; full bytes are followed by the next `stride` bytes. A 6-bit code is a 4-bit plane plus a 2-bit plane.
#pragma once

#include <array>
#include <cstdint>

namespace quipu {

// 32 elements; value = d * (code - 8).
struct BlockQ4_0 {
  uint16_t d;            // binary16, as every d, m and dmin below
  uint8_t codes[16];     // plane of 4 bits, stride 16
};
static_assert(sizeof(BlockQ4_0) == 18);

// 32 elements; value = d * code + m.
struct BlockQ4_1 {
  uint16_t d, m;
  uint8_t codes[16];     // plane of 4 bits, stride 16
};
static_assert(sizeof(BlockQ4_1) == 20);

// 32 elements; value = d * (code - 16).
struct BlockQ5_0 {
  uint16_t d;
  uint8_t high[4];       // plane of 1 bit, stride 1
  uint8_t codes[16];     // plane of 4 bits, stride 16
};
static_assert(sizeof(BlockQ5_0) == 22);

// 32 elements; value = d * code + m.
struct BlockQ5_1 {
  uint16_t d, m;
  uint8_t high[4];       // plane of 1 bit, stride 1
  uint8_t codes[16];     // plane of 4 bits, stride 16
};
static_assert(sizeof(BlockQ5_1) == 24);

// 32 elements; value = d * code.
struct BlockQ8_0 {
  uint16_t d;
  int8_t codes[32];
};
static_assert(sizeof(BlockQ8_0) == 34);

// 32 elements; value = d * kIq4NlValues[code].
struct BlockIQ4_NL {
  uint16_t d;
  uint8_t codes[16];     // plane of 4 bits, stride 16
};
static_assert(sizeof(BlockIQ4_NL) == 18);

inline constexpr std::array<int8_t, 16> kIq4NlValues = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                        1,    13,   25,  38,  53,  69,  89,  113};

// 256 elements in 16 groups of 16; value = d * scale * code - dmin * min.
struct BlockQ2_K {
  uint8_t scales[16];    // one byte a group: scale in the low nibble, min in the high one
  uint8_t codes[64];     // plane of 2 bits, stride 32
  uint16_t d, dmin;
};
static_assert(sizeof(BlockQ2_K) == 84);

// 256 elements in 16 groups of 16; value = d * (scale - 32) * (code - 4).
struct BlockQ3_K {
  uint8_t high[32];      // plane of 1 bit, stride 32: bit 2 of the code
  uint8_t codes[64];     // plane of 2 bits, stride 32
  uint8_t scales[12];    // 16 scales of 6 bits: plane of 4 bits, stride 8; then plane of 2 bits, stride 4
  uint16_t d;
};
static_assert(sizeof(BlockQ3_K) == 110);

// 256 elements in 8 groups of 32; value = d * scale * code - dmin * min.
struct BlockQ4_K {
  uint16_t d, dmin;
  uint8_t scales[12];    // unpack_scales_6
  uint8_t codes[128];    // plane of 4 bits, stride 32
};
static_assert(sizeof(BlockQ4_K) == 144);

// 256 elements in 8 groups of 32; value = d * scale * code - dmin * min.
struct BlockQ5_K {
  uint16_t d, dmin;
  uint8_t scales[12];    // unpack_scales_6
  uint8_t high[32];      // plane of 1 bit, stride 32: bit 4 of the code
  uint8_t codes[128];    // plane of 4 bits, stride 32
};
static_assert(sizeof(BlockQ5_K) == 176);

// 256 elements in 16 groups of 16; value = d * scale * (code - 32).
struct BlockQ6_K {
  uint8_t codes[128];    // plane of 4 bits, stride 64
  uint8_t high[64];      // plane of 2 bits, stride 32: bits 4 and 5 of the code
  int8_t scales[16];
  uint16_t d;
};
static_assert(sizeof(BlockQ6_K) == 210);

// Adds the codes of a plane to codes[0, elements), shifted up by `at_bit`. elements: a multiple of kStride * 8 / kBits.
template <int kBits, int kStride>
inline void unpack_plane(uint8_t* codes, const uint8_t* packed, int elements, int at_bit = 0) {
  constexpr int kRounds = 8 / kBits;
  constexpr unsigned kMask = (1u << kBits) - 1;
  for (int start = 0; start < elements; start += kStride * kRounds, packed += kStride) {
    for (int round = 0; round < kRounds; ++round) {
      uint8_t* out = codes + start + round * kStride;
      for (int i = 0; i < kStride; ++i) {
        out[i] = static_cast<uint8_t>(out[i] | (packed[i] >> (round * kBits) & kMask) << at_bit);
      }
    }
  }
}

// The reverse: takes kBits of every code from `at_bit` up. The packed bytes must be zero before.
template <int kBits, int kStride>
inline void pack_plane(uint8_t* packed, const uint8_t* codes, int elements, int at_bit = 0) {
  constexpr int kRounds = 8 / kBits;
  constexpr unsigned kMask = (1u << kBits) - 1;
  for (int start = 0; start < elements; start += kStride * kRounds, packed += kStride) {
    for (int round = 0; round < kRounds; ++round) {
      const uint8_t* in = codes + start + round * kStride;
      for (int i = 0; i < kStride; ++i) {
        packed[i] = static_cast<uint8_t>(packed[i] | (in[i] >> at_bit & kMask) << (round * kBits));
      }
    }
  }
}

// The one field that is no plane: 8 scales and 8 mins of 6 bits in Q4_K and Q5_K. The first four of each keep their six
// bits in bytes 0-3 and 4-7; the last four have their low nibbles in bytes 8-11 (scale low, min high) and their upper
// two bits on top of bytes 0-3 and 4-7.
inline void unpack_scales_6(uint8_t scales[8], uint8_t mins[8], const uint8_t packed[12]) {
  for (int i = 0; i < 4; ++i) {
    scales[i] = packed[i] & 63;
    mins[i] = packed[i + 4] & 63;
    scales[i + 4] = static_cast<uint8_t>((packed[i + 8] & 15) | packed[i] >> 6 << 4);
    mins[i + 4] = static_cast<uint8_t>(packed[i + 8] >> 4 | packed[i + 4] >> 6 << 4);
  }
}

inline void pack_scales_6(uint8_t packed[12], const uint8_t scales[8], const uint8_t mins[8]) {
  for (int i = 0; i < 4; ++i) {
    packed[i] = static_cast<uint8_t>(scales[i] | scales[i + 4] >> 4 << 6);
    packed[i + 4] = static_cast<uint8_t>(mins[i] | mins[i + 4] >> 4 << 6);
    packed[i + 8] = static_cast<uint8_t>((scales[i + 4] & 15) | (mins[i + 4] & 15) << 4);
  }
}

}  // namespace quipu
