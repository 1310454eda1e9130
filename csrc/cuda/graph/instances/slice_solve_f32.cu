// Whole solves of the diffusion field on states of float32.

#include "cuda/graph/slice_solve.h"

namespace contnet_fast::cuda {

void slice_solve_f32(const DiffusionSolve& p, const SlicePlan& plan) {
  p.wide_index ? launch_slices<float, int64_t>(p, plan) : launch_slices<float, int32_t>(p, plan);
}

}  // namespace contnet_fast::cuda
