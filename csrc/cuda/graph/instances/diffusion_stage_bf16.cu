// Evaluations of the diffusion field on states of bfloat16.

#include "cuda/graph/diffusion_stage.h"

namespace contnet_fast::cuda {

void diffusion_stage_bf16(const DiffusionPass& p) { launch_stage<bf16>(p); }

}  // namespace contnet_fast::cuda
