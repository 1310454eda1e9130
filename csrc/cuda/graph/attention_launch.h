// Attention along the edges of a graph as plain C++ calls it; no torch types. `plan_*` says how many bytes of device
// memory, aligned to 256, a pass wants as a workspace, the other launches it on the stream. They throw
// std::runtime_error.
#pragma once

#include <cstdint>

#include "cuda/lib/types.h"

namespace contnet_fast::cuda {

// Scores by edge and head, their softmax over the edges of a target, and the sums of states that it weighs. Tensors are
// dense, of one type; sums of 16-bit numbers are float32. The graph has compressed rows by target.
struct GraphAttention {
  Scalar type;
  int32_t wide_index;                  // indices are int64, else int32
  int32_t shared;                      // states have no heads: the mean of the weights weighs them
  int64_t nodes, edges, heads, depth;  // depth 0: scores leaky_relu(a + b), else q . k / sqrt(depth)
  int64_t features;                    // 0: there are no states, and y has the mean weight of each edge
  double slope;                        // of the leaky rectifier below zero
  const void *targets, *sources,
      *states;          // [node, head, depth] or [node, head]; [node, head, feature] or [node, feature]
  const void* factors;  // [edge, head] in the type of sums, or null
  const void *indptr, *indices;
  void* y;               // as the states, or [edge]
  void *largest, *sums;  // [node, head] in the type of sums, for the backward pass
  void* workspace;
  void* stream;
};

struct GraphAttentionBackward : GraphAttention {  // without y, largest and sums
  const void *given_largest, *given_sums;         // of the forward pass
  const void *back_indptr, *back_indices, *back_places;
  const void* grad;                                 // as y
  void *grad_targets, *grad_sources, *grad_states;  // or null
};

int64_t plan_graph_attention(const GraphAttention&);
void graph_attention(const GraphAttention&);
int64_t plan_graph_attention_backward(const GraphAttentionBackward&);
void graph_attention_backward(const GraphAttentionBackward&);

}  // namespace contnet_fast::cuda
