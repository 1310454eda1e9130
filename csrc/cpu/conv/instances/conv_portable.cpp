// The convolution kernels for any CPU.
#include <cstddef>
#include <limits>
#include <type_traits>
#include <utility>

#include "cpu/conv/conv_kernels.h"

namespace contnet_fast::portable {
#include "cpu/vectors-inl.h"

#include "cpu/conv/conv_transform-inl.h"

#include "cpu/conv/conv_domain-inl.h"

#include "cpu/conv/conv_stem-inl.h"

#include "cpu/conv/conv_kernels-inl.h"

const ConvKernels<float>& conv_f32(int, int tile) {
  return tile == 4 ? Conv<float, 4, 4>::table : Conv<float, 4>::table;
}
const ConvKernels<double>& conv_f64(int) { return Conv<double, 2>::table; }
}  // namespace contnet_fast::portable
