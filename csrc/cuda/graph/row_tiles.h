// How threads share rows of a graph, and maps [row, feature] as they read them.
#pragma once

#include <algorithm>

#include "cuda/lib/reduce.h"

namespace contnet_fast::cuda {

constexpr int kRowThreads = 128, kRowWarps = kRowThreads / 32;

// `lanes` beside one another take `vector` features each, `slots` such groups edges of a row in turn; a warp has
// 32 / (lanes * slots) rows.
struct RowTile {
  int vector, lanes, slots;

  HOST_DEVICE int rows() const { return 32 / (lanes * slots); }
};

// Values of so many bytes that a lane reads at once: 16 bytes, or one where rows of `features` do not begin at such.
inline int vector_of(int64_t features, int bytes) { return features % (16 / bytes) == 0 ? 16 / bytes : 1; }

// `degree`: edges of a row, on average. It says in which order a row is summed.
inline RowTile row_tile(int64_t features, int vector, int64_t degree) {
  RowTile tile{vector, 1, 1};
  while (tile.lanes < 32 && int64_t{tile.lanes} * tile.vector < features) tile.lanes *= 2;
  while (tile.lanes * tile.slots < 32 && 2 * tile.slots <= degree) tile.slots *= 2;
  return tile;
}

// Blocks of features beside one another.
inline int64_t column_blocks(const RowTile& tile, int64_t features) {
  const int64_t each = int64_t{tile.lanes} * tile.vector;
  return (features + each - 1) / each;
}

namespace {

// values [at, at + V) in the type of sums; vectors of at most 16 bytes
template <int V, typename T, typename A>
DEVICE void load_features(A (&v)[V], Global<const T> p, int64_t at) {
  constexpr int N = V * sizeof(T) <= 16 ? V : 16 / static_cast<int>(sizeof(T));
  UNROLL
  for (int j = 0; j < V; j += N) {
    const Vector<T, N> some = load<N>(p, at + j);
    UNROLL
    for (int k = 0; k < N; ++k) v[j + k] = widen<A>(some[k]);
  }
}

template <int V, typename T, typename A>
DEVICE void store_features(const A (&v)[V], Global<T> p, int64_t at) {
  constexpr int N = V * sizeof(T) <= 16 ? V : 16 / static_cast<int>(sizeof(T));
  UNROLL
  for (int j = 0; j < V; j += N) {
    Vector<T, N> some;
    UNROLL
    for (int k = 0; k < N; ++k) some[k] = narrow<T>(v[j + k]);
    store(p, at + j, some);
  }
}

// the sum over `width` neighbouring lanes that are `first` apart, in each of them; every lane of the warp comes here
template <typename A>
DEVICE A lanes_sum(A value, int first, int width) {
  for (int mask = first; mask < width; mask *= 2) value += shuffle_xor(value, mask);
  return value;
}

// the row of an edge: the last one that begins at it or before
template <typename I>
DEVICE int64_t row_of(Global<const I> indptr, int64_t nodes, int64_t edge) {
  int64_t low = 0, high = nodes;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (static_cast<I>(indptr[middle]) <= edge ? low : high) = middle;
  }
  return low;
}

}  // namespace
}  // namespace contnet_fast::cuda
