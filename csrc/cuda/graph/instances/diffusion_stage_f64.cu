// Evaluations of the diffusion field on states of float64.

#include "cuda/graph/diffusion_stage.h"

namespace contnet_fast::cuda {

void diffusion_stage_f64(const DiffusionPass& p) { launch_stage<double>(p); }

}  // namespace contnet_fast::cuda
