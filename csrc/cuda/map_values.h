// Eight channels of a map at a time, in any dtype of a state, as float32; and a norm as a scale and a shift of a channel.
#pragma once

#include <cmath>

#include "launch.h"
#include "reduce.h"

namespace contnet_fast::cuda {

using Eight = float[8];

DEVICE void load_eight(Eight& x, Global<const unsigned char> map, Scalar type, int64_t i) {
  if (type == Scalar::f32) {
    UNROLL
    for (int half = 0; half < 2; ++half) {
      const Vector<float, 4> four = load<4>(pointer_cast<const float>(map), i + 4 * half);
      UNROLL
      for (int j = 0; j < 4; ++j) x[4 * half + j] = four[j];
    }
    return;
  }
  const Vector<uint32_t, 4> pairs = load<4>(pointer_cast<const uint32_t>(map), i / 2);
  UNROLL
  for (int j = 0; j < 4; ++j) {
    const bool b = type == Scalar::bf16;
    x[2 * j] = b ? low_half<bf16>(pairs[j]) : low_half<f16>(pairs[j]);
    x[2 * j + 1] = b ? high_half<bf16>(pairs[j]) : high_half<f16>(pairs[j]);
  }
}

DEVICE void store_eight(Global<unsigned char> map, Scalar type, int64_t i, const Eight& x) {
  if (type == Scalar::f32) {
    UNROLL
    for (int half = 0; half < 2; ++half) {
      const Vector<float, 4> four{{x[4 * half], x[4 * half + 1], x[4 * half + 2], x[4 * half + 3]}};
      store(pointer_cast<float>(map), i + 4 * half, four);
    }
    return;
  }
  Vector<uint32_t, 4> pairs;
  UNROLL
  for (int j = 0; j < 4; ++j)
    pairs[j] = type == Scalar::bf16 ? pack<bf16>(x[2 * j], x[2 * j + 1]) : pack<f16>(x[2 * j], x[2 * j + 1]);
  store(pointer_cast<uint32_t>(map), i / 2, pairs);
}

// eight operands of a product in shared memory; TENSOR: float32 rounded to TF32
template <typename T, bool TENSOR>
DEVICE void store_operands(Shared<T> to, int i, const Eight& x) {
  if constexpr (sizeof(T) == 2) {
    Vector<uint32_t, 4> pairs;
    UNROLL
    for (int j = 0; j < 4; ++j) pairs[j] = pack<T>(x[2 * j], x[2 * j + 1]);
    store(pointer_cast<uint32_t>(to), i / 2, pairs);
  } else {
    UNROLL
    for (int half = 0; half < 2; ++half) {
      Vector<float, 4> four;
      UNROLL
      for (int j = 0; j < 4; ++j)
        four[j] = TENSOR ? bit_cast<float>(to_tf32(x[4 * half + j])) : x[4 * half + j];
      store(to, i + 4 * half, four);
    }
  }
}

// a variance interpolated in depth may dip below zero
DEVICE float reciprocal_deviation(float variance, float norm_eps) {
  return 1.f / std::sqrt((variance < 0.f ? 0.f : variance) + norm_eps);
}

}  // namespace contnet_fast::cuda
