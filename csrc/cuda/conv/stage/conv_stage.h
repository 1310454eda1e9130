// One convolution of the field in one launch, with what comes before and after it.
#pragma once

#include "cuda/conv/stage/conv_band.h"

namespace contnet_fast::cuda {

// target <- conv(prologue(source)) + bias [relu], or where `combine` the next stage's input (at the last the state):
// own k + sum of earlier rates + state, k = eps skip conv, which goes to rates[stage] if a later row needs it.
//
// `combine_first` (order post): the operand is such an input, k = eps skip norm(source), of the evaluation before,
// whose parameters are those of the norm. It also goes to `input`.
struct ConvStage {
  BandPlan band;
  NormSource norm;
  Global<const unsigned char> packed, source, state;
  Global<unsigned char> target, rates, input;  // input: or null
  Global<const float> parameters;              // of the slot
  Global<float> partials;                      // statistics of the target, or null
  Scalar type;                                 // of maps
  bool normed, relu_before, relu_after, combine, combine_first, keep;
  int conv, stage;
  int64_t map;  // values of a map of the batch
  float eps, own, rows[kMostStages];
};

// the rate -> what follows the stage; `own`: who keeps the rate. A term of weight zero adds nothing, not even NaN.
template <int V>
DEVICE void combine(float (&v)[V], const ConvStage& p, int64_t i, bool own) {
  const int bytes = p.type == Scalar::f32 ? 4 : 2;
  float total[V];
  if (p.keep && own) {
    UNROLL
    for (int j = 0; j < V; ++j) total[j] = v[j];
    store_values<V>(total, p.rates + p.stage * p.map * bytes, p.type, i);
  }
  UNROLL
  for (int j = 0; j < V; ++j) total[j] = p.own != 0.f ? p.own * v[j] : 0.f;
  for (int s = 0; s < p.stage; ++s) {
    const float a = p.rows[s];
    if (a == 0.f) continue;
    load_values<V>(v, p.rates + s * p.map * bytes, p.type, i);
    UNROLL
    for (int j = 0; j < V; ++j) total[j] += a * v[j];
  }
  load_values<V>(v, p.state, p.type, i);
  UNROLL
  for (int j = 0; j < V; ++j) v[j] += total[j];
}

namespace {

template <typename T, bool TENSOR, int M, int N>
KERNEL(kBandThreads)
conv_stage(GRID_CONSTANT ConvStage p) {
  using Conv = Band<T, TENSOR, M, N, false>;
  constexpr int V = Conv::V;
  Conv band(p.band);
  band.begin(pointer_cast<const T>(p.packed));
  const int depth = p.band.depth, c = p.band.channels;
  const Shared<float> vectors = shared_array<float>(p.band.end, 2 * depth),
                      scratch = shared_array<float>(0, p.band.weights / 4);
  if (p.normed) fold_norm(p.norm, c, depth, block_index() == 0 && block_row() == 0, scratch, vectors);

  float scale[V], shift[V], bias[V], factor[V];
  const int input = Columns(depth / V).group * V, output = band.output() + Columns(band.width() / V).group * V;
  UNROLL
  for (int j = 0; j < V; ++j) {
    scale[j] = p.normed ? vectors[input + j] : 1.f;
    shift[j] = p.normed ? vectors[depth + input + j] : 0.f;
    if (p.combine_first && input < c) {
      const float rate = p.norm.parameters[kRowSkip * c + input + j] * p.eps;
      scale[j] *= rate;
      shift[j] *= rate;
    }
    bias[j] = output < c ? p.parameters[p.conv * c + output + j] : 0.f;
    factor[j] = p.combine && output < c ? p.parameters[kRowSkip * c + output + j] * p.eps : 1.f;
  }
  Moments<V> found;
  float count = 0.f;
  for (band.first(); band.more(); band.next()) {
    band.load([&](float (&v)[V], int64_t i, bool own) {
      load_values<V>(v, p.source, p.type, i);
      UNROLL
      for (int j = 0; j < V; ++j) {
        if (p.normed || p.combine_first) v[j] = v[j] * scale[j] + shift[j];
        if (p.relu_before) v[j] = relu(v[j]);
      }
      if (!p.combine_first) return;
      own = own && block_row() == 0;
      combine<V>(v, p, i, own);
      if (p.input && own) store_values<V>(v, p.input, p.type, i);
    });
    band.multiply();
    band.each([&](float (&v)[V], int64_t i, int) {
      UNROLL
      for (int j = 0; j < V; ++j) {
        v[j] += bias[j];
        if (p.relu_after) v[j] = relu(v[j]);
        v[j] *= factor[j];
      }
      if (p.combine) combine<V>(v, p, i, true);
      store_values<V>(v, p.target, p.type, i);
      if (p.partials) found.add(v);
    });
    count += static_cast<float>(band.rows_here() * band.columns_here());
  }
  if (p.partials) found.write(Columns(band.width() / V), count, scratch, p.partials, block_index(), band.output(), c);
}

template <typename T, bool TENSOR, int M, int N>
void launch_stage(const ConvStage& p, void* stream) {
  const int64_t shared = p.band.end + stage_vectors(p.band);
  launch(Grid{"conv_stage", p.band.blocks, p.band.threads(), shared, 1, stream, p.band.blocks_n},
         conv_stage<T, TENSOR, M, N>, p);
}

template <typename T, bool TENSOR>
void launch_stage(const ConvStage& p, void* stream) {
  if (p.band.n == 2) return launch_stage<T, TENSOR, 4, 2>(p, stream);
  if constexpr (sizeof(T) == 2)
    if (p.band.m == 4) return launch_stage<T, TENSOR, 4, 4>(p, stream);
  return launch_stage<T, TENSOR, 2, 4>(p, stream);
}

}  // namespace

void conv_stage_f32(const ConvStage&, bool tf32, void* stream);        // instances/conv_stage_f32.cu
void conv_stage_half(const ConvStage&, Scalar operand, void* stream);  // instances/conv_stage_half.cu

}  // namespace contnet_fast::cuda
