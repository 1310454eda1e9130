// Sums over warps and blocks in one fixed order, and helpers in terms of the primitives.
#pragma once

#include "cuda/lib/primitives.h"

namespace contnet_fast::cuda {

// a value in the type of sums, and back
template <typename A, typename T>
DEVICE A widen(T x) {
  if constexpr (std::is_same_v<T, double>) {
    return x;
  } else {
    return to_float(x);
  }
}

template <typename Y, typename A>
DEVICE Y narrow(A x) {
  if constexpr (std::is_same_v<A, double>) {
    return static_cast<Y>(x);
  } else {
    return from_float<Y>(x);
  }
}

// the two values of a register of 16-bit values
template <typename T>
DEVICE float low_half(uint32_t r) {
  return to_float(T{static_cast<uint16_t>(r & 0xffffu)});
}
template <typename T>
DEVICE float high_half(uint32_t r) {
  return to_float(T{static_cast<uint16_t>(r >> 16)});
}

// the sum of all lanes' values, in every lane
template <typename T>
DEVICE T warp_sum(T value) {
  UNROLL
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// The sum of all threads' values, in every thread. `scratch` has WARPS values. Its barriers also order every other
// access.
template <int WARPS, typename T>
DEVICE T block_sum(T value, Shared<T> scratch) {
  value = warp_sum(value);
  if constexpr (WARPS == 1) return value;
  sync_threads();  // an earlier sum may still be read
  if (lane_index() == 0) scratch[warp_index()] = value;
  sync_threads();
  T total = scratch[0];
  UNROLL
  for (int w = 1; w < WARPS; ++w) total += static_cast<T>(scratch[w]);
  return total;
}

}  // namespace contnet_fast::cuda
