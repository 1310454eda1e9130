// Whole solves of the diffusion field on states of float16.

#include "cuda/graph/slice_solve.h"

namespace contnet_fast::cuda {

void slice_solve_f16(const DiffusionSolve& p, const SlicePlan& plan) {
  p.wide_index ? launch_slices<f16, int64_t>(p, plan) : launch_slices<f16, int32_t>(p, plan);
}

}  // namespace contnet_fast::cuda
