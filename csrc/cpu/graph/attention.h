// Attention along the edges of a graph, forward and backward: scores, softmax by row, weighted sums, for a block of rows
// at a time, so that numbers of its edges stay in the first cache. No torch types.
#pragma once

#include <cstdint>

#include "cpu/graph/attention_kernels.h"

namespace contnet_fast {

// The sizes of a call. depth: of queries and keys, 0 where scores are sums of two numbers. width: of states, 0 without.
// mean: all heads weigh one map, by the mean of their weights.
struct AttentionSpec {
  int64_t nodes, edges, heads, depth, width;
  bool mean;
  double slope;  // of the leaky rectifier of sums
  int64_t maps() const { return mean ? 1 : heads; }
};

// rows: of each target its sources. columns: of each source its targets, and where these edges stand by rows.
template <typename I>
struct AttentionEdges {
  const I *indptr, *indices, *back_indptr, *back_indices, *back_places;
};

// Contiguous: rows and columns [nodes, heads, depth] or [nodes, heads], of targets and sources; states [nodes, heads,
// width], or [nodes, width] for a mean; factors of weights [edges, heads], or null. result: as states, or, without them,
// the mean weight of each edge. largest, sums: [nodes, heads], what backward makes the weights again of.
template <typename T, typename I>
struct AttentionForward {
  AttentionEdges<I> edges;
  const T *rows, *columns, *states, *factors;
  T *result, *largest, *sums;
};

// Gradients that are null are not wanted.
template <typename T, typename I>
struct AttentionBackward {
  AttentionEdges<I> edges;
  const T *rows, *columns, *states, *factors;
  const T *grad, *largest, *sums;
  T *row_grad, *column_grad, *state_grad;
};

// Kernels for maps of `depth` and of `width`.
template <typename T, typename I>
struct AttentionChoice {
  const AttentionKernels<T, I>&scores, &states;
};

template <typename T, typename I>
void attention(const AttentionSpec&, const AttentionChoice<T, I>&, const AttentionForward<T, I>&);
template <typename T, typename I>
void attention_backward(const AttentionSpec&, const AttentionChoice<T, I>&, const AttentionBackward<T, I>&);

}  // namespace contnet_fast
