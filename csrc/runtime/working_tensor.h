// Tensors of working memory.
#pragma once

#include <ATen/ATen.h>

namespace contnet_fast {

// Not initialised; the profiler is told of it as of any other tensor.
at::Tensor working_tensor(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType type);

}  // namespace contnet_fast
