// Which kernels of attention serve a type.

#include <stdexcept>

#include "cuda/graph/attention.h"

namespace contnet_fast::cuda {

int64_t plan_graph_attention(const GraphAttention& p) {
  return p.shared != 0 && p.features > 0 ? p.edges * (p.type == Scalar::f64 ? 8 : 4) : 0;
}

void graph_attention(const GraphAttention& p) {
  switch (p.type) {
    case Scalar::f32: return graph_attention_f32(p);
    case Scalar::f64: return graph_attention_f64(p);
    case Scalar::bf16: return graph_attention_bf16(p);
    case Scalar::f16: return graph_attention_f16(p);
  }
}

int64_t plan_graph_attention_backward(const GraphAttentionBackward& given) {
  GraphAttentionBackward p = given;
  p.workspace = nullptr;
  return p.type == Scalar::f64 ? AttentionPieces<double>(p).arena.taken() : AttentionPieces<float>(p).arena.taken();
}

void graph_attention_backward(const GraphAttentionBackward& p) {
  switch (p.type) {
    case Scalar::f32: return graph_attention_backward_f32(p);
    case Scalar::f64: return graph_attention_backward_f64(p);
    case Scalar::bf16: return graph_attention_backward_bf16(p);
    case Scalar::f16: return graph_attention_backward_f16(p);
  }
}

}  // namespace contnet_fast::cuda
