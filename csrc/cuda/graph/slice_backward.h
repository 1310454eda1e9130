// The backward pass of a solve of the diffusion field in one launch: a block takes a slice of columns from the end to
// the beginning, on the rows of the transpose.
//
// The field is linear, so that gradients by the first state and the source need no states. Those by coefficients of
// nodes are sums over columns of g_s (A u_s) and of g_s u_s, for the gradient g_s by the rate of a stage: of each step
// a block makes the stages again from its state, and adds up the products of its own columns. What neighbours are
// gathered from is scale g_s, in shared memory; all else are rows that their owners alone touch.
#pragma once

#include "cuda/graph/slice_solve.h"

namespace contnet_fast::cuda {

template <typename T, typename I>
struct SliceBackward : SliceProblem<T, I> {
  using A = Sum<T>;
  SliceRows<T, I> back;  // of the transpose
  SliceBackMaps own;
  Global<const T> states, grad;
  Global<T> grad_x;
  Global<A> grad_source;            // a map, or null
  Global<A> by_scale, by_diagonal;  // [slice, slot of time, node], or null
  int times;                        // slots of time
  bool by_step;                     // grad is [step + 1] maps
};

namespace {

// What a block does in a step, with the map of shared memory that nobody reads (buffer `turn`).
template <typename T, typename I, int C>
struct SliceStep {
  using A = Sum<T>;
  const SliceBackward<T, I>& p;
  const Slice<T, I, C> slice;
  int turn;

  explicit DEVICE SliceStep(const SliceBackward<T, I>& p) : p(p), slice(p), turn(0) {}

  DEVICE int64_t sums_at(int time, int row) const { return (int64_t{block_index()} * p.times + time) * p.nodes + row; }

  DEVICE void begin() const {
    own_rows(p.nodes, p.slots, [&](int row) {
      A costate[C];
      slice.read(costate, p.by_step ? p.grad + p.steps * (p.nodes * p.features) : p.grad, row);
      slice.keep(costate, p.own.costate, row);
      for (int time = 0; time < p.times; ++time) {
        if (p.by_scale) p.by_scale[sums_at(time, row)] = A(0);
        if (p.by_diagonal) p.by_diagonal[sums_at(time, row)] = A(0);
      }
    });
  }

  // Inputs of the stages of a step and their products with A, for the sums of its gradients.
  DEVICE void make_again(int step, bool some_long) {
    const Global<const T> state = step == 0 ? p.x : p.states + (step - 1) * (p.nodes * p.features);
    own_rows(p.nodes, p.slots, [&](int row) {
      A u[C];
      slice.read(u, state, row);
      slice.put(u, slice.buffer(turn), row);
    });
    for (int stage = 0; stage < p.stages; ++stage, turn ^= 1) {
      sync_threads();
      const Shared<T> u = slice.buffer(turn), following = slice.buffer(turn ^ 1);
      const int64_t coefficient = slice.coefficient(step * p.stages + stage);
      each_row<C>(p.graph, p.nodes, p.slots, some_long, u, [&](int row, const A(&sums)[C]) {
        A own[C], rate[C], next[C];
        slice.get(own, u, row);
        if (p.by_scale) slice.keep(sums, p.own.products + stage, row);
        if (p.by_diagonal) slice.keep(own, p.own.inputs + stage, row);
        if (stage + 1 == p.stages) return;
        slice_rate(rate, slice, coefficient, row, sums, own);
        slice.read(next, state, row);
        slice_input(next, slice, p.own.rates, stage, row, rate);
        slice.put(next, following, row);
      });
    }
  }

  // What follows from the gradient by a rate: scale g for its neighbours, and the sums it is part of.
  DEVICE void use(const A (&g)[C], int step, int stage, int row, const Shared<T>& to) const {
    const int time = p.slot_of[step * p.stages + stage];
    const A scale = p.scale[int64_t{time} * p.nodes + row];
    A scaled[C] = {};
    add_scaled(scaled, scale, g);
    slice.put(scaled, to, row);
    slice.keep(g, p.own.gradient, row);
    if (p.grad_source) {
      const int64_t at = row * p.features + slice.column;
      const bool fresh = step + 1 == p.steps && stage + 1 == p.stages;
      UNROLL
      for (int c = 0; c < C; ++c) {
        if (c >= slice.columns) continue;
        p.grad_source[at + c] = g[c] + (fresh ? A(0) : static_cast<A>(p.grad_source[at + c]));
      }
    }
    if (p.by_scale) add_product(p.by_scale, time, row, g, p.own.products + stage);
    if (p.by_diagonal) add_product(p.by_diagonal, time, row, g, p.own.inputs + (FAULT_POINT(31) ? 0 : stage));
  }
  DEVICE void add_product(const Global<A>& sums, int time, int row, const A (&g)[C], int map) const {
    A other[C], sum = sums[sums_at(time, row)];
    slice.fetch(other, map, row);
    UNROLL
    for (int c = 0; c < C; ++c) sum += g[c] * other[c];
    sums[sums_at(time, row)] = sum;
  }

  // From the costate after a step to that before it.
  DEVICE void step_back(int step, bool some_long) {
    const int last = p.stages - 1;
    own_rows(p.nodes, p.slots, [&](int row) {
      A costate[C], g[C] = {};
      slice.fetch(costate, p.own.costate, row);
      slice.keep(costate, p.own.total, row);
      add_scaled(g, p.update[last], costate);
      use(g, step, last, row, slice.buffer(turn));
    });
    for (int stage = last; stage >= 0; --stage, turn ^= 1) {
      if (!FAULT_POINT(30)) sync_threads();
      const Shared<T> u = slice.buffer(turn), following = slice.buffer(turn ^ 1);
      const int64_t coefficient = slice.coefficient(step * p.stages + stage);
      each_row<C>(p.back, p.nodes, p.slots, some_long, u, [&](int row, const A(&sums)[C]) {
        A g[C], input[C], total[C];
        slice.fetch(g, p.own.gradient, row);
        const A diagonal = p.diagonal[coefficient + row];
        UNROLL
        for (int c = 0; c < C; ++c) input[c] = sums[c] + diagonal * g[c] + slice.mixing[c] * g[c];
        slice.fetch(total, p.own.total, row);
        add_scaled(total, A(1), input);
        if (stage > 0) {
          slice.keep(total, p.own.total, row);
          before(g, stage, row, input);
          use(g, step, stage - 1, row, following);
        } else {
          finish(step, row, total);
        }
      });
    }
  }

  // g <- the gradient by the rate before stage `stage`, from those by the inputs of this stage and of later ones
  DEVICE void before(A (&g)[C], int stage, int row, const A (&input)[C]) const {
    A other[C];
    slice.fetch(other, p.own.costate, row);
    UNROLL
    for (int c = 0; c < C; ++c) g[c] = p.update[stage - 1] * other[c];
    add_scaled(g, p.rows[stage][FAULT_POINT(32) ? 0 : stage - 1], input);
    UNROLL_BY(1)
    for (int r = stage + 1; r < p.stages; ++r) {
      if (p.rows[r][stage - 1] == A(0)) continue;
      slice.fetch(other, p.own.input_gradients + p.own.place[r], row);
      add_scaled(g, p.rows[r][stage - 1], other);
    }
    if (p.own.place[stage] >= 0) slice.keep(input, p.own.input_gradients + p.own.place[stage], row);
  }

  DEVICE void finish(int step, int row, A (&total)[C]) const {
    if (p.by_step) {
      A upstream[C];
      slice.read(upstream, p.grad + step * (p.nodes * p.features), row);
      add_scaled(total, A(1), upstream);
    }
    if (step > 0) {
      slice.keep(total, p.own.costate, row);
    } else {
      slice.write(total, p.grad_x, row);
    }
  }
};

template <typename T, typename I, int C, bool STATES>
KERNEL(kSliceThreads)
solve_slice_back(GRID_CONSTANT SliceBackward<T, I> p) {
  SliceStep<T, I, C> block(p);
  const bool long_rows = STATES && has_long_rows(p.graph, p.nodes, p.slots),
             long_back = has_long_rows(p.back, p.nodes, p.slots);
  block.begin();
  for (int step = p.steps - 1; step >= 0; --step) {
    if constexpr (STATES) block.make_again(step, long_rows);
    block.step_back(step, long_back);
  }
}

template <typename T, typename I, int C>
void launch_slices_back(const SliceBackward<T, I>& a, const Grid& grid) {
  const bool states = static_cast<bool>(a.by_scale) || static_cast<bool>(a.by_diagonal);
  states ? launch(grid, solve_slice_back<T, I, C, true>, a) : launch(grid, solve_slice_back<T, I, C, false>, a);
}

template <typename T, typename I>
void launch_slices_back(const DiffusionBackward& p, const SlicePlan& plan, const SliceBackPieces& pieces) {
  using A = Sum<T>;
  SliceBackward<T, I> a{};
  describe_slices(a, p, plan, p.x);
  a.own = slice_back_maps(p);
  a.count = a.own.count;
  a.maps = reinterpret_cast<A*>(pieces.maps);
  a.back = {static_cast<const I*>(p.back_indptr), static_cast<const I*>(p.back_indices),
            reinterpret_cast<const T*>(pieces.values)};
  a.states = static_cast<const T*>(p.kept.states != nullptr ? p.kept.states : pieces.states);
  a.grad = static_cast<const T*>(p.grad);
  a.by_step = p.by_step != 0;
  a.grad_x = static_cast<T*>(p.grad_x);
  a.grad_source = static_cast<A*>(p.grad_source);
  a.by_scale = reinterpret_cast<A*>(pieces.scale);
  a.by_diagonal = reinterpret_cast<A*>(pieces.diagonal);
  a.times = p.slots;
  const Grid grid{"solve_slice_back", plan.slices, plan.threads, plan.shared, 1, p.stream};
  if constexpr (sizeof(T) < 8) {
    if (plan.columns == 4) return launch_slices_back<T, I, 4>(a, grid);
  }
  plan.columns == 2 ? launch_slices_back<T, I, 2>(a, grid) : launch_slices_back<T, I, 1>(a, grid);
}

}  // namespace
}  // namespace contnet_fast::cuda
