// Attention along the edges of a graph: scores, and their softmax with the sums that it weighs in one visit of a row.
// Every sum has one order.
#pragma once

#include <cmath>
#include <limits>

#include "cuda/graph/row_tiles.h"

namespace contnet_fast::cuda {

// What every kernel of a pass reads.
template <typename T, typename I>
struct AttentionInputs {
  using A = Sum<T>;
  RowTile tile;
  int64_t nodes, edges, heads, depth, features;
  bool shared;
  A slope, scaling;
  Global<const T> targets, sources, states;
  Global<const A> factors;
  Global<const I> indptr, indices;
};

namespace {

template <typename A>
constexpr A kNoScore = -std::numeric_limits<A>::infinity();

// this lane's share of a . b for `size` features from two places
template <int V, typename A, typename T>
DEVICE A partial_product(Global<const T> a, int64_t of_a, Global<const T> b, int64_t of_b, int64_t size, int lanes) {
  A sum = 0, one[V], two[V];
  for (int64_t c = lane_index() % lanes * V; c < size; c += lanes * V) {
    load_features(one, a, of_a + c);
    load_features(two, b, of_b + c);
    UNROLL
    for (int v = 0; v < V; ++v) sum += one[v] * two[v];
  }
  return sum;
}

// The score of the edge from node j to node i, in every lane of a group; every lane of the warp comes here.
template <int V, typename T, typename I>
DEVICE Sum<T> score_of(const AttentionInputs<T, I>& p, bool inside, int64_t i, int64_t j, int64_t head) {
  using A = Sum<T>;
  const int64_t at = i * p.heads + head, from = j * p.heads + head;
  if (p.depth > 0) {
    A sum = 0;
    if (inside) sum = partial_product<V, A>(p.targets, at * p.depth, p.sources, from * p.depth, p.depth, p.tile.lanes);
    return p.scaling * lanes_sum(sum, 1, p.tile.lanes);
  }
  if (!inside) return A(0);
  const A sum = widen<A>(static_cast<T>(p.targets[at])) + widen<A>(static_cast<T>(p.sources[from]));
  return sum < A(0) ? p.slope * sum : sum;
}

// a softmax under way: the largest score, the sum of exponentials below it, and the features that they weigh
template <typename A, int V>
struct Running {
  A most = kNoScore<A>, sum = 0, features[V] = {};

  DEVICE void rescale(A now) {
    const A factor = FAULT_POINT(11) ? A(1) : most == kNoScore<A> ? A(0) : std::exp(most - now);
    most = now;
    sum *= factor;
    UNROLL
    for (int v = 0; v < V; ++v) features[v] *= factor;
  }
  // with the lane `mask` away; both end with the same
  DEVICE void merge(int mask) {
    Running other;
    other.most = shuffle_xor(most, mask);
    other.sum = shuffle_xor(sum, mask);
    UNROLL
    for (int v = 0; v < V; ++v) other.features[v] = shuffle_xor(features[v], mask);
    const A now = most > other.most ? most : other.most;
    rescale(now);
    other.rescale(now);
    sum += other.sum;
    UNROLL
    for (int v = 0; v < V; ++v) features[v] += other.features[v];
  }
};

// A target and a head by groups of lanes, in one visit of its edges: largest, sums, and with states of each head y.
template <typename T, typename I, int V>
KERNEL(kRowThreads)
attention_rows(GRID_CONSTANT AttentionInputs<T, I> p, Global<T> y, Global<Sum<T>> largest, Global<Sum<T>> sums) {
  using A = Sum<T>;
  const int lanes = p.tile.lanes, width = lanes * p.tile.slots, lane = lane_index();
  const int64_t pair = (int64_t{block_index()} * kRowThreads + thread_index()) / width, i = pair / p.heads,
                head = pair % p.heads, column = (int64_t{block_row()} * lanes + lane % lanes) * V;
  const int slot = lane % width / lanes;
  int64_t begin = 0, end = 0;
  if (i < p.nodes) {
    begin = static_cast<I>(p.indptr[i]);
    end = static_cast<I>(p.indptr[i + 1]);
  }
  int64_t most = end - begin;  // of the rows of this warp
  UNROLL
  for (int mask = 16; mask > 0; mask /= 2) {
    const int64_t other = shuffle_xor(most, mask);
    most = other > most ? other : most;
  }
  const bool weighs = y && column < p.features;
  Running<A, V> run;
  for (int64_t k = 0; k < most; k += p.tile.slots) {
    const int64_t edge = begin + k + slot;
    const bool inside = edge < end;
    const int64_t j = inside ? static_cast<int64_t>(static_cast<I>(p.indices[edge])) : 0;
    const A score = score_of<V>(p, inside, i, j, head);
    if (!inside || score == kNoScore<A>) continue;
    if (score > run.most) run.rescale(score);
    A weight = std::exp(score - run.most);
    run.sum += weight;
    if (!weighs) continue;
    if (p.factors) weight *= static_cast<A>(p.factors[edge * p.heads + head]);
    A state[V];
    load_features(state, p.states, (j * p.heads + head) * p.features + column);
    UNROLL
    for (int v = 0; v < V; ++v) run.features[v] += weight * state[v];
  }
  for (int mask = lanes; mask < width; mask *= 2) run.merge(mask);
  if (i >= p.nodes || slot != 0) return;
  const A sum = run.sum == A(0) ? A(1) : run.sum;
  if (block_row() == 0 && lane % lanes == 0) {
    largest[pair] = run.most == kNoScore<A> ? A(0) : run.most;
    sums[pair] = sum;
  }
  if (!weighs) return;
  UNROLL
  for (int v = 0; v < V; ++v) run.features[v] /= sum;
  store_features(run.features, y, pair * p.features + column);
}

}  // namespace
}  // namespace contnet_fast::cuda
