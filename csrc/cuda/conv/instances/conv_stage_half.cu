// Convolutions of a stage with 16-bit operands.

#include "cuda/conv/stage/conv_stage.h"

namespace contnet_fast::cuda {

void conv_stage_half(const ConvStage& p, Scalar operand, void* stream) {
  return operand == Scalar::bf16 ? launch_stage<bf16, true>(p, stream) : launch_stage<f16, true>(p, stream);
}

}  // namespace contnet_fast::cuda
