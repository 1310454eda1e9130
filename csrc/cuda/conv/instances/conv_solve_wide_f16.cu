// Whole solves of wide maps with float16 operands.

#include "cuda/conv/solve/conv_solve.h"

namespace contnet_fast::cuda {

void conv_solve_wide_f16(const ConvSolve& p, const SolvePlan& plan) { return launch_wide<f16, true>(p, plan); }

}  // namespace contnet_fast::cuda
