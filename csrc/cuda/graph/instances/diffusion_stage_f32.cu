// Evaluations of the diffusion field on states of float32.

#include "cuda/graph/diffusion_stage.h"

namespace contnet_fast::cuda {

void diffusion_stage_f32(const DiffusionPass& p) { launch_stage<float>(p); }

}  // namespace contnet_fast::cuda
