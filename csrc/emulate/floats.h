// Floats of 16 bits as GPUs convert them.
#pragma once

#include "cuda/lib/types.h"

namespace contnet_fast::cuda {

inline float float_of_half(uint16_t h) {
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fff) << 13, sign = static_cast<uint32_t>(h & 0x8000) << 16;
  if (magnitude >= 0x0f800000u) return bit_cast<float>(sign | 0x70000000u | magnitude);  // infinite or NaN
  return bit_cast<float>(sign | bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f));
}

inline uint16_t half_of_float(float x) {  // to nearest, ties to even
  const uint32_t bits = bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00;
  if (magnitude < 0x38800000u)  // subnormal: the sum rounds to multiples of 2^-24
    return static_cast<uint16_t>(sign | (bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u));
  return static_cast<uint16_t>(sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000u) >> 13));
}

inline float float_of_bfloat(uint16_t b) { return bit_cast<float>(static_cast<uint32_t>(b) << 16); }

inline uint16_t bfloat_of_float(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace contnet_fast::cuda
