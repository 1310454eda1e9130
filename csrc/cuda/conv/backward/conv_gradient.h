// The gradient by a convolution's input in one launch, with what comes after it.
#pragma once

#include "cuda/conv/backward/backward_launch.h"
#include "cuda/conv/stage/conv_band.h"

namespace contnet_fast::cuda {

// target <- the gradient by the input of a convolution, given that by its result, `source`. `value` is what the forward
// pass fed to the norm (and relu) before that convolution; `mask` applies that relu, `scaled` multiplies by the skip
// scalar, `fold` goes on to the gradient by `value`, for statistics that are constants. `sums` gets a row a block, [3,
// channel]: of the gradient by the norm's result, of that times the normalised value, and of the unscaled gradient
// times the operand.
struct ConvGradient {
  BandPlan band;
  Global<const unsigned char> packed, source, value;
  Global<unsigned char> target;
  Global<const float> parameters;  // of the slot
  Global<const float> moments;     // of the norm: [(mean, variance), channel]
  Global<float> sums;              // or null
  Scalar source_type, value_type, target_type;
  int norm;  // -1: there is none
  bool mask, scaled, fold;
  float norm_eps;
};

namespace {

// By output channel of the block in shared memory.
enum GradientRow { kMean, kDeviation, kScale, kShift, kFactor, kGradientRows };

static_assert(kGradientRows == kGradientVectors, "as the plan counts them");

template <typename T, bool TENSOR, int M, int N>
KERNEL(kBandThreads)
conv_gradient(GRID_CONSTANT ConvGradient p) {
  using Conv = Band<T, TENSOR, M, N, true>;
  constexpr int V = Conv::V;
  Conv band(p.band);
  band.begin(pointer_cast<const T>(p.packed));
  const int c = p.band.channels, width = band.width();
  const Shared<float> vectors = shared_array<float>(p.band.end, kGradientRows * width);
  for (int i = thread_index(); i < width; i += thread_count()) {
    const int channel = band.output() + i;
    const bool exists = channel < c, normed = exists && p.norm >= 0;
    const Global<const float> row = p.parameters + (weight_row(p.norm < 0 ? 0 : p.norm) * c + channel);
    const float mean = normed ? float(p.moments[channel]) : 0.f;
    const float deviation = normed ? reciprocal_deviation(p.moments[c + channel], p.norm_eps) : 1.f;
    const float scale = normed ? row[0] * deviation : 1.f;
    vectors[kMean * width + i] = mean;
    vectors[kDeviation * width + i] = deviation;
    vectors[kScale * width + i] = scale;
    vectors[kShift * width + i] = normed ? row[c] - mean * scale : 0.f;
    vectors[kFactor * width + i] = exists && p.scaled ? float(p.parameters[kRowSkip * c + channel]) : 1.f;
  }
  float sums[3][V] = {};
  for (band.first(); band.more(); band.next()) {
    band.load([&](float (&v)[V], int64_t i, bool) { load_values<V>(v, p.source, p.source_type, i); });
    band.multiply();
    band.each([&](float (&v)[V], int64_t i, int channel) {
      const int of = afresh(channel - band.output());
      float value[V];
      load_values<V>(value, p.value, p.value_type, i);
      UNROLL
      for (int j = 0; j < V; ++j) {
        const float scale = vectors[kScale * width + of + j];
        const float normalised = (value[j] - vectors[kMean * width + of + j]) * vectors[kDeviation * width + of + j];
        float operand = value[j] * scale + vectors[kShift * width + of + j];
        if (p.mask && !(operand > 0.f)) v[j] = operand = 0.f;
        sums[2][j] += v[j] * operand;
        v[j] *= vectors[kFactor * width + of + j];
        sums[0][j] += v[j];
        sums[1][j] += v[j] * normalised;
        if (p.fold) v[j] *= scale;
      }
      store_values<V>(v, p.target, p.target_type, i);
    });
  }
  if (!p.sums) return;
  const Columns of(width / V);
  const Shared<float> scratch = shared_array<float>(0, p.band.weights / 4);
  column_sums<3, V>(sums, of, scratch);
  for (int i = thread_index(); i < 3 * width; i += thread_count()) {
    const int channel = band.output() + i % width;
    if (channel < c) p.sums[(static_cast<int64_t>(block_index()) * 3 + i / width) * c + channel] = scratch[i];
  }
}

template <typename T, bool TENSOR, int M, int N>
void launch_gradient(const ConvGradient& p, void* stream) {
  const int64_t shared = p.band.end + kGradientBytes;
  launch(Grid{"conv_gradient", p.band.blocks, p.band.threads(), shared, 1, stream, p.band.blocks_n},
         conv_gradient<T, TENSOR, M, N>, p);
}

template <typename T, bool TENSOR>
void launch_gradient(const ConvGradient& p, void* stream) {
  if (p.band.n == 2) return launch_gradient<T, TENSOR, 4, 2>(p, stream);
  if constexpr (sizeof(T) == 2)
    if (p.band.m == 4) return launch_gradient<T, TENSOR, 4, 4>(p, stream);
  return launch_gradient<T, TENSOR, 2, 4>(p, stream);
}

}  // namespace

void conv_gradient_f32(const ConvGradient&, bool tf32, void* stream);        // conv_gradient_f32.cu
void conv_gradient_half(const ConvGradient&, Scalar operand, void* stream);  // conv_gradient.cu

}  // namespace contnet_fast::cuda
