// Whole solves of wide maps with bfloat16 operands.

#include "cuda/conv/solve/conv_solve.h"

namespace contnet_fast::cuda {

void conv_solve_wide_bf16(const ConvSolve& p, const SolvePlan& plan) { return launch_wide<bf16, true>(p, plan); }

}  // namespace contnet_fast::cuda
