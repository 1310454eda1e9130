// The nine products of a 3x3 convolution of one image, from a tile of shared memory with its border of zeros.
//
// Rows of the product are pixels, 16 a tile of it; columns are output channels, 8 a tile. A warp has m x n such tiles,
// of which a lane has four values each (primitives.h): pixels g and g + 8, channels 2t and 2t + 1. The same values of a
// map are a lane's through the whole solve, so state and sums stay in its registers.
#pragma once

#include "cuda/conv/plan/conv_layout.h"
#include "cuda/lib/fragments.h"
#include "cuda/lib/reduce.h"

namespace contnet_fast::cuda {

template <int C, int BYTES, bool WIDE = false>
struct ConvSizes {
  static constexpr ConvLayout of{C, BYTES, WIDE};
  static constexpr int kM = of.m(), kN = of.n(), kWarpsN = of.warps_n(), kPixel = of.pixel(), kRow = of.row();
  static constexpr int kTaps = of.taps(), kDepth = of.depth(), kChunks = of.chunks(), kChunk = of.chunk_bytes() / BYTES;
};

namespace {

// v += a piece of the weights: kTaps taps from `first` on, of kDepth input channels, whose first one `tile` and `place`
// are at. `place`: of each tile of pixels the first value that this lane hands to ldmatrix, at the first tap (lanes
// from 16 on half a product's depth later); `line`: values from a line of the tile to the next. BACK: the transposed
// convolution, of the same weights: taps of the tile backwards, input and output channels swapped.
template <typename T, bool TENSOR, int C, bool BACK, int M, int N>
DEVICE void multiply_taps(Fragments<M, N>& v, Shared<T> tile, Shared<T> weights, const int (&place)[M], int line,
                          int first) {
  using L = ConvSizes<C, sizeof(T)>;
  constexpr int D = L::kDepth;
  static_assert(!BACK || D == C, "the transposed convolution takes whole taps");
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  const int column = warp_index() % L::kWarpsN * (8 * N);  // the warp's first output channel
  int pixel[M][2] = {};
  if constexpr (!TENSOR) {
    UNROLL
    for (int m = 0; m < M; ++m) {
      pixel[m][0] = shuffle(place[m], g);
      pixel[m][1] = shuffle(place[m], g + 8);
    }
  }
  UNROLL_BY((!TENSOR ? 1 : 3))
  for (int i = 0; i < L::kTaps; ++i) {
    const int tap = BACK ? 8 - first - i : first + i, shift = tap / 3 * line + tap % 3 * L::kPixel;
    if (FAULT_POINT(3) && tap == 5) continue;
    if constexpr (!TENSOR) {
      UNROLL_BY(1)
      for (int k = 0; k < D; ++k) {
        Vector<float, 2> b[N];
        UNROLL
        for (int n = 0; n < N; ++n) {
          const int c = column + 8 * n + 2 * t;
          if constexpr (BACK) {
            b[n] = {{weights[(i * C + c) * L::kRow + k], weights[(i * C + c + 1) * L::kRow + k]}};
          } else {
            b[n] = load<2>(weights, (i * D + k) * L::kRow + c);
          }
        }
        UNROLL
        for (int m = 0; m < M; ++m) {
          UNROLL
          for (int half = 0; half < 2; ++half) {
            multiply_half<N>(v[m], half, tile[pixel[m][half] + shift + k], b);
          }
        }
      }
    } else if constexpr (sizeof(T) == 2) {
      UNROLL
      for (int k = 0; k < D; k += 16) {
        uint32_t b[N][2];
        UNROLL
        for (int n = 0; n < N; n += 2) {
          uint32_t r[4];
          if constexpr (BACK) {
            const int row = i * C + column + 8 * n + lane / 16 * 8 + lane % 8;
            ldmatrix<4>(r, weights + (row * L::kRow + k + lane / 8 % 2 * 8));
          } else {
            ldmatrix_trans<4>(r, weights + ((i * D + k + lane % 16) * L::kRow + column + 8 * n + lane / 16 * 8));
          }
          UNROLL
          for (int j = 0; j < 4; ++j) b[n + j / 2][j % 2] = r[j];
        }
        UNROLL
        for (int m = 0; m < M; ++m) {
          uint32_t a[4];
          ldmatrix<4>(a, tile + (place[m] + shift + k));
          multiply_row<T>(v[m], a, b);
        }
      }
    } else {
      UNROLL_BY((M == 4 ? 1 : 2))
      for (int k = 0; k < D; k += 8) {
        uint32_t b[N][2];
        UNROLL
        for (int n = 0; n < N; ++n) {
          UNROLL
          for (int j = 0; j < 2; ++j) {
            const int from = k + t + 4 * j, to = column + 8 * n + g;
            b[n][j] = to_tf32(weights[(i * D + (BACK ? to : from)) * L::kRow + (BACK ? from : to)]);
          }
        }
        UNROLL
        for (int m = 0; m < M; ++m) {
          uint32_t a[4];
          ldmatrix<4>(a, tile + (place[m] + shift + k));
          multiply_row<T>(v[m], a, b);
        }
      }
    }
  }
}

}  // namespace
}  // namespace contnet_fast::cuda
