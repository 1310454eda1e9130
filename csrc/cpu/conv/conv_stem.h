// The first layers of a network of images: relu(norm(F(x))), where F is a 3x3 convolution of few channels and the norm a
// batch norm. No torch types. Maps lie as images in channels_last do, so that channels are as many as padded ones.
#pragma once

#include <cstdint>

#include "cpu/conv/batch_norm.h"
#include "cpu/conv/conv_solve.h"

namespace contnet_fast {

struct StemSpec {
  int64_t batch;
  Geometry map;
  int channels;  // of an image
  bool batch_statistics;
  double norm_eps;
};

template <typename T>
struct StemParameters {
  const T* weight;  // [map channels][image channels][3][3]
  NormTensors<T> norm;
};

template <typename T>
struct StemForward {
  StemParameters<T> parameters;
  ImageBatch<const T> x;
  T* y;
  T* moments;     // [mean, 1 / std][map channels]
  T* statistics;  // [mean, unbiased variance][map channels]; null where they are not of the batch
};

template <typename T>
struct StemBackward {
  StemParameters<T> parameters;
  ImageBatch<const T> x;
  const T *moments, *grad;
  T *weight_grad, *gamma_grad, *beta_grad;  // null where none is wanted
};

template <typename T>
void conv_stem(const StemSpec&, const ConvKernels<T>&, const StemForward<T>&);
template <typename T>
void conv_stem_backward(const StemSpec&, const ConvKernels<T>&, const StemBackward<T>&);

}  // namespace contnet_fast
