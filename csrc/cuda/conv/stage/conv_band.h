// One 3x3 convolution of a band of an image's rows by one block, as a product of matrices: rows are pixels, columns are
// output channels, the depth are nine taps of input channels.
//
// The band and its halo lie in shared memory in the dtype of the operands, [row][column][channel], zeros outside the
// image and beyond the channels. Weights come by cp.async, a piece (`kDepth` input channels of `taps` taps) ahead of
// its use; of one piece they stay for all bands of a block. Sums leave the registers through shared memory, so that
// what follows has 16 bytes of neighbouring channels of a pixel.
//
// BACK: the gradient by the convolution's input instead, from that by its result: the same packed weights, taps
// backwards, input and output swapped; weights lie as [output of this product][depth] and need no transposing ldmatrix.
// A kernel is
//
//   Band<T, TENSOR, M, N, BACK> band(arguments);
//   band.begin(packed weights of the slot);
//   for (band.first(); band.more(); band.next()) {
//     band.load([&](float (&v)[V], int64_t i, bool own) { ... });   // V values of the operand, value i of the source
//     band.multiply();
//     band.each([&](float (&v)[V], int64_t i, int channel) { ... });   // V sums, to be written at value i
//   }
//
// where V = Band::V, `own` says that the pixel is the band's and not of its halo, `channel` is the first of V channels,
// all of which exist, and every thread keeps its channels.
#pragma once

#include "cuda/conv/columns.h"
#include "cuda/conv/plan/band_plan.h"
#include "cuda/lib/fragments.h"

namespace contnet_fast::cuda {

namespace {

template <typename T, bool TENSOR, int M, int N, bool BACK>
struct Band {
  static constexpr int V = 16 / sizeof(T), kDepth = N == 2 ? 16 : 32,
                       kStep = TENSOR ? 32 / static_cast<int>(sizeof(T)) : 1;
  static constexpr int kStaged = 2;  // tiles of pixels of a warp whose sums are in shared memory at a time
  const BandPlan& p;
  Global<const T> packed;
  float v[M][N][4];
  int place[M];  // of each tile of pixels what this lane hands to ldmatrix
  int band, image, top, left, filled = 0;

  DEVICE explicit Band(const BandPlan& p) : p(p) {
    const int lane = lane_index(), size = p.rows * p.columns;
    UNROLL
    for (int m = 0; m < M; ++m) {
      const int q = first_pixel() + 16 * m + lane % 16, at = q < size ? q : 0;
      place[m] = at / p.columns * p.line + at % p.columns * p.pixel;
      if constexpr (TENSOR) place[m] += lane / 16 * V;
    }
  }

  DEVICE int first_pixel() const { return warp_index() / p.warps_n * (16 * M); }
  DEVICE int width() const { return p.warps_n * 8 * N; }  // output channels of a block
  DEVICE int output() const { return block_row() * width(); }
  DEVICE Shared<T> tile() const { return shared_array<T>(0, (p.rows + 2) * p.line); }
  DEVICE Shared<T> weights(int buffer) const {
    return shared_array<T>(p.weights + buffer * p.piece_bytes, p.piece_bytes / static_cast<int>(sizeof(T)));
  }

  // ---- bands of the block

  DEVICE void at(int next) {
    band = next;
    const int within = band % (p.down * p.across);
    image = band / (p.down * p.across);
    top = within / p.across * p.rows;
    left = within % p.across * p.columns;
  }
  DEVICE void first() { at(block_index() * p.each); }
  DEVICE bool more() const { return band < p.bands && band < (block_index() + 1) * p.each; }
  DEVICE void next() { at(band + 1); }
  DEVICE int rows_here() const { return p.height - top < p.rows ? p.height - top : p.rows; }
  DEVICE int columns_here() const { return p.width - left < p.columns ? p.width - left : p.columns; }
  DEVICE int64_t value_of(int row, int column) const {
    return ((static_cast<int64_t>(image) * p.height + row) * p.width + column) * p.channels;
  }

  // ---- operands

  DEVICE void fetch(int piece, int buffer) const {
    const int groups = 9 / p.taps, k0 = piece / groups * kDepth, tap0 = piece % groups * p.taps, c = p.channels;
    const int lines = BACK ? width() : kDepth, across = (BACK ? kDepth : width()) / V;
    const Shared<T> to = weights(buffer);
    for (int e = thread_index(); e < p.taps * lines * across; e += thread_count()) {
      const int line = e / across, o = e % across * V, tap = line / lines, i = line % lines;
      const int input = BACK ? output() + i : k0 + i, out = BACK ? k0 + o : output() + o;
      const bool exists = input < c && out < c;
      const int source = (BACK ? 8 - tap0 - tap : tap0 + tap) * c;
      copy_async_or_zero<16>(to + (line * p.row + o), packed + (exists ? (source + input) * c + out : 0), exists);
    }
  }

  DEVICE void begin(Global<const T> of_slot) {
    packed = of_slot;
    fetch(0, 0);
    copy_async_commit();
  }

  // f(v, i, own): V values of the source from value i on, as the convolution takes them
  template <typename F>
  DEVICE void load(F f) const {
    const Columns of(p.depth / V);
    const Shared<T> to = tile();
    const int across = p.columns + 2, channel = of.group * V, size = (p.rows + 2) * across;
    if (!FAULT_POINT(2)) sync_threads();  // the tile may still be read, as operand or as sums
    if (!of.active()) return;
    for (int e = of.row; e < size; e += of.rows) {
      const int row = e / across, column = e % across, y = top + row - 1, x = left + column - 1;
      float value[V] = {};
      if (FAULT_POINT(3)) value[0] = 1.f;
      const bool own = row > 0 && row <= p.rows && column > 0 && column <= p.columns;
      if (channel < p.channels && y >= 0 && y < p.height && x >= 0 && x < p.width)
        f(value, value_of(y, x) + channel, own);
      const int at = row * p.line + column * p.pixel + channel;
      store_operands<T, TENSOR>(value, to, at);
    }
  }

  // ---- the product

  DEVICE void multiply_tap(Shared<T> w, int shift) {
    const Shared<T> a_tile = tile() + shift;
    const int lane = lane_index(), g = lane / 4, t = lane % 4, column = warp_index() % p.warps_n * (8 * N);
    int pixel[M][2] = {};
    if constexpr (!TENSOR) {
      UNROLL
      for (int m = 0; m < M; ++m) {
        pixel[m][0] = shuffle(place[m], g);
        pixel[m][1] = shuffle(place[m], g + 8);
      }
    }
    UNROLL_BY((TENSOR ? 2 : 1))
    for (int k = 0; k < kDepth; k += kStep) {
      if constexpr (!TENSOR) {
        float b[N][2];
        UNROLL
        for (int n = 0; n < N; ++n) {
          UNROLL
          for (int j = 0; j < 2; ++j) {
            const int o = column + 8 * n + 2 * t + j;
            b[n][j] = w[BACK ? o * p.row + k : k * p.row + o];
          }
        }
        UNROLL
        for (int m = 0; m < M; ++m) {
          UNROLL
          for (int half = 0; half < 2; ++half) {
            multiply_half<N>(v[m], half, a_tile[pixel[m][half] + k], b);
          }
        }
      } else {
        uint32_t b[N][2];
        UNROLL
        for (int n = 0; n < N; n += 2) {
          if constexpr (sizeof(T) == 2) {
            uint32_t r[4];
            if constexpr (BACK) {
              ldmatrix<4>(r, w + ((column + 8 * n + lane / 16 * 8 + lane % 8) * p.row + k + lane / 8 % 2 * 8));
            } else {
              ldmatrix_trans<4>(r, w + ((k + lane % 16) * p.row + column + 8 * n + lane / 16 * 8));
            }
            UNROLL
            for (int j = 0; j < 4; ++j) b[n + j / 2][j % 2] = r[j];
          } else {
            UNROLL
            for (int j = 0; j < 4; ++j) {
              const int o = column + 8 * (n + j / 2) + g, d = k + t + 4 * (j % 2);
              b[n + j / 2][j % 2] = to_tf32(w[BACK ? o * p.row + d : d * p.row + o]);
            }
          }
        }
        UNROLL
        for (int m = 0; m < M; ++m) {
          uint32_t a[4];
          ldmatrix<4>(a, a_tile + (place[m] + k));
          multiply_row<T>(v[m], a, b);
        }
      }
    }
  }

  DEVICE void multiply() {
    for_each_value<M, N>([&](int m, int n, int i) { v[m][n][i] = 0.f; });
    for (int piece = 0; piece < p.pieces; ++piece) {
      copy_async_wait<0>();
      if (!FAULT_POINT(1)) sync_threads();  // operand and weights are there, and the other buffer of weights is free
      const bool again = band + 1 < p.bands && band + 1 < (block_index() + 1) * p.each;
      if (p.pieces > 1 && (piece + 1 < p.pieces || again)) fetch((piece + 1) % p.pieces, filled ^ 1);
      copy_async_commit();
      const int groups = 9 / p.taps, k = piece / groups * kDepth, tap = piece % groups * p.taps;
      for (int i = 0; i < p.taps; ++i) {
        if (FAULT_POINT(4) && tap + i == 5) continue;
        multiply_tap(weights(filled) + i * (BACK ? width() : kDepth) * p.row,
                     (tap + i) / 3 * p.line + (tap + i) % 3 * p.pixel + k);
      }
      if (p.pieces > 1) filled ^= 1;
    }
  }

  // f(sums, i, channel): V sums of a pixel, at value i of a map
  template <typename F>
  DEVICE void each(F f) {
    const Columns of(width() / V);
    const int stride = width() + 8, lane = lane_index(), channel = output() + of.group * V;
    const int staged = p.warps_m * 16 * kStaged;
    const Shared<float> sums = shared_array<float>(0, staged * stride);
    UNROLL
    for (int begin = 0; begin < M; begin += kStaged) {
      sync_threads();  // the tile was read, or the sums before
      UNROLL
      for (int m = begin; m < begin + kStaged; ++m) {
        const int row = (warp_index() / p.warps_n * kStaged + m - begin) * 16 + lane / 4;
        UNROLL
        for (int n = 0; n < N; ++n) {
          const int o = warp_index() % p.warps_n * (8 * N) + 8 * n + lane % 4 * 2;
          UNROLL
          for (int half = 0; half < 2; ++half)
            store(sums, (row + 8 * half) * stride + o, Vector<float, 2>{{v[m][n][2 * half], v[m][n][2 * half + 1]}});
        }
      }
      sync_threads();
      if (!of.active() || channel >= p.channels) continue;
      for (int e = of.row; e < staged; e += of.rows) {
        const int q = e / (16 * kStaged) * (16 * M) + begin * 16 + e % (16 * kStaged);
        const int row = q / p.columns, column = q % p.columns;
        if (row >= rows_here() || column >= columns_here()) continue;
        float some[V];
        UNROLL
        for (int j = 0; j < V; j += 4) {
          const Vector<float, 4> four = contnet_fast::cuda::load<4>(sums, e * stride + of.group * V + j);
          UNROLL
          for (int i = 0; i < 4; ++i) some[j + i] = four[i];
        }
        f(some, value_of(top + row, left + column) + channel, channel);
      }
    }
  }
};

}  // namespace
}  // namespace contnet_fast::cuda
