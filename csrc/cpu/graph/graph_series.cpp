// H0 + t phi_1(tL) (L H0 + S) by Chebyshev polynomials of L (contnet_fast/functional/chebyshev.py), forward and backward,
// by the kernels of Runge-Kutta stages: with M = f L - c, the states S_0 = L H0 + S, S_1 = M S_0 and
// S_{k+1} = S_{k-1} + k_k of the rates k_k = -+2 M S_k are Chebyshev polynomials up to signs +, +, -, -, ..., and the
// sum of the series is H0 + D_0 S_0 + D_1 S_1 + sum_k D_{k+1} k_k, where D_j adds up every second coefficient from j on.
#include <functional>

#include "cpu/graph/graph_pass.h"

namespace contnet_fast {
namespace {

enum Kind { kPlain, kFirst, kMinus, kPlus, kKinds };  // L, M, -2 M, 2 M

template <typename T, typename I>
class Series {
 public:
  Series(const GraphSpec& spec, const GraphKernels<T, I>& kernels, const T* scale, const T* diagonal, const T* mixing)
      : spec(spec), kernels(kernels), degree(static_cast<int>(spec.terms.size()) - 1) {
    const double f = 2.0 / (spec.high > spec.low ? spec.high - spec.low : 1.0), c = 0.5 * f * (spec.high + spec.low);
    const double times[] = {1.0, 1.0, -2.0, 2.0};
    for (int kind = 0; kind < kKinds; ++kind) {
      factor[kind] = times[kind] * (kind == kPlain ? 1.0 : f);
      columns_of[kind] = column_coefficients(spec, mixing, factor[kind]);
      const double shift = kind == kPlain ? 0.0 : times[kind] * c;
      for (int64_t i = 0; i < spec.nodes; ++i) {
        scales.push_back(static_cast<T>(factor[kind] * scale[i]));
        diagonals.push_back(static_cast<T>(factor[kind] * diagonal[i] - shift));
      }
    }
    sums.assign(degree + 3, 0.0);
    for (int k = degree; k >= 0; --k) sums[k] = sums[k + 2] + spec.terms[k] * (k % 4 < 2 ? 1.0 : -1.0);
  }
  // Of the evaluation of S_k; the one before S_0 is of L.
  static Kind kind(int k) { return k < 0 ? kPlain : k == 0 ? kFirst : k % 2 ? kMinus : kPlus; }
  const T* scale(int k) const { return scales.data() + kind(k) * spec.nodes; }
  const T* diagonal(int k) const { return diagonals.data() + kind(k) * spec.nodes; }
  const T* columns(int k, int64_t slice) const {
    const std::vector<T>& found = columns_of[kind(k)];
    return found.empty() ? nullptr : found.data() + slice * spec.width;
  }

  const GraphSpec& spec;
  const GraphKernels<T, I>& kernels;
  const int degree;
  double factor[kKinds];
  std::vector<T> scales, diagonals;   // [kind][nodes]
  std::vector<T> columns_of[kKinds];  // column_coefficients
  std::vector<double> sums;           // D
};

// Maps that are kept: S_0, ..., S_{degree - 1}, then A H0, A S_0, ..., A S_{degree - 1}.
template <typename T, typename I>
void forward_slice(const Series<T, I>& series, const SparseRows<T, I>& graph, const GraphForward<T, I>& call,
                   int64_t slice) {
  const GraphSpec& spec = series.spec;
  const RowRanges ranges(graph.indptr, spec.nodes, spec.width);
  const int64_t map = spec.map();
  const bool keeps = spec.keep != Keep::nothing;
  Buffer<T> memory(7 * map);
  T* work = memory.data();
  T *state = work, *source = call.source ? work + map : nullptr, *total = work + 2 * map, *ring = work + 3 * map;
  T* kept = call.kept + slice * spec.kept_maps() * map;
  const auto place = [&](int k) { return keeps && k < series.degree ? kept + k * map : ring + (k % 3) * map; };
  const auto product = [&](int k) { return keeps ? kept + (series.degree + 1 + k) * map : nullptr; };
  load_slice(spec, slice, call.x, state);
  if (source) load_slice(spec, slice, call.source, source);
  for (int k = -1; k < series.degree; ++k) {
    Evaluation<T, I> e{};
    e.graph = graph;
    e.scale = series.scale(k);
    e.diagonal = series.diagonal(k);
    e.columns = series.columns(k, slice);
    e.input = k < 0 ? state : place(k);
    e.product = product(k);
    if (k < 0) {
      e.source = source;
      e.rate = place(0);
    } else if (k == 0) {
      e.rate = place(1);
      e.base = state;
      e.earlier.add(place(0), series.sums[0]);
      e.own = static_cast<T>(series.sums[1]);
      e.next = total;
    } else {
      e.base = place(k - 1);
      e.own = T(1);
      e.next = place(k + 1);
      e.total_base = total;
      e.total_own = static_cast<T>(series.sums[k + 1]);
      e.total = total;
    }
    ranges.run([&](int64_t first, int64_t last) { series.kernels.evaluate(e, first, last); });
  }
  store_slice(spec, slice, total, call.out[0]);
}

template <typename T, typename I>
class SeriesSlice {
 public:
  SeriesSlice(const Series<T, I>& series, const SparseRows<T, I>& transpose, const GraphBackward<T, I>& call,
              int64_t slice, T* scale_sums, T* diagonal_sums)
      : series_(series),
        spec_(series.spec),
        transpose_(transpose),
        call_(call),
        slice_(slice),
        map_(spec_.map()),
        scale_products_(spec_, series.kernels, scale_sums),
        diagonal_products_(spec_, series.kernels, diagonal_sums),
        ranges_(transpose.indptr, spec_.nodes, spec_.width),
        memory_(10 * map_),
        kept_(call.kept + slice * spec_.kept_maps() * map_) {
    T* work = memory_.data();
    const auto take = [&] { return std::exchange(work, work + map_); };
    for (T** one : {&state_, &grad_, &x_grad_, &rate_grad_[0], &rate_grad_[1]}) *one = take();
    source_grad_ = call.source_grad ? take() : nullptr;
    for (T*& one : later_) one = take();
    std::fill(later_[0], later_[0] + 3 * map_, T(0));
    if (source_grad_) std::fill(source_grad_, source_grad_ + map_, T(0));
    load_slice(spec_, slice, call.x, state_);
    load_slice(spec_, slice, call.out_grad[0], grad_);
    Adjoint<T, I> a{};  // the gradient of the last rate is D_degree times that of the result
    a.transpose = transpose;
    a.base = grad_;
    a.base_factor = static_cast<T>(series.sums[series.degree]);
    a.to = rate_adjoint(series.degree - 1);
    ranges_.run([&](int64_t first, int64_t last) { series.kernels.adjoint(a, first, last); });
  }

  // Of the evaluation of S_k: its input, and after those of higher k the gradient of its rate.
  const T* input(int k) const { return k < 0 ? state_ : kept_ + k * map_; }
  ScaledMap<T> rate_grad(int k) const { return {rate_grad_[(k + 1) % 2], T(1)}; }

  // From the gradient of that rate to the one before it.
  void evaluation(int k) {
    if (call_.value_grad) {
      const EdgeGradient<T, I> edges{call_.graph.indptr, call_.graph.indices, series_.scale(k), rate_grad(k).map, T(1),
                                     input(k),           call_.value_grad};
      const RowRanges rows(call_.graph.indptr, spec_.nodes, spec_.width);
      rows.run([&](int64_t first, int64_t last) { series_.kernels.edges(edges, first, last); });
    }
    Adjoint<T, I> a{};
    a.transpose = transpose_;
    a.base = grad_;
    a.factor = static_cast<T>(series_.factor[series_.kind(k)]);
    a.rate_grad = rate_grad(k).map;
    a.rate_factor = T(1);
    a.diagonal = series_.diagonal(k);
    a.columns = series_.columns(k, slice_);
    a.own = T(1);
    if (k < 0) {
      a.base_factor = T(1);
      a.source_grad = source_grad_;
      a.next = x_grad_;
    } else {
      T* carried = later_[(k + 2) % 3];
      a.base_factor = static_cast<T>(series_.sums[k]);
      a.later.add(carried, 1.0);
      a.total_base = carried;
      a.total = later_[k % 3];
      a.to = rate_adjoint(k - 1);
    }
    ranges_.run([&](int64_t first, int64_t last) { series_.kernels.adjoint(a, first, last); });
    if (k >= 0) return;
    scale_products_.finish();
    diagonal_products_.finish();
    if (call_.x_grad) store_slice(spec_, slice_, x_grad_, call_.x_grad);
    if (source_grad_) store_slice(spec_, slice_, source_grad_, call_.source_grad);
  }

 private:
  RateAdjoint<T> rate_adjoint(int k) {
    RateAdjoint<T> to{};
    to.rate_grad = rate_grad_[(k + 1) % 2];
    to.product = kept_ + (series_.degree + 1 + k) * map_;
    to.input = input(k);
    to.factor = static_cast<T>(series_.factor[series_.kind(k)]);
    to.scale_products = scale_products_.of(0);
    to.diagonal_products = diagonal_products_.of(0);
    return to;
  }

  const Series<T, I>& series_;
  const GraphSpec& spec_;
  const SparseRows<T, I>& transpose_;
  const GraphBackward<T, I>& call_;
  const int64_t slice_, map_;
  ProductSums<T, I> scale_products_, diagonal_products_;
  const RowRanges ranges_;
  Buffer<T> memory_;
  const T* kept_;
  T *state_, *grad_, *x_grad_, *source_grad_, *rate_grad_[2];
  T* later_[3];  // the gradients of S_k, S_{k+1}, S_{k+2}, each at k % 3
};

}  // namespace

template <typename T, typename I>
void graph_series(const GraphSpec& spec, const GraphKernels<T, I>& kernels, const GraphForward<T, I>& call) {
  const SortedRows<T, I> graph(call.graph, spec.nodes);
  const Series<T, I> series(spec, kernels, call.scale, call.diagonal, call.mixing);
  over_slices(spec, false, [&](int64_t slice) { forward_slice(series, graph.rows, call, slice); });
}

template <typename T, typename I>
void graph_series_backward(const GraphSpec& spec, const GraphKernels<T, I>& kernels, const GraphBackward<T, I>& call) {
  const SortedRows<T, I> transpose(call.transpose, spec.nodes);
  Buffer<T> values;
  const SparseRows<T, I> scaled = transpose.scaled(call.scale, values);
  const Series<T, I> series(spec, kernels, call.scale, call.diagonal, call.mixing);
  SliceSums<T> scales(spec, 1, call.scale_grad), diagonals(spec, 1, call.diagonal_grad);
  const bool in_order = call.value_grad;
  using Slice = SeriesSlice<T, I>;
  const auto make = [&](int64_t slice) {
    return std::make_unique<Slice>(series, scaled, call, slice, scales.of(slice), diagonals.of(slice));
  };
  if (call.mixing_grad) {  // of which pairs of slices are at the same evaluation
    std::vector<std::unique_ptr<Slice>> slices(spec.slices());
    MixingGradient<T, I> mixing(spec, kernels, call.mixing_grad, kKinds);
    over_slices(spec, in_order, [&](int64_t slice) { slices[slice] = make(slice); });
    for (int k = series.degree - 1; k >= -1; --k) {
      mixing.add(slices, k, series.kind(k));
      over_slices(spec, in_order, [&](int64_t slice) { slices[slice]->evaluation(k); });
    }
    mixing.finish({series.factor, series.factor + kKinds});
  } else {
    over_slices(spec, in_order, [&](int64_t slice) {
      const auto one = make(slice);
      for (int k = series.degree - 1; k >= -1; --k) one->evaluation(k);
    });
  }
  for (const auto& [sums, grad] : {std::pair{&scales, call.scale_grad}, std::pair{&diagonals, call.diagonal_grad}})
    if (grad) std::transform(sums->total(), sums->total() + spec.nodes, grad, grad, std::plus<T>());
}

#define INSTANCE(T, I)                                                                                \
  template void graph_series(const GraphSpec&, const GraphKernels<T, I>&, const GraphForward<T, I>&); \
  template void graph_series_backward(const GraphSpec&, const GraphKernels<T, I>&, const GraphBackward<T, I>&);
INSTANCE(float, int32_t)
INSTANCE(float, int64_t)
INSTANCE(double, int32_t)
INSTANCE(double, int64_t)
#undef INSTANCE

}  // namespace contnet_fast
