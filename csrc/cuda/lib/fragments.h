// What a lane does with its fragments of a product: M x N tiles of 16 x 8, four values of each (primitives.h).
#pragma once

#include "cuda/lib/primitives.h"

namespace contnet_fast::cuda {

template <int M, int N>
using Fragments = float[M][N][4];

namespace {

// f(m, n) for every tile
template <int M, int N, typename F>
DEVICE void for_each_fragment(F f) {
  UNROLL
  for (int m = 0; m < M; ++m) {
    UNROLL
    for (int n = 0; n < N; ++n) f(m, n);
  }
}

// f(m, n, i) for every value
template <int M, int N, typename F>
DEVICE void for_each_value(F f) {
  for_each_fragment<M, N>([&](int m, int n) {
    UNROLL
    for (int i = 0; i < 4; ++i) f(m, n, i);
  });
}

// v += a b for a row of tiles, on tensor cores: 16-bit operands, or TF32
template <typename T, int N>
DEVICE void multiply_row(float (&v)[N][4], const uint32_t (&a)[4], const uint32_t (&b)[N][2]) {
  UNROLL
  for (int n = 0; n < N; ++n) {
    if constexpr (sizeof(T) == 2) {
      mma_m16n8k16<T>(v[n], a, b[n]);
    } else {
      mma_m16n8k8(v[n], a, b[n]);
    }
  }
}

// The same without them, for the upper or the lower row that a lane has of each tile; B: two neighbouring columns of a
// tile.
template <int N, typename B>
DEVICE void multiply_half(float (&v)[N][4], int half, float a, const B (&b)[N]) {
  UNROLL
  for (int n = 0; n < N; ++n) {
    v[n][2 * half] += a * b[n][0];
    v[n][2 * half + 1] += a * b[n][1];
  }
}

}  // namespace
}  // namespace contnet_fast::cuda
