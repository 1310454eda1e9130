// Evaluations of the diffusion field on states of float16.

#include "cuda/graph/diffusion_stage.h"

namespace contnet_fast::cuda {

void diffusion_stage_f16(const DiffusionPass& p) { launch_stage<f16>(p); }

}  // namespace contnet_fast::cuda
