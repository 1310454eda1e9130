// Attention along edges on numbers of float64.

#include "cuda/graph/attention.h"

namespace contnet_fast::cuda {

void graph_attention_f64(const GraphAttention& p) { run_attention<double>(p); }
void graph_attention_backward_f64(const GraphAttentionBackward& p) { run_attention_back<double>(p); }

}  // namespace contnet_fast::cuda
