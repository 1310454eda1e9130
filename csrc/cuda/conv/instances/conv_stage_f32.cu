// Convolutions of a stage with float32 operands: TF32 on tensor cores, or ieee without.

#include "cuda/conv/stage/conv_stage.h"

namespace contnet_fast::cuda {

void conv_stage_f32(const ConvStage& p, bool tf32, void* stream) {
  return tf32 ? launch_stage<float, true>(p, stream) : launch_stage<float, false>(p, stream);
}

}  // namespace contnet_fast::cuda
