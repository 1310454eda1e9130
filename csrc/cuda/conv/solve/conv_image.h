// What a thread of a whole solve knows of its image, and the shared memory of its block.
#pragma once

#include "cuda/conv/conv_taps.h"
#include "cuda/conv/conv_launch.h"

namespace contnet_fast::cuda {
namespace {

template <typename T>
struct ImageArguments {
  using Operand = T;
  static constexpr bool kWide = false;
  Global<const T> packed;
  Global<const float> parameters;
  Global<const int32_t> slot_of;
  Scalar state;
  Norm norm;
  bool post;
  int images, width, channels, group, stages, slots;
  // what follows from them: constants cost no registers
  int pixels, line, tile, tiles, weights, vectors, partial;  // line, tile: in values; then bytes before an array
  int64_t image_bytes;
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

// P::kWide: an image's rows may be split over the blocks of a cluster, `share` pixels each, the last ones fewer or
// none. A tile has its block's rows between one of each neighbour's, or of zeros.
// Structures that work on it have one by value: of a reference nvcc 13.0 makes a stack frame.
template <typename P, bool TENSOR, int C>
struct Image {
  using T = typename P::Operand;
  using L = ConvSizes<C, sizeof(T), P::kWide>;
  static constexpr int M = L::kM, N = L::kN;
  using Map = Fragments<M, N>;
  const P& p;
  int place[M];  // of each tile of pixels what this lane hands to ldmatrix, at the first tap

  DEVICE explicit Image(const P& p) : p(p) {
    const int lane = lane_index(), first = warp_index() / L::kWarpsN * (16 * M);
    UNROLL
    for (int m = 0; m < M; ++m) {
      const int pixel = first + 16 * m + lane % 16, at = pixel < pixels() ? pixel : 0;
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
  DEVICE bool inside(int first_pixel, int m, int half, int pixels) const {
    return first_pixel + 16 * m + 8 * half < pixels;
  }
  DEVICE bool inside(int first_pixel, int m, int half) const { return inside(first_pixel, m, half, pixels()); }

  // ---- the block's part of its image

  DEVICE int pixels() const {
    if constexpr (!P::kWide) {
      return p.pixels;
    } else {
      const int rest = p.pixels - cluster_rank() * p.share;
      return rest < p.share ? rest : p.share;
    }
  }
  DEVICE int index() const {
    if constexpr (!P::kWide) {
      return block_index();
    } else {
      return block_index() / p.cluster;
    }
  }
  // of a map of the batch that `maps` images lie before: bytes before the block's part
  DEVICE int64_t part(int64_t maps) const {
    const int64_t bytes = (maps + index()) * p.image_bytes;
    if constexpr (!P::kWide) {
      return bytes;
    } else {
      return bytes + cluster_rank() * p.share_bytes;
    }
  }

  // ---- shared memory, in this order

  DEVICE Shared<T> operand(int conv) const {
    return shared_array<T>((p.tiles - 1) * conv * p.tile * static_cast<int>(sizeof(T)), p.tile);
  }
  DEVICE Shared<T> weights(int chunk) const {
    return shared_array<T>(p.weights + chunk % 2 * L::kChunk * static_cast<int>(sizeof(T)), L::kChunk);
  }
  DEVICE int warps_m() const { return thread_count() / (32 * L::kWarpsN); }

  // zeros in both operands: those of their borders stay
  DEVICE void clear_operands() const {
    constexpr int V = 16 / sizeof(T);
    const int size = p.tile * p.tiles;
    const Shared<T> all = shared_array<T>(0, size);
    Vector<T, V> zeros{};
    if (FAULT_POINT(2))
      for (int i = 0; i < V; ++i) zeros[i] = from_float<T>(1.f);
    if (FAULT_POINT(4)) return;
    for (int i = thread_index() * V; i < size; i += thread_count() * V) store(all, i, zeros);
  }

  // a piece of the weights of a convolution, its input channels from `first` on, asynchronously; `from`: at its first
  // tap; zeros for channels that only the padding has
  DEVICE void fetch_weights(Global<const T> from, Shared<T> to, int first = 0) const {
    constexpr int V = 16 / sizeof(T), kAcross = C / V, D = L::kDepth;
    const int c = p.channels;
    for (int e = afresh(thread_index()); e < L::kTaps * D * kAcross; e += thread_count()) {
      const int row = e / kAcross, o = e % kAcross * V, k = first + row % D;
      const bool exists = k < c && o < c;
      copy_async_or_zero<16>(to + (row * L::kRow + o), from + (exists ? (row / D * c + k) * c + o : 0), exists);
    }
  }

  // ---- the map of the image, of which a thread has its fragments

  template <typename F>
  DEVICE void each(Map& v, F f) const {  // f(value, n, i): value i % 2 of the lane's channels of tile n
    for_each_value<M, N>([&](int m, int n, int i) { f(v[m][n][i], n, i); });
  }

  // f(m, half, n, offset of two values in the image) for what of the map exists
  template <typename F>
  DEVICE void each_pair(F f) const {
    const int pixel = first_pixel(), channel = first_channel(), count = pixels();
    UNROLL
    for (int m = 0; m < M; ++m) {
      UNROLL
      for (int half = 0; half < 2; ++half) {
        if (!inside(pixel, m, half, count)) continue;
        const int at = (pixel + 16 * m + 8 * half) * p.channels + channel;
        UNROLL
        for (int n = 0; n < N; ++n)
          if (channel + 8 * n < p.channels) f(m, half, n, at + 8 * n);
      }
    }
  }

  DEVICE void fill(Map& v, float with) const {
    each(v, [&](float& value, int, int) { value = with; });
  }

  DEVICE void relu_all(Map& v) const {
    each(v, [](float& value, int, int) { value = relu(value); });
  }

  // f(value, a of its channel, b of its channel) with two rows of channels
  template <typename F>
  DEVICE void each_channel(Map& v, Shared<float> a, Shared<float> b, F f) const {
    const int channel = first_channel();
    UNROLL
    for (int n = 0; n < N; ++n) {
      const Vector<float, 2> x = load<2>(a, channel + 8 * n), y = load<2>(b, channel + 8 * n);
      UNROLL
      for (int m = 0; m < M; ++m) {
        UNROLL
        for (int j = 0; j < 4; ++j) f(v[m][n][j], x[j % 2], y[j % 2]);
      }
    }
  }

  DEVICE void read_map(Map& v, Global<const unsigned char> from) const {
    each_pair([&](int m, int half, int n, int at) {
      const Vector<float, 2> pair = load_state(from, p.state, at);
      v[m][n][2 * half] = pair[0];
      v[m][n][2 * half + 1] = pair[1];
    });
  }

  DEVICE void write_map(Map& v, Global<unsigned char> to) const {
    each_pair([&](int m, int half, int n, int at) {
      store_state(to, p.state, at, v[m][n][2 * half], v[m][n][2 * half + 1]);
    });
  }

  // two values of an operand, rounded
  DEVICE void put(Shared<T> tile, int at, float low, float high) const {
    if constexpr (sizeof(T) == 2) {
      pointer_cast<uint32_t>(tile)[at / 2] = pack<T>(low, high);
    } else if constexpr (TENSOR) {
      store(tile, at, Vector<float, 2>{{bit_cast<float>(to_tf32(low)), bit_cast<float>(to_tf32(high))}});
    } else {
      store(tile, at, Vector<float, 2>{{low, high}});
    }
  }

  // The operand of a convolution: the block's pixels to its own tile, those of its first and last row to its
  // neighbours' too. A block that has a next one has all of its rows, so `halo` values lie between a row's places in
  // the two tiles.
  DEVICE void write_operand(Map& v, Shared<T> tile) const {
    const int pixel = first_pixel(), inner = p.line + L::kPixel + first_channel(), count = pixels();
    UNROLL
    for (int m = 0; m < M; ++m) {
      UNROLL
      for (int half = 0; half < 2; ++half) {
        const int at = shuffle(place[m], pixel % 8 + 8 * half) + inner;
        if (!inside(pixel, m, half, count)) continue;
        UNROLL
        for (int n = 0; n < N; ++n) put(tile, at + 8 * n, v[m][n][2 * half], v[m][n][2 * half + 1]);
        if constexpr (P::kWide) {
          const int rank = cluster_rank(), here = pixel + 16 * m + 8 * half;
          if (here < p.width && rank > 0) send(v, m, half, tile, rank - 1, at + p.halo);
          if (here >= p.share - p.width && rank + 1 < p.cluster) send(v, m, half, tile, rank + 1, at - p.halo);
        }
      }
    }
  }

  DEVICE void send(Map& v, int m, int half, Shared<T> tile, int rank, int at) const {
    if (FAULT_POINT(6) && rank > 0) return;
    const Shared<T> to = map_shared(tile, rank);
    UNROLL
    for (int n = 0; n < N; ++n) put(to, at + 8 * n, v[m][n][2 * half], v[m][n][2 * half + 1]);
  }
};

// what a launch says of its images, `channels` after padding, with `tiles` operands in shared memory, each of `rows`
// rows or all
template <typename A>
void describe_image(A& a, const ConvProblem& p, int channels, int tiles, int rows = 0) {
  using T = typename A::Operand;
  a.slot_of = p.slot_of;
  a.state = p.state;
  a.norm = p.norm;
  a.post = p.post != 0;
  a.images = p.images;
  a.width = p.width;
  a.channels = p.channels;
  a.group = p.norm == Norm::sample ? p.group : 1;
  a.stages = p.stages;
  a.slots = p.slots;
  a.tiles = tiles;
  const ConvLayout layout{channels, sizeof(T)};
  a.pixels = p.height * p.width;
  a.line = (p.width + 2) * layout.pixel();
  a.tile = ((rows > 0 ? rows : p.height) + 2) * a.line;
  a.weights = tiles * a.tile * static_cast<int>(sizeof(T));
  a.vectors = a.weights + 2 * layout.chunk_bytes();
  a.image_bytes = static_cast<int64_t>(a.pixels) * p.channels * (p.state == Scalar::f32 ? 4 : 2);
  a.eps = p.eps;
  a.norm_eps = p.norm_eps;
  for (int s = 0; s < p.stages; ++s) {
    a.update[s] = p.update[s];
    for (int j = 0; j < s; ++j) a.rows[s][j] = p.rows[s][j];
  }
}

}  // namespace
}  // namespace contnet_fast::cuda
