// Kernels of attention along the edges of a graph, compiled for each instruction set. No torch types.
#pragma once

#include <cstdint>

namespace contnet_fast {

// Rows [first, last) of compressed rows [nodes, nodes]: what a kernel visits in one call. Numbers of edges and heads,
// [edges][heads], are of the edges of these rows alone.
template <typename I>
struct EdgeBlock {
  const I *indptr, *indices;
  int64_t first, last;
  int64_t begin() const { return indptr[first]; }
  int64_t count() const { return int64_t(indptr[last]) - indptr[first]; }
};

// Maps of nodes are [nodes][heads][width], width a multiple of `lanes`; scores and sums of nodes [nodes][heads]. Numbers
// of edges may be read and written up to `kSlack` bytes beyond their end.
template <typename T, typename I>
struct AttentionKernels {
  int lanes;
  // scores = factor * (the row's map . the column's), head by head
  void (*dots)(const EdgeBlock<I>&, int64_t heads, int64_t width, const T* rows, const T* columns, T factor, T* scores);
  // the leaky rectifier of row + column, and its slope there unless `slopes` is null
  void (*additive)(const EdgeBlock<I>&, int64_t heads, const T* rows, const T* columns, T slope, T* scores, T* slopes);
  // scores become weights that sum to one for each row and head; the largest scores, and the sums of exponentials
  void (*softmax)(const EdgeBlock<I>&, int64_t heads, T* scores, T* largest, T* sums);
  // the same weights again
  void (*weights)(const EdgeBlock<I>&, int64_t heads, T* scores, const T* largest, const T* sums);
  // gradients of weights become those of scores
  void (*gradient)(const EdgeBlock<I>&, int64_t heads, const T* weights, T* grad);
  // out at each row = factor * sum over its edges of weight * map at the column
  void (*sums)(const EdgeBlock<I>&, int64_t heads, int64_t width, const T* weights, const T* map, T factor, T* out);
  // out at each row = the sum over its edges
  void (*totals)(const EdgeBlock<I>&, int64_t heads, const T* values, T* out);
};

constexpr int64_t kSlack = 64;

#define DECLARE_ATTENTION_KERNELS(isa)                            \
  namespace isa {                                                 \
  template <typename T, typename I>                               \
  const AttentionKernels<T, I>& attention_kernels(int64_t width); \
  }
DECLARE_ATTENTION_KERNELS(portable)
#ifdef CONTNET_FAST_X86
DECLARE_ATTENTION_KERNELS(avx2)
DECLARE_ATTENTION_KERNELS(avx512)
#endif
#undef DECLARE_ATTENTION_KERNELS

}  // namespace contnet_fast
