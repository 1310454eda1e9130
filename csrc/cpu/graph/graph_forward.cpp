// The forward pass over a graph: slices of columns by thread, or rows of one slice after another by all threads.
#include "cpu/graph/graph_pass.h"

namespace contnet_fast {
namespace {

template <typename T, typename I>
class ForwardSlice {
 public:
  ForwardSlice(const GraphPass<T, I>& pass, const GraphForward<T, I>& call, int64_t slice)
      : pass_(pass),
        spec_(pass.spec),
        call_(call),
        slice_(slice),
        ranges_(pass.graph.indptr, spec_.nodes, spec_.width),
        kept_(call.kept + slice * spec_.kept_maps() * spec_.map()) {
    const int64_t map = spec_.map();
    // two states, two inputs, the source, rates
    memory_.resize((5 + (pass.adds ? 0 : spec_.stages)) * map);
    T* work = memory_.data();
    const auto take = [&] { return std::exchange(work, work + map); };
    for (T*& one : states_) one = take();
    T* inputs[2] = {take(), take()};
    T* source = call.source ? take() : nullptr;
    at_ = {states_[0], {}, {}, nullptr, source, pass.columns(slice), nullptr, {}, nullptr, nullptr};
    for (int s = 0; s < spec_.stages; ++s) {
      at_.input.push_back(inputs[s % 2]);
      at_.rate.push_back(pass.adds ? nullptr : take());
    }
    if (source) load_slice(spec_, slice, call.source, source);
    load_slice(spec_, slice, call.x, states_[0]);
  }

  // Stage s of step i; the stages are taken in their order.
  void stage(int i, int s) {
    if (s == 0) {
      if (call_.out.size() > 1) store_slice(spec_, slice_, at_.state, call_.out[i]);
      const bool keeps = spec_.keeps_states() && i + 1 < spec_.n_steps;
      at_.next = keeps ? std::exchange(kept_, kept_ + spec_.map()) : at_.state == states_[1] ? states_[0] : states_[1];
      at_.soon = spec_.keeps_states() && i + 2 < spec_.n_steps ? kept_ : nullptr;
    }
    pass_.stage(ranges_, i, s, at_);
    if (s + 1 < spec_.stages) return;
    at_.state = at_.next;
    if (i + 1 == spec_.n_steps) store_slice(spec_, slice_, at_.state, call_.out.back());
  }

 private:
  const GraphPass<T, I>& pass_;
  const GraphSpec& spec_;
  const GraphForward<T, I>& call_;
  const int64_t slice_;
  const RowRanges ranges_;
  Buffer<T> memory_;
  T *states_[2], *kept_;
  StepPlaces<T, I> at_{};
};

}  // namespace

template <typename T, typename I>
void graph_solve(const GraphSpec& spec, const GraphKernels<T, I>& kernels, const GraphForward<T, I>& call) {
  const SortedRows<T, I> graph(call.graph, spec.nodes);
  const GraphPass<T, I> pass(spec, kernels, graph.rows, call.scale, call.diagonal, call.mixing);
  const auto run = [&](auto&& each) {
    for (int i = 0; i < spec.n_steps; ++i)
      for (int s = 0; s < spec.stages; ++s) each(i, s);
  };
  if (!spec.by_stage)
    return over_slices(spec, false, [&](int64_t slice) {
      ForwardSlice<T, I> one(pass, call, slice);
      run([&](int i, int s) { one.stage(i, s); });
    });
  std::vector<std::unique_ptr<ForwardSlice<T, I>>> slices;
  for (int64_t slice = 0; slice < spec.slices(); ++slice)
    slices.push_back(std::make_unique<ForwardSlice<T, I>>(pass, call, slice));
  run([&](int i, int s) { over_slices(spec, false, [&](int64_t slice) { slices[slice]->stage(i, s); }); });
}

#define INSTANCE(T, I) \
  template void graph_solve(const GraphSpec&, const GraphKernels<T, I>&, const GraphForward<T, I>&);
INSTANCE(float, int32_t)
INSTANCE(float, int64_t)
INSTANCE(double, int32_t)
INSTANCE(double, int64_t)
#undef INSTANCE

}  // namespace contnet_fast
