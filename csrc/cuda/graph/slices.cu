// Level solve of the diffusion field: its plans, the order of its launches, and which kernels serve a type.

#include <stdexcept>

#include "cuda/graph/slice_launch.h"
#include "cuda/lib/arena.h"
#include "cuda/lib/reduce.h"

namespace contnet_fast::cuda {
namespace {

constexpr int kSumThreads = 256;

int64_t bytes_of_value(Scalar type) { return type == Scalar::f64 ? 8 : type == Scalar::f32 ? 4 : 2; }
int64_t bytes_of_sum(Scalar type) { return type == Scalar::f64 ? 8 : 4; }

SlicePlan planned(const DiffusionProblem& p) {
  return plan_slices(p.nodes, p.features, p.edges, bytes_of_value(p.state), p.shared_limit, p.processors);
}

// Bytes of `count` maps of all slices, in the type of sums.
int64_t slice_bytes(const DiffusionProblem& p, int64_t count) {
  const SlicePlan plan = planned(p);
  return plan.slices * count * p.nodes * plan.columns * bytes_of_sum(p.state);
}

void check_slices(const DiffusionProblem& p) {
  if (p.stages < 1 || p.stages > kMostStages || p.steps < 1)
    throw std::runtime_error("diffusion_solve: a time grid of other sizes");
  const std::string refusal = slice_refusal(p.nodes, bytes_of_value(p.state), p.shared_limit);
  if (!refusal.empty()) throw std::runtime_error("diffusion_solve at level solve: " + refusal);
}

// to[i] = the sum over slices of parts[slice, i]
template <typename A>
struct SliceSums {
  Global<const A> parts;
  Global<A> to;
  int64_t count, slices;
};

template <typename A>
KERNEL(kSumThreads)
add_slices(GRID_CONSTANT SliceSums<A> p) {
  const int64_t i = int64_t{block_index()} * kSumThreads + thread_index();
  if (i >= p.count) return;
  A sum = 0;
  for (int64_t slice = 0; slice < p.slices - (FAULT_POINT(33) ? 1 : 0); ++slice)
    sum += static_cast<A>(p.parts[slice * p.count + i]);
  p.to[i] = sum;
}

template <typename A>
void add(const DiffusionBackward& p, int64_t slices, const unsigned char* parts, void* to) {
  if (to == nullptr) return;
  const SliceSums<A> a{reinterpret_cast<const A*>(parts), static_cast<A*>(to), p.slots * p.nodes, slices};
  launch(Grid{"add_slices", (a.count + kSumThreads - 1) / kSumThreads, kSumThreads, 0, 1, p.stream}, add_slices<A>, a);
}

bool needs_states(const DiffusionBackward& p) { return p.grad_scale != nullptr || p.grad_diagonal != nullptr; }

// The first steps of the same solve, whose states a backward pass wants.
DiffusionSolve all_but_the_last(const DiffusionBackward& p, const SliceBackPieces& pieces) {
  DiffusionSolve solve{};
  static_cast<DiffusionProblem&>(solve) = p;
  solve.steps = p.steps - 1;
  solve.x = p.x;
  solve.kept.states = pieces.states;
  solve.y = pieces.states == nullptr ? nullptr
                                     : pieces.states + (p.steps - 2) * (p.nodes * p.features * bytes_of_value(p.state));
  solve.workspace = pieces.forward;
  return solve;
}

SliceBackPieces divide(const DiffusionBackward& p, Arena& arena) {
  const int64_t sums = planned(p).slices * p.slots * p.nodes * bytes_of_sum(p.state);
  const auto take = [&](bool needed, int64_t bytes) { return needed && bytes > 0 ? arena.take(bytes) : nullptr; };
  const bool again = needs_states(p) && p.kept.states == nullptr && p.steps > 1;
  SliceBackPieces pieces{};
  pieces.values = take(true, p.edges * bytes_of_value(p.state));
  pieces.maps = take(true, slice_bytes(p, slice_back_maps(p).count));
  pieces.scale = take(p.grad_scale != nullptr, sums);
  pieces.diagonal = take(p.grad_diagonal != nullptr, sums);
  pieces.states = take(again, (p.steps - 1) * p.nodes * p.features * bytes_of_value(p.state));
  pieces.forward = take(again, slice_bytes(p, slice_maps(p)));
  return pieces;
}

}  // namespace

int64_t plan_diffusion_slices(const DiffusionSolve& p) { return slice_bytes(p, slice_maps(p)); }

void diffusion_slices(const DiffusionSolve& p) {
  check_slices(p);
  switch (p.state) {
    case Scalar::f32: return slice_solve_f32(p, planned(p));
    case Scalar::f64: return slice_solve_f64(p, planned(p));
    case Scalar::bf16: return slice_solve_bf16(p, planned(p));
    case Scalar::f16: return slice_solve_f16(p, planned(p));
  }
}

int64_t plan_diffusion_slices_backward(const DiffusionBackward& p) {
  Arena arena(nullptr);
  divide(p, arena);
  return arena.taken();
}

void diffusion_slices_backward(const DiffusionBackward& p) {
  check_slices(p);
  Arena arena(p.workspace);
  const SliceBackPieces pieces = divide(p, arena);
  const SlicePlan plan = planned(p);
  diffusion_reorder(p, pieces.values);
  if (pieces.states != nullptr) diffusion_slices(all_but_the_last(p, pieces));
  switch (p.state) {
    case Scalar::f32: slice_backward_f32(p, plan, pieces); break;
    case Scalar::f64: slice_backward_f64(p, plan, pieces); break;
    case Scalar::bf16: slice_backward_bf16(p, plan, pieces); break;
    case Scalar::f16: slice_backward_f16(p, plan, pieces); break;
  }
  const auto sum = p.state == Scalar::f64 ? add<double> : add<float>;
  sum(p, plan.slices, pieces.scale, p.grad_scale);
  sum(p, plan.slices, pieces.diagonal, p.grad_diagonal);
}

}  // namespace contnet_fast::cuda
