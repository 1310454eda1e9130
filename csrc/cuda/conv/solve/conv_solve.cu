// Whole solves with 16-bit operands, and the launcher of all.

#include "cuda/conv/solve/conv_solve.h"

namespace contnet_fast::cuda {
void conv_solve(const ConvSolve& p) {
  const SolvePlan plan = plan_solve(p);
  if (plan.refusal != nullptr) throw std::runtime_error(std::string("conv_solve: ") + plan.refusal);
  if (plan.scratch > 0 && p.rates == nullptr)
    throw std::runtime_error("conv_solve: this scheme needs scratch for rates");
  switch (p.operand) {
    case Scalar::bf16: return plan.wide ? conv_solve_wide_bf16(p, plan) : launch_solve<bf16, true>(p, plan);
    case Scalar::f16: return plan.wide ? conv_solve_wide_f16(p, plan) : launch_solve<f16, true>(p, plan);
    default: return plan.wide ? conv_solve_wide_f32(p, plan) : conv_solve_f32(p, plan);
  }
}

}  // namespace contnet_fast::cuda
