// The convolution kernels for any CPU.
#include <cstddef>
#include <limits>
#include <type_traits>
#include <utility>

#include "../include/conv.h"

namespace contnet_fast::portable {
#include "conv_vectors.h"

#include "conv_domain.h"

#include "conv_kernels.h"

const ConvKernels<float>& conv_f32(int) { return Conv<float, 4>::table; }
const ConvKernels<double>& conv_f64(int) { return Conv<double, 2>::table; }
}  // namespace contnet_fast::portable
