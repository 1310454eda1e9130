// Data gradients of convolutions with float32 operands: TF32 on tensor cores, or ieee without.

#include "cuda/conv/backward/conv_gradient.h"

namespace contnet_fast::cuda {

void conv_gradient_f32(const ConvGradient& p, bool tf32, void* stream) {
  return tf32 ? launch_gradient<float, true>(p, stream) : launch_gradient<float, false>(p, stream);
}

}  // namespace contnet_fast::cuda
