// The launchers of graphs with C linkage, for tests: each returns what went wrong, or null.

#include "cuda/graph/attention_launch.h"
#include "cuda/graph/graph_launch.h"
#include "cuda/graph/slice_plan.h"
#include "emulate/entries.h"

using namespace contnet_fast::cuda;

extern "C" {

const char* emulated_diffusion_solve(const DiffusionSolve* p) {
  return guarded([&] { diffusion_solve(*p); });
}
const char* emulated_diffusion_slices(const DiffusionSolve* p) {
  return guarded([&] { diffusion_slices(*p); });
}
const char* emulated_diffusion_slices_backward(const DiffusionBackward* p) {
  return guarded([&] { diffusion_slices_backward(*p); });
}
const char* emulated_plan_slices(int64_t nodes, int64_t features, int64_t edges, int64_t bytes, int64_t limit,
                                 int64_t processors, SlicePlan* plan) {
  return guarded([&] {
    *plan = plan_slices(nodes, features, edges, bytes, limit, processors);
    const std::string refusal = slice_refusal(nodes, bytes, limit);
    if (!refusal.empty()) throw std::runtime_error(refusal);
  });
}
const char* emulated_diffusion_backward(const DiffusionBackward* p) {
  return guarded([&] { diffusion_backward(*p); });
}
const char* emulated_diffusion_mix(const DiffusionMix* p) {
  return guarded([&] { diffusion_mix(*p); });
}

const char* emulated_graph_attention(const GraphAttention* p) {
  return guarded([&] { graph_attention(*p); });
}
const char* emulated_graph_attention_backward(const GraphAttentionBackward* p) {
  return guarded([&] { graph_attention_backward(*p); });
}

}  // extern "C"
