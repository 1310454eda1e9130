#include "cuda/conv/plan/solve_backward_plan.h"

namespace contnet_fast::cuda {

SolveBackwardPlan plan_solve_backward(const ConvSolveBackward& p) {
  SolveBackwardPlan plan{};
  ConvProblem forward = p;
  forward.shared_limit = int64_t{1} << 40;
  const SolvePlan solve = plan_solve(forward);
  plan.refusal = solve.refusal;
  if (solve.wide) plan.refusal = "state and gradient of an image exceed the registers of a multiprocessor";
  if (p.channels > 64) plan.refusal = "channels must be a multiple of 8 up to 64";
  if (plan.refusal != nullptr) return plan;
  plan.channels = solve.channels;
  plan.threads = solve.threads;
  plan.blocks = p.processors > 0 && p.processors < p.images ? p.processors : p.images;
  const ConvLayout layout{plan.channels, p.operand == Scalar::f32 ? 4 : 2};
  const int tile = (p.height + 2) * (p.width + 2) * layout.pixel() * layout.bytes;
  const int vectors = 2 * tile + 2 * layout.chunk_bytes();
  plan.shared = backward_arrays(vectors, plan.channels, p.stages, plan.threads / (32 * layout.warps_n())).end;
  if (plan.shared > p.shared_limit)
    plan.refusal = "operand and gradient of an image exceed the shared memory of a block";
  Arena arena(nullptr);
  const SolveBackwardPieces counted(p, plan, arena);
  plan.workspace = arena.taken();
  return plan;
}

}  // namespace contnet_fast::cuda
