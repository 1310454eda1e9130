// Whole solves of the diffusion field on states of bfloat16.

#include "cuda/graph/slice_solve.h"

namespace contnet_fast::cuda {

void slice_solve_bf16(const DiffusionSolve& p, const SlicePlan& plan) {
  p.wide_index ? launch_slices<bf16, int64_t>(p, plan) : launch_slices<bf16, int32_t>(p, plan);
}

}  // namespace contnet_fast::cuda
