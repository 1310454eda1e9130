// Gradients by convolution weights with 16-bit operands, and how any are split over pixels.

#include "cuda/conv/backward/weight_gradient.h"

namespace contnet_fast::cuda {

int32_t weight_splits(const Pass& p) { return plan_weights(p).splits; }

void weight_gradient(const Pass& p, const WeightGradient& w) {
  switch (p.operand) {
    case Scalar::bf16: return launch_weights<bf16, true>(p, w);
    case Scalar::f16: return launch_weights<f16, true>(p, w);
    default: return weight_gradient_f32(p, w);
  }
}

}  // namespace contnet_fast::cuda
