// Solves of the diffusion field and attention with faults planted in them (tests/emulated/test_cuda_diffusion.py,
// tests/emulated/test_cuda_slices.py, tests/emulated/test_cuda_attention.py).

#include "planted.h"

#define diffusion_solve planted_solve_of_graphs
#define plan_diffusion_solve planted_plan_of_graphs
#define diffusion_backward planted_back_of_graphs
#define plan_diffusion_backward planted_plan_back_of_graphs
#define diffusion_mix planted_mix_of_graphs
#define diffusion_slices planted_slices_of_graphs
#define plan_diffusion_slices planted_plan_slices_of_graphs
#define diffusion_slices_backward planted_slices_back_of_graphs
#define plan_diffusion_slices_backward planted_plan_slices_back_of_graphs
#define diffusion_reorder planted_reorder
#define slice_solve_f32 planted_slice_solve
#define slice_backward_f32 planted_slice_backward
#define diffusion_stage_f32 planted_stage_of_graphs
#define graph_attention_f32 planted_attention
#define graph_attention_backward_f32 planted_attention_back
#include "cuda/graph/instances/attention_f32.cu"
#include "cuda/graph/diffusion.cu"
#include "cuda/graph/instances/diffusion_stage_f32.cu"
#include "cuda/graph/instances/slice_backward_f32.cu"
#include "cuda/graph/instances/slice_solve_f32.cu"
#include "cuda/graph/slices.cu"
#undef diffusion_solve
#undef diffusion_backward
#undef diffusion_slices
#undef diffusion_slices_backward

#include "emulate/entries.h"

using namespace contnet_fast::cuda;

extern "C" {

const char* planted_diffusion_solve(int fault, const DiffusionSolve* p) {
  plant(fault);
  return guarded([&] { planted_solve_of_graphs(*p); });
}

const char* planted_diffusion_backward(int fault, const DiffusionBackward* p) {
  plant(fault);
  return guarded([&] { planted_back_of_graphs(*p); });
}

const char* planted_diffusion_slices(int fault, const DiffusionSolve* p) {
  plant(fault);
  return guarded([&] { planted_slices_of_graphs(*p); });
}

const char* planted_diffusion_slices_backward(int fault, const DiffusionBackward* p) {
  plant(fault);
  return guarded([&] { planted_slices_back_of_graphs(*p); });
}

const char* planted_graph_attention(int fault, const GraphAttention* p) {
  plant(fault);
  return guarded([&] { planted_attention(*p); });
}

const char* planted_graph_attention_backward(int fault, const GraphAttentionBackward* p) {
  plant(fault);
  return guarded([&] { planted_attention_back(*p); });
}

}  // extern "C"
