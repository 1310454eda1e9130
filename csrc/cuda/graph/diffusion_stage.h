// An evaluation of the diffusion field in one launch, with the combination after it: forward, and its gradient.
//
// A row of A has a group of lanes side by side along the features, and several such groups where rows have several
// edges: they take edges in turn and add up at the end, in one order. Each lane gathers four edges at a time, so that
// their loads are in flight together. Rows from kLongRow edges on are left to the whole block, one after another.
#pragma once

#include "cuda/graph/diffusion_pass.h"
#include "cuda/graph/row_tiles.h"

namespace contnet_fast::cuda {

constexpr int64_t kLongRow = 512;  // edges
constexpr int kAtOnce = 4;         // edges that a lane gathers at once
constexpr int kBlocksEach =
    5;  // a multiprocessor, at least: left to itself the assembler tries 40 registers and spills

template <typename T, typename I>
struct DiffusionStage {
  using A = Sum<T>;
  RowTile tile;
  int64_t nodes, features;
  Global<const I> indptr, indices;
  Global<const T> values, source, u, base, upstream, terms;
  Global<const A> scale, diagonal;
  Global<T> kept, product, target;
  Global<A> total;
  A own, before, factor;
  int count, index[kMostStages];
  A weight[kMostStages];
  bool fresh;
  Global<const A> mixing;
};

namespace {

// sums += values of edges [first, end), each `step`-th, times the features of their sources
template <bool BACK, int V, typename T, typename I, typename A>
DEVICE void gather(A (&sums)[V], const DiffusionStage<T, I>& p, int64_t first, int64_t end, int step, int64_t column) {
  for (int64_t e = first; e < end; e += kAtOnce * step) {
    A weight[kAtOnce] = {};
    Vector<T, V> value[kAtOnce] = {};
    UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t edge = e + i * step;
      if (edge >= end) continue;
      const int64_t from = static_cast<I>(p.indices[edge]);
      weight[i] = widen<A>(static_cast<T>(p.values[edge]));
      if constexpr (BACK) weight[i] *= static_cast<A>(p.scale[from]);
      value[i] = load<V>(p.u, from * p.features + column);
    }
    UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      UNROLL
      for (int v = 0; v < V; ++v) sums[v] += weight[i] * widen<A>(value[i][v]);
    }
  }
}

// What follows the gathered sums of V features of a row; MIXING: columns have coefficients of their own.
template <bool BACK, bool MIXING, int V, typename T, typename I, typename A>
DEVICE void finish(const A (&sums)[V], const DiffusionStage<T, I>& p, int64_t row, int64_t column) {
  const int64_t at = row * p.features + column;
  if (p.product) store_features(sums, p.product, at);
  if (!p.target) return;
  A own[V], rate[V], other[V];
  load_features(own, p.u, at);
  const A diagonal = p.diagonal[row];
  const A scale = BACK ? A(1) : static_cast<A>(p.scale[row]);
  UNROLL
  for (int v = 0; v < V; ++v) rate[v] = scale * sums[v] + diagonal * own[v];
  if constexpr (MIXING) {
    load_features(other, p.mixing, FAULT_POINT(5) ? 0 : column);
    UNROLL
    for (int v = 0; v < V; ++v) rate[v] += other[v] * own[v];
  }
  if constexpr (BACK) {
    UNROLL
    for (int v = 0; v < V; ++v) rate[v] *= p.factor;
    if (p.total) {
      if (p.fresh) {
        UNROLL
        for (int v = 0; v < V; ++v) other[v] = A(0);
      } else {
        load_features(other, Global<const A>(p.total), at);
      }
      UNROLL
      for (int v = 0; v < V; ++v) other[v] += p.factor * own[v];
      store_features(other, p.total, at);
    }
  } else if (p.source && !FAULT_POINT(3)) {
    load_features(other, p.source, at);
    UNROLL
    for (int v = 0; v < V; ++v) rate[v] += other[v];
  }
  if (p.kept) store_features(rate, p.kept, at);
  UNROLL
  for (int v = 0; v < V; ++v) rate[v] *= p.own;
  const int64_t distance = p.nodes * p.features;
  for (int j = 0; j < p.count; ++j) {
    load_features(other, p.terms, p.index[j] * distance + at);
    UNROLL
    for (int v = 0; v < V; ++v) rate[v] += p.weight[j] * other[v];
  }
  load_features(other, p.base, at);
  UNROLL
  for (int v = 0; v < V; ++v) rate[v] += p.before * other[v];
  if (p.upstream) {
    load_features(other, p.upstream, at);
    UNROLL
    for (int v = 0; v < V; ++v) rate[v] += other[v];
  }
  store_features(rate, p.target, at);
}

// p.target <- before * base + own * r + the other terms, r being a rate, scale (A u) + diagonal u + source, or BACK a
// gradient by the input of a stage, factor (A^T (scale u) + diagonal u): the rows are those of the transpose then.
// MIXING adds a coefficient of each column to the diagonal.
template <typename T, typename I, int V, bool BACK, bool MIXING>
KERNEL_MIN_BLOCKS(kRowThreads, kBlocksEach)
diffusion_stage(GRID_CONSTANT DiffusionStage<T, I> p) {
  using A = Sum<T>;
  const int lanes = p.tile.lanes, width = lanes * p.tile.slots, rows = kRowWarps * (32 / width);
  const int lane = lane_index();
  const int64_t column = (int64_t{block_row()} * lanes + lane % lanes) * V, first = int64_t{block_index()} * rows,
                row = first + warp_index() * (32 / width) + lane / width;
  const bool live = column < p.features;
  const int slot = lane % width / lanes;
  int64_t begin = 0, end = 0;
  if (row < p.nodes) {
    begin = static_cast<I>(p.indptr[row]);
    end = static_cast<I>(p.indptr[row + 1]);
  }
  const bool leave = end - begin >= kLongRow;
  A sums[V] = {};
  if (live && !leave) gather<BACK>(sums, p, begin + slot, end, p.tile.slots, column);
  UNROLL
  for (int v = 0; v < V; ++v) sums[v] = lanes_sum(sums[v], lanes, width);
  if (row < p.nodes && live && slot == 0 && !leave && !(FAULT_POINT(1) && row + 1 == p.nodes))
    finish<BACK, MIXING>(sums, p, row, column);

  const Shared<A> scratch = shared_array<A>(0, kRowThreads * V);
  if (block_sum<kRowWarps>(leave ? 1.f : 0.f, shared_array<float>(0, kRowWarps)) == 0.f) return;
  const int groups = kRowThreads / lanes, group = thread_index() / lanes;  // of lanes, which take edges in turn
  for (int64_t r = first; r < first + rows && r < p.nodes; ++r) {
    begin = static_cast<I>(p.indptr[r]);
    end = static_cast<I>(p.indptr[r + 1]);
    if (end - begin < kLongRow) continue;
    A part[V] = {};
    if (live) gather<BACK>(part, p, begin + group, end, groups, column);
    if (!FAULT_POINT(4)) sync_threads();  // the sums of the row before may still be read
    UNROLL
    for (int v = 0; v < V; ++v) scratch[v * kRowThreads + thread_index()] = part[v];
    sync_threads();
    if (group > 0 || !live) continue;
    for (int g = 1; g < groups; ++g) {
      UNROLL
      for (int v = 0; v < V; ++v) part[v] += static_cast<A>(scratch[v * kRowThreads + g * lanes + thread_index()]);
    }
    finish<BACK, MIXING>(part, p, r, column);
  }
}

template <typename T, typename I, int V, bool BACK, bool MIXING>
void launch_stage(const DiffusionPass& p, const RowTile& tile) {
  using A = Sum<T>;
  DiffusionStage<T, I> a{};
  a.tile = tile;
  a.nodes = p.nodes;
  a.features = p.features;
  a.indptr = static_cast<const I*>(p.indptr);
  a.indices = static_cast<const I*>(p.indices);
  a.values = static_cast<const T*>(p.values);
  a.source = static_cast<const T*>(p.source);
  a.u = static_cast<const T*>(p.u);
  a.base = static_cast<const T*>(p.base);
  a.upstream = static_cast<const T*>(p.upstream);
  a.terms = static_cast<const T*>(p.terms);
  a.scale = static_cast<const A*>(p.scale);
  a.diagonal = static_cast<const A*>(p.diagonal);
  a.kept = static_cast<T*>(p.kept);
  a.product = static_cast<T*>(p.product);
  a.target = static_cast<T*>(p.target);
  a.total = static_cast<A*>(p.total);
  a.own = static_cast<A>(p.own);
  a.before = static_cast<A>(p.before);
  a.factor = static_cast<A>(p.factor);
  a.count = p.count;
  for (int j = 0; j < p.count; ++j) {
    a.index[j] = p.index[j];
    a.weight[j] = static_cast<A>(p.weight[j]);
  }
  a.fresh = p.fresh;
  a.mixing = static_cast<const A*>(p.mixing);
  const int64_t each = int64_t{kRowWarps} * tile.rows(), blocks = (p.nodes + each - 1) / each;
  launch(Grid{"diffusion_stage", blocks, kRowThreads, int64_t{kRowThreads} * V * static_cast<int64_t>(sizeof(A)), 1,
              p.stream, column_blocks(tile, p.features)},
         diffusion_stage<T, I, V, BACK, MIXING>, a);
}

template <typename T, typename I, int V>
void launch_stage(const DiffusionPass& p, const RowTile& tile) {
  if (p.mixing != nullptr)
    return p.back ? launch_stage<T, I, V, true, true>(p, tile) : launch_stage<T, I, V, false, true>(p, tile);
  p.back ? launch_stage<T, I, V, true, false>(p, tile) : launch_stage<T, I, V, false, false>(p, tile);
}

template <typename T, typename I>
void launch_stage(const DiffusionPass& p) {
  const RowTile tile = row_tile(p.features, vector_of(p.features, sizeof(T)), p.edges / std::max<int64_t>(p.nodes, 1));
  constexpr int V = 16 / sizeof(T);
  tile.vector == V ? launch_stage<T, I, V>(p, tile) : launch_stage<T, I, 1>(p, tile);
}

template <typename T>
void launch_stage(const DiffusionPass& p) {
  p.wide_index ? launch_stage<T, int64_t>(p) : launch_stage<T, int32_t>(p);
}

}  // namespace
}  // namespace contnet_fast::cuda
