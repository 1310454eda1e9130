// What a thread of a solve's backward pass keeps of its image's maps, in memory that it alone touches.
#pragma once

#include "cuda/conv/solve/conv_image.h"
#include "cuda/conv/solve/conv_weights.h"

namespace contnet_fast::cuda {
namespace {

template <typename T>
struct BackwardArguments : ImageArguments<T> {
  Global<const float> moments;
  Global<const unsigned char> start, upstream,
      extra;                     // upstream: the costate after the last step; extra: added at the end
  Global<unsigned char> result;  // the gradient of x, written by the first step
  Global<float> costates, rates, weight_sums, channel_sums;
  Global<T> tape;
  Pixels of;
  int first, spare;                 // evaluation; bytes before an array
  uint32_t kept_rates, kept_grads;  // bit j: a row, or a column, of the tableau needs it beyond its own
  uint32_t repeats;                 // bit j: a later stage has the slot of stage j, and its sums of weights
  int sums[kMostStages];            // which those of a stage are
};

template <typename T, bool TENSOR, int C>
struct KeptMaps {
  using Part = Image<BackwardArguments<T>, TENSOR, C>;
  using Map = typename Part::Map;
  static constexpr bool kInMemory = C == 16;  // what stays through a step: maps of 64 registers would spill
  static constexpr int M = Part::M, N = Part::N;
  const BackwardArguments<T>& p;

  // `index` of them before; the values of a warp lie together, so that offsets in them are constants
  template <typename E>
  DEVICE Global<E> own(Global<E> maps, int64_t index) const {
    const int i = afresh(thread_index());
    return maps + (index * (4 * M * N * thread_count()) + i / 32 * (128 * M * N) +
                   i % 32 * (16 / static_cast<int>(sizeof(E))));
  }
  DEVICE Global<T> map(int kind, int stage) const {
    const int kinds = p.post ? 3 : 2;
    return own(p.tape, (static_cast<int64_t>(block_index()) * kinds + kind) * p.stages + stage);
  }
  DEVICE Global<float> rate(int stage) const {
    return own(p.rates, static_cast<int64_t>(block_index()) * (p.stages + 1) + stage);
  }

  template <typename E>
  DEVICE void save(Map& v, Global<E> to) const {
    UNROLL
    for (int n = 0; n < N; ++n) {
      UNROLL
      for (int m = 0; m < M; m += 4 / static_cast<int>(sizeof(E))) {
        const int at = (n * M + m) * 128;
        if constexpr (sizeof(E) == 4) {
          store(to, at, Vector<float, 4>{{v[m][n][0], v[m][n][1], v[m][n][2], v[m][n][3]}});
        } else {
          Vector<uint32_t, 4> packed;
          UNROLL
          for (int i = 0; i < 4; ++i) packed[i] = pack<E>(v[m + i / 2][n][i % 2 * 2], v[m + i / 2][n][i % 2 * 2 + 1]);
          store(pointer_cast<uint32_t>(to), at / 2, packed);
        }
      }
    }
  }

  // f(m, i, value) for a thread's values of tile n of a map that it kept
  template <typename E, typename F>
  DEVICE void each(Global<E> from, int n, F f) const {
    UNROLL
    for (int m = 0; m < M; m += 4 / static_cast<int>(sizeof(E))) {
      const int at = (n * M + m) * 128;
      if constexpr (sizeof(E) == 4) {
        const Vector<float, 4> values = load<4>(from, at);
        UNROLL
        for (int i = 0; i < 4; ++i) f(m, i, values[i]);
      } else {
        const Vector<uint32_t, 4> packed = load<4>(pointer_cast<uint32_t>(from), at / 2);
        UNROLL
        for (int i = 0; i < 4; ++i) {
          f(m + i / 2, i % 2 * 2, low_half<E>(packed[i]));
          f(m + i / 2, i % 2 * 2 + 1, high_half<E>(packed[i]));
        }
      }
    }
  }

  template <typename E>
  DEVICE void restore(Map& v, Global<E> from) const {
    UNROLL
    for (int n = 0; n < N; ++n) each(from, n, [&](int m, int i, float value) { v[m][n][i] = value; });
  }

  // to += v, in memory
  DEVICE void add_to(Global<float> to, Map& v) const {
    UNROLL
    for (int n = 0; n < N; ++n) {
      UNROLL
      for (int m = 0; m < M; ++m) {
        const int at = (n * M + m) * 128;
        Vector<float, 4> sum = load<4>(to, at);
        UNROLL
        for (int i = 0; i < 4; ++i) sum[i] += v[m][n][i];
        store(to, at, sum);
      }
    }
  }

  // v <- scale * v + weight * y, or v + weight * what was kept. Weight zero adds nothing, not even NaN.
  DEVICE void combine(Map& v, float scale, float weight, Map& y) const {
    for_each_value<M, N>([&](int m, int n, int i) {
      v[m][n][i] = scale * (scale != 0.f ? v[m][n][i] : 0.f) + weight * (weight != 0.f ? y[m][n][i] : 0.f);
    });
  }
  DEVICE void add(Map& v, float weight, Global<float> from) const {
    if (weight == 0.f) return;
    UNROLL
    for (int n = 0; n < N; ++n) each(from, n, [&](int m, int i, float value) { v[m][n][i] += weight * value; });
  }

  // Where a step begins, which each of its stages reads: in registers, or in memory where those do not hold two maps.
  DEVICE void begin(Map& y, Map& v) const {
    if constexpr (kInMemory) {
      save(v, rate(p.stages));
    } else {
      combine(y, 0.f, 1.f, v);
    }
  }
  DEVICE void from_begin(Map& v, float scale, float weight, Map& y) const {  // as combine
    if constexpr (kInMemory) {
      combine(v, scale, 0.f, v);
      add(v, weight, rate(p.stages));
    } else {
      combine(v, scale, weight, y);
    }
  }
};

}  // namespace
}  // namespace contnet_fast::cuda
