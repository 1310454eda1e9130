// The whole solve of an image by one block: every step and stage in one launch.
//
// State, the running update y + sum_j b_j k_j and a convolution's sums are registers in float32. The operand of a
// convolution lies in shared memory with its border of zeros; the border is written once, so it is zero after
// normalisation. Rates that a later row of the tableau needs go through memory that their own thread alone touches.
#pragma once

#include <cmath>

#include "conv_image.h"

namespace contnet_fast::cuda {
namespace {

template <typename T, bool TENSOR, int C, bool SAMPLE>
struct ImageSolve : Image<T, TENSOR, C, SAMPLE> {
  using Base = Image<T, TENSOR, C, SAMPLE>;
  using typename Base::L;
  using typename Base::Map;
  using Base::M, Base::N, Base::Image;
  using Base::p, Base::place, Base::first_pixel, Base::first_channel;
  using Base::operand, Base::weights, Base::vectors, Base::raw, Base::fold, Base::mean, Base::total, Base::partial;
  using Base::warps_m, Base::each, Base::each_pair, Base::inside, Base::write_map, Base::write_operand;

  // ---- weights and vectors of an evaluation, ahead of their use

  DEVICE void fetch_chunk(int index) const {
    constexpr int V = 16 / sizeof(T), kAcross = C / V;
    const int evaluation = index / (2 * L::kChunks), conv = index / L::kChunks % 2, c = p.channels;
    const int slot = p.slot_of[evaluation];
    if (L::kChunks == 1 && evaluation > 0 && slot == p.slot_of[evaluation - 1]) return;  // still in this buffer
    const Global<const T> from =
        p.packed + (static_cast<int64_t>(conv * p.slots + slot) * 9 + index % L::kChunks * L::kTaps) * c * c;
    const Shared<T> to = weights(index);
    for (int e = afresh(thread_index()); e < L::kTaps * C * kAcross; e += thread_count()) {
      const int row = e / kAcross, o = e % kAcross * V, k = row % C;
      const bool exists = k < c && o < c;
      copy_async_or_zero<16>(to + (row * L::kRow + o), from + (exists ? (row / C * c + k) * c + o : 0), exists);
    }
  }

  DEVICE void fetch_vectors(int evaluation) const {
    if (evaluation >= p.evaluations) return;
    const int slot = p.slot_of[evaluation];
    for (int e = afresh(thread_index()); e < (kParameterRows + kMoments) * C / 4; e += thread_count()) {
      const int row = e / (C / 4), c = e % (C / 4) * 4;
      if (c >= p.channels) continue;
      if (row >= kParameterRows) {
        if (p.norm == Norm::known)
          copy_async<16>(raw() + 4 * e, p.known + ((evaluation * kMoments + row - kParameterRows) * p.channels + c));
      } else if (row < 2 || row == kParameterRows - 1 || p.norm != Norm::none) {
        copy_async<16>(raw() + 4 * e, p.parameters + ((slot * kParameterRows + row) * p.channels + c));
      }
    }
  }

  DEVICE void fold_vectors(int evaluation) const {
    const Shared<float> to = vectors(evaluation), from = raw();
    for (int c = afresh(thread_index()); c < C; c += thread_count()) {
      const bool exists = c < p.channels;
      UNROLL
      for (int i = 0; i < 2; ++i) {
        float scale = exists ? 1.f : 0.f, shift = 0.f;
        if (exists && p.norm != Norm::none) {
          scale = from[(2 + 2 * i) * C + c];
          shift = from[(3 + 2 * i) * C + c];
          if (p.norm == Norm::known) {
            const float variance = from[(kParameterRows + 2 * i + 1) * C + c];  // interpolated in depth it may dip below 0
            scale *= 1.f / std::sqrt((variance < 0.f ? 0.f : variance) + p.norm_eps);
            shift -= from[(kParameterRows + 2 * i) * C + c] * scale;
          }
        }
        to[(2 + 2 * i) * C + c] = scale;
        to[(3 + 2 * i) * C + c] = shift;
        to[i * C + c] = exists ? static_cast<float>(from[i * C + c]) : 0.f;
      }
      to[6 * C + c] = exists ? from[(kParameterRows - 1) * C + c] * p.eps : 0.f;
    }
  }

  // ---- norms

  // `to` <- mean over each channel's group of v, or of its squared distance from `centre`, in one order
  template <bool SQUARES>
  DEVICE void group_means(Map& v, Shared<float> to) const {
    const int pixel = first_pixel(), channel = first_channel();
    const Shared<float> row = partial() + pixel / (16 * M) * C;
    UNROLL
    for (int n = 0; n < N; ++n) {
      Vector<float, 2> centre{};
      if constexpr (SQUARES) centre = load<2>(mean(), channel + 8 * n);
      UNROLL
      for (int j = 0; j < 2; ++j) {
        float sum = 0.f;
        UNROLL
        for (int m = 0; m < M; ++m) {
          UNROLL
          for (int half = 0; half < 2; ++half) {
            const float value = v[m][n][2 * half + j] - centre[j];
            if (inside(pixel, m, half)) sum += SQUARES ? value * value : value;
          }
        }
        UNROLL
        for (int mask = 4; mask < 32; mask *= 2) sum += shuffle_xor(sum, mask);
        if (pixel % 8 == 0) row[channel + 8 * n + j] = sum;
      }
    }
    sync_threads();
    for (int c = afresh(thread_index()); c < C; c += thread_count()) {
      float sum = 0.f;
      for (int r = 0; r < warps_m(); ++r) sum += partial()[r * C + c];
      total()[c] = sum;
    }
    sync_threads();
    const float share = 1.f / static_cast<float>(p.group * p.pixels);
    for (int c = afresh(thread_index()); c < C; c += thread_count()) {
      float sum = 0.f;
      const int first = c / p.group * p.group;
      if (c < p.channels)
        for (int i = 0; i < p.group; ++i) sum += total()[first + i];
      to[c] = sum * share;
    }
    sync_threads();
  }

  // v <- norm i of v
  DEVICE void normalise(Map& v, Shared<float> of, int evaluation, int i) const {
    Shared<float> scale = of + (2 + 2 * i) * C, shift = of + (3 + 2 * i) * C;
    if constexpr (SAMPLE) {
      group_means<false>(v, mean());
      group_means<true>(v, fold());
      for (int c = afresh(thread_index()); c < C; c += thread_count()) {
        const float centre = mean()[c], variance = fold()[c], slope = scale[c] * (1.f / std::sqrt(variance + p.norm_eps));
        if (p.moments && c < p.channels) {
          const int64_t at = (static_cast<int64_t>((evaluation * 2 + i) * 2) * p.images + block_index()) * p.channels + c;
          p.moments[at] = centre;
          p.moments[at + static_cast<int64_t>(p.images) * p.channels] = variance;
        }
        fold()[c] = slope;
        fold()[C + c] = shift[c] - centre * slope;
      }
      sync_threads();
      scale = fold();
      shift = fold() + C;
    }
    const int channel = first_channel();
    UNROLL
    for (int n = 0; n < N; ++n) {
      const Vector<float, 2> a = load<2>(scale, channel + 8 * n), b = load<2>(shift, channel + 8 * n);
      UNROLL
      for (int m = 0; m < M; ++m) {
        UNROLL
        for (int j = 0; j < 4; ++j) v[m][n][j] = v[m][n][j] * a[j % 2] + b[j % 2];
      }
    }
  }

  DEVICE void relu_all(Map& v) const {
    each(v, [](float& value, int, int) { value = relu(value); });
  }

  // ---- a convolution, its bias, and the relu of order post

  DEVICE void convolve(Map& v, Shared<float> of, int evaluation, int conv) const {
    each(v, [](float& value, int, int) { value = 0.f; });
    for (int i = 0; i < L::kChunks; ++i) {
      const int chunk = (2 * evaluation + conv) * L::kChunks + i;
      copy_async_wait<0>();
#ifdef PLANTED_FAULT
      if (PLANTED_FAULT != 1 || conv == 0)
#endif
        sync_threads();  // operand and weights are there, and the other buffer of weights is free
      if (i == 0 && conv == 0 && evaluation + 1 < p.evaluations) fold_vectors(evaluation + 1);
      if (chunk + 1 < 2 * L::kChunks * p.evaluations) fetch_chunk(chunk + 1);
      if (i == 0 && conv == 1) fetch_vectors(evaluation + 2);
      copy_async_commit();
      multiply_taps<T, TENSOR, C, M, N>(v, operand(conv), weights(chunk), place, p.line, i * L::kTaps);
    }
    if (p.tiles == 1) sync_threads();
    const int channel = first_channel();
    UNROLL
    for (int n = 0; n < N; ++n) {
      const Vector<float, 2> bias = load<2>(of, conv * C + channel + 8 * n);
      UNROLL
      for (int m = 0; m < M; ++m) {
        UNROLL
        for (int j = 0; j < 4; ++j) v[m][n][j] += bias[j % 2];
      }
    }
    if (p.post) relu_all(v);
  }

  // ---- Runge-Kutta

  // where this thread keeps its values of a rate: neighbouring threads are neighbours
  DEVICE Global<float> rate_of(int stage) const {
    const int64_t first = (static_cast<int64_t>(block_index()) * p.stages + stage) * (M * N);
    return p.rates + (first * thread_count() + afresh(thread_index())) * 4;
  }

  // v: rate of a stage -> input of the next, or the new state. A term of weight zero adds nothing, not even NaN.
  DEVICE void advance(Map& v, Map& y, Map& next, int stage) const {
    if ((p.kept >> stage & 1) != 0) {
      const Global<float> to = rate_of(stage);
      UNROLL
      for (int m = 0; m < M; ++m) {
        UNROLL
        for (int n = 0; n < N; ++n)
          store(to, (m * N + n) * 4 * thread_count(),
                Vector<float, 4>{{v[m][n][0], v[m][n][1], v[m][n][2], v[m][n][3]}});
      }
    }
    const bool last = stage == p.stages - 1;
    const float b = p.update[stage], own = last ? 0.f : p.rows[stage + 1][stage];
    UNROLL
    for (int m = 0; m < M; ++m) {
      UNROLL
      for (int n = 0; n < N; ++n) {
        UNROLL
        for (int i = 0; i < 4; ++i) {
          const float rate = v[m][n][i];
          next[m][n][i] += b * (b != 0.f ? rate : 0.f);
          if (last) y[m][n][i] = next[m][n][i];
          v[m][n][i] = y[m][n][i] + own * (own != 0.f ? rate : 0.f);
        }
      }
    }
    if (last || p.kept == 0) return;
    for (int j = 0; j < stage; ++j) {
      const float a = p.rows[stage + 1][j];
      if (a == 0.f) continue;
      const Global<float> from = rate_of(j);
      UNROLL
      for (int m = 0; m < M; ++m) {
        UNROLL
        for (int n = 0; n < N; ++n) {
          const Vector<float, 4> rate = load<4>(from, (m * N + n) * 4 * thread_count());
          UNROLL
          for (int i = 0; i < 4; ++i) v[m][n][i] += a * rate[i];
        }
      }
    }
  }

  DEVICE void begin(Map& y, Map& next, Map& v) const {
    const int size = p.tile * p.tiles;
    const Shared<T> all = shared_array<T>(0, size);
    Vector<T, 16 / sizeof(T)> zeros{};
#ifdef PLANTED_FAULT
    if (PLANTED_FAULT == 2)
      for (int i = 0; i < 16 / static_cast<int>(sizeof(T)); ++i) zeros[i] = from_float<T>(1.f);
    if (PLANTED_FAULT != 4)
#endif
      for (int i = thread_index() * (16 / static_cast<int>(sizeof(T))); i < size;
           i += thread_count() * (16 / static_cast<int>(sizeof(T))))
        store(all, i, zeros);
    fetch_vectors(0);
    copy_async_commit();
    each(y, [](float& value, int, int) { value = 0.f; });
    const Global<const unsigned char> from = p.x + block_index() * p.image_bytes;
    each_pair([&](int m, int half, int n, int at) {
      const Vector<float, 2> pair = load_state(from, p.state, at);
      y[m][n][2 * half] = pair[0];
      y[m][n][2 * half + 1] = pair[1];
    });
    UNROLL
    for (int m = 0; m < M; ++m) {
      UNROLL
      for (int n = 0; n < N; ++n) {
        UNROLL
        for (int i = 0; i < 4; ++i) v[m][n][i] = next[m][n][i] = y[m][n][i];
      }
    }
    copy_async_wait<0>();
    sync_threads();
    fold_vectors(0);
    sync_threads();
    fetch_chunk(0);
    fetch_vectors(1);
    copy_async_commit();
  }

  DEVICE void run() const {
    Map y, next, v;
    begin(y, next, v);
    for (int evaluation = 0; evaluation < p.stages * p.steps; ++evaluation) {
      const Shared<float> of = vectors(evaluation);
      if (!p.post) {
        normalise(v, of, evaluation, 0);
        relu_all(v);
      }
      write_operand(v, operand(0));
      convolve(v, of, evaluation, 0);
      normalise(v, of, evaluation, p.post ? 0 : 1);
      if (!p.post) relu_all(v);
      write_operand(v, operand(1));
      convolve(v, of, evaluation, 1);
      if (p.post) normalise(v, of, evaluation, 1);
      const int channel = first_channel();
      UNROLL
      for (int n = 0; n < N; ++n) {
        const Vector<float, 2> factor = load<2>(of, 6 * C + channel + 8 * n);
        UNROLL
        for (int m = 0; m < M; ++m) {
          UNROLL
          for (int j = 0; j < 4; ++j) v[m][n][j] *= factor[j % 2];
        }
      }
      const int step = evaluation / p.stages, stage = evaluation % p.stages;
      advance(v, y, next, stage);
      if (evaluation == p.evaluations - 1) {
        write_map(y, p.y, 0);
      } else if (stage == p.stages - 1 && p.states) {
        write_map(y, p.states, step);
      }
    }
  }
};

template <typename T, bool TENSOR, int C, bool SAMPLE>
KERNEL_MIN_BLOCKS(kMostThreads, 1)
solve_image(GRID_CONSTANT SolveArguments<T> p) {
  ImageSolve<T, TENSOR, C, SAMPLE>(p).run();
}

// ---- launch

template <typename T>
SolveArguments<T> arguments(const ConvSolve& p, const SolvePlan& plan) {
  SolveArguments<T> a{};
  a.packed = static_cast<const T*>(p.packed);
  a.parameters = p.parameters;
  if (p.norm == Norm::known) a.known = static_cast<const float*>(p.moments);
  if (p.norm == Norm::sample) a.moments = p.moments;
  a.rates = static_cast<float*>(p.rates);
  a.slot_of = p.slot_of;
  a.x = static_cast<const unsigned char*>(p.x);
  a.y = static_cast<unsigned char*>(p.y);
  a.states = static_cast<unsigned char*>(p.states);
  a.state = p.state;
  a.norm = p.norm;
  a.post = p.post != 0;
  a.images = p.images;
  a.height = p.height;
  a.width = p.width;
  a.channels = p.channels;
  a.group = p.norm == Norm::sample ? p.group : 1;
  a.stages = p.stages;
  a.steps = p.steps;
  a.slots = p.slots;
  a.tiles = plan.tiles;
  const ConvLayout layout{plan.channels, sizeof(T)};
  a.pixels = p.height * p.width;
  a.line = (p.width + 2) * layout.pixel();
  a.evaluations = p.stages * p.steps;
  a.tile = (p.height + 2) * a.line;
  a.weights = a.tiles * a.tile * static_cast<int>(sizeof(T));
  a.vectors = a.weights + 2 * layout.chunk_bytes();
  a.partial = a.vectors + 4 * (2 * kVectors + kParameterRows + kMoments) * plan.channels;
  a.image_bytes = static_cast<int64_t>(a.pixels) * p.channels * (p.state == Scalar::f32 ? 4 : 2);
  a.eps = p.eps;
  a.norm_eps = p.norm_eps;
  for (int s = 0; s < p.stages; ++s) {
    a.update[s] = p.update[s];
    for (int j = 0; j < s; ++j) {
      a.rows[s][j] = p.rows[s][j];
      if (j < s - 1 && p.rows[s][j] != 0.f) a.kept |= 1u << j;
    }
  }
  return a;
}

template <typename T, bool TENSOR, int C>
void launch_solve(const ConvSolve& p, const SolvePlan& plan) {
  const Grid grid{"conv_solve", p.images, plan.threads, plan.shared, 1, p.stream};
  const SolveArguments<T> a = arguments<T>(p, plan);
  if (p.norm == Norm::sample) {
    launch(grid, solve_image<T, TENSOR, C, true>, a);
  } else {
    launch(grid, solve_image<T, TENSOR, C, false>, a);
  }
}

template <typename T, bool TENSOR>
void launch_solve(const ConvSolve& p, const SolvePlan& plan) {
  if (plan.channels == 16) return launch_solve<T, TENSOR, 16>(p, plan);
  if (plan.channels == 32) return launch_solve<T, TENSOR, 32>(p, plan);
  return launch_solve<T, TENSOR, 64>(p, plan);
}

}  // namespace

void conv_solve_f32(const ConvSolve&, const SolvePlan&);  // conv_solve_f32.cu

}  // namespace contnet_fast::cuda
