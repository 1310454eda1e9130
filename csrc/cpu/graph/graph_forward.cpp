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
        ranges_(pass.graph.rows.indptr, spec_.nodes, spec_.width),
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

  void solve() {
    std::vector<Evaluation<T, I>> calls;
    const int together = call_.out.size() > 1 ? 1 : pass_.together();  // states in between are copied
    for (int i = 0; i < spec_.n_steps; ++i) {
      begin(i);
      pass_.add_step(i, at_, calls);
      if ((i + 1) % together == 0 || i + 1 == spec_.n_steps) {
        pass_.run(ranges_, pass_.kernels.evaluate, calls);
        calls.clear();
      }
      finish(i);
    }
  }

  // Stage s of step i; the stages are taken in their order.
  void stage(int i, int s) {
    if (s == 0) begin(i);
    std::vector<Evaluation<T, I>> calls;
    pass_.add_stage(i, s, at_, calls);
    pass_.run(ranges_, pass_.kernels.evaluate, calls);
    if (s + 1 == spec_.stages) finish(i);
  }

 private:
  void begin(int i) {
    if (call_.out.size() > 1) store_slice(spec_, slice_, at_.state, call_.out[i]);
    const bool keeps = spec_.keeps_states() && i + 1 < spec_.n_steps;
    at_.next = keeps ? std::exchange(kept_, kept_ + spec_.map()) : at_.state == states_[1] ? states_[0] : states_[1];
    at_.soon = spec_.keeps_states() && i + 2 < spec_.n_steps ? kept_ : nullptr;
  }
  void finish(int i) {
    at_.state = at_.next;
    if (i + 1 == spec_.n_steps) store_slice(spec_, slice_, at_.state, call_.out.back());
  }

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
  const GraphPass<T, I> pass(spec, kernels, graph, call.scale, call.diagonal, call.mixing);
  if (!spec.by_stage)
    return over_slices(spec, false, [&](int64_t slice) {
      ForwardSlice<T, I> one(pass, call, slice);
      one.solve();
    });
  std::vector<std::unique_ptr<ForwardSlice<T, I>>> slices;
  for (int64_t slice = 0; slice < spec.slices(); ++slice)
    slices.push_back(std::make_unique<ForwardSlice<T, I>>(pass, call, slice));
  for (int i = 0; i < spec.n_steps; ++i)
    for (int s = 0; s < spec.stages; ++s) over_slices(spec, false, [&](int64_t slice) { slices[slice]->stage(i, s); });
}

#define INSTANCE(T, I) \
  template void graph_solve(const GraphSpec&, const GraphKernels<T, I>&, const GraphForward<T, I>&);
INSTANCE(float, int32_t)
INSTANCE(float, int64_t)
INSTANCE(double, int32_t)
INSTANCE(double, int64_t)
#undef INSTANCE

}  // namespace contnet_fast
