// A solve of the diffusion field in one launch: columns do not mix, so a block takes a slice of them through all steps.
//
// The input of the current stage lies in shared memory, whence neighbours are gathered; that of the next one is written
// to a second map beside it, so that one barrier an evaluation is enough. The state, the running update
// y + sum_j b_j k_j and rates that a later stage reads again are rows of global memory, which their owners alone touch.
#pragma once

#include "cuda/graph/slice_rows.h"

namespace contnet_fast::cuda {

template <typename T, typename I>
struct SliceSolve : SliceProblem<T, I> {
  Global<T> y, states;  // [step, node, feature] after each step but the last, or null
};

namespace {

// rate <- scale sums + diagonal u + mixing u + source
template <int C, typename T, typename I, typename A>
DEVICE void slice_rate(A (&rate)[C], const Slice<T, I, C>& slice, int64_t coefficient, int row, const A (&sums)[C],
                       const A (&u)[C]) {
  const SliceProblem<T, I>& p = slice.p;
  const A scale = p.scale[coefficient + row], diagonal = p.diagonal[coefficient + row];
  UNROLL
  for (int c = 0; c < C; ++c)
    rate[c] = scale * sums[c] + diagonal * u[c] + slice.mixing[FAULT_POINT(23) ? 0 : c] * u[c];
  if (!p.source) return;
  A source[C];
  slice.read(source, p.source, row);
  add_scaled(rate, A(1), source);
}

// next <- state + sum over j <= stage of rows[stage + 1][j] times rate j, of which that of `stage` is at hand
template <int C, typename T, typename I, typename A>
DEVICE void slice_input(A (&next)[C], const Slice<T, I, C>& slice, int first, int stage, int row, const A (&rate)[C]) {
  const SliceProblem<T, I>& p = slice.p;
  add_scaled(next, p.rows[stage + 1][FAULT_POINT(24) ? 0 : stage], rate);
  UNROLL_BY(1)
  for (int j = 0; j < stage; ++j) {
    if (p.rows[stage + 1][j] == A(0)) continue;
    A other[C];
    slice.fetch(other, first + p.place[j], row);
    add_scaled(next, p.rows[stage + 1][j], other);
  }
  if (p.place[stage] >= 0) slice.keep(rate, first + p.place[stage], row);
}

template <typename T, typename I, int C>
KERNEL(kSliceThreads)
solve_slice(GRID_CONSTANT SliceSolve<T, I> p) {
  using A = Sum<T>;
  const Slice<T, I, C> slice(p);
  own_rows(p.nodes, p.slots, [&](int row) {
    A state[C];
    slice.read(state, p.x, row);
    slice.keep(state, kStateMap, row);
    slice.put(state, slice.buffer(0), row);
  });
  const bool some_long = has_long_rows(p.graph, p.nodes, p.slots);
  int turn = 0;
  for (int step = 0; step < p.steps; ++step) {
    for (int stage = 0; stage < p.stages; ++stage, turn ^= 1) {
      if (!FAULT_POINT(20)) sync_threads();  // the input is whole, and the one before it was read
      const Shared<T> u = slice.buffer(FAULT_POINT(21) ? 0 : turn), following = slice.buffer(turn ^ 1);
      const int64_t coefficient = slice.coefficient(step * p.stages + stage);
      const bool last = stage + 1 == p.stages;
      each_row<C>(p.graph, p.nodes, p.slots, some_long, u, [&](int row, const A(&sums)[C]) {
        if (FAULT_POINT(22) && row + 1 == p.nodes) return;
        A own[C], rate[C], next[C], total[C];
        slice.get(own, u, row);
        slice_rate(rate, slice, coefficient, row, sums, own);
        slice.fetch(total, stage == 0 ? kStateMap : kUpdateMap, row);
        if (p.update[stage] != A(0)) add_scaled(total, p.update[stage], rate);
        if (!last) {
          slice.keep(total, kUpdateMap, row);
          slice.fetch(next, kStateMap, row);
          slice_input(next, slice, kSliceMaps, stage, row, rate);
          slice.put(next, following, row);
        } else if (step + 1 == p.steps) {
          slice.write(total, p.y, row);
        } else {
          slice.keep(total, kStateMap, row);
          slice.put(total, following, row);
          if (p.states) slice.write(total, p.states + step * (p.nodes * p.features), row);
        }
      });
    }
  }
}

// Fills what both passes read, but for the maps.
template <typename T, typename I>
void describe_slices(SliceProblem<T, I>& a, const DiffusionProblem& p, const SlicePlan& plan, const void* x) {
  using A = Sum<T>;
  a.graph = {static_cast<const I*>(p.indptr), static_cast<const I*>(p.indices), static_cast<const T*>(p.values)};
  a.nodes = static_cast<int>(p.nodes);
  a.slots = plan.slots;
  a.stages = p.stages;
  a.steps = p.steps;
  a.features = p.features;
  a.slot_of = p.slot_of;
  a.scale = static_cast<const A*>(p.scale);
  a.diagonal = static_cast<const A*>(p.diagonal);
  a.mixing = static_cast<const A*>(p.mixing);
  a.source = static_cast<const T*>(p.source);
  a.x = static_cast<const T*>(x);
  place_rates(p, a.place);
  for (int s = 0; s < p.stages; ++s) {
    a.update[s] = static_cast<A>(p.update[s]);
    for (int j = 0; j < s; ++j) a.rows[s][j] = static_cast<A>(p.rows[s][j]);
  }
}

template <typename T, typename I>
void launch_slices(const DiffusionSolve& p, const SlicePlan& plan) {
  SliceSolve<T, I> a{};
  describe_slices(a, p, plan, p.x);
  a.count = slice_maps(p);
  a.maps = static_cast<Sum<T>*>(p.workspace);
  a.y = static_cast<T*>(p.y);
  a.states = static_cast<T*>(p.kept.states);
  const Grid grid{"solve_slice", plan.slices, plan.threads, plan.shared, 1, p.stream};
  if constexpr (sizeof(T) < 8) {
    if (plan.columns == 4) return launch(grid, solve_slice<T, I, 4>, a);
  }
  plan.columns == 2 ? launch(grid, solve_slice<T, I, 2>, a) : launch(grid, solve_slice<T, I, 1>, a);
}

}  // namespace
}  // namespace contnet_fast::cuda
