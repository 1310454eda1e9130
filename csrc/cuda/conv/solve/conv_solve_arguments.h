// What the kernels of a whole solve are launched with.
#pragma once

#include "cuda/conv/solve/conv_image.h"

namespace contnet_fast::cuda {
namespace {

// Repeats ImageArguments instead of inheriting: of a derived structure nvcc 13.0 spills at 16 channels on sm_100a. Its
// order matters likewise.
template <typename T>
struct SolveArguments {
  using Operand = T;
  static constexpr bool kWide = false;
  Global<const T> packed;
  Global<const float> parameters, known;
  Global<float> moments, rates;
  Global<const int32_t> slot_of;
  Global<const unsigned char> x;
  Global<unsigned char> y, states;
  Scalar state;
  Norm norm;
  bool post;
  int images, width, channels, group, stages, steps, slots, tiles;
  int pixels, line, evaluations, tile, weights, vectors, partial;
  int64_t image_bytes;
  uint32_t kept;  // bit j: a later row needs rate j
  float eps, norm_eps, rows[kMostStages][kMostStages], update[kMostStages];
};

template <typename T>
struct WideArguments : SolveArguments<T> {
  static constexpr bool kWide = true;
  int cluster, share, halo;  // blocks of an image; pixels of a block; values of its rows in a tile
  int64_t share_bytes;
};

template <typename A>
A arguments(const ConvSolve& p, const SolvePlan& plan) {
  A a{};
  describe_image(a, p, plan.channels, plan.tiles, plan.rows);
  a.packed = static_cast<const typename A::Operand*>(p.packed);
  a.parameters = p.parameters;
  if (p.norm == Norm::known) a.known = static_cast<const float*>(p.moments);
  if (p.norm == Norm::sample) a.moments = p.moments;
  a.rates = static_cast<float*>(p.rates);
  a.x = static_cast<const unsigned char*>(p.x);
  a.y = static_cast<unsigned char*>(p.y);
  a.states = static_cast<unsigned char*>(p.states);
  a.steps = p.steps;
  a.evaluations = p.stages * p.steps;
  a.partial = a.vectors + 4 * (2 * kVectors + kParameterRows + kMoments) * plan.channels;
  for (int s = 0; s < p.stages; ++s)
    for (int j = 0; j < s - 1; ++j)
      if (p.rows[s][j] != 0.f) a.kept |= 1u << j;
  if constexpr (A::kWide) {
    a.cluster = plan.cluster;
    a.share = plan.rows * p.width;
    a.halo = plan.rows * a.line;
    a.share_bytes = a.image_bytes / p.height * plan.rows;
  }
  return a;
}

}  // namespace
}  // namespace contnet_fast::cuda
