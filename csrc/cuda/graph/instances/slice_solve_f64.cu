// Whole solves of the diffusion field on states of float64.

#include "cuda/graph/slice_solve.h"

namespace contnet_fast::cuda {

void slice_solve_f64(const DiffusionSolve& p, const SlicePlan& plan) {
  p.wide_index ? launch_slices<double, int64_t>(p, plan) : launch_slices<double, int32_t>(p, plan);
}

}  // namespace contnet_fast::cuda
