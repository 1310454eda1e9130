// Half of a residual unit: shortcut + gain * F(x), where F is a norm, a 3x3 convolution and a relu before or after that.
// No torch types. Maps lie as images in channels_last do, so that channels are as many as padded ones.
#pragma once

#include <cstdint>

#include "cpu/conv/batch_norm.h"
#include "cpu/conv/conv_solve.h"

namespace contnet_fast {

struct UnitSpec {
  int64_t batch;
  Geometry map;
  bool normed, batch_statistics;  // batch norm, with moments of the batch
  bool relu_first;                // between norm and convolution; else after the convolution
  double norm_eps, gain;
};

template <typename T>
struct UnitParameters {
  const T *weight, *bias;  // the second may be null
  NormTensors<T> norm;
  WeightId weight_id;
};

template <typename T>
struct UnitForward {
  UnitParameters<T> parameters;
  const T *x, *shortcut;  // maps; the second may be null
  T* y;
  T* moments;     // [mean, 1 / std][channels]
  T* statistics;  // [mean, unbiased variance][channels]; null where they are not of the batch
  T* kept;        // F(x), where the relu comes last, backward follows and y is another; else null
  bool backward_follows;
};

template <typename T>
struct UnitBackward {
  UnitParameters<T> parameters;
  const T *x, *moments, *kept, *grad;
  T* x_grad;
  T *weight_grad, *bias_grad, *gamma_grad, *beta_grad;  // null where none is wanted
};

template <typename T>
void conv_unit(const UnitSpec&, const ConvKernels<T>&, const UnitForward<T>&);
template <typename T>
void conv_unit_backward(const UnitSpec&, const ConvKernels<T>&, const UnitBackward<T>&);

}  // namespace contnet_fast
