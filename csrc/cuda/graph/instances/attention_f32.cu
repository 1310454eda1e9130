// Attention along edges on numbers of float32.

#include "cuda/graph/attention.h"

namespace contnet_fast::cuda {

void graph_attention_f32(const GraphAttention& p) { run_attention<float>(p); }
void graph_attention_backward_f32(const GraphAttentionBackward& p) { run_attention_back<float>(p); }

}  // namespace contnet_fast::cuda
