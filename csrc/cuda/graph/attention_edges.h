// Attention along the edges of a graph: weights of edges and their gradients, and sums that they weigh.
#pragma once

#include "cuda/graph/attention_rows.h"

namespace contnet_fast::cuda {

template <typename T, typename I>
struct AttentionEdges {
  using A = Sum<T>;
  Global<const A> largest, sums;
  Global<const T> grad;
  Global<T> y;                    // [edge]: the mean weight
  Global<A> mean, weights, back;  // the same; [edge, head]: weights without factors, and the gradients by them
};

namespace {

// An edge by a group of lanes: its weights, and their gradients where there is a gradient of y.
template <typename T, typename I, int V>
KERNEL(kRowThreads)
attention_edges(GRID_CONSTANT AttentionInputs<T, I> p, GRID_CONSTANT AttentionEdges<T, I> o) {
  using A = Sum<T>;
  const int lanes = p.tile.lanes;
  const int64_t edge = (int64_t{block_index()} * kRowThreads + thread_index()) / lanes;
  const bool inside = edge < p.edges, first = lane_index() % lanes == 0;
  const int64_t i = inside ? row_of(p.indptr, p.nodes, edge) : 0,
                j = inside ? static_cast<int64_t>(static_cast<I>(p.indices[edge])) : 0;
  A mean = 0, along = 0;  // along: gradient by the weight that weighs the states
  if (p.shared && o.back) {
    if (p.features == 0) {
      if (inside) along = widen<A>(static_cast<T>(o.grad[edge]));
    } else {
      if (inside) along = partial_product<V, A>(o.grad, i * p.features, p.states, j * p.features, p.features, lanes);
      along = lanes_sum(along, 1, lanes);
    }
    along /= static_cast<A>(p.heads);
  }
  for (int64_t head = 0; head < p.heads; ++head) {
    const A score = score_of<V>(p, inside, i, j, head);
    if (!p.shared && o.back) {
      along = 0;
      if (inside)
        along = partial_product<V, A>(o.grad, (i * p.heads + head) * p.features, p.states,
                                      (j * p.heads + head) * p.features, p.features, lanes);
      along = lanes_sum(along, 1, lanes);
    }
    if (!inside || !first) continue;
    const int64_t pair = i * p.heads + head, at = edge * p.heads + head;
    const A weight = std::exp(score - static_cast<A>(o.largest[pair])) / static_cast<A>(o.sums[pair]);
    const A factor = p.factors ? static_cast<A>(p.factors[at]) : A(1);
    mean += weight * factor;
    if (o.weights) o.weights[at] = weight;
    if (o.back) o.back[at] = along * factor;
  }
  if (!inside || !first) return;
  mean /= static_cast<A>(p.heads);
  if (o.y) o.y[edge] = narrow<T>(mean);
  if (o.mean) o.mean[edge] = mean;
}

// Gradients by weights become those by sums a + b, or by scores, in place: a target and a head by lanes side by side.
template <typename T, typename I>
KERNEL(kRowThreads)
softmax_back(GRID_CONSTANT AttentionInputs<T, I> p, Global<const Sum<T>> weights, Global<Sum<T>> back) {
  using A = Sum<T>;
  const int slots = p.tile.slots, slot = lane_index() % slots;
  const int64_t pair = (int64_t{block_index()} * kRowThreads + thread_index()) / slots, i = pair / p.heads,
                head = pair % p.heads;
  int64_t begin = 0, end = 0;
  if (i < p.nodes) {
    begin = static_cast<I>(p.indptr[i]);
    end = static_cast<I>(p.indptr[i + 1]);
  }
  A sum = 0;
  for (int64_t e = begin + slot; e < end; e += slots)
    sum += static_cast<A>(weights[e * p.heads + head]) * static_cast<A>(back[e * p.heads + head]);
  sum = lanes_sum(sum, 1, slots);
  for (int64_t e = begin + slot; e < end; e += slots) {
    const int64_t at = e * p.heads + head;
    A grad = static_cast<A>(weights[at]) * (static_cast<A>(back[at]) - sum);
    if (p.depth == 0) {
      const int64_t from = static_cast<int64_t>(static_cast<I>(p.indices[e])) * p.heads + head;
      if (widen<A>(static_cast<T>(p.targets[pair])) + widen<A>(static_cast<T>(p.sources[from])) < A(0)) grad *= p.slope;
    }
    back[at] = grad;
  }
}

}  // namespace

// out[row, head] = scaling * sum over the edges of a row of their numbers times the features at their other ends.
template <typename T, typename I>
struct HeadSums {
  using A = Sum<T>;
  RowTile tile;
  int64_t nodes, heads, features;
  A scaling;
  Global<const I> indptr, indices, places;  // places: of the edges among the numbers; null: their own
  Global<const A> numbers, factors;         // [edge, head]; factors may be null
  Global<const T> from;                     // null: ones
  Global<T> out;
};

namespace {

template <typename T, typename I, int V>
KERNEL(kRowThreads)
head_sums(GRID_CONSTANT HeadSums<T, I> p) {
  using A = Sum<T>;
  const int lanes = p.tile.lanes, width = lanes * p.tile.slots, lane = lane_index();
  const int64_t pair = (int64_t{block_index()} * kRowThreads + thread_index()) / width, row = pair / p.heads,
                head = pair % p.heads, column = (int64_t{block_row()} * lanes + lane % lanes) * V;
  const int slot = lane % width / lanes;
  const bool live = row < p.nodes && column < p.features;
  A sum[V] = {};
  if (live) {
    const int64_t end = static_cast<I>(p.indptr[row + 1]);
    for (int64_t e = static_cast<I>(p.indptr[row]) + slot; e < end; e += p.tile.slots) {
      const int64_t place = p.places ? static_cast<int64_t>(static_cast<I>(p.places[e])) : e,
                    at = place * p.heads + head;
      A number = p.numbers[at], value[V];
      if (p.factors) number *= static_cast<A>(p.factors[at]);
      if (p.from) {
        const int64_t j = static_cast<I>(p.indices[e]);
        load_features(value, p.from, (j * p.heads + head) * p.features + column);
      } else {
        UNROLL
        for (int v = 0; v < V; ++v) value[v] = A(1);
      }
      UNROLL
      for (int v = 0; v < V; ++v) sum[v] += number * value[v];
    }
  }
  UNROLL
  for (int v = 0; v < V; ++v) sum[v] = p.scaling * lanes_sum(sum[v], lanes, width);
  if (live && slot == 0) store_features(sum, p.out, pair * p.features + column);
}

}  // namespace
}  // namespace contnet_fast::cuda
