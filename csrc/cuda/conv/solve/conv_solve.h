// The whole solve of an image by one block, or by a cluster of them: every step and stage in one launch.
//
// State, the running update sum_j b_j k_j and a convolution's sums are registers in float32. The operand of a
// convolution lies in shared memory with its border of zeros; the border is written once, so it is zero after
// normalisation. Rates that a later row of the tableau needs go through memory that their own thread alone touches.
//
// Blocks of a cluster have some rows of the image each and write their first and last one into their neighbours' tiles
// too. One barrier of the cluster a convolution, before it, is enough where two tiles alternate: whoever writes a tile
// has passed the barrier before the other tile's convolution, at which all had read this one. Of one tile it takes
// another, after it.
#pragma once

#include <cmath>

#include "cuda/conv/solve/conv_solve_arguments.h"

namespace contnet_fast::cuda {
namespace {

template <typename P, bool TENSOR, int C, bool SAMPLE>
struct ImageSolve {
  using Part = Image<P, TENSOR, C>;
  using L = typename Part::L;
  using Map = typename Part::Map;
  using T = typename Part::T;
  static constexpr int M = Part::M, N = Part::N;
  Part image;
  const P& p;  // after `image` and of it: before it, nvcc 13.0 takes 25 registers more at 64 channels on sm_80

  DEVICE explicit ImageSolve(const P& p) : image(p), p(image.p) {}

  DEVICE Shared<float> vectors(int evaluation) const {
    return shared_array<float>(p.vectors + evaluation % 2 * (4 * kVectors * C), kVectors * C);
  }
  DEVICE Shared<float> raw() const {
    return shared_array<float>(p.vectors + 2 * 4 * kVectors * C, (kParameterRows + kMoments) * C);
  }
  DEVICE Shared<float> fold() const { return shared_array<float>(p.partial, 2 * C); }
  DEVICE Shared<float> mean() const { return shared_array<float>(p.partial + 2 * 4 * C, C); }
  DEVICE Shared<float> total(bool other) const {
    return shared_array<float>(p.partial + (P::kWide && other ? 4 : 3) * 4 * C, C);
  }
  DEVICE Shared<float> partial() const {
    return shared_array<float>(p.partial + (P::kWide ? 5 : 4) * 4 * C, image.warps_m() * C);
  }

  // A barrier of all blocks that have the image; `fault`: where it is planted that a block waits for itself alone.
  DEVICE void sync_image([[maybe_unused]] int fault) const {
    if (FAULT_POINT(fault)) return sync_threads();
    if constexpr (P::kWide) {
      sync_cluster();
    } else {
      sync_threads();
    }
  }

  // ---- weights and vectors of an evaluation, ahead of their use

  DEVICE void fetch_chunk(int index) const {
    const int evaluation = index / (2 * L::kChunks), slot = p.slot_of[evaluation];
    if (L::kChunks == 1 && evaluation > 0 && slot == p.slot_of[evaluation - 1]) return;  // still in this buffer
    const int c = p.channels;
    const int64_t matrix = (index / L::kChunks % 2) * p.slots + slot;
    const int piece = index % L::kChunks;
    image.fetch_weights(p.packed + (matrix * 9 + tap_of(piece)) * c * c, image.weights(index), depth_of(piece));
  }
  // where a piece of the weights of a convolution begins: pieces of several taps have all input channels
  DEVICE int tap_of(int piece) const { return piece / (C / L::kDepth) * L::kTaps; }
  DEVICE int depth_of(int piece) const { return piece % (C / L::kDepth) * L::kDepth; }

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
            const float variance =
                from[(kParameterRows + 2 * i + 1) * C + c];  // interpolated in depth it may dip below 0
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

  // `to` <- mean over each channel's group of v, or of its squared distance from `centre`, in one order. The blocks of
  // a cluster read one another's totals of means and of squares in turn, so that one barrier of the cluster each is
  // enough.
  template <bool SQUARES>
  DEVICE void group_means(Map& v, Shared<float> to) const {
    const int pixel = image.first_pixel(), channel = image.first_channel();
    const Shared<float> row = partial() + pixel / (16 * M) * C;
    UNROLL
    for (int n = 0; n < N; ++n) {
      Vector<float, 2> centre{};
      if constexpr (SQUARES) centre = load<2>(mean(), channel + 8 * n);
      UNROLL
      for (int j = 0; j < 2; ++j) {
        float sum = 0.f;
        const int count = image.pixels();
        UNROLL
        for (int m = 0; m < M; ++m) {
          UNROLL
          for (int half = 0; half < 2; ++half) {
            const float value = v[m][n][2 * half + j] - centre[j];
            if (image.inside(pixel, m, half, count)) sum += SQUARES ? value * value : value;
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
      for (int r = 0; r < image.warps_m(); ++r) sum += partial()[r * C + c];
      total(SQUARES)[c] = sum;
    }
    sync_image(7);
    Shared<float> all = total(SQUARES);
    if constexpr (P::kWide) {
      all = partial();
      for (int c = afresh(thread_index()); c < C; c += thread_count()) {
        float sum = 0.f;
        for (int rank = 0; rank < p.cluster; ++rank) sum += map_shared(total(SQUARES), rank)[c];
        all[c] = sum;
      }
      sync_threads();
    }
    const float share = 1.f / static_cast<float>(p.group * p.pixels);
    for (int c = afresh(thread_index()); c < C; c += thread_count()) {
      float sum = 0.f;
      const int first = c / p.group * p.group;
      if (c < p.channels)
        for (int i = 0; i < p.group; ++i) sum += all[first + i];
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
        const float centre = mean()[c], variance = fold()[c],
                    slope = scale[c] * (1.f / std::sqrt(variance + p.norm_eps));
        if (p.moments && c < p.channels && (!P::kWide || cluster_rank() == 0)) {
          const int64_t at =
              (static_cast<int64_t>((evaluation * 2 + i) * 2) * p.images + image.index()) * p.channels + c;
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
    image.each_channel(v, scale, shift, [](float& value, float a, float b) { value = value * a + b; });
  }

  // ---- a convolution, its bias, and the relu of order post

  DEVICE void convolve(Map& v, Shared<float> of, int evaluation, int conv) const {
    image.fill(v, 0.f);
    for (int i = 0; i < L::kChunks; ++i) {
      const int chunk = (2 * evaluation + conv) * L::kChunks + i;
      copy_async_wait<0>();
      // operand and weights are there, and the other buffer of weights is free
      if (!FAULT_POINT(1) || conv == 0) i == 0 ? sync_image(5) : sync_threads();
      if (i == 0 && conv == 0 && evaluation + 1 < p.evaluations) fold_vectors(evaluation + 1);
      if (chunk + 1 < 2 * L::kChunks * p.evaluations) fetch_chunk(chunk + 1);
      if (i == 0 && conv == 1) fetch_vectors(evaluation + 2);
      copy_async_commit();
      multiply_taps<T, TENSOR, C, false, M, N>(v, image.operand(conv) + depth_of(i), image.weights(chunk), image.place,
                                               p.line, tap_of(i));
    }
    if (p.tiles == 1) sync_image(8);
    image.each_channel(v, of + conv * C, of + conv * C, [](float& value, float bias, float) { value += bias; });
    if (p.post) image.relu_all(v);
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
    for_each_value<M, N>([&](int m, int n, int i) {
      const float rate = v[m][n][i];
      next[m][n][i] += b * (b != 0.f ? rate : 0.f);
      v[m][n][i] = own * (own != 0.f ? rate : 0.f);
    });
    if (last) {
      UNROLL
      for (int m = 0; m < M; ++m) {
        UNROLL
        for (int n = 0; n < N; ++n) {
          UNROLL
          for (int i = 0; i < 4; ++i) {
            y[m][n][i] += next[m][n][i];
            next[m][n][i] = 0.f;
          }
        }
      }
    }
    for (int j = 0; j < stage && !last && p.kept != 0; ++j) {
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
    UNROLL
    for (int m = 0; m < M; ++m) {
      UNROLL
      for (int n = 0; n < N; ++n) {
        UNROLL
        for (int i = 0; i < 4; ++i) v[m][n][i] += y[m][n][i];
      }
    }
  }

  DEVICE void begin(Map& y, Map& next, Map& v) const {
    image.clear_operands();
    fetch_vectors(0);
    copy_async_commit();
    image.fill(y, 0.f);
    image.fill(next, 0.f);
    image.read_map(y, p.x + image.part(0));
    UNROLL
    for (int m = 0; m < M; ++m) {
      UNROLL
      for (int n = 0; n < N; ++n) {
        UNROLL
        for (int i = 0; i < 4; ++i) v[m][n][i] = y[m][n][i];
      }
    }
    copy_async_wait<0>();
    sync_image(9);  // from here on neighbours may write to the tiles
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
        image.relu_all(v);
      }
      image.write_operand(v, image.operand(0));
      convolve(v, of, evaluation, 0);
      normalise(v, of, evaluation, p.post ? 0 : 1);
      if (!p.post) image.relu_all(v);
      image.write_operand(v, image.operand(1));
      convolve(v, of, evaluation, 1);
      if (p.post) normalise(v, of, evaluation, 1);
      image.each_channel(v, of + 6 * C, of + 6 * C, [](float& value, float factor, float) { value *= factor; });
      const int step = evaluation / p.stages, stage = evaluation % p.stages;
      advance(v, y, next, stage);
      if (evaluation == p.evaluations - 1) {
        image.write_map(y, p.y + image.part(0));
      } else if (stage == p.stages - 1 && p.states) {
        image.write_map(y, p.states + image.part(static_cast<int64_t>(step) * p.images));
      }
    }
    if constexpr (P::kWide && SAMPLE) sync_image(10);  // of order post: others may still read this block's totals
  }
};

template <typename T, bool TENSOR, int C, bool SAMPLE>
KERNEL_MIN_BLOCKS(kMostThreads, 1)
solve_image(GRID_CONSTANT SolveArguments<T> p) { ImageSolve<SolveArguments<T>, TENSOR, C, SAMPLE>(p).run(); }

template <typename T, bool TENSOR, int C, bool SAMPLE>
KERNEL_MIN_BLOCKS(kMostThreads, 1)
solve_wide(GRID_CONSTANT WideArguments<T> p) { ImageSolve<WideArguments<T>, TENSOR, C, SAMPLE>(p).run(); }

// ---- launch

template <typename T, bool TENSOR, int C>
void launch_solve(const ConvSolve& p, const SolvePlan& plan) {
  const Grid grid{"conv_solve", p.images, plan.threads, plan.shared, 1, p.stream};
  const auto a = arguments<SolveArguments<T>>(p, plan);
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

template <typename T, bool TENSOR, int C>
void launch_wide(const ConvSolve& p, const SolvePlan& plan) {
  const Grid grid{"conv_solve", int64_t{1} * p.images * plan.cluster, plan.threads, plan.shared, plan.cluster,
                  p.stream};
  const auto a = arguments<WideArguments<T>>(p, plan);
  if (p.norm == Norm::sample) {
    launch(grid, solve_wide<T, TENSOR, C, true>, a);
  } else {
    launch(grid, solve_wide<T, TENSOR, C, false>, a);
  }
}

template <typename T, bool TENSOR>
void launch_wide(const ConvSolve& p, const SolvePlan& plan) {
  if (plan.channels == 64) return launch_wide<T, TENSOR, 64>(p, plan);
  if (plan.channels == 128) return launch_wide<T, TENSOR, 128>(p, plan);
  return launch_wide<T, TENSOR, 256>(p, plan);
}

}  // namespace

// each in the file of its name
void conv_solve_f32(const ConvSolve&, const SolvePlan&);
void conv_solve_wide_bf16(const ConvSolve&, const SolvePlan&);
void conv_solve_wide_f16(const ConvSolve&, const SolvePlan&);
void conv_solve_wide_f32(const ConvSolve&, const SolvePlan&);

}  // namespace contnet_fast::cuda
