// Backward passes of whole solves: 16-bit operands, the plan, the launches, and sums over blocks.

#include "adjoint.h"
#include "conv_solve_backward.h"

namespace contnet_fast::cuda {
namespace {

constexpr int kAddThreads = 256;

struct AddArguments {
  Global<const float> channel_sums, mix, parameters;
  Global<const int32_t> slot_of;
  Global<float> vector_grads;
  int evaluations, nodes, blocks, channels;
  bool post, skip, normed;
};

// vector_grads [row, node, channel]; a row of the grid is a row of parameters and node, a thread a channel
KERNEL(kAddThreads)
add_vectors(GRID_CONSTANT AddArguments p) {
  const int c = p.channels, row = block_row() % kParameterRows, node = block_row() / kParameterRows;
  const int channel = thread_index();
  if (channel >= c) return;
  const auto sum = [&](int evaluation, int kind) {
    const int64_t first = static_cast<int64_t>(evaluation * 7 + kind) * p.blocks;
    float total = 0.f;
    UNROLL_BY(8)
    for (int block = 0; block < p.blocks; ++block) total += p.channel_sums[(first + block) * c + channel];
    return total;
  };
  float total = 0.f;
  for (int e = 0; e < p.evaluations; ++e) {
    const int slot = p.slot_of[e];
    const float share = p.mix[slot * p.nodes + node];
    if (share == 0.f) continue;
    const Global<const float> of = p.parameters + (slot * kParameterRows * c + channel);
    const float skip = of[6 * c];
    float value = 0.f;
    if (row < 2) {
      value = sum(e, row);
      if (row == 1 && !p.post) value *= skip;
    } else if (row < 6) {  // weights first; sums of the plain gradient first
      if (p.normed) value = sum(e, row ^ 1);
      if (row > 3 && p.post) value *= skip;
    } else if (p.skip) {
      if (!p.post) {
        value = sum(e, 6) + of[c] * sum(e, 1);
      } else {
        value = p.normed ? sum(e, 5) * of[4 * c] + sum(e, 4) * of[5 * c] : sum(e, 5);
      }
    }
    total += share * value;
  }
  p.vector_grads[(row * p.nodes + node) * c + channel] = total;
}

int64_t whole(int64_t bytes) { return (bytes + 255) / 256 * 256; }

struct Pieces {  // bytes of the workspace
  int64_t tape, rates, costates, weights, channels;
};

Pieces pieces(const ConvSolveBackward& p, const SolveBackwardPlan& plan) {
  const ConvLayout layout{plan.channels, p.operand == Scalar::f32 ? 4 : 2};
  const int64_t map = static_cast<int64_t>(layout.values()) * plan.threads, stages = p.stages, c = p.channels;
  return {whole(plan.blocks * stages * (p.post ? 3 : 2) * map * layout.bytes), whole(plan.blocks * (stages + 1) * map * 4),
          whole(p.images * map * 4), whole(4 * stages * 2 * plan.blocks * 9 * c * c),
          whole(4 * stages * p.steps * 7 * plan.blocks * c)};
}

void step_back(const ConvSolveBackward& p, const SolveBackwardPlan& plan, const StepBack& step) {
  if (p.operand == Scalar::bf16) return launch_step_back<bf16, true>(p, plan, step);
  if (p.operand == Scalar::f16) return launch_step_back<f16, true>(p, plan, step);
  return step_back_f32(p, plan, step);
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
  const Pieces all = pieces(p, plan);
  plan.workspace = all.tape + all.rates + all.costates + all.weights + all.channels;
  return plan;
}

void conv_solve_backward(const ConvSolveBackward& p) {
  const SolveBackwardPlan plan = plan_solve_backward(p);
  if (plan.refusal != nullptr) throw std::runtime_error(std::string("conv_solve_backward: ") + plan.refusal);
  const Pieces all = pieces(p, plan);
  const int64_t map = static_cast<int64_t>(p.images) * p.height * p.width * p.channels * (p.state == Scalar::f32 ? 4 : 2);
  auto* next = static_cast<unsigned char*>(p.workspace);
  const auto take = [&](int64_t bytes) { return std::exchange(next, next + bytes); };
  const auto at = [&](const void* maps, int64_t i) -> const void* { return static_cast<const char*>(maps) + i * map; };
  StepBack step{};
  step.tape = take(all.tape);
  step.rates = reinterpret_cast<float*>(take(all.rates));
  step.costates = reinterpret_cast<float*>(take(all.costates));
  step.weight_sums = reinterpret_cast<float*>(take(all.weights));
  step.channel_sums = reinterpret_cast<float*>(take(all.channels));
  AddArguments a{};
  a.channel_sums = static_cast<const float*>(step.channel_sums);
  a.mix = p.mix;
  a.parameters = p.parameters;
  a.slot_of = p.slot_of;
  a.vector_grads = p.vector_grads;
  a.evaluations = p.stages * p.steps;
  a.nodes = static_cast<int>(p.basis);
  a.blocks = plan.blocks;
  a.channels = p.channels;
  a.post = p.post != 0;
  a.skip = p.skip != 0;
  a.normed = p.norm != Norm::none;
  const Pass pass{p, p.skip, a.nodes, p.parameters, p.moments, p.mix};
  const int64_t size = p.basis * 9 * p.channels * p.channels;
  for (int i = p.steps - 1; i >= 0; --i) {
    const bool last = i == p.steps - 1;
    step.index = i;
    step.start = i == 0 ? p.x : at(p.states, i - 1);
    step.upstream = last ? at(p.grad, p.return_steps ? p.steps : 0) : nullptr;
    step.extra = p.return_steps ? at(p.grad, i) : nullptr;
    step.result = i == 0 ? p.grad_x : nullptr;
    step_back(p, plan, step);
    add_up(pass, {i * p.stages, plan.blocks, last, step.weight_sums, nullptr, {p.weight_grads, p.weight_grads + size}, nullptr});
  }
  launch(Grid{"add_vectors", 1, kAddThreads, 0, 1, p.stream, kParameterRows * a.nodes}, add_vectors, a);
}

}  // namespace contnet_fast::cuda
