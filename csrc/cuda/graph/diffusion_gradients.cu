// Gradients of the diffusion field by its coefficients and by the weights of the edges, a step at a time. Every sum has
// one order.

#include "cuda/graph/diffusion_pass.h"
#include "cuda/graph/row_tiles.h"

namespace contnet_fast::cuda {
namespace {

constexpr int kTileThreads = 256, kPartNodes = 16;  // threads of a tile of a matrix; nodes that it takes at once
constexpr int64_t kMixingBlocks = 256;              // as many parts of the nodes as they allow for are added up apart

// values of a side of the tile that a thread has
int tile_values(int64_t features) { return features <= 16 ? 1 : features <= 32 ? 2 : 4; }
int64_t tiles_of(int64_t features) {
  return (features + 16 * tile_values(features) - 1) / (16 * tile_values(features));
}

template <typename T, typename I>
struct StepGradients {
  using A = Sum<T>;
  RowTile tile;
  int stages, slots[kMostStages];
  bool fresh_slots[kMostStages], fresh;
  int64_t nodes, features, edges;
  Global<const T> u, inputs, products, rates, costate;
  A factor;
  Global<const I> indptr, indices;
  Global<const A> scale;
  Global<A> grad_scale, grad_diagonal, grad_values, grad_mixing;

  // where a map of a stage is: its input, and the gradient by its rate up to `scaling`
  DEVICE Global<const T> input(int s) const { return s == 0 ? u : inputs + (s - 1) * (nodes * features); }
  DEVICE Global<const T> rate(int s) const { return s == stages - 1 ? costate : rates + s * (nodes * features); }
  DEVICE A scaling(int s) const { return s == stages - 1 ? factor : A(1); }
};

// this lane's share of a . b for the features of two rows
template <int V, typename T, typename I>
DEVICE Sum<T> product_of_rows(const StepGradients<T, I>& p, Global<const T> a, int64_t of_a, Global<const T> b,
                              int64_t of_b) {
  Sum<T> sum = 0, one[V], two[V];
  for (int64_t c = lane_index() % p.tile.lanes * V; c < p.features; c += p.tile.lanes * V) {
    load_features(one, a, of_a * p.features + c);
    load_features(two, b, of_b * p.features + c);
    UNROLL
    for (int v = 0; v < V; ++v) sum += one[v] * two[v];
  }
  return sum;
}

// A row by a group of lanes.
template <typename T, typename I, int V>
KERNEL(kRowThreads)
row_gradients(GRID_CONSTANT StepGradients<T, I> p) {
  using A = Sum<T>;
  const int lanes = p.tile.lanes, lane = lane_index();
  const int64_t row = (int64_t{block_index()} * kRowThreads + thread_index()) / lanes;
  for (int s = 0; s < p.stages; ++s) {
    const Global<const T> g = p.rate(s);
    A by_scale = 0, by_diagonal = 0;
    if (row < p.nodes) {
      if (p.grad_scale) by_scale = product_of_rows<V>(p, g, row, p.products + s * (p.nodes * p.features), row);
      if (p.grad_diagonal) by_diagonal = product_of_rows<V>(p, g, row, p.input(s), row);
    }
    by_scale = p.scaling(s) * lanes_sum(by_scale, 1, lanes);
    by_diagonal = p.scaling(s) * lanes_sum(by_diagonal, 1, lanes);
    if (row >= p.nodes || lane % lanes != 0) continue;
    const int64_t at = p.slots[s] * p.nodes + row;  // by this lane alone, also where stages share a slot
    if (p.grad_scale) p.grad_scale[at] = by_scale + (p.fresh_slots[s] ? A(0) : static_cast<A>(p.grad_scale[at]));
    if (p.grad_diagonal)
      p.grad_diagonal[at] = by_diagonal + (p.fresh_slots[s] ? A(0) : static_cast<A>(p.grad_diagonal[at]));
  }
}

// An edge by a group of lanes.
template <typename T, typename I, int V>
KERNEL(kRowThreads)
value_gradients(GRID_CONSTANT StepGradients<T, I> p) {
  using A = Sum<T>;
  const int lanes = p.tile.lanes;
  const int64_t edge = (int64_t{block_index()} * kRowThreads + thread_index()) / lanes;
  A sum = 0;
  if (edge < p.edges) {
    const int64_t row = row_of(p.indptr, p.nodes, edge), from = static_cast<I>(p.indices[edge]);
    for (int s = 0; s < p.stages; ++s) {
      const A weight = p.scaling(s) * static_cast<A>(p.scale[p.slots[s] * p.nodes + row]);
      sum += weight * product_of_rows<V>(p, p.rate(s), row, p.input(s), from);
    }
  }
  sum = lanes_sum(sum, 1, lanes);
  if (edge < p.edges && lane_index() % lanes == 0)
    p.grad_values[edge] = sum + (p.fresh ? A(0) : static_cast<A>(p.grad_values[edge]));
}

// A tile of the gradient of the matrix by which columns mix, of the nodes of a part: every parts-th kPartNodes of them.
// A thread has rows and columns of the tile that are 16 apart.
template <typename T, int V>
KERNEL(kTileThreads)
mixing_gradients(GRID_CONSTANT StepGradients<T, int32_t> p, int parts) {
  using A = Sum<T>;
  constexpr int kTile = 16 * V, kValues = kPartNodes * kTile;
  const int64_t tiles = (p.features + kTile - 1) / kTile, first_row = block_index() / tiles * kTile,
                first_column = block_index() % tiles * kTile;
  const int row = thread_index() / 16, column = thread_index() % 16;
  const Shared<A> us = shared_array<A>(0, kValues), gs = shared_array<A>(kValues * sizeof(A), kValues);
  A sums[V][V] = {};
  for (int s = 0; s < p.stages; ++s) {
    const Global<const T> u = p.input(s), g = p.rate(s);
    const A scaling = p.scaling(s);
    for (int64_t first = int64_t{block_row()} * kPartNodes; first < p.nodes; first += int64_t{parts} * kPartNodes) {
      sync_threads();  // the values before may still be read
      for (int k = thread_index(); k < kValues; k += kTileThreads) {
        const int64_t node = first + k / kTile, i = first_row + k % kTile, j = first_column + k % kTile;
        us[k] = node < p.nodes && i < p.features ? widen<A>(static_cast<T>(u[node * p.features + i])) : A(0);
        gs[k] = node < p.nodes && j < p.features ? scaling * widen<A>(static_cast<T>(g[node * p.features + j])) : A(0);
      }
      sync_threads();
      for (int k = 0; k < kPartNodes; ++k) {
        A of_u[V], of_g[V];
        UNROLL
        for (int v = 0; v < V; ++v) of_u[v] = us[k * kTile + row + 16 * v];
        UNROLL
        for (int v = 0; v < V; ++v) of_g[v] = gs[k * kTile + column + 16 * v];
        UNROLL
        for (int v = 0; v < V; ++v) {
          UNROLL
          for (int w = 0; w < V; ++w) sums[v][w] += of_u[v] * of_g[w];
        }
      }
    }
  }
  UNROLL
  for (int v = 0; v < V; ++v) {
    UNROLL
    for (int w = 0; w < V; ++w) {
      const int64_t i = first_row + row + 16 * v, j = first_column + column + 16 * w;
      if (i >= p.features || j >= p.features) continue;
      const int64_t at = (block_row() * p.features + i) * p.features + j;
      p.grad_mixing[at] = sums[v][w] + (p.fresh ? A(0) : static_cast<A>(p.grad_mixing[at]));
    }
  }
}

// to <- the sum of the parts, each of `size` values
template <typename A>
KERNEL(kTileThreads)
add_parts(Global<const A> from, int parts, int64_t size, Global<A> to) {
  const int64_t i = int64_t{block_index()} * kTileThreads + thread_index();
  if (i >= size) return;
  A sum = 0;
  for (int part = 0; part < parts; ++part) sum += static_cast<A>(from[part * size + i]);
  to[i] = sum;
}

template <typename T, typename I>
StepGradients<T, I> described(const DiffusionStep& p) {
  using A = Sum<T>;
  StepGradients<T, I> a{};
  a.tile = row_tile(p.features, vector_of(p.features, sizeof(T)), 1);
  a.stages = p.stages;
  std::copy_n(p.slots, kMostStages, a.slots);
  std::copy_n(p.fresh_slots, kMostStages, a.fresh_slots);
  a.fresh = p.fresh;
  a.nodes = p.nodes;
  a.features = p.features;
  a.edges = p.edges;
  a.u = static_cast<const T*>(p.u);
  a.inputs = static_cast<const T*>(p.inputs);
  a.rates = static_cast<const T*>(p.rates);
  a.costate = static_cast<const T*>(p.costate);
  a.factor = static_cast<A>(p.factor);
  return a;
}

// a group of lanes for each of `count` rows or edges
inline Grid groups(const char* name, int64_t count, const RowTile& tile, void* stream) {
  const int64_t each = kRowThreads / tile.lanes;
  return {name, (count + each - 1) / each, kRowThreads, 0, 1, stream};
}

template <typename T>
void add_row_gradients(const DiffusionStep& p) {
  using A = Sum<T>;
  StepGradients<T, int32_t> a = described<T, int32_t>(p);
  a.products = static_cast<const T*>(p.products);
  a.grad_scale = static_cast<A*>(p.grad_scale);
  a.grad_diagonal = static_cast<A*>(p.grad_diagonal);
  constexpr int V = 16 / sizeof(T);
  launch(groups("row_gradients", p.nodes, a.tile, p.stream),
         a.tile.vector == V ? row_gradients<T, int32_t, V> : row_gradients<T, int32_t, 1>, a);
}

template <typename T, typename I>
void add_value_gradients(const DiffusionStep& p) {
  using A = Sum<T>;
  StepGradients<T, I> a = described<T, I>(p);
  a.indptr = static_cast<const I*>(p.indptr);
  a.indices = static_cast<const I*>(p.indices);
  a.scale = static_cast<const A*>(p.scale);
  a.grad_values = static_cast<A*>(p.grad_values);
  constexpr int V = 16 / sizeof(T);
  launch(groups("value_gradients", p.edges, a.tile, p.stream),
         a.tile.vector == V ? value_gradients<T, I, V> : value_gradients<T, I, 1>, a);
}

template <typename T, int V>
void add_mixing_gradients(const DiffusionStep& p) {
  using A = Sum<T>;
  StepGradients<T, int32_t> a = described<T, int32_t>(p);
  a.grad_mixing = static_cast<A*>(p.grad_mixing);
  const int64_t tiles = tiles_of(p.features), shared = 2 * kPartNodes * 16 * V * static_cast<int64_t>(sizeof(A));
  const int parts = mixing_parts(p.nodes, p.features);
  launch(Grid{"mixing_gradients", tiles * tiles, kTileThreads, shared, 1, p.stream, parts}, mixing_gradients<T, V>, a,
         parts);
}

template <typename T>
void add_mixing_gradients(const DiffusionStep& p) {
  const int values = tile_values(p.features);
  values == 1   ? add_mixing_gradients<T, 1>(p)
  : values == 2 ? add_mixing_gradients<T, 2>(p)
                : add_mixing_gradients<T, 4>(p);
}

template <typename A>
void add_parts_to(const DiffusionStep& p, void* to) {
  const int64_t size = p.features * p.features;
  launch(Grid{"add_parts", (size + kTileThreads - 1) / kTileThreads, kTileThreads, 0, 1, p.stream}, add_parts<A>,
         static_cast<const A*>(p.grad_mixing), mixing_parts(p.nodes, p.features), size, static_cast<A*>(to));
}

}  // namespace

int mixing_parts(int64_t nodes, int64_t features) {
  const int64_t tiles = tiles_of(features), least = 4 * kPartNodes;  // nodes of a part
  return static_cast<int>(std::max<int64_t>(1, std::min((nodes + least - 1) / least, kMixingBlocks / (tiles * tiles))));
}

void diffusion_mixing_gradients(const DiffusionStep& p) {
  switch (p.state) {
    case Scalar::f32: return add_mixing_gradients<float>(p);
    case Scalar::f64: return add_mixing_gradients<double>(p);
    case Scalar::bf16: return add_mixing_gradients<bf16>(p);
    case Scalar::f16: return add_mixing_gradients<f16>(p);
  }
}

void diffusion_add_parts(const DiffusionStep& p, void* to) {
  p.state == Scalar::f64 ? add_parts_to<double>(p, to) : add_parts_to<float>(p, to);
}

void diffusion_row_gradients(const DiffusionStep& p) {
  switch (p.state) {
    case Scalar::f32: return add_row_gradients<float>(p);
    case Scalar::f64: return add_row_gradients<double>(p);
    case Scalar::bf16: return add_row_gradients<bf16>(p);
    case Scalar::f16: return add_row_gradients<f16>(p);
  }
}

void diffusion_value_gradients(const DiffusionStep& p) {
  const bool wide = p.wide_index;
  switch (p.state) {
    case Scalar::f32: return wide ? add_value_gradients<float, int64_t>(p) : add_value_gradients<float, int32_t>(p);
    case Scalar::f64: return wide ? add_value_gradients<double, int64_t>(p) : add_value_gradients<double, int32_t>(p);
    case Scalar::bf16: return wide ? add_value_gradients<bf16, int64_t>(p) : add_value_gradients<bf16, int32_t>(p);
    case Scalar::f16: return wide ? add_value_gradients<f16, int64_t>(p) : add_value_gradients<f16, int32_t>(p);
  }
}

}  // namespace contnet_fast::cuda
