// Whole solves with float32 operands: TF32 on tensor cores, or ieee without.

#include "cuda/conv/solve/conv_solve.h"

namespace contnet_fast::cuda {

void conv_solve_f32(const ConvSolve& p, const SolvePlan& plan) {
  return p.tf32 ? launch_solve<float, true>(p, plan) : launch_solve<float, false>(p, plan);
}

}  // namespace contnet_fast::cuda
