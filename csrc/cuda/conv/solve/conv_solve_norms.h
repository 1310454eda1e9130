// Norms of a solve's backward pass: parameters and moments of channels, sums over an image's pixels, gradients through
// norms.
#pragma once

#include <cmath>

#include "cuda/conv/plan/solve_backward_plan.h"
#include "cuda/conv/solve/conv_solve_maps.h"

namespace contnet_fast::cuda {
namespace {

constexpr int kScale = 2, kSkipRow = 10;

template <typename T, bool TENSOR, int C>
struct NormsBack {
  using Kept = KeptMaps<T, TENSOR, C>;
  using Part = typename Kept::Part;
  using Map = typename Part::Map;
  static constexpr int M = Part::M, N = Part::N;
  const BackwardArguments<T>& p;
  Part image;
  Kept kept;

  DEVICE Shared<float> vectors(int stage) const {
    return shared_array<float>(p.vectors + stage * (4 * kStageRows * C), kStageRows * C);
  }
  DEVICE Shared<float> means() const { return shared_array<float>(p.partial, 4 * C); }  // and weighted totals
  DEVICE Shared<float> partial(int kind) const {
    return shared_array<float>(p.partial + 4 * (4 + kind * image.warps_m()) * C, image.warps_m() * C);
  }

  DEVICE void load_vectors(int index) const {
    const int c = p.channels, rows = p.norm == Norm::sample ? p.images : 1, row = p.norm == Norm::sample ? index : 0;
    for (int e = afresh(thread_index()); e < p.stages * C; e += thread_count()) {
      const int stage = e / C, channel = e % C, evaluation = p.first + stage;
      const bool exists = channel < c;
      const Shared<float> to = vectors(stage) + channel;
      const Global<const float> from =
          p.parameters + (p.slot_of[evaluation] * kParameterRows * c + (exists ? channel : 0));
      for (int i = 0; i < 2; ++i) {
        float weight = exists ? 1.f : 0.f, bias = 0.f, mean = 0.f, rstd = 1.f;
        if (exists && p.norm != Norm::none) {
          const int64_t at = (static_cast<int64_t>((evaluation * 2 + i) * 2) * rows + row) * c + channel;
          const float variance = p.moments[at + static_cast<int64_t>(rows) * c];
          weight = from[(2 + 2 * i) * c];
          bias = from[(3 + 2 * i) * c];
          mean = p.moments[at];
          rstd = 1.f / std::sqrt((variance < 0.f ? 0.f : variance) + p.norm_eps);
        }
        to[i * C] = exists ? static_cast<float>(from[i * c]) : 0.f;
        to[(kScale + 4 * i) * C] = weight;
        to[(kScale + 4 * i + 1) * C] = bias;
        to[(kScale + 4 * i + 2) * C] = mean;
        to[(kScale + 4 * i + 3) * C] = rstd;
      }
      to[kSkipRow * C] = exists ? static_cast<float>(from[(kParameterRows - 1) * c]) : 0.f;
    }
    sync_threads();
  }

  DEVICE void normalise(Map& v, int stage, int i) const {
    const Shared<float> of = vectors(stage) + (kScale + 4 * i) * C;
    const int channel = image.first_channel();
    UNROLL
    for (int n = 0; n < N; ++n) {
      const Vector<float, 2> weight = load<2>(of, channel + 8 * n), bias = load<2>(of, C + channel + 8 * n);
      const Vector<float, 2> mean = load<2>(of, 2 * C + channel + 8 * n), rstd = load<2>(of, 3 * C + channel + 8 * n);
      UNROLL
      for (int m = 0; m < M; ++m) {
        UNROLL
        for (int j = 0; j < 4; ++j) {
          const float scale = weight[j % 2] * rstd[j % 2];
          v[m][n][j] = v[m][n][j] * scale + (bias[j % 2] - mean[j % 2] * scale);
        }
      }
    }
  }

  // a warp's sums of its pixels, two channels a lane, into its row of a kind
  DEVICE void put_sums(int kind, int n, float (&sum)[2]) const {
    const int pixel = image.first_pixel();
    UNROLL
    for (int j = 0; j < 2; ++j) {
      UNROLL
      for (int mask = 4; mask < 32; mask *= 2) sum[j] += shuffle_xor(sum[j], mask);
      if (pixel % 8 == 0) partial(kind)[pixel / (16 * M) * C + image.first_channel() + 8 * n + j] = sum[j];
    }
  }

  // means of weight * g and weight * g * normalised over the groups of norm i, from the sums of `through_norm`
  DEVICE void group_means(int stage, int i) const {
    sync_threads();
    for (int c = afresh(thread_index()); c < 2 * C; c += thread_count()) {
      float sum = 0.f;
      for (int r = 0; r < image.warps_m(); ++r) sum += partial(2 + 2 * i + c / C)[r * C + c % C];
      means()[2 * C + c] = sum * vectors(stage)[(kScale + 4 * i) * C + c % C];
    }
    sync_threads();
    const float share = 1.f / static_cast<float>(p.group * p.pixels);
    for (int e = afresh(thread_index()); e < 2 * C; e += thread_count()) {
      const int c = e % C, first = e / C * C + c / p.group * p.group;
      float sum = 0.f;
      if (c < p.channels)
        for (int k = 0; k < p.group; ++k) sum += means()[2 * C + first + k];
      means()[e] = sum * share;
    }
    sync_threads();
  }

  // From the gradient by what norm i (in order pre also the relu after it) makes of a kept map to that by the map (in
  // order post also through the relu before). The second norm comes with the skip scalar. No norm: weight 1, mean 0,
  // deviation 1.
  template <bool POST>
  DEVICE void through_norm(Map& v, Global<T> map, int stage, int i) const {
    const Shared<float> of = vectors(stage) + (kScale + 4 * i) * C, skips = vectors(stage) + kSkipRow * C;
    for (int pass = 0; pass < (p.norm == Norm::sample ? 2 : 1); ++pass) {
      const bool sums = pass == 0, ends = p.norm != Norm::sample || pass == 1;
      if (pass == 1) group_means(stage, i);
      const int pixel = image.first_pixel(), channel = image.first_channel();
      UNROLL
      for (int n = 0; n < N; ++n) {
        const Vector<float, 2> weight = load<2>(of, channel + 8 * n), bias = load<2>(of, C + channel + 8 * n);
        const Vector<float, 2> mean = load<2>(of, 2 * C + channel + 8 * n), rstd = load<2>(of, 3 * C + channel + 8 * n);
        Vector<float, 2> skip{{1.f, 1.f}}, plain{}, with{};
        if (i == 1) skip = load<2>(skips, channel + 8 * n);
        if (pass == 1) {
          plain = load<2>(means(), channel + 8 * n);
          with = load<2>(means(), C + channel + 8 * n);
        }
        float sum[3][2] = {};
        kept.each(map, n, [&](int m, int q, float value) {
          const int j = q % 2;
          const float hat = (value - mean[j]) * rstd[j], scale = weight[j] * rstd[j];
          float g = v[m][n][q];
          if (sums) {
            const bool in = image.inside(pixel, m, q / 2);
            if constexpr (!POST) {
              const float result = value * scale + (bias[j] - mean[j] * scale);
              sum[2][j] += in ? relu(result) * g : 0.f;
              g = result <= 0.f ? 0.f : g * skip[j];
            }
            sum[0][j] += in ? g : 0.f;
            sum[1][j] += in && g != 0.f ? g * hat : 0.f;  // a map of 16 bits may hold infinities that relu ends
          }
          if (ends) {
            g = scale * g;
            if (pass == 1) g -= rstd[j] * (plain[j] + hat * with[j]);
            if constexpr (POST) g = value <= 0.f ? 0.f : g * skip[j];
          }
          v[m][n][q] = g;
        });
        if (sums) {
          put_sums(2 + 2 * i, n, sum[0]);
          put_sums(3 + 2 * i, n, sum[1]);
          if (!POST && i == 1) put_sums(6, n, sum[2]);
        }
      }
    }
  }

  DEVICE void put_channel_sums(int stage, bool add) const {
    sync_threads();
    const int kinds = channel_kinds(p.post);
    for (int e = afresh(thread_index()); e < kinds * C; e += thread_count()) {
      const int kind = e / C, c = e % C;
      if (c >= p.channels) continue;
      if (FAULT_POINT(5) && kind == 0) continue;
      const int64_t row = static_cast<int64_t>((p.first + stage) * kinds + kind) * block_count() + block_index();
      float sum = 0.f;
      for (int r = 0; r < image.warps_m(); ++r) sum += partial(kind)[r * C + c];
      if (add) sum += p.channel_sums[row * p.channels + c];
      p.channel_sums[row * p.channels + c] = sum;
    }
    sync_threads();
  }
};

}  // namespace
}  // namespace contnet_fast::cuda
