// What the forward and the backward pass of a solve over a graph share: rows by thread, slices of columns, theta(t) at
// each slot of the time grid, the evaluations of a step.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "cpu/graph/graph_solve.h"
#include "runtime/pool.h"

namespace contnet_fast {

// Ranges of rows with about as many nonzeros each. Every row is the work of one call, so that the number of ranges
// changes no bit of a result.
class RowRanges {
 public:
  template <typename I>
  RowRanges(const I* indptr, int64_t n, int64_t width) {
    const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
    const int64_t work = (int64_t(indptr[n]) + 4 * n) * width;
    const int64_t count = std::max<int64_t>(1, std::min(threads, work / kLeastWork));
    const auto before = [&](int64_t i) { return int64_t(indptr[i]) + 4 * i; };  // work of the rows below i
    starts_.push_back(0);
    for (int64_t r = 1; r < count; ++r) {
      int64_t low = starts_.back(), high = n;
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (before(middle) < before(n) * r / count)
          low = middle + 1;
        else
          high = middle;
      }
      starts_.push_back(low);
    }
    starts_.push_back(n);
  }

  template <typename F>
  void run(const F& f) const {
    const int64_t count = static_cast<int64_t>(starts_.size()) - 1;
    if (count == 1) return f(starts_[0], starts_[1]);
    at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) f(starts_[r], starts_[r + 1]);
    });
  }

 private:
  static constexpr int64_t kLeastWork = 40'000;  // values gathered, below which waking a thread costs more
  std::vector<int64_t> starts_;
};

// A slice of columns of [nodes, columns], padded with zeros to [nodes][width].
template <typename T>
void load_slice(const GraphSpec& spec, int64_t slice, const T* from, T* to, bool add = false) {
  const int64_t width = spec.width(), begin = slice * width, count = std::min(width, spec.columns - begin);
  for (int64_t i = 0; i < spec.nodes; ++i) {
    const T* row = from + i * spec.columns + begin;
    if (add)
      for (int64_t j = 0; j < count; ++j) to[i * width + j] += row[j];
    else
      std::memcpy(to + i * width, row, count * sizeof(T));
    if (!add) std::fill(to + i * width + count, to + (i + 1) * width, T(0));
  }
}
template <typename T>
void store_slice(const GraphSpec& spec, int64_t slice, const T* from, T* to) {
  const int64_t width = spec.width(), begin = slice * width, count = std::min(width, spec.columns - begin);
  for (int64_t i = 0; i < spec.nodes; ++i)
    std::memcpy(to + i * spec.columns + begin, from + i * width, count * sizeof(T));
}

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

// Whether a rate is read after the evaluation that follows it.
inline bool keeps_rate(const GraphSpec& spec, int s) {
  bool later = s + 1 < spec.stages && spec.update[s] != 0.0;
  for (int r = s + 2; r < spec.stages; ++r) later = later || spec.rows[r][s] != 0.0;
  return later;
}

// Places of one step: its state, inputs of later stages, products where they are wanted, rates, and the next state.
template <typename T>
struct StepPlaces {
  const T* state;
  std::vector<T*> input, product, rate;  // [stage]; input[0] is not used
  T* next;                               // null: the step is made again for its inputs and products alone
  const T* input_of(int s) const { return s ? input[s] : state; }
};

// The slots of a pass, and one step of it.
template <typename T, typename I>
struct GraphPass {
  const GraphSpec& spec;
  const GraphKernels<T, I>& kernels;
  SparseRows<T, I> graph;
  std::vector<T> scales, diagonals;  // [slots][nodes]

  GraphPass(const GraphSpec& spec, const GraphKernels<T, I>& kernels, SparseRows<T, I> graph, const T* scale,
            const T* diagonal)
      : spec(spec),
        kernels(kernels),
        graph(graph),
        scales(mix_slots(spec, scale)),
        diagonals(mix_slots(spec, diagonal)) {}

  int slot(int step, int s) const { return spec.grid.slot_of[step * spec.stages + s]; }
  const T* scale(int slot) const { return scales.data() + slot * spec.nodes; }
  const T* diagonal(int slot) const { return diagonals.data() + slot * spec.nodes; }

  void step(const RowRanges& ranges, int i, const T* source, const StepPlaces<T>& at) const {
    for (int s = 0; s < spec.stages; ++s) {
      const bool last = s + 1 == spec.stages;
      const std::vector<double>& row = last ? spec.update : spec.rows[s + 1];
      Evaluation<T, I> e{};
      e.graph = graph;
      e.scale = scale(slot(i, s));
      e.diagonal = diagonal(slot(i, s));
      e.source = source;
      e.input = at.input_of(s);
      e.product = at.product[s];
      e.rate = at.rate[s];
      e.next = last ? at.next : at.input[s + 1];
      if (!e.next && !e.product) continue;
      e.base = at.state;
      for (int j = 0; j < s; ++j) e.earlier.add(at.rate[j], row[j]);
      e.own = static_cast<T>(row[s]);
      ranges.run([&](int64_t first, int64_t end) { kernels.evaluate(e, first, end); });
    }
  }
};

}  // namespace contnet_fast
