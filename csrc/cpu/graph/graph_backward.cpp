// The backward pass over a graph: the exact gradient of the discrete solve, step by step from the last. Inputs and
// products of a step are made again from its state, which is quicker than writing and reading them.
#include "cpu/graph/graph_pass.h"

namespace contnet_fast {
namespace {

// One slice of columns; its gradients of nodal values are by slot, [slots][nodes].
template <typename T, typename I>
class BackwardSlice {
 public:
  BackwardSlice(const GraphPass<T, I>& pass, const GraphBackward<T, I>& call, const SortedRows<T, I>& transpose,
                int64_t slice, T* scale_sums, T* diagonal_sums)
      : pass_(pass),
        spec_(pass.spec),
        call_(call),
        transpose_(transpose),
        slice_(slice),
        map_(spec_.map()),
        scale_sums_(scale_sums),
        diagonal_sums_(diagonal_sums),
        ranges_(pass.graph.indptr, spec_.nodes, spec_.width),
        back_ranges_(transpose.rows.indptr, spec_.nodes, spec_.width) {
    recompute_ = call.scale_grad || call.diagonal_grad || call.value_grad || call.mixing_grad;
    const int64_t states = recompute_ && !spec_.keeps_states() ? spec_.n_steps - 1 : 0;
    memory_.resize((8 + (pass.adds ? 2 : 4) * spec_.stages + states) * map_);
    T* next = memory_.data();
    const auto take = [&] { return std::exchange(next, next + map_); };
    x_ = take();
    T* source = call.source ? take() : nullptr;
    at_.source = source;
    at_.columns = pass.columns(slice);
    for (T*& one : adjoint_) one = take();
    for (T*& one : rate_grad_) one = take();
    source_grad_ = call.source_grad ? take() : nullptr;
    for (int s = 0; s < spec_.stages; ++s) {
      input_grad_.push_back(s && !pass.adds ? take() : nullptr);
      at_.input.push_back(s && recompute_ ? take() : nullptr);
      at_.product.push_back(recompute_ && call.scale_grad ? take() : nullptr);
      at_.rate.push_back(recompute_ && !pass.adds ? take() : nullptr);
    }
    remade_ = next;
    states_ = spec_.keeps_states() ? call.kept + slice * spec_.kept_maps() * map_ : remade_;
    load_slice(spec_, slice, call.x, x_);
    if (source) load_slice(spec_, slice, call.source, source);
    if (source_grad_) std::fill(source_grad_, source_grad_ + map_, T(0));
    if (recompute_ && !spec_.keeps_states()) remake_states();
    load_slice(spec_, slice, call.out_grad.back(), adjoint_[0]);
  }

  // Before the stages of step i, which are taken from the last.
  void begin(int i) {
    at_.state = state(i);
    if (recompute_) pass_.step(ranges_, i, at_);
    Adjoint<T, I> start{};
    start.transpose = transpose_.rows;
    start.base = adjoint_[0];
    start.base_factor = static_cast<T>(spec_.update[spec_.stages - 1]);
    start.to = rate_adjoint(i, spec_.stages - 1);
    ranges_.run([&](int64_t first, int64_t last) { pass_.kernels.adjoint(start, first, last); });
  }

  // The input of stage s of the step, and after the stage that follows it the gradient of its rate.
  const T* input(int s) const { return at_.input_of(s); }
  const T* rate_grad(int s) const { return rate_grad_[s % 2]; }

  void stage(int i, int s) {
    const int slot = pass_.slot(i, s);
    if (slot != scaled_for_) scaled_ = transpose_.scaled(pass_.scale(slot), values_);
    scaled_for_ = slot;
    if (call_.value_grad) {
      const EdgeGradient<T, I> edges{call_.graph.indptr, call_.graph.indices, pass_.scale(slot),
                                     rate_grad_[s % 2],  at_.input_of(s),     call_.value_grad};
      ranges_.run([&](int64_t first, int64_t last) { pass_.kernels.edges(edges, first, last); });
    }
    Adjoint<T, I> a{};
    a.transpose = scaled_;
    a.factor = T(1);
    a.rate_grad = rate_grad_[s % 2];
    a.diagonal = pass_.diagonal(slot);
    a.columns = at_.columns;
    a.input_grad = input_grad_[s];
    const bool first_stage = s == 0, added = pass_.adds && s + 1 < spec_.stages;
    a.base = first_stage && added ? adjoint_[1] : adjoint_[0];
    a.base_factor = s ? static_cast<T>(spec_.update[s - 1]) : T(1);
    a.own = s ? static_cast<T>(spec_.rows[s][s - 1]) : T(1);
    for (int r = s + 1; r < spec_.stages && !pass_.adds; ++r)
      if (const double factor = s ? spec_.rows[r][s - 1] : 1.0) a.later.add(input_grad_[r], factor);
    if (pass_.adds && s) {
      a.total_base = added ? adjoint_[1] : adjoint_[0];
      a.total = adjoint_[1];
    }
    if (s)
      a.to = rate_adjoint(i, s - 1);
    else
      a.next = adjoint_[1];
    back_ranges_.run([&](int64_t first, int64_t last) { pass_.kernels.adjoint(a, first, last); });
    if (s) return;
    std::swap(adjoint_[0], adjoint_[1]);
    if (call_.out_grad.size() > 1) load_slice(spec_, slice_, call_.out_grad[i], adjoint_[0], true);
    if (i) return;
    if (call_.x_grad) store_slice(spec_, slice_, adjoint_[0], call_.x_grad);
    if (source_grad_) store_slice(spec_, slice_, source_grad_, call_.source_grad);
  }

 private:
  const T* state(int i) const { return i ? states_ + (i - 1) * map_ : x_; }

  void remake_states() {
    StepPlaces<T> at = at_;
    std::fill(at.product.begin(), at.product.end(), nullptr);
    for (int i = 0; i + 1 < spec_.n_steps; ++i) {
      at.state = state(i);
      at.next = remade_ + i * map_;
      pass_.step(ranges_, i, at);
    }
  }

  // What becomes of the gradient of the rate of stage s.
  RateAdjoint<T> rate_adjoint(int i, int s) {
    const int slot = pass_.slot(i, s);
    RateAdjoint<T> to{};
    to.rate_grad = rate_grad_[s % 2];
    to.source_grad = source_grad_;
    to.product = at_.product[s];
    to.input = at_.input_of(s);
    to.scale_grad = scale_sums_ ? scale_sums_ + slot * spec_.nodes : nullptr;
    to.diagonal_grad = diagonal_sums_ ? diagonal_sums_ + slot * spec_.nodes : nullptr;
    return to;
  }

  const GraphPass<T, I>& pass_;
  const GraphSpec& spec_;
  const GraphBackward<T, I>& call_;
  const SortedRows<T, I>& transpose_;
  const int64_t slice_, map_;
  T *const scale_sums_, *const diagonal_sums_;
  const RowRanges ranges_, back_ranges_;
  bool recompute_;
  Buffer<T> memory_, values_;
  SparseRows<T, I> scaled_;  // the transpose, its values times the scale of a slot
  int scaled_for_ = -1;
  T *x_, *adjoint_[2], *rate_grad_[2], *source_grad_, *remade_;
  const T* states_;
  std::vector<T*> input_grad_;
  StepPlaces<T> at_{};
};

// Gradients of the slots, to those of the basis functions.
template <typename T>
void to_nodes(const GraphSpec& spec, const T* slots, T* nodal) {
  for (size_t slot = 0; slot < spec.grid.slots.size(); ++slot)
    for (const auto& [k, w] : spec.grid.slots[slot])
      for (int64_t i = 0; i < spec.nodes; ++i)
        nodal[k * spec.nodes + i] += static_cast<T>(w) * slots[slot * spec.nodes + i];
}

}  // namespace

template <typename T, typename I>
void graph_solve_backward(const GraphSpec& spec, const GraphKernels<T, I>& kernels, const GraphBackward<T, I>& call) {
  const SortedRows<T, I> graph(call.graph, spec.nodes);
  const SortedRows<T, I> transpose(call.transpose, spec.nodes);
  const GraphPass<T, I> pass(spec, kernels, graph.rows, call.scale, call.diagonal, call.mixing);
  const int64_t slots = static_cast<int64_t>(spec.grid.slots.size());
  SliceSums<T> scales(spec, slots, call.scale_grad), diagonals(spec, slots, call.diagonal_grad);
  const bool in_order = call.value_grad;  // slices add to the gradients of edges in their order
  using Slice = BackwardSlice<T, I>;
  const auto make = [&](int64_t slice) {
    return std::make_unique<Slice>(pass, call, transpose, slice, scales.of(slice), diagonals.of(slice));
  };
  if (spec.by_stage || call.mixing_grad) {
    std::vector<std::unique_ptr<Slice>> slices(spec.slices());
    MixingGradient<T, I> mixing(spec, kernels, call.mixing_grad, 1);
    const auto each = [&](auto&& f) { over_slices(spec, in_order, [&](int64_t slice) { f(slices[slice]); }); };
    over_slices(spec, in_order, [&](int64_t slice) { slices[slice] = make(slice); });
    for (int i = spec.n_steps; i-- > 0;) {
      each([&](auto& one) { one->begin(i); });
      for (int s = spec.stages; s-- > 0;) {
        mixing.add(slices, s, 0);
        each([&](auto& one) { one->stage(i, s); });
      }
    }
    mixing.finish({1.0});
  } else {
    over_slices(spec, in_order, [&](int64_t slice) {
      const auto one = make(slice);
      for (int i = spec.n_steps; i-- > 0;) {
        one->begin(i);
        for (int s = spec.stages; s-- > 0;) one->stage(i, s);
      }
    });
  }
  if (call.scale_grad) to_nodes(spec, scales.total(), call.scale_grad);
  if (call.diagonal_grad) to_nodes(spec, diagonals.total(), call.diagonal_grad);
}

#define INSTANCE(T, I) \
  template void graph_solve_backward(const GraphSpec&, const GraphKernels<T, I>&, const GraphBackward<T, I>&);
INSTANCE(float, int32_t)
INSTANCE(float, int64_t)
INSTANCE(double, int32_t)
INSTANCE(double, int64_t)
#undef INSTANCE

}  // namespace contnet_fast
