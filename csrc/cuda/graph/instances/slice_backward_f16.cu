// Backward passes of whole solves of the diffusion field on states of float16.

#include "cuda/graph/slice_backward.h"

namespace contnet_fast::cuda {

void slice_backward_f16(const DiffusionBackward& p, const SlicePlan& plan, const SliceBackPieces& pieces) {
  p.wide_index ? launch_slices_back<f16, int64_t>(p, plan, pieces) : launch_slices_back<f16, int32_t>(p, plan, pieces);
}

}  // namespace contnet_fast::cuda
