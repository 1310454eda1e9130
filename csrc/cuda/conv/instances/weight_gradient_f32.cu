// Gradients by convolution weights with float32 operands: TF32 on tensor cores, or ieee without.

#include "cuda/conv/backward/weight_gradient.h"

namespace contnet_fast::cuda {

void weight_gradient_f32(const Pass& p, const WeightGradient& w) {
  return p.tf32 != 0 ? launch_weights<float, true>(p, w) : launch_weights<float, false>(p, w);
}

}  // namespace contnet_fast::cuda
