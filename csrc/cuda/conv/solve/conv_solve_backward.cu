// Backward passes of whole solves: 16-bit operands, the plan, the launches, and sums over blocks.

#include "cuda/conv/backward/backward_launch.h"
#include "cuda/conv/solve/conv_solve_backward.h"
#include "cuda/conv/workspace.h"

namespace contnet_fast::cuda {
namespace {

struct Pieces {  // of the workspace
  unsigned char* tape;
  float *rates, *costates, *weights, *channels, *folded;

  Pieces(const ConvSolveBackward& p, const SolveBackwardPlan& plan, Arena& arena) {
    const ConvLayout layout{plan.channels, p.operand == Scalar::f32 ? 4 : 2};
    const int64_t map = int64_t{1} * layout.values() * plan.threads, blocks = plan.blocks, stages = p.stages, c = p.channels;
    const int64_t sums = stages * p.steps * channel_kinds(p.post != 0) * c;
    tape = arena.take(blocks * stages * kinds(p) * map * layout.bytes);
    rates = arena.floats(blocks * (stages + 1) * map);
    costates = arena.floats(p.images * map);
    weights = arena.floats(stages * 2 * blocks * 9 * c * c);
    channels = arena.floats(sums * blocks);
    folded = arena.floats(sums);
  }
};

void step_back(const ConvSolveBackward& p, const SolveBackwardPlan& plan, const StepBack& step) {
  if (p.operand == Scalar::bf16) return launch_step_back<bf16, true>(p, plan, step);
  if (p.operand == Scalar::f16) return launch_step_back<f16, true>(p, plan, step);
  return step_back_f32(p, plan, step);
}

// the gradients by all nodes but the weights of convolutions
void vector_gradients(const Pass& pass, const ConvSolveBackward& p, int blocks, const Pieces& from) {
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
  if (plan.shared > p.shared_limit) plan.refusal = "operand and gradient of an image exceed the shared memory of a block";
  Arena arena(nullptr);
  const Pieces counted(p, plan, arena);
  plan.workspace = arena.taken();
  return plan;
}

void conv_solve_backward(const ConvSolveBackward& p) {
  const SolveBackwardPlan plan = plan_solve_backward(p);
  if (plan.refusal != nullptr) throw std::runtime_error(std::string("conv_solve_backward: ") + plan.refusal);
  Arena arena(p.workspace);
  const Pieces to(p, plan, arena);
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
    add_up(pass, {sums.count, sums.slots, plan.blocks, last, step.weight_sums, {p.grads[0], p.grads[2]}});
  }
  vector_gradients(pass, p, plan.blocks, to);
}

}  // namespace contnet_fast::cuda
