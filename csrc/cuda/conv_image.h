// What a thread of a whole solve knows of its image, and the shared memory of its block.
#pragma once

#include "conv_taps.h"
#include "conv_launch.h"

namespace contnet_fast::cuda {
namespace {

constexpr int kMostThreads = 256;  // so that a thread may have 255 registers
constexpr int kRatesInRegisters = 0;  // of earlier stages: 128 - 3 x 32 registers do not hold 32 more
constexpr int kVectors = 7;  // of an evaluation: two biases, scale and shift of two norms, skip scalar times eps
constexpr int kMoments = 4;  // of known norms: mean and variance of each

template <typename T>
struct SolveArguments {
  Global<const T> packed;
  Global<const float> parameters, known;
  Global<float> moments, rates;
  Global<const int32_t> slot_of;
  Global<const unsigned char> x;
  Global<unsigned char> y, states;
  Scalar state;
  Norm norm;
  bool post;
  int images, height, width, channels, group, stages, steps, slots, tiles;
  // what follows from them: constants cost no registers
  int pixels, line, evaluations, tile, weights, vectors, partial;  // line, tile: in values; then bytes before an array
  int64_t image_bytes;
  uint32_t kept;  // bit j: a later row needs rate j
  float eps, norm_eps, rows[kMostStages][kMostStages], update[kMostStages];
};

DEVICE float relu(float x) { return x < 0.f ? 0.f : x; }  // NaN stays

DEVICE Vector<float, 2> load_state(Global<const unsigned char> p, Scalar type, int i) {
  if (type == Scalar::f32) return load<2>(pointer_cast<const float>(p), i);
  const uint32_t r = pointer_cast<const uint32_t>(p)[i / 2];
  if (type == Scalar::bf16) return {{low_half<bf16>(r), high_half<bf16>(r)}};
  return {{low_half<f16>(r), high_half<f16>(r)}};
}

DEVICE void store_state(Global<unsigned char> p, Scalar type, int i, float low, float high) {
  if (type == Scalar::f32) {
    store(pointer_cast<float>(p), i, Vector<float, 2>{{low, high}});
  } else {
    pointer_cast<uint32_t>(p)[i / 2] = type == Scalar::bf16 ? pack<bf16>(low, high) : pack<f16>(low, high);
  }
}

template <typename T, bool TENSOR, int C, bool SAMPLE>
struct Image {
  using L = ConvSizes<C, sizeof(T)>;
  static constexpr int M = L::kM, N = L::kN;
  using Map = Fragments<M, N>;
  const SolveArguments<T>& p;
  int place[M];  // of each tile of pixels what this lane hands to ldmatrix, at the first tap

  DEVICE explicit Image(const SolveArguments<T>& p) : p(p) {
    const int lane = lane_index(), first = warp_index() / L::kWarpsN * (16 * M);
    UNROLL
    for (int m = 0; m < M; ++m) {
      const int pixel = first + 16 * m + lane % 16, at = pixel < p.pixels ? pixel : 0;
      place[m] = at / p.width * p.line + at % p.width * L::kPixel;
      if constexpr (TENSOR) place[m] += lane / 16 * (16 / static_cast<int>(sizeof(T)));
    }
  }

  // of the thread's fragments
  DEVICE int first_pixel() const {
    const int i = afresh(thread_index());
    return i / (32 * L::kWarpsN) * (16 * M) + i % 32 / 4;
  }
  DEVICE int first_channel() const {
    const int i = afresh(thread_index());
    return i / 32 % L::kWarpsN * (8 * N) + i % 4 * 2;
  }
  DEVICE bool inside(int first_pixel, int m, int half) const { return first_pixel + 16 * m + 8 * half < p.pixels; }

  // ---- shared memory, in this order

  DEVICE Shared<T> operand(int conv) const {
    return shared_array<T>((p.tiles - 1) * conv * p.tile * static_cast<int>(sizeof(T)), p.tile);
  }
  DEVICE Shared<T> weights(int chunk) const {
    return shared_array<T>(p.weights + chunk % 2 * L::kChunk * static_cast<int>(sizeof(T)), L::kChunk);
  }
  DEVICE Shared<float> vectors(int evaluation) const {
    return shared_array<float>(p.vectors + evaluation % 2 * (4 * kVectors * C), kVectors * C);
  }
  DEVICE Shared<float> raw() const {
    return shared_array<float>(p.vectors + 2 * 4 * kVectors * C, (kParameterRows + kMoments) * C);
  }
  DEVICE Shared<float> fold() const { return shared_array<float>(p.partial, 2 * C); }
  DEVICE Shared<float> mean() const { return shared_array<float>(p.partial + 2 * 4 * C, C); }
  DEVICE Shared<float> total() const { return shared_array<float>(p.partial + 3 * 4 * C, C); }
  DEVICE Shared<float> partial() const { return shared_array<float>(p.partial + 4 * 4 * C, warps_m() * C); }
  DEVICE int warps_m() const { return thread_count() / (32 * L::kWarpsN); }

  // ---- the map of the image, of which a thread has its fragments

  template <typename F>
  DEVICE void each(Map& v, F f) const {  // f(value, n, i): value i % 2 of the lane's channels of tile n
    UNROLL
    for (int m = 0; m < M; ++m) {
      UNROLL
      for (int n = 0; n < N; ++n) {
        UNROLL
        for (int i = 0; i < 4; ++i) f(v[m][n][i], n, i);
      }
    }
  }

  // f(m, half, n, offset of two values in the image) for what of the map exists
  template <typename F>
  DEVICE void each_pair(F f) const {
    const int pixel = first_pixel(), channel = first_channel();
    UNROLL
    for (int m = 0; m < M; ++m) {
      UNROLL
      for (int half = 0; half < 2; ++half) {
        if (!inside(pixel, m, half)) continue;
        const int at = (pixel + 16 * m + 8 * half) * p.channels + channel;
        UNROLL
        for (int n = 0; n < N; ++n)
          if (channel + 8 * n < p.channels) f(m, half, n, at + 8 * n);
      }
    }
  }

  DEVICE void write_map(Map& v, Global<unsigned char> maps, int index) const {
    const Global<unsigned char> to = maps + (static_cast<int64_t>(index) * p.images + block_index()) * p.image_bytes;
    each_pair([&](int m, int half, int n, int at) {
      store_state(to, p.state, at, v[m][n][2 * half], v[m][n][2 * half + 1]);
    });
  }

  // the operand of a convolution, rounded
  DEVICE void write_operand(Map& v, Shared<T> tile) const {
    const int pixel = first_pixel(), inner = p.line + L::kPixel + first_channel();
    UNROLL
    for (int m = 0; m < M; ++m) {
      UNROLL
      for (int half = 0; half < 2; ++half) {
        const int at = shuffle(place[m], pixel % 8 + 8 * half) + inner;
        if (!inside(pixel, m, half)) continue;
        UNROLL
        for (int n = 0; n < N; ++n) {
          const float low = v[m][n][2 * half], high = v[m][n][2 * half + 1];
          if constexpr (sizeof(T) == 2) {
            pointer_cast<uint32_t>(tile)[(at + 8 * n) / 2] = pack<T>(low, high);
          } else if constexpr (TENSOR) {
            store(tile, at + 8 * n, Vector<float, 2>{{bit_cast<float>(to_tf32(low)), bit_cast<float>(to_tf32(high))}});
          } else {
            store(tile, at + 8 * n, Vector<float, 2>{{low, high}});
          }
        }
      }
    }
  }
};

}  // namespace
}  // namespace contnet_fast::cuda
