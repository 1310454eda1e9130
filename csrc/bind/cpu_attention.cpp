// Registers the C++ implementation of attention along the edges of a graph.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "cpu/graph/attention.h"
#include "runtime/isa.h"
#include "runtime/runs.h"

namespace contnet_fast {
namespace {

constexpr const char *kOp = "graph_attention_cpu", *kBackwardOp = "graph_attention_backward_cpu";

// Places of the tensors of a graph (contnet_fast/graphs/products.py, Rows), and of the tensors with gradients.
enum Edges { kIndptr, kIndices, kBackIndptr, kBackIndices, kBackPlaces, kEdges };
enum Place { kTargets, kSources, kStates, kPlaces };

template <typename T, typename I>
const AttentionKernels<T, I>& choose_kernels(int64_t width) {
#ifdef CONTNET_FAST_X86
  if (instruction_set() >= Isa::avx512) return avx512::attention_kernels<T, I>(width);
  if (instruction_set() == Isa::avx2) return avx2::attention_kernels<T, I>(width);
#endif
  return portable::attention_kernels<T, I>(width);
}

// The arguments of both ops, checked, as contiguous tensors of the type that is computed in.
struct Arguments {
  AttentionSpec spec{};
  at::ScalarType type;
  at::Tensor targets, sources, states, factors;
  std::vector<at::Tensor> edges;

  Arguments(const char* op, const at::Tensor& given_targets, const at::Tensor& given_sources,
            const std::optional<at::Tensor>& given_states, const std::optional<at::Tensor>& given_factors,
            at::TensorList graph, double slope) {
    const bool wide = given_targets.scalar_type() == at::kDouble ||
                      (given_states.has_value() && given_states->scalar_type() == at::kDouble);
    type = wide ? at::kDouble : at::kFloat;
    targets = plain(given_targets);
    sources = plain(given_sources);
    if (given_states.has_value()) states = plain(*given_states);
    if (given_factors.has_value()) factors = plain(*given_factors);
    for (const at::Tensor& part : graph) edges.push_back(part.contiguous());
    check(op);
    spec.nodes = targets.size(0);
    spec.edges = edges[kIndices].numel();
    spec.heads = targets.size(1);
    spec.depth = targets.dim() == 3 ? targets.size(2) : 0;
    spec.width = states.defined() ? states.size(-1) : 0;
    spec.mean = !states.defined() || states.dim() == 2;
    spec.slope = slope;
  }

  bool empty() const { return targets.numel() == 0 || (states.defined() && states.numel() == 0); }
  std::vector<int64_t> result_sizes() const {
    return states.defined() ? states.sizes().vec() : std::vector<int64_t>{spec.edges};
  }
  template <typename I>
  AttentionEdges<I> rows() const {
    return {edges[kIndptr].const_data_ptr<I>(), edges[kIndices].const_data_ptr<I>(),
            edges[kBackIndptr].const_data_ptr<I>(), edges[kBackIndices].const_data_ptr<I>(),
            edges[kBackPlaces].const_data_ptr<I>()};
  }
  template <typename T>
  static const T* data(const at::Tensor& t) {
    return t.defined() ? t.const_data_ptr<T>() : nullptr;
  }
  at::Tensor plain(const at::Tensor& t) const { return t.to(type).resolve_neg().contiguous(); }

 private:
  void check(const char* op) const {
    TORCH_CHECK((targets.dim() == 2 || targets.dim() == 3) && targets.sizes() == sources.sizes(), op,
                ": targets and sources of shapes ", targets.sizes(), " and ", sources.sizes());
    TORCH_CHECK(edges.size() == kEdges, op, ": ", edges.size(), " tensors of a graph");
    const int64_t n = targets.size(0), count = edges[kIndices].numel();
    for (int k = 0; k < kEdges; ++k) {
      const bool starts = k == kIndptr || k == kBackIndptr;
      TORCH_CHECK(edges[k].scalar_type() == edges[0].scalar_type() && edges[k].numel() == (starts ? n + 1 : count) &&
                      (!starts || edges[k].select(0, n).item<int64_t>() == count),
                  op, ": a graph of other sizes or integers");
    }
    TORCH_CHECK(!states.defined() || (states.size(0) == n &&
                                      (states.dim() == 2 || (states.dim() == 3 && states.size(1) == targets.size(1)))),
                op, ": states of shape ", states.sizes());
    TORCH_CHECK(
        !factors.defined() || (factors.dim() == 2 && factors.size(0) == count && factors.size(1) == targets.size(1)),
        op, ": factors of shape ", factors.sizes());
  }
};

// Calls f(T, I), values of the types of numbers and indices.
template <typename F>
void dispatch(const Arguments& a, const F& f) {
  AT_DISPATCH_FLOATING_TYPES(a.type, kOp, [&] {
    if (a.edges[kIndptr].scalar_type() == at::kInt)
      f(scalar_t{}, int32_t{});
    else
      f(scalar_t{}, int64_t{});
  });
}

template <typename T, typename I>
AttentionChoice<T, I> kernels_of(const AttentionSpec& spec) {
  return {choose_kernels<T, I>(spec.depth), choose_kernels<T, I>(spec.width)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& targets, const at::Tensor& sources,
                                                       const std::optional<at::Tensor>& states,
                                                       const std::optional<at::Tensor>& factors, at::TensorList graph,
                                                       double slope) {
  record("graph_attention", "cpu", "stage");
  const Arguments a(kOp, targets, sources, states, factors, graph, slope);
  const auto options = a.targets.options();
  const at::Tensor result = a.empty() ? at::zeros(a.result_sizes(), options) : at::empty(a.result_sizes(), options);
  const at::Tensor largest = at::empty({a.spec.nodes, a.spec.heads}, options), sums = at::empty_like(largest);
  dispatch(a, [&](auto t, auto index) {
    using T = decltype(t);
    using I = decltype(index);
    if (a.empty()) return;
    attention<T, I>(a.spec, kernels_of<T, I>(a.spec),
                    {a.rows<I>(), a.data<T>(a.targets), a.data<T>(a.sources), a.data<T>(a.states), a.data<T>(a.factors),
                     result.mutable_data_ptr<T>(), largest.mutable_data_ptr<T>(), sums.mutable_data_ptr<T>()});
  });
  return {result.to(states.has_value() ? states->scalar_type() : targets.scalar_type()), largest, sums};
}

std::vector<at::Tensor> backward(const at::Tensor& grad, const at::Tensor& targets, const at::Tensor& sources,
                                 const std::optional<at::Tensor>& states, const std::optional<at::Tensor>& factors,
                                 at::TensorList graph, double slope, const at::Tensor& largest, const at::Tensor& sums,
                                 at::IntArrayRef wanted) {
  record("graph_attention_backward", "cpu", "stage");
  const Arguments a(kBackwardOp, targets, sources, states, factors, graph, slope);
  TORCH_CHECK(grad.sizes() == at::IntArrayRef(a.result_sizes()), kBackwardOp, ": a gradient of shape ", grad.sizes());
  TORCH_CHECK(largest.scalar_type() == a.type && sums.scalar_type() == a.type &&
                  largest.numel() == a.spec.nodes * a.spec.heads && sums.numel() == largest.numel(),
              kBackwardOp, ": other maxima and sums than of forward");
  const at::Tensor upstream = a.plain(grad), most = largest.contiguous(), totals = sums.contiguous();
  const at::Tensor* given[kPlaces] = {&a.targets, &a.sources, &a.states};
  at::Tensor by_place[kPlaces];
  for (int64_t place : wanted) {
    TORCH_CHECK(place >= 0 && place < kPlaces && given[place]->defined(), kBackwardOp, ": no gradient of tensor ",
                place);
    by_place[place] = a.empty() ? at::zeros_like(*given[place]) : at::empty_like(*given[place]);
  }
  dispatch(a, [&](auto t, auto index) {
    using T = decltype(t);
    using I = decltype(index);
    const auto out = [&](int place) {
      return by_place[place].defined() ? by_place[place].template mutable_data_ptr<T>() : nullptr;
    };
    if (a.empty()) return;
    attention_backward<T, I>(
        a.spec, kernels_of<T, I>(a.spec),
        {a.rows<I>(), a.data<T>(a.targets), a.data<T>(a.sources), a.data<T>(a.states), a.data<T>(a.factors),
         a.data<T>(upstream), a.data<T>(most), a.data<T>(totals), out(kTargets), out(kSources), out(kStates)});
  });
  std::vector<at::Tensor> all;
  for (int64_t place : wanted) {
    const at::ScalarType own =
        place == kStates ? states->scalar_type() : (place == kTargets ? targets : sources).scalar_type();
    all.push_back(by_place[place].to(own));
  }
  return all;
}

}  // namespace
}  // namespace contnet_fast

TORCH_LIBRARY_IMPL(contnet_fast, CPU, m) {
  m.impl(contnet_fast::kOp, TORCH_FN(contnet_fast::forward));
  m.impl(contnet_fast::kBackwardOp, TORCH_FN(contnet_fast::backward));
}
