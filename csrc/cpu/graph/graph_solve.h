// Integration of dH/dt = t_end (scale * (A H) + diagonal * H + H M + S) over a graph, forward and backward, for a diagonal
// M. Columns do not mix, so that slices of them are integrated to the end one by one; or, at level stage, all slices take
// each stage before any takes the next. No torch types.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/graph/graph_kernels.h"
#include "runtime/keep.h"
#include "runtime/time_grid.h"

namespace contnet_fast {

// A solve, as data.
struct GraphSpec {
  int64_t nodes, columns, width;  // width: of a slice
  int n_steps, stages;
  std::vector<std::vector<double>> rows;  // t_end * h * a_sj
  std::vector<double> update;             // t_end * h * b_j
  TimeGrid grid;
  Keep keep;
  bool by_stage;  // level stage
  // of an expansion in Chebyshev polynomials on [low, high], in place of Runge-Kutta stages: times t_end, or empty
  double low, high;
  std::vector<double> terms;

  int64_t slices() const { return (columns + width - 1) / width; }
  int64_t map() const { return nodes * width; }
  // Everything but the states is made again: that is quicker than writing and reading it.
  bool keeps_states() const { return keep == Keep::steps || keep == Keep::everything; }
  int64_t kept_maps() const {
    if (!terms.empty()) return keep == Keep::nothing ? 0 : 2 * static_cast<int64_t>(terms.size()) - 1;
    return keeps_states() ? n_steps - 1 : 0;
  }
};

template <typename T, typename I>
struct Graph {
  const I *indptr, *indices;
  const T* values;
};

// Everything is contiguous: states [nodes, columns], nodal values [basis, nodes], mixing [columns, columns], whose diagonal
// alone is read, or null.
template <typename T, typename I>
struct GraphForward {
  Graph<T, I> graph;
  const T *x, *scale, *diagonal, *source, *mixing;
  std::vector<T*> out;  // the state at t = 1, or at all grid points
  T* kept;              // [slices][kept_maps][nodes][width]
};

template <typename T, typename I>
struct GraphBackward {
  Graph<T, I> graph, transpose;
  const T *x, *scale, *diagonal, *source, *mixing;
  std::vector<const T*> out_grad;  // as out
  const T* kept;
  // null where none is wanted; nodal values, edges and mixing of zeros, of which the last is that of a whole matrix
  T *x_grad, *scale_grad, *diagonal_grad, *source_grad, *value_grad, *mixing_grad;
};

template <typename T, typename I>
void graph_solve(const GraphSpec&, const GraphKernels<T, I>&, const GraphForward<T, I>&);
template <typename T, typename I>
void graph_solve_backward(const GraphSpec&, const GraphKernels<T, I>&, const GraphBackward<T, I>&);

// The expansion of `terms`; nodal values of one basis function.
template <typename T, typename I>
void graph_series(const GraphSpec&, const GraphKernels<T, I>&, const GraphForward<T, I>&);
template <typename T, typename I>
void graph_series_backward(const GraphSpec&, const GraphKernels<T, I>&, const GraphBackward<T, I>&);

}  // namespace contnet_fast
