// Backward passes of whole solves with float32 operands: TF32 on tensor cores, or ieee without.

#include "cuda/conv/solve/conv_solve_backward.h"

namespace contnet_fast::cuda {

void step_back_f32(const ConvSolveBackward& p, const SolveBackwardPlan& plan, const StepBack& step) {
  return p.tf32 ? launch_step_back<float, true>(p, plan, step) : launch_step_back<float, false>(p, plan, step);
}

}  // namespace contnet_fast::cuda
