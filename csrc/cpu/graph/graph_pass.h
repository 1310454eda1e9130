// What the forward and the backward pass of a solve over a graph share: rows by thread, slices of columns, theta(t) at
// each slot of the time grid, the evaluations of a step.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "cpu/graph/graph_solve.h"
#include "cpu/graph/row_ranges.h"
#include "runtime/pool.h"

namespace contnet_fast {

// Compressed rows with those of one degree together, in blocks of rows, so that the length of the loop over a row's edges
// is foreseen; the order of a row's edges stays.
template <typename T, typename I>
class SortedRows {
 public:
  SortedRows(const Graph<T, I>& graph, int64_t n) {
    const auto [indptr, indices, values] = graph;
    nodes_ = n;
    const int64_t edges = indptr[n];
    row_.resize(n);
    indptr_.resize(n + 1);
    indices_.resize(edges);
    values_.resize(edges);
    int64_t place = 0, next = 0;
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t end = std::min(n, begin + kBlock);
      int64_t starts[kDegrees + 1] = {};
      const auto degree = [indptr = indptr](int64_t i) {
        return std::min<int64_t>(indptr[i + 1] - indptr[i], kDegrees - 1);
      };
      for (int64_t i = begin; i < end; ++i) ++starts[degree(i) + 1];
      for (int d = 0; d < kDegrees; ++d) starts[d + 1] += starts[d];
      for (int64_t i = begin; i < end; ++i) row_.data()[begin + starts[degree(i)]++] = static_cast<I>(i);
      for (; place < end; ++place) {
        const int64_t i = row_.data()[place];
        indptr_.data()[place] = static_cast<I>(next);
        for (I e = indptr[i]; e < indptr[i + 1]; ++e, ++next) {
          indices_.data()[next] = indices[e];
          values_.data()[next] = values[e];
          reach = std::max<int64_t>(reach, std::abs(indices[e] / kBlock - begin / kBlock));
        }
      }
    }
    indptr_.data()[n] = static_cast<I>(next);
    rows = {row_.data(), indptr_.data(), indices_.data(), values_.data()};
  }
  SparseRows<T, I> rows;
  static constexpr int64_t kBlock = 256;
  int64_t reach = 0;  // blocks between a row and what its edges lead to, at most

  // The same with every value times what `scale` has at its column.
  SparseRows<T, I> scaled(const T* scale, Buffer<T>& values) const {
    const int64_t edges = indptr_.data()[nodes_];
    values.resize(edges);
    for (int64_t e = 0; e < edges; ++e) values.data()[e] = values_.data()[e] * scale[indices_.data()[e]];
    SparseRows<T, I> result = rows;
    result.values = values.data();
    return result;
  }

 private:
  static constexpr int kDegrees = 64;
  int64_t nodes_;
  Buffer<I> row_, indptr_, indices_;
  Buffer<T> values_;
};

// A slice of columns of [nodes, columns], padded with zeros to [nodes][width].
template <typename T>
void copy_row(T* to, const T* from, int64_t count) {
  constexpr int64_t line = 64 / sizeof(T);  // known at compile time, no call
  count == line ? std::memcpy(to, from, 64) : std::memcpy(to, from, count * sizeof(T));
}
template <typename T>
void load_slice(const GraphSpec& spec, int64_t slice, const T* from, T* to, bool add = false) {
  const int64_t width = spec.width, begin = slice * width, count = std::min(width, spec.columns - begin);
  for (int64_t i = 0; i < spec.nodes; ++i) {
    const T* row = from + i * spec.columns + begin;
    if (add)
      for (int64_t j = 0; j < count; ++j) to[i * width + j] += row[j];
    else
      copy_row(to + i * width, row, count);
    if (!add) std::fill(to + i * width + count, to + (i + 1) * width, T(0));
  }
}
template <typename T>
void store_slice(const GraphSpec& spec, int64_t slice, const T* from, T* to) {
  const int64_t width = spec.width, begin = slice * width, count = std::min(width, spec.columns - begin);
  for (int64_t i = 0; i < spec.nodes; ++i) copy_row(to + i * spec.columns + begin, from + i * width, count);
}

// Calls f(slice): on several threads where there are enough slices, unless they must keep their order.
template <typename F>
void over_slices(const GraphSpec& spec, bool in_order, const F& f) {
  const int64_t slices = spec.slices();
  if (in_order || slices < at::get_num_threads()) {
    for (int64_t slice = 0; slice < slices; ++slice) f(slice);
    return;
  }
  at::parallel_for(0, slices, 1, [&](int64_t first, int64_t last) {
    for (int64_t slice = first; slice < last; ++slice) f(slice);
  });
}

// Sums over columns, [count][nodes], by slice: they are added up in the order of slices, so that they do not depend on
// the number of threads.
template <typename T>
class SliceSums {
 public:
  SliceSums(const GraphSpec& spec, int64_t count, bool wanted)
      : size_(wanted ? count * spec.nodes : 0), slices_(spec.slices()), sums_(size_ * slices_) {}
  T* of(int64_t slice) { return size_ ? sums_.data() + slice * size_ : nullptr; }
  const T* total() {
    for (; added_ < slices_; ++added_)
      for (int64_t i = 0; i < size_; ++i) sums_[i] += sums_[added_ * size_ + i];
    return sums_.data();
  }

 private:
  const int64_t size_, slices_;
  int64_t added_ = 1;
  std::vector<T> sums_;
};

// Products of gradients of rates with what these multiply, added up in a map of zeros, and moved from there to sums over
// columns [count][nodes] whenever another of these is meant.
template <typename T, typename I>
class ProductSums {
 public:
  // sums: null if none are wanted
  ProductSums(const GraphSpec& spec, const GraphKernels<T, I>& kernels, T* sums)
      : spec_(spec), kernels_(kernels), sums_(sums) {
    if (sums) map_.resize(spec.map());
    clear();
  }
  // The map to add to, or null.
  T* of(int index) {
    if (index != index_) finish();
    index_ = index;
    return map_.data();
  }
  void finish() {
    if (!sums_ || index_ < 0) return;
    kernels_.columns(map_.data(), spec_.nodes, sums_ + index_ * spec_.nodes);
    clear();
  }

 private:
  void clear() {
    if (sums_) std::fill(map_.data(), map_.data() + spec_.map(), T(0));
    index_ = -1;
  }
  const GraphSpec& spec_;
  const GraphKernels<T, I>& kernels_;
  T* const sums_;
  Buffer<T> map_;
  int index_ = -1;
};

// The coefficients of columns, the diagonal of a matrix [columns, columns], by slice: [slices][width]; empty without one.
template <typename T>
std::vector<T> column_coefficients(const GraphSpec& spec, const T* mixing, double factor = 1.0) {
  std::vector<T> found(mixing ? spec.slices() * spec.width : 0, T(0));
  for (int64_t j = 0; mixing && j < spec.columns; ++j)
    found[j] = static_cast<T>(factor * mixing[j * (spec.columns + 1)]);
  return found;
}

// The gradient of the matrix by which columns mix, for which all slices are at the same stage: inner products over nodes
// of the columns of inputs with those of gradients of rates, each pair of slices by one thread.
template <typename T, typename I>
class MixingGradient {
 public:
  // kinds: of evaluations, whose rates have a factor each
  MixingGradient(const GraphSpec& spec, const GraphKernels<T, I>& kernels, T* grad, int kinds)
      : spec_(spec), kernels_(kernels), grad_(grad), slices_(spec.slices()), tile_(spec.width * spec.width) {
    if (grad) sums_.assign(kinds * slices_ * slices_ * tile_, T(0));
  }
  template <typename Slices>
  void add(const Slices& slices, int evaluation, int kind) {
    if (!grad_) return;
    const int64_t pairs = slices_ * slices_;
    at::parallel_for(0, pairs, 1, [&](int64_t first, int64_t last) {
      for (int64_t pair = first; pair < last; ++pair)
        kernels_.inner(slices[pair / slices_]->input(evaluation), slices[pair % slices_]->rate_grad(evaluation).map,
                       spec_.nodes, sums_.data() + (kind * pairs + pair) * tile_);
    });
  }
  void finish(const std::vector<double>& factors) const {
    const int64_t width = spec_.width, columns = grad_ ? spec_.columns : 0;
    for (size_t kind = 0; kind < factors.size(); ++kind)
      for (int64_t i = 0; i < columns; ++i)
        for (int64_t j = 0; j < columns; ++j) {
          const int64_t pair = (kind * slices_ + i / width) * slices_ + j / width;
          grad_[i * columns + j] += static_cast<T>(factors[kind]) * sums_[pair * tile_ + i % width * width + j % width];
        }
  }

 private:
  const GraphSpec& spec_;
  const GraphKernels<T, I>& kernels_;
  T* const grad_;
  const int64_t slices_, tile_;
  std::vector<T> sums_;  // [kind][slice][slice][width][width]
};

// A nodal tensor [basis, nodes] at every slot of the time grid, [slots][nodes].
template <typename T>
std::vector<T> mix_slots(const GraphSpec& spec, const T* nodal) {
  std::vector<T> mixed(spec.grid.slots.size() * spec.nodes, T(0));
  for (size_t slot = 0; slot < spec.grid.slots.size(); ++slot)
    for (const auto& [k, w] : spec.grid.slots[slot])
      for (int64_t i = 0; i < spec.nodes; ++i)
        mixed[slot * spec.nodes + i] += static_cast<T>(w) * nodal[k * spec.nodes + i];
  return mixed;
}

// Whether every stage reads the rate before it and no other: the new state is then added up as stages go, and no rate
// is kept.
inline bool reads_one_rate(const GraphSpec& spec) {
  for (int r = 2; r < spec.stages; ++r)
    for (int s = 0; s + 1 < r; ++s)
      if (spec.rows[r][s] != 0.0) return false;
  return true;
}

// A gradient of a rate as factor * map.
template <typename T>
struct ScaledMap {
  const T* map;
  T factor;
};

// Places of one step: its state, inputs of later stages, rates unless every stage reads one alone, the next state; and in
// backward gradients of rates, and their products by slot, null where they are not wanted.
template <typename T, typename I>
struct StepPlaces {
  const T* state;
  std::vector<T*> input, rate;  // [stage]; input[0] is not used
  T* next;                      // null: the step is made again for its inputs alone
  const T *source, *columns;    // of the slice
  const T* soon;                // what the last stage asks for early
  std::vector<ScaledMap<T>> rate_grad;
  ProductSums<T, I>*scale_products, *diagonal_products;
  const T* input_of(int s) const { return s ? input[s] : state; }
};

// The slots of a pass, and one step of it.
template <typename T, typename I>
struct GraphPass {
  const GraphSpec& spec;
  const GraphKernels<T, I>& kernels;
  const SortedRows<T, I>& graph;
  const bool adds;                   // reads_one_rate
  std::vector<T> scales, diagonals;  // [slots][nodes]
  std::vector<T> mixing;             // column_coefficients

  GraphPass(const GraphSpec& spec, const GraphKernels<T, I>& kernels, const SortedRows<T, I>& graph, const T* scale,
            const T* diagonal, const T* mixing)
      : spec(spec),
        kernels(kernels),
        graph(graph),
        adds(reads_one_rate(spec)),
        scales(mix_slots(spec, scale)),
        diagonals(mix_slots(spec, diagonal)),
        mixing(column_coefficients(spec, mixing)) {}

  int slot(int step, int s) const { return spec.grid.slot_of[step * spec.stages + s]; }
  const T* scale(int slot) const { return scales.data() + slot * spec.nodes; }
  const T* diagonal(int slot) const { return diagonals.data() + slot * spec.nodes; }
  const T* columns(int64_t slice) const { return mixing.empty() ? nullptr : mixing.data() + slice * spec.width; }

  // Steps whose stages are worth taking at once.
  int together() const {
    const int64_t stages = std::min(kTogether, blocks() / kManyTimes / std::max<int64_t>(1, graph.reach) + 1);
    return static_cast<int>(std::max<int64_t>(1, stages / spec.stages));
  }

  // Calls of a kernel one after the other, each of which reads at rows that edges lead to what the one before it wrote.
  // Where these are near and maps many times as large as what lies between, blocks of rows go through the calls one close
  // behind the other, so that a call finds in a cache what the one before it left.
  template <typename Call>
  void run(const RowRanges& ranges, void (*kernel)(const Call&, int64_t, int64_t),
           const std::vector<Call>& calls) const {
    const int64_t lag = graph.reach, delay = (static_cast<int64_t>(calls.size()) - 1) * lag;
    if (!ranges.single() || blocks() < kManyTimes * delay) {
      for (const Call& one : calls) ranges.run([&](int64_t first, int64_t last) { kernel(one, first, last); });
      return;
    }
    for (int64_t front = 0; front < blocks() + delay; ++front)
      for (size_t j = 0; j < calls.size(); ++j) {
        const int64_t first = (front - static_cast<int64_t>(j) * lag) * graph.kBlock;
        if (first >= 0 && first < spec.nodes) kernel(calls[j], first, std::min(first + graph.kBlock, spec.nodes));
      }
  }

  void add_stage(int i, int s, const StepPlaces<T, I>& at, std::vector<Evaluation<T, I>>& calls) const {
    const Evaluation<T, I> e = evaluation(i, s, at);
    if (e.next || e.rate_grad) calls.push_back(e);
  }
  void add_step(int i, const StepPlaces<T, I>& at, std::vector<Evaluation<T, I>>& calls) const {
    for (int s = 0; s < spec.stages; ++s) add_stage(i, s, at, calls);
  }

 private:
  static constexpr int64_t kManyTimes = 4, kTogether = 16;
  int64_t blocks() const { return (spec.nodes + graph.kBlock - 1) / graph.kBlock; }

  Evaluation<T, I> evaluation(int i, int s, const StepPlaces<T, I>& at) const {
    const bool last = s + 1 == spec.stages;
    const std::vector<double>& row = last ? spec.update : spec.rows[s + 1];
    Evaluation<T, I> e{};
    e.graph = graph.rows;
    e.scale = scale(slot(i, s));
    e.diagonal = diagonal(slot(i, s));
    e.columns = at.columns;
    e.input = at.input_of(s);
    e.next = last ? at.next : at.input[s + 1];
    if (last) e.soon = at.soon;
    if (at.scale_products || at.diagonal_products) {
      e.rate_grad = at.rate_grad[s].map;
      e.rate_factor = at.rate_grad[s].factor;
      if (at.scale_products) e.scale_products = at.scale_products->of(slot(i, s));
      if (at.diagonal_products) e.diagonal_products = at.diagonal_products->of(slot(i, s));
    }
    if (!e.next) return e;
    e.source = at.source;
    e.rate = at.rate[s];
    e.base = at.state;
    e.own = static_cast<T>(row[s]);
    if (adds && at.next) {
      e.base = last && s ? at.next : at.state;
      e.total_base = s ? at.next : at.state;
      e.total_own = static_cast<T>(spec.update[s]);
      e.total = last ? nullptr : at.next;
    } else if (!adds) {
      for (int j = 0; j < s; ++j)
        if (row[j] != 0.0) e.earlier.add(at.rate[j], row[j]);
    }
    return e;
  }
};

}  // namespace contnet_fast
