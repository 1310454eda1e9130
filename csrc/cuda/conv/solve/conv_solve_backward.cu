// Backward passes of whole solves: 16-bit operands, the launches, and sums over blocks.

#include "cuda/conv/backward/backward_launch.h"
#include "cuda/conv/solve/conv_solve_backward.h"
#include "cuda/conv/plan/solve_backward_plan.h"

namespace contnet_fast::cuda {
namespace {

void step_back(const ConvSolveBackward& p, const SolveBackwardPlan& plan, const StepBack& step) {
  if (p.operand == Scalar::bf16) return launch_step_back<bf16, true>(p, plan, step);
  if (p.operand == Scalar::f16) return launch_step_back<f16, true>(p, plan, step);
  return step_back_f32(p, plan, step);
}

// the gradients by all nodes but the weights of convolutions
void vector_gradients(const Pass& pass, const ConvSolveBackward& p, int blocks, const SolveBackwardPieces& from) {
  const int c = p.channels, sums = channel_kinds(p.post != 0);
  NodeGradients a{};
  a.folds[0] = {from.channels, from.folded, sums * pass.evaluations(), blocks, c};
  a.biases = from.folded;
  for (int n = 0; n < 2; ++n) a.sums[n] = from.folded + (2 + 2 * n) * c;
  a.bias_distance = a.distance = sums * c;
  for (int r = 0; r < kParameterRows; ++r) a.grads[r] = p.grads[kNodeOfRow[r]];
  node_gradients(pass, a);
}

}  // namespace

void conv_solve_backward(const ConvSolveBackward& p) {
  const SolveBackwardPlan plan = plan_solve_backward(p);
  if (plan.refusal != nullptr) throw std::runtime_error(std::string("conv_solve_backward: ") + plan.refusal);
  Arena arena(p.workspace);
  const SolveBackwardPieces to(p, plan, arena);
  const int64_t map = pixels_of(p) * p.channels * width(p.state);
  const auto at = [&](const void* maps, int64_t i) -> const void* { return static_cast<const char*>(maps) + i * map; };
  StepBack step{};
  step.tape = to.tape;
  step.rates = to.rates;
  step.costates = to.costates;
  step.weight_sums = to.weights;
  step.channel_sums = to.channels;
  const Pass pass{p, p.skip, static_cast<int32_t>(p.basis), p.parameters, p.moments, p.mix};
  for (int i = p.steps - 1; i >= 0; --i) {
    const bool last = i == p.steps - 1;
    const StepSums sums(p, i);
    step.index = i;
    step.sums = &sums;
    step.start = i == 0 ? p.x : at(p.states, i - 1);
    step.upstream = last ? at(p.grad, p.return_steps ? p.steps : 0) : nullptr;
    step.extra = p.return_steps ? at(p.grad, i) : nullptr;
    step.result = i == 0 ? p.grad_x : nullptr;
    step_back(p, plan, step);
    add_up(pass, {sums.count, sums.slots, plan.blocks, last, step.weight_sums, {p.grads[kWeight1], p.grads[kWeight2]}});
  }
  vector_gradients(pass, p, plan.blocks, to);
}

}  // namespace contnet_fast::cuda
