// Attention along edges on numbers of bfloat16.

#include "cuda/graph/attention.h"

namespace contnet_fast::cuda {

void graph_attention_bf16(const GraphAttention& p) { run_attention<bf16>(p); }
void graph_attention_backward_bf16(const GraphAttentionBackward& p) { run_attention_back<bf16>(p); }

}  // namespace contnet_fast::cuda
