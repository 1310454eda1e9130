// Sizes of maps and what divides the workspace of a pass.
#pragma once

#include "cuda/conv/conv_launch.h"
#include "cuda/lib/arena.h"

namespace contnet_fast::cuda {

inline int64_t width(Scalar type) { return type == Scalar::f32 ? 4 : 2; }
inline int64_t pixels_of(const ConvProblem& p) { return int64_t{1} * p.images * p.height * p.width; }

}  // namespace contnet_fast::cuda
