// Gradients of the diffusion field by its coefficients and by the weights of the edges, a step at a time. Every sum has
// one order.

#include "cuda/graph/diffusion_pass.h"
#include "cuda/graph/row_tiles.h"

namespace contnet_fast::cuda {
namespace {

template <typename T, typename I>
struct StepGradients {
  using A = Sum<T>;
  RowTile tile;
  int stages, slots[kMostStages];
  bool fresh_slots[kMostStages], fresh_values;
  int64_t nodes, features, edges;
  Global<const T> u, inputs, products, rates, costate;
  A factor;
  Global<const I> indptr, indices;
  Global<const A> scale;
  Global<A> grad_scale, grad_diagonal, grad_values;

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
    p.grad_values[edge] = sum + (p.fresh_values ? A(0) : static_cast<A>(p.grad_values[edge]));
}

template <typename T, typename I>
StepGradients<T, I> described(const DiffusionStep& p) {
  using A = Sum<T>;
  StepGradients<T, I> a{};
  a.tile = row_tile(p.features, vector_of(p.features, sizeof(T)), 1);
  a.stages = p.stages;
  std::copy_n(p.slots, kMostStages, a.slots);
  std::copy_n(p.fresh_slots, kMostStages, a.fresh_slots);
  a.fresh_values = p.fresh_values;
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

}  // namespace

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
