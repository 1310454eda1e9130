// Whole solves of wide maps with 16-bit operands.

#include "conv_solve.h"

namespace contnet_fast::cuda {

void conv_solve_wide(const ConvSolve& p, const SolvePlan& plan) {
  return p.operand == Scalar::bf16 ? launch_wide<bf16, true>(p, plan) : launch_wide<f16, true>(p, plan);
}

}  // namespace contnet_fast::cuda
