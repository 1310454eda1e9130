// Attention along edges: rows are the work of one thread each, and their edges are summed in their order, so that results
// are the same bits for any number of threads.
#include "cpu/graph/attention.h"

#include <algorithm>
#include <cmath>

#include "cpu/graph/row_ranges.h"
#include "runtime/pool.h"

namespace contnet_fast {
namespace {

constexpr int64_t kBlockValues = 2048;  // numbers of edges and heads of a block of rows, unless one row has more

// Maps [nodes][heads][width] whose width is a multiple of `lanes`: those given, or a copy with zeros.
template <typename T>
class Maps {
 public:
  Maps(const T* given, int64_t nodes, int64_t heads, int64_t features, int lanes)
      : width((features + lanes - 1) / lanes * lanes), data(given) {
    if (!given || width == features) return;
    copy_.resize(nodes * heads * width);
    for (int64_t i = 0; i < nodes * heads; ++i) {
      T* own = copy_.data() + i * width;
      std::copy_n(given + i * features, features, own);
      std::fill(own + features, own + width, T(0));
    }
    data = copy_.data();
  }
  const int64_t width;
  const T* data;

 private:
  Buffer<T> copy_;
};

// Where such maps are written: the place given, or memory that `finish` copies from.
template <typename T>
class Written {
 public:
  Written(T* place, int64_t nodes, int64_t heads, int64_t features, int64_t width)
      : data(place), place_(place), count_(nodes * heads), features_(features), width_(width) {
    if (!place || width == features) return;
    copy_.resize(count_ * width);
    data = copy_.data();
  }
  void finish() const {
    if (data == place_) return;
    for (int64_t i = 0; i < count_; ++i) std::copy_n(data + i * width_, features_, place_ + i * features_);
  }
  T* data;

 private:
  T* const place_;
  const int64_t count_, features_, width_;
  Buffer<T> copy_;
};

// Calls f(block, numbers, size) for blocks of rows, on several threads: `parts` arrays of `size` numbers lie in `numbers`.
template <typename T, typename I, typename F>
void over_blocks(const I* indptr, const I* indices, const AttentionSpec& spec, int parts, const F& f) {
  const RowRanges ranges(indptr, spec.nodes, spec.heads * (spec.depth + 1) + spec.maps() * spec.width);
  ranges.run([&](int64_t first, int64_t last) {
    while (first < last) {
      EdgeBlock<I> block{indptr, indices, first, first + 1};
      while (block.last < last && (int64_t(indptr[block.last + 1]) - indptr[first]) * spec.heads <= kBlockValues)
        ++block.last;
      const int64_t size = block.count() * spec.heads + kSlack / int64_t(sizeof(T));
      f(block, thread_scratch<T>(parts * size), size);
      first = block.last;
    }
  });
}

template <typename T>
T factor_of(const AttentionSpec& spec) {
  return static_cast<T>(1.0 / std::sqrt(static_cast<double>(spec.depth)));
}

// The scores of a block; slopes, of sums alone, may be null.
template <typename T, typename I>
void scores_of(const AttentionSpec& spec, const AttentionKernels<T, I>& kernels, const EdgeBlock<I>& block,
               const Maps<T>& rows, const Maps<T>& columns, T* scores, T* slopes) {
  if (spec.depth)
    kernels.dots(block, spec.heads, rows.width, rows.data, columns.data, factor_of<T>(spec), scores);
  else
    kernels.additive(block, spec.heads, rows.data, columns.data, static_cast<T>(spec.slope), scores, slopes);
}

// out = weights * factors, or their mean over heads for each edge.
template <typename T, typename I>
void factored(const AttentionSpec& spec, const EdgeBlock<I>& block, const T* weights, const T* factors, T* out) {
  const int64_t heads = spec.heads, count = block.count();
  if (factors) factors += block.begin() * heads;
  if (!spec.mean) {
    for (int64_t t = 0; t < count * heads; ++t) out[t] = factors ? weights[t] * factors[t] : weights[t];
    return;
  }
  const T share = T(1) / static_cast<T>(heads);
  for (int64_t e = 0; e < count; ++e, weights += heads) {
    T sum = 0;
    for (int64_t h = 0; h < heads; ++h) sum += factors ? weights[h] * factors[h] : weights[h];
    if (factors) factors += heads;
    out[e] = sum * share;
  }
}

// Gradients of weights for those of what `factored` gives; in place where both are [edges][heads].
template <typename T, typename I>
void factored_backward(const AttentionSpec& spec, const EdgeBlock<I>& block, const T* grad, const T* factors, T* out) {
  const int64_t heads = spec.heads, count = block.count();
  if (factors) factors += block.begin() * heads;
  const T share = T(1) / static_cast<T>(heads);
  for (int64_t e = 0, t = 0; e < count; ++e)
    for (int64_t h = 0; h < heads; ++h, ++t) {
      const T own = spec.mean ? grad[e] * share : grad[t];
      out[t] = factors ? own * factors[t] : own;
    }
}

// The backward pass, over rows and then over columns.
template <typename T, typename I>
class Backward {
 public:
  Backward(const AttentionSpec& spec, const AttentionChoice<T, I>& kernels, const AttentionBackward<T, I>& call)
      : spec_(spec),
        kernels_(kernels),
        call_(call),
        rows_(call.rows, spec.nodes, spec.heads, spec.depth, kernels.scores.lanes),
        columns_(call.columns, spec.nodes, spec.heads, spec.depth, kernels.scores.lanes),
        states_(call.states, spec.nodes, spec.maps(), spec.width, kernels.states.lanes),
        grad_(spec.width ? call.grad : nullptr, spec.nodes, spec.maps(), spec.width, kernels.states.lanes),
        row_grad_(call.row_grad, spec.nodes, spec.heads, spec.depth, rows_.width),
        column_grad_(call.column_grad, spec.nodes, spec.heads, spec.depth, rows_.width),
        state_grad_(call.state_grad, spec.nodes, spec.maps(), spec.width, states_.width) {
    if (call.column_grad) score_grads_.resize(spec.edges * spec.heads);
    if (call.state_grad) weights_.resize(spec.edges * spec.maps());
  }

  void run() {
    const AttentionEdges<I>& edges = call_.edges;
    over_blocks<T>(edges.indptr, edges.indices, spec_, 4,
                   [&](const EdgeBlock<I>& block, T* numbers, int64_t size) { by_row(block, numbers, size); });
    if (call_.column_grad || call_.state_grad)
      over_blocks<T>(edges.back_indptr, edges.back_indices, spec_, 1,
                     [&](const EdgeBlock<I>& block, T* numbers, int64_t) { by_column(block, numbers); });
    for (const Written<T>* one : {&row_grad_, &column_grad_, &state_grad_}) one->finish();
  }

 private:
  void by_row(const EdgeBlock<I>& block, T* numbers, int64_t size) {
    T *weights = numbers, *grad = numbers + size, *slopes = numbers + 2 * size, *sums = numbers + 3 * size;
    const int64_t heads = spec_.heads, count = block.count();
    scores_of(spec_, kernels_.scores, block, rows_, columns_, weights, slopes);
    kernels_.scores.weights(block, heads, weights, call_.largest, call_.sums);
    if (call_.state_grad)
      factored(spec_, block, weights, call_.factors, weights_.data() + block.begin() * spec_.maps());
    if (!call_.row_grad && !call_.column_grad) return;
    if (spec_.width)
      kernels_.states.dots(block, spec_.maps(), states_.width, grad_.data, states_.data, T(1), sums);
    else
      std::copy_n(call_.grad + block.begin(), count, sums);
    factored_backward(spec_, block, sums, call_.factors, grad);
    kernels_.scores.gradient(block, heads, weights, grad);
    if (!spec_.depth)
      for (int64_t t = 0; t < count * heads; ++t) grad[t] *= slopes[t];
    if (call_.column_grad) std::copy_n(grad, count * heads, score_grads_.data() + block.begin() * heads);
    if (call_.row_grad) summed(block, grad, columns_, row_grad_.data);
  }

  void by_column(const EdgeBlock<I>& block, T* numbers) {
    if (call_.column_grad) {
      gather(block, score_grads_.data(), spec_.heads, numbers);
      summed(block, numbers, rows_, column_grad_.data);
    }
    if (call_.state_grad) {
      gather(block, weights_.data(), spec_.maps(), numbers);
      kernels_.states.sums(block, spec_.maps(), states_.width, numbers, grad_.data, T(1), state_grad_.data);
    }
  }

  void summed(const EdgeBlock<I>& block, const T* grad, const Maps<T>& others, T* out) const {
    if (spec_.depth)
      kernels_.scores.sums(block, spec_.heads, others.width, grad, others.data, factor_of<T>(spec_), out);
    else
      kernels_.scores.totals(block, spec_.heads, grad, out);
  }

  // [edges][heads] by rows, into the order of the block's columns
  void gather(const EdgeBlock<I>& block, const T* numbers, int64_t heads, T* out) const {
    const I* places = call_.edges.back_places + block.begin();
    for (int64_t t = 0; t < block.count(); ++t)
      for (int64_t h = 0; h < heads; ++h) out[t * heads + h] = numbers[places[t] * heads + h];
  }

  const AttentionSpec& spec_;
  const AttentionChoice<T, I>& kernels_;
  const AttentionBackward<T, I>& call_;
  const Maps<T> rows_, columns_, states_, grad_;
  const Written<T> row_grad_, column_grad_, state_grad_;
  Buffer<T> score_grads_, weights_;  // by rows
};

}  // namespace

template <typename T, typename I>
void attention(const AttentionSpec& spec, const AttentionChoice<T, I>& kernels, const AttentionForward<T, I>& call) {
  const Maps<T> rows(call.rows, spec.nodes, spec.heads, spec.depth, kernels.scores.lanes);
  const Maps<T> columns(call.columns, spec.nodes, spec.heads, spec.depth, kernels.scores.lanes);
  const Maps<T> states(call.states, spec.nodes, spec.maps(), spec.width, kernels.states.lanes);
  const Written<T> result(spec.width ? call.result : nullptr, spec.nodes, spec.maps(), spec.width, states.width);
  over_blocks<T>(call.edges.indptr, call.edges.indices, spec, 2,
                 [&](const EdgeBlock<I>& block, T* weights, int64_t size) {
                   T* sums = spec.width ? weights + size : call.result + block.begin();
                   scores_of<T, I>(spec, kernels.scores, block, rows, columns, weights, nullptr);
                   kernels.scores.softmax(block, spec.heads, weights, call.largest, call.sums);
                   if (spec.mean || call.factors)
                     factored(spec, block, weights, call.factors, sums);
                   else
                     sums = weights;
                   if (spec.width)
                     kernels.states.sums(block, spec.maps(), states.width, sums, states.data, T(1), result.data);
                 });
  result.finish();
}

template <typename T, typename I>
void attention_backward(const AttentionSpec& spec, const AttentionChoice<T, I>& kernels,
                        const AttentionBackward<T, I>& call) {
  Backward<T, I>(spec, kernels, call).run();
}

#define INSTANCE(T, I)                                                                                        \
  template void attention(const AttentionSpec&, const AttentionChoice<T, I>&, const AttentionForward<T, I>&); \
  template void attention_backward(const AttentionSpec&, const AttentionChoice<T, I>&, const AttentionBackward<T, I>&);
INSTANCE(float, int32_t)
INSTANCE(float, int64_t)
INSTANCE(double, int32_t)
INSTANCE(double, int64_t)
#undef INSTANCE

}  // namespace contnet_fast
