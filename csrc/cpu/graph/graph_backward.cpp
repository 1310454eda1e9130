// The backward pass over a graph: the exact gradient of the discrete solve, step by step from the last. The field is
// affine in the state, so that the gradients of a step's rates need no state: they come first, and then the step is made
// again from its state, each stage adding to the gradients of nodal values what its rate's gradient gives there. So no
// product is written, and that is quicker than writing and reading what the forward pass had.
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
        scale_products_(spec_, pass.kernels, scale_sums),
        diagonal_products_(spec_, pass.kernels, diagonal_sums),
        ranges_(pass.graph.rows.indptr, spec_.nodes, spec_.width),
        back_ranges_(transpose.rows.indptr, spec_.nodes, spec_.width) {
    remakes_ = call.scale_grad || call.diagonal_grad || call.value_grad || call.mixing_grad;
    const int64_t states = remakes_ && !spec_.keeps_states() ? spec_.n_steps - 1 : 0;
    const int last = spec_.stages - 1;
    memory_.resize((7 + (pass.adds ? 1 : 3) * spec_.stages + states) * map_);
    T* next = memory_.data();
    const auto take = [&] { return std::exchange(next, next + map_); };
    x_ = take();
    T* source = call.source ? take() : nullptr;
    for (T*& one : adjoint_) one = take();
    source_grad_ = call.source_grad ? take() : nullptr;
    T* const inputs[2] = {take(), take()};
    for (int s = 0; s <= last; ++s) {
      rate_grad_.push_back(s < last ? take() : nullptr);
      input_grad_.push_back(s && !pass.adds ? take() : nullptr);
      at_.input.push_back(inputs[s % 2]);
      at_.rate.push_back(remakes_ && !pass.adds ? take() : nullptr);
    }
    at_.source = source;
    at_.columns = pass.columns(slice);
    at_.rate_grad.resize(spec_.stages);
    at_.scale_products = scale_sums ? &scale_products_ : nullptr;
    at_.diagonal_products = diagonal_sums ? &diagonal_products_ : nullptr;
    remade_ = next;
    states_ = spec_.keeps_states() ? call.kept + slice * spec_.kept_maps() * map_ : remade_;
    load_slice(spec_, slice, call.x, x_);
    if (source) load_slice(spec_, slice, call.source, source);
    if (source_grad_) std::fill(source_grad_, source_grad_ + map_, T(0));
    if (remakes_ && !spec_.keeps_states()) remake_states();
    load_slice(spec_, slice, call.out_grad.back(), adjoint_[0]);
  }

  void step(int i) {
    std::vector<Adjoint<T, I>> adjoints;
    for (int s = spec_.stages; s-- > 0;) add_adjoint(i, s, adjoints);
    pass_.run(back_ranges_, pass_.kernels.adjoint, adjoints);
    std::vector<Evaluation<T, I>> stages;
    for (int s = 0; s < spec_.stages; ++s) {
      // products are those of one slot, and gradients of edges need the inputs of their stage
      if (s && (call_.value_grad || pass_.slot(i, s) != pass_.slot(i, s - 1)))
        pass_.run(ranges_, pass_.kernels.evaluate, std::exchange(stages, {}));
      add_stage(i, s, stages);
    }
    pass_.run(ranges_, pass_.kernels.evaluate, stages);
    finish(i);
  }

  void adjoint(int i, int s) {
    std::vector<Adjoint<T, I>> adjoints;
    add_adjoint(i, s, adjoints);
    pass_.run(back_ranges_, pass_.kernels.adjoint, adjoints);
  }

  // From the gradient of the rate of stage s of step i to that of the stage before it, or of the step's state. The last
  // stage comes first: no other reads its rate.
  void add_adjoint(int i, int s, std::vector<Adjoint<T, I>>& adjoints) {
    const int slot = pass_.slot(i, s), last = spec_.stages - 1;
    if (slot != scaled_for_) {  // those before are done before their values are lost
      pass_.run(back_ranges_, pass_.kernels.adjoint, std::exchange(adjoints, {}));
      scaled_ = transpose_.scaled(pass_.scale(slot), values_);
    }
    scaled_for_ = slot;
    at_.state = state(i);
    Adjoint<T, I> a{};
    a.transpose = scaled_;
    at_.rate_grad[s] =
        s < last ? ScaledMap<T>{rate_grad_[s], T(1)} : ScaledMap<T>{adjoint_[0], static_cast<T>(spec_.update[last])};
    a.rate_grad = at_.rate_grad[s].map;
    a.factor = a.rate_factor = at_.rate_grad[s].factor;
    a.diagonal = pass_.diagonal(slot);
    a.columns = at_.columns;
    if ((last - s) % 2 == 0) a.source_grad = source_grad_;  // two stages at once
    a.input_grad = input_grad_[s];
    const bool added = pass_.adds && s < last;
    a.base = s == 0 && added ? adjoint_[1] : adjoint_[0];
    a.base_factor = s ? static_cast<T>(spec_.update[s - 1]) : T(1);
    a.own = s ? static_cast<T>(spec_.rows[s][s - 1]) : T(1);
    for (int r = s + 1; r <= last && !pass_.adds; ++r)
      if (const double factor = s ? spec_.rows[r][s - 1] : 1.0) a.later.add(input_grad_[r], factor);
    if (pass_.adds && s) {
      a.total_base = added ? adjoint_[1] : adjoint_[0];
      a.total = adjoint_[1];
    }
    if (s) {
      a.to.rate_grad = rate_grad_[s - 1];
    } else {
      a.next = adjoint_[1];
      if (remakes_) a.soon = at_.state;
    }
    adjoints.push_back(a);
  }

  // Stage s of step i again, after the gradients of its rates; the stages are taken in their order.
  void stage(int i, int s) {
    std::vector<Evaluation<T, I>> stages;
    add_stage(i, s, stages);
    pass_.run(ranges_, pass_.kernels.evaluate, stages);
  }
  void add_stage(int i, int s, std::vector<Evaluation<T, I>>& stages) {
    if (!remakes_) return;
    if (call_.value_grad) {
      const auto [map, factor] = rate_grad(s);
      const EdgeGradient<T, I> edges{
          call_.graph.indptr, call_.graph.indices, pass_.scale(pass_.slot(i, s)), map, factor,
          at_.input_of(s),    call_.value_grad};
      ranges_.run([&](int64_t first, int64_t last) { pass_.kernels.edges(edges, first, last); });
    }
    pass_.add_stage(i, s, at_, stages);
  }

  // The input of stage s, until the stage after it is made, and the gradient of its rate.
  const T* input(int s) const { return at_.input_of(s); }
  const ScaledMap<T>& rate_grad(int s) const { return at_.rate_grad[s]; }

  // After the stages of step i.
  void finish(int i) {
    std::swap(adjoint_[0], adjoint_[1]);
    if (call_.out_grad.size() > 1) load_slice(spec_, slice_, call_.out_grad[i], adjoint_[0], true);
    if (i) return;
    scale_products_.finish();
    diagonal_products_.finish();
    if (call_.x_grad) store_slice(spec_, slice_, adjoint_[0], call_.x_grad);
    if (source_grad_) store_slice(spec_, slice_, source_grad_, call_.source_grad);
  }

 private:
  const T* state(int i) const { return i ? states_ + (i - 1) * map_ : x_; }

  void remake_states() {
    StepPlaces<T, I> at = at_;
    at.scale_products = at.diagonal_products = nullptr;
    for (int i = 0; i + 1 < spec_.n_steps; ++i) {
      at.state = state(i);
      at.next = remade_ + i * map_;
      std::vector<Evaluation<T, I>> calls;
      pass_.add_step(i, at, calls);
      pass_.run(ranges_, pass_.kernels.evaluate, calls);
    }
  }

  const GraphPass<T, I>& pass_;
  const GraphSpec& spec_;
  const GraphBackward<T, I>& call_;
  const SortedRows<T, I>& transpose_;
  const int64_t slice_, map_;
  ProductSums<T, I> scale_products_, diagonal_products_;
  const RowRanges ranges_, back_ranges_;
  bool remakes_;
  Buffer<T> memory_, values_;
  SparseRows<T, I> scaled_;  // the transpose, its values times the scale of a slot
  int scaled_for_ = -1;
  T *x_, *adjoint_[2], *source_grad_, *remade_;
  const T* states_;
  std::vector<T*> rate_grad_, input_grad_;  // [stage]; the last rate's gradient is that of the state, times a factor
  StepPlaces<T, I> at_{};
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
  const GraphPass<T, I> pass(spec, kernels, graph, call.scale, call.diagonal, call.mixing);
  const int64_t slots = static_cast<int64_t>(spec.grid.slots.size());
  SliceSums<T> scales(spec, slots, call.scale_grad), diagonals(spec, slots, call.diagonal_grad);
  const bool in_order = call.value_grad;  // slices add to the gradients of edges in their order
  using Slice = BackwardSlice<T, I>;
  const auto make = [&](int64_t slice) {
    return std::make_unique<Slice>(pass, call, transpose, slice, scales.of(slice), diagonals.of(slice));
  };
  if (spec.by_stage || call.mixing_grad) {
    std::vector<std::unique_ptr<Slice>> slices(spec.slices());
    MixingGradient<T, I> mixing(spec, kernels, call.mixing_grad, 2);
    const auto each = [&](auto&& f) { over_slices(spec, in_order, [&](int64_t slice) { f(slices[slice]); }); };
    over_slices(spec, in_order, [&](int64_t slice) { slices[slice] = make(slice); });
    for (int i = spec.n_steps; i-- > 0;) {
      for (int s = spec.stages; s-- > 0;) each([&](auto& one) { one->adjoint(i, s); });
      for (int s = 0; s < spec.stages; ++s) {
        mixing.add(slices, s, s + 1 == spec.stages);
        each([&](auto& one) { one->stage(i, s); });
      }
      each([&](auto& one) { one->finish(i); });
    }
    mixing.finish({1.0, spec.update.back()});
  } else {
    over_slices(spec, in_order, [&](int64_t slice) {
      const auto one = make(slice);
      for (int i = spec.n_steps; i-- > 0;) one->step(i);
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
