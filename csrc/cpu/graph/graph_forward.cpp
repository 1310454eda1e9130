// The forward pass over a graph: slices of columns by thread, or rows of one slice after another by all threads.
#include "cpu/graph/graph_pass.h"

namespace contnet_fast {
namespace {

template <typename T, typename I>
void solve_slice(const GraphPass<T, I>& pass, const GraphForward<T, I>& call, int64_t slice) {
  const GraphSpec& spec = pass.spec;
  const RowRanges ranges(pass.graph.indptr, spec.nodes, spec.width);
  const int64_t map = spec.map();
  T* kept = call.kept + slice * spec.kept_maps() * map;
  // two states, two inputs, the source, rates
  Buffer<T> memory((5 + (pass.adds ? 0 : spec.stages)) * map);
  T* work = memory.data();
  const auto take = [&](T*& from) { return std::exchange(from, from + map); };
  T* states[2] = {take(work), take(work)};
  T* inputs[2] = {take(work), take(work)};
  T* source = call.source ? take(work) : nullptr;
  if (source) load_slice(spec, slice, call.source, source);
  StepPlaces<T> at{states[0], std::vector<T*>(spec.stages), std::vector<T*>(spec.stages), std::vector<T*>(spec.stages),
                   nullptr};
  for (int s = 0; s < spec.stages; ++s) {
    at.input[s] = inputs[s % 2];
    at.rate[s] = pass.adds ? nullptr : take(work);
  }
  load_slice(spec, slice, call.x, states[0]);
  const bool steps = call.out.size() > 1;
  for (int i = 0; i < spec.n_steps; ++i) {
    if (steps) store_slice(spec, slice, at.state, call.out[i]);
    const bool last = i + 1 == spec.n_steps;
    at.next = spec.keeps_states() && !last ? take(kept) : at.state == states[1] ? states[0] : states[1];
    pass.step(ranges, i, source, at);
    at.state = at.next;
  }
  store_slice(spec, slice, at.state, call.out.back());
}

}  // namespace

template <typename T, typename I>
void graph_solve(const GraphSpec& spec, const GraphKernels<T, I>& kernels, const GraphForward<T, I>& call) {
  const SortedRows<T, I> graph(call.graph, spec.nodes);
  const GraphPass<T, I> pass(spec, kernels, graph.rows, call.scale, call.diagonal);
  over_slices(spec, false, [&](int64_t slice) { solve_slice(pass, call, slice); });
}

#define INSTANCE(T, I) \
  template void graph_solve(const GraphSpec&, const GraphKernels<T, I>&, const GraphForward<T, I>&);
INSTANCE(float, int32_t)
INSTANCE(float, int64_t)
INSTANCE(double, int32_t)
INSTANCE(double, int64_t)
#undef INSTANCE

}  // namespace contnet_fast
