// Rows of a graph as the threads of one block share them, for a slice of C columns whose map lies in shared memory.
//
// `slots` lanes beside one another take the edges of a row in turn and add up at the end; a row of very many edges is
// summed by its whole warp. The first of the lanes owns the row throughout a solve: it alone reads and writes what the
// row has in global memory, for which no barrier is needed.
#pragma once

#include "cuda/graph/row_tiles.h"
#include "cuda/graph/slice_launch.h"

namespace contnet_fast::cuda {

template <typename T, typename I>
struct SliceRows {
  Global<const I> indptr, indices;
  Global<const T> values;
};

// What a solve of slices is told, forward and backward.
template <typename T, typename I>
struct SliceProblem {
  using A = Sum<T>;
  SliceRows<T, I> graph;
  int nodes, slots, stages, steps;
  int64_t features;
  Global<const int32_t> slot_of;  // [evaluation]
  Global<const A> scale, diagonal, mixing;
  Global<const T> source, x;
  Global<A> maps;                 // [slice, count, node, column]: what owners of rows keep
  int count, place[kMostStages];  // of maps; where each rate is, or -1: no later stage reads it again
  A rows[kMostStages][kMostStages], update[kMostStages];
};

namespace {

// What a thread has of its block's slice.
template <typename T, typename I, int C>
struct Slice {
  using A = Sum<T>;
  const SliceProblem<T, I>& p;
  int64_t column;
  int columns;     // of the state, C but for the last slice
  Global<A> maps;  // of this slice
  A mixing[C];

  explicit DEVICE Slice(const SliceProblem<T, I>& p) : p(p), column(int64_t{block_index()} * C) {
    columns = static_cast<int>(p.features - column < C && !FAULT_POINT(25) ? p.features - column : C);
    maps = p.maps + block_index() * (int64_t{p.count} * p.nodes * C);
    UNROLL
    for (int c = 0; c < C; ++c) mixing[c] = p.mixing && c < columns ? static_cast<A>(p.mixing[column + c]) : A(0);
  }

  DEVICE Shared<T> buffer(int turn) const {
    return shared_array<T>(turn * p.nodes * C * static_cast<int>(sizeof(T)), p.nodes * C);
  }
  DEVICE int64_t coefficient(int evaluation) const { return int64_t{p.slot_of[evaluation]} * p.nodes; }

  // a row of a map [node, feature], zeros for columns that there are not
  template <typename P>
  DEVICE void read(A (&v)[C], const P& map, int row) const {
    const int64_t at = row * p.features + column;
    UNROLL
    for (int c = 0; c < C; ++c) v[c] = c < columns ? widen<A>(static_cast<T>(map[at + c])) : A(0);
  }
  template <typename P>
  DEVICE void write(const A (&v)[C], const P& map, int row) const {
    const int64_t at = row * p.features + column;
    UNROLL
    for (int c = 0; c < C; ++c) {
      if (c < columns) map[at + c] = narrow<T>(v[c]);
    }
  }

  // a row of the maps that owners keep
  DEVICE void fetch(A (&v)[C], int map, int row) const {
    const Vector<A, C> some = load<C>(maps, (int64_t{map} * p.nodes + row) * C);
    UNROLL
    for (int c = 0; c < C; ++c) v[c] = some[c];
  }
  DEVICE void keep(const A (&v)[C], int map, int row) const {
    Vector<A, C> some;
    UNROLL
    for (int c = 0; c < C; ++c) some[c] = v[c];
    store(maps, (int64_t{map} * p.nodes + row) * C, some);
  }

  // a row of a map in shared memory
  DEVICE void get(A (&v)[C], const Shared<T>& map, int row) const {
    const Vector<T, C> some = load<C>(map, row * C);
    UNROLL
    for (int c = 0; c < C; ++c) v[c] = widen<A>(some[c]);
  }
  DEVICE void put(const A (&v)[C], const Shared<T>& map, int row) const {
    Vector<T, C> some;
    UNROLL
    for (int c = 0; c < C; ++c) some[c] = narrow<T>(v[c]);
    store(map, row * C, some);
  }
};

template <int C, typename A>
DEVICE void add_scaled(A (&to)[C], A factor, const A (&from)[C]) {
  UNROLL
  for (int c = 0; c < C; ++c) to[c] += factor * from[c];
}

// sums += values of edges [first, end), each `step`-th, times the rows of their sources
template <int C, typename T, typename I, typename A>
DEVICE void gather_slice(A (&sums)[C], const SliceRows<T, I>& rows, const Shared<T>& u, int64_t first, int64_t end,
                         int step) {
  for (int64_t e = first; e < end; e += kEdgesAtOnce * step) {
    A weight[kEdgesAtOnce] = {};
    Vector<T, C> value[kEdgesAtOnce] = {};
    UNROLL
    for (int i = 0; i < kEdgesAtOnce; ++i) {
      const int64_t edge = e + i * step;
      if (edge >= end) continue;
      weight[i] = widen<A>(static_cast<T>(rows.values[edge]));
      value[i] = load<C>(u, static_cast<int>(static_cast<I>(rows.indices[edge])) * C);
    }
    UNROLL
    for (int i = 0; i < kEdgesAtOnce; ++i) {
      UNROLL
      for (int c = 0; c < C; ++c) sums[c] += weight[i] * widen<A>(value[i][c]);
    }
  }
}

// f(row) by the owner of each row
template <typename F>
DEVICE void own_rows(int nodes, int slots, const F& f) {
  const int lane = lane_index(), each = 32 / slots;
  if (lane % slots != 0) return;
  for (int row = warp_index() * each + lane / slots; row < nodes; row += thread_count() / 32 * each) f(row);
}

template <typename T, typename I>
DEVICE bool is_long(const SliceRows<T, I>& rows, int row, int slots) {
  return static_cast<int64_t>(static_cast<I>(rows.indptr[row + 1])) - static_cast<I>(rows.indptr[row]) >
         kLongLane * slots;
}

// whether a row of this warp is long
template <typename T, typename I>
DEVICE bool has_long_rows(const SliceRows<T, I>& rows, int nodes, int slots) {
  float found = 0;
  own_rows(nodes, slots, [&](int row) { found += is_long(rows, row, slots) ? 1.f : 0.f; });
  return warp_sum(found) > 0.f;
}

// f(row, sums over its edges) by the owner of each row; `some_long`: has_long_rows
template <int C, typename T, typename I, typename F>
DEVICE void each_row(const SliceRows<T, I>& rows, int nodes, int slots, bool some_long, const Shared<T>& u,
                     const F& f) {
  using A = Sum<T>;
  const int lane = lane_index(), each = 32 / slots;
  for (int first = warp_index() * each; first < nodes; first += thread_count() / 32 * each) {
    const int row = first + lane / slots;
    int64_t begin = 0, end = 0;
    if (row < nodes) {
      begin = static_cast<I>(rows.indptr[row]);
      end = static_cast<I>(rows.indptr[row + 1]);
    }
    const bool leave = some_long && end - begin > kLongLane * slots;
    A sums[C] = {};
    if (!leave) gather_slice(sums, rows, u, begin + lane % slots, end, slots);
    UNROLL
    for (int c = 0; c < C; ++c) sums[c] = lanes_sum(sums[c], 1, slots);
    if (some_long) {
      for (int r = 0; r < each; ++r) {
        const int64_t from = shuffle(begin, r * slots), to = shuffle(end, r * slots);
        if (to - from <= kLongLane * slots) continue;  // the same for all lanes
        A part[C] = {};
        gather_slice(part, rows, u, from + lane + (FAULT_POINT(26) ? 32 : 0), to, 32);
        UNROLL
        for (int c = 0; c < C; ++c) part[c] = warp_sum(part[c]);
        if (lane / slots != r) continue;
        UNROLL
        for (int c = 0; c < C; ++c) sums[c] = part[c];
      }
    }
    if (row < nodes && lane % slots == 0) f(row, sums);
  }
}

}  // namespace
}  // namespace contnet_fast::cuda
