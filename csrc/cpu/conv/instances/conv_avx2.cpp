// The convolution kernels compiled for avx2.
#include <cstddef>
#include <limits>
#include <type_traits>
#include <utility>

#include "cpu/conv/conv_kernels.h"

#ifdef CONTNET_FAST_X86
#include "cpu/isa/begin_avx2.h"
namespace contnet_fast::avx2 {
#include "cpu/vectors-inl.h"

#include "cpu/conv/conv_domain-inl.h"

#include "cpu/conv/conv_kernels-inl.h"

const ConvKernels<float>& conv_f32(int padded) { return padded == 4 ? Conv<float, 4>::table : Conv<float, 8>::table; }
const ConvKernels<double>& conv_f64(int) { return Conv<double, 4>::table; }
}  // namespace contnet_fast::avx2
#include "cpu/isa/end.h"
#endif
