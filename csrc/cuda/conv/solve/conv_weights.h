// The gradient by the weights of a 3x3 convolution of one image: products over pixels of two tiles of shared memory.
#pragma once

#include "cuda/lib/reduce.h"

namespace contnet_fast::cuda {

// Where pixels lie in a tile: a product and a shift in place of a division, exact for fewer than 1024 pixels and that
// width.
struct Pixels {
  int count, width, line, pixel,
      reciprocal;  // reciprocal: 2^20 / width, rounded up; line, pixel: values from one to the next

  DEVICE int place(int i) const {  // of its first tap
    const int row = i * reciprocal >> 20;
    return row * line + (i - row * width) * pixel;
  }
};

// sum[tap][n] += over pixels of `a` at three taps of a row, 16 channels of it, times O channels of `g`. Pixels are
// taken 16 at a time, from run `first` on each `step`th; those beyond the image read the zeros of the corner of `g`.
// `a` begins at its first tap and channel, `g` at its first channel. Rows of the product are channels of `a`, columns
// those of `g`.
template <typename T, bool TENSOR, int O>
DEVICE void multiply_pixels(float (&sum)[3][O / 8][4], Shared<T> a, Shared<T> g, const Pixels& of, int first,
                            int step) {
  const int lane = lane_index(), row = lane / 4, t = lane % 4, centre = of.line + of.pixel;
  UNROLL_BY(2)
  for (int begin = 16 * first; begin < of.count; begin += 16 * step) {
    if constexpr (!TENSOR) {
      UNROLL_BY(1)
      for (int i = begin; i < begin + 16 && i < of.count; ++i) {
        const int at = of.place(i);
        Vector<float, 2> b[O / 8];
        UNROLL
        for (int n = 0; n < O / 8; ++n) b[n] = load<2>(g, at + centre + 8 * n + 2 * t);
        UNROLL
        for (int tap = 0; tap < 3; ++tap) {
          UNROLL
          for (int half = 0; half < 2; ++half) {
            const float value = a[at + tap * of.pixel + row + 8 * half];
            UNROLL
            for (int n = 0; n < O / 8; ++n) {
              sum[tap][n][2 * half] += value * b[n][0];
              sum[tap][n][2 * half + 1] += value * b[n][1];
            }
          }
        }
      }
    } else if constexpr (sizeof(T) == 2) {
      const int column = begin + lane % 16, depth = begin + lane / 16 * 8 + lane % 8;
      const int at = column < of.count ? of.place(column) + centre : 0;
      uint32_t b[O / 8][2];
      UNROLL
      for (int n = 0; n < O / 8; n += 2) {
        uint32_t r[4];
        ldmatrix_trans<4>(r, g + (at + 8 * n + lane / 16 * 8));
        UNROLL
        for (int j = 0; j < 4; ++j) b[n + j / 2][j % 2] = r[j];
      }
      const int from = (depth < of.count ? of.place(depth) : 0) + lane / 8 % 2 * 8;
      UNROLL
      for (int tap = 0; tap < 3; ++tap) {
        uint32_t r[4];
        ldmatrix_trans<4>(r, a + (from + tap * of.pixel));
        UNROLL
        for (int n = 0; n < O / 8; ++n) mma_m16n8k16<T>(sum[tap][n], r, b[n]);
      }
    } else {
      UNROLL_BY(1)
      for (int k = 0; k < 16; k += 8) {
        int at[2], from[2];
        UNROLL
        for (int j = 0; j < 2; ++j) {
          const int i = begin + k + t + 4 * j;
          from[j] = i < of.count ? of.place(i) : 0;
          at[j] = i < of.count ? from[j] + centre : 0;
        }
        uint32_t b[O / 8][2];
        UNROLL
        for (int n = 0; n < O / 8; ++n) {
          UNROLL
          for (int j = 0; j < 2; ++j) b[n][j] = bit_cast<uint32_t>(static_cast<float>(g[at[j] + 8 * n + row]));
        }
        UNROLL
        for (int tap = 0; tap < 3; ++tap) {
          uint32_t r[4];
          UNROLL
          for (int j = 0; j < 4; ++j)
            r[j] = bit_cast<uint32_t>(static_cast<float>(a[from[j / 2] + tap * of.pixel + row + j % 2 * 8]));
          UNROLL
          for (int n = 0; n < O / 8; ++n) mma_m16n8k8(sum[tap][n], r, b[n]);
        }
      }
    }
  }
}

}  // namespace contnet_fast::cuda
