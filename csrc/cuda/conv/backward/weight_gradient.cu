// Gradients by convolution weights with 16-bit operands, and how any are split over pixels.

#include "cuda/conv/backward/weight_gradient.h"

namespace contnet_fast::cuda {

int32_t weight_splits(const Pass& p) {
  WeightArguments<float> f{};
  WeightArguments<bf16> h{};
  const bool wide = p.operand == Scalar::f32;
  wide ? lay_out(f, p) : lay_out(h, p);
  const int units = wide ? f.units : h.units, blocks = 2 * p.stages * (wide ? f.blocks_i * f.blocks_o : h.blocks_i * h.blocks_o);
  const int wanted = 2 * p.processors / blocks;
  const int splits = wanted < 1 ? 1 : wanted < units ? wanted : units, each = (units + splits - 1) / splits;
  return (units + each - 1) / each;
}

void weight_gradient(const Pass& p, const WeightGradient& w) {
  switch (p.operand) {
    case Scalar::bf16: return launch_weights<bf16, true>(p, w);
    case Scalar::f16: return launch_weights<f16, true>(p, w);
    default: return weight_gradient_f32(p, w);
  }
}

}  // namespace contnet_fast::cuda
