// Attention along edges on numbers of float16.

#include "cuda/graph/attention.h"

namespace contnet_fast::cuda {

void graph_attention_f16(const GraphAttention& p) { run_attention<f16>(p); }
void graph_attention_backward_f16(const GraphAttentionBackward& p) { run_attention_back<f16>(p); }

}  // namespace contnet_fast::cuda
