// Whole solves of wide maps with float32 operands: TF32 on tensor cores, or ieee without.

#include "cuda/conv/solve/conv_solve.h"

namespace contnet_fast::cuda {

void conv_solve_wide_f32(const ConvSolve& p, const SolvePlan& plan) {
  return p.tf32 ? launch_wide<float, true>(p, plan) : launch_wide<float, false>(p, plan);
}

}  // namespace contnet_fast::cuda
