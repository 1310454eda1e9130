// Kernels of the diffusion field of a graph, compiled for each instruction set: a slice of W columns of the state lies
// together, [nodes][W], and every kernel goes over a range of rows. No torch types.
#pragma once

#include <cstdint>

#include "runtime/limits.h"

namespace contnet_fast {

// Compressed rows [n, n], those of one degree together: place p holds the row of node row[p].
template <typename T, typename I>
struct SparseRows {
  const I *row, *indptr, *indices;
  const T* values;
};

// sum_j factors[j] * maps[j]
template <typename T>
struct MapSum {
  int count = 0;
  const T* maps[limits::MOST_STAGES + 1];
  T factors[limits::MOST_STAGES + 1];
  void add(const T* map, double factor) {
    if (factor == 0.0) return;
    maps[count] = map;
    factors[count++] = static_cast<T>(factor);
  }
};

// The rate k = scale * (A u) + (diagonal + columns) * u + source of one evaluation, and what follows it in the same pass
// over rows: next = base + earlier + own * k, and total = total_base + total_own * k. With the gradient g of the rate,
// which is rate_factor * rate_grad, g * (A u) and g * u are added to maps, of which sums over columns are the gradients of
// scale and diagonal. Maps that are null are not there, or not wanted. Of `soon` see Slice::over_places: a map that is in no
// cache yet.
template <typename T, typename I>
struct Evaluation {
  SparseRows<T, I> graph;
  const T *scale, *diagonal;  // [n]
  const T* columns;           // [W]
  const T *source, *input;
  T *product, *rate;  // A u, k
  const T* base;
  MapSum<T> earlier;
  T own;
  T* next;
  const T* total_base;
  T total_own;
  T* total;
  const T* rate_grad;
  T rate_factor;
  T *scale_products, *diagonal_products;
  const T* soon;
};

// Where the gradient of a rate goes: into a map, and times a factor with the product and the input of its evaluation to the
// maps of products as above. Null where it is not wanted.
template <typename T>
struct RateAdjoint {
  T* rate_grad;
  T factor;
  const T *product, *input;
  T *scale_products, *diagonal_products;
};

// The gradient of an evaluation's input, factor * A^T (scale * rate_grad) + (diagonal + columns) * g with g = rate_factor *
// rate_grad, and what follows it in the same pass over rows: next = base_factor * base + later + own * (that gradient), and
// total = total_base + (that gradient). The scale is in the values of the transpose. Without rate_grad there is no
// evaluation yet. The source's gradient has g added, and next too if that is the gradient of a rate.
template <typename T, typename I>
struct Adjoint {
  SparseRows<T, I> transpose;
  T factor, rate_factor;
  const T *rate_grad, *diagonal, *columns;
  T* source_grad;
  T* input_grad;
  const T* base;
  T base_factor;
  MapSum<T> later;
  T own;
  const T* total_base;
  T* total;
  T* next;            // the gradient of a state, or null
  RateAdjoint<T> to;  // or of a rate, `to.rate_grad`
  const T* soon;
};

// grad[e] += sum over columns of scale * g at the target of e, times the input at its source, with g = rate_factor *
// rate_grad; edges in the order of the caller's rows
template <typename T, typename I>
struct EdgeGradient {
  const I *indptr, *indices;
  const T *scale, *rate_grad;
  T rate_factor;
  const T* input;
  T* grad;
};

// Places [first, last) of the rows; of `edges` the caller's rows. `columns` adds to sums [nodes] those over the columns of a
// map. `inner` adds to sums [W][W] the inner products over
// nodes of the columns of one map with those of another, in one order.
template <typename T, typename I>
struct GraphKernels {
  int width;
  void (*evaluate)(const Evaluation<T, I>&, int64_t first, int64_t last);
  void (*adjoint)(const Adjoint<T, I>&, int64_t first, int64_t last);
  void (*edges)(const EdgeGradient<T, I>&, int64_t first, int64_t last);
  void (*columns)(const T* map, int64_t nodes, T* sums);
  void (*inner)(const T* map, const T* other, int64_t nodes, T* sums);
};

#define DECLARE_GRAPH_KERNELS(isa)                    \
  namespace isa {                                     \
  template <typename T, typename I>                   \
  const GraphKernels<T, I>& graph_kernels(int width); \
  }
DECLARE_GRAPH_KERNELS(portable)
#ifdef CONTNET_FAST_X86
DECLARE_GRAPH_KERNELS(avx2)
DECLARE_GRAPH_KERNELS(avx512)
#endif
#undef DECLARE_GRAPH_KERNELS

// Columns that are integrated together, a cache line of them at most: the maps of a slice stay in the second cache
// longer, and a gathered row is one line. contnet_fast/fields/diffusion/cpu.py has the same.
inline int slice_width(int64_t columns, int value_bytes) {
  return columns <= 4 ? 4 : columns <= 8 || value_bytes == 8 ? 8 : 16;
}

}  // namespace contnet_fast
